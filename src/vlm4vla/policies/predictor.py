"""Observations in, denormalised action chunks out.

A chunk depends on its own observation alone, to the last bit: floating-point results differ with the shape of a batch,
so every forward pass has the same number of rows and, per row, a text length that follows from its own instruction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32

from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.types import Observation
from vlm4vla.policies.vla import VLA

LENGTH_STEP = 16
"""Rows are padded to multiples of this many tokens."""


class Predictor:
    """A VLA as a `ChunkPredictor`."""

    def __init__(self, vla: VLA, batch_size: int = 16) -> None:
        """`batch_size` rows are computed in every forward pass, however few are asked for."""
        self._vla = vla.eval()
        self._batch_size = batch_size

    @property
    def action_spec(self) -> ActionSpec:
        """The convention of the demonstrations the policy was trained on."""
        return self._vla.action_spec

    @property
    def horizon(self) -> int:
        """Actions per chunk."""
        return self._vla.horizon

    @property
    def draws_noise(self) -> bool:
        """Whether it acts differently in another repeat of an episode."""
        return self._vla.head.draws_noise

    @torch.inference_mode()
    def predict_chunk(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "batch horizon 7"]:
        """One chunk per observation, in the data's unit."""
        chunks = np.empty((len(observations), self.horizon, 7), dtype=np.float32)
        for length, rows in self._by_length(observations).items():
            for start in range(0, len(rows), self._batch_size):
                batch = rows[start : start + self._batch_size]
                filled = batch + batch[:1] * (self._batch_size - len(batch))
                inputs = self._vla.encode([observations[row] for row in filled], length=length)
                repeats = [observations[row].repeat for row in filled]
                predicted = self._vla.predict(inputs.to(self._vla.backbone.query.device), repeats)
                chunks[batch] = predicted[: len(batch)].float().cpu().numpy()
        return self._vla.normalization.denormalize(chunks)

    def _by_length(self, observations: Sequence[Observation]) -> dict[int, list[int]]:
        """Indices of observations by padded length."""
        groups: dict[int, list[int]] = {}
        for row, observation in enumerate(observations):
            tokens = len(self._vla.backbone.encoder.tokens(observation.instruction))
            length = -(-tokens // LENGTH_STEP) * LENGTH_STEP
            groups.setdefault(length, []).append(row)
        return groups
