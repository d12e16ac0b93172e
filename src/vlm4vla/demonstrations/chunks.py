"""Episode steps as training samples: observation, action chunk, valid mask; and which samples a step sees.

The order is a pure function: the batch of a step follows from (seed, step, batch size) alone, so a run resumes
exactly from one integer and a global batch is the same whatever the number of processes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64

from vlm4vla.core.actions import ACTION_SIZE
from vlm4vla.core.errors import DataError
from vlm4vla.core.interfaces import DemonstrationSource
from vlm4vla.core.types import Observation


@dataclass(frozen=True, slots=True)
class ChunkBatch:
    """What one forward pass learns from, in the source's own action convention."""

    observations: list[Observation]
    actions: Float32[np.ndarray, "batch horizon 7"]
    """Not normalised. Past the episode's end the last action is repeated."""
    valid: Bool[np.ndarray, "batch horizon"]
    """False past the episode's end."""


class ChunkDataset:
    """Every step of the given episodes is one sample: what is seen at t, and the actions of t .. t + horizon - 1."""

    def __init__(self, source: DemonstrationSource, episodes: Sequence[int], horizon: int) -> None:
        """`episodes` are indices into `source`; reads every episode's length, no frames."""
        if not episodes:
            raise DataError(
                f"{source.name}: no episodes to make samples from; raise `episodes` in the recipe"
            )
        self.source, self.horizon = source, horizon
        self.episodes: Int64[np.ndarray, " episodes"] = np.asarray(episodes, dtype=np.int64)
        lengths = np.array([len(source[int(episode)].actions) for episode in episodes], dtype=np.int64)
        self._ends: Int64[np.ndarray, " episodes"] = np.cumsum(lengths)
        self._starts: Int64[np.ndarray, " episodes"] = self._ends - lengths

    def __len__(self) -> int:
        """Number of samples: the steps of all episodes."""
        return int(self._ends[-1])

    def fetch(self, indices: Sequence[int] | Int64[np.ndarray, " batch"]) -> ChunkBatch:
        """Decode the samples with these indices, in this order."""
        indices = np.asarray(indices, dtype=np.int64)
        owners = self._owners(indices)
        observations = []
        actions = np.empty((len(indices), self.horizon, ACTION_SIZE), dtype=np.float32)
        steps = indices - self._starts[owners]
        for row, (episode, step) in enumerate(
            zip(self.episodes[owners].tolist(), steps.tolist(), strict=True)
        ):
            demonstration = self.source[episode]
            observations.append(Observation(demonstration.images[step], demonstration.instruction))
            chunk = demonstration.actions[step : step + self.horizon]
            actions[row, : len(chunk)] = chunk
            actions[row, len(chunk) :] = chunk[-1]
        valid = np.arange(self.horizon) < (self._ends[owners] - indices)[:, None]
        return ChunkBatch(observations, actions, valid)

    def valid_steps(self, indices: Sequence[int] | Int64[np.ndarray, " batch"]) -> int:
        """How many actions of these samples' chunks are valid, without decoding anything."""
        indices = np.asarray(indices, dtype=np.int64)
        return int(np.minimum(self._ends[self._owners(indices)] - indices, self.horizon).sum())

    def all_actions(self) -> Float32[np.ndarray, "steps 7"]:
        """Every action once, in episode order: what normalisation is fitted to."""
        return np.concatenate([self.source[episode].actions for episode in self.episodes.tolist()])

    def all_chunks(self, most: int) -> Float32[np.ndarray, "count horizon 7"]:
        """The samples' chunks without their frames, in order; of more than `most` every second, third, ..."""
        stride = -(-len(self) // most)
        chosen = []
        for episode, start in zip(self.episodes.tolist(), self._starts.tolist(), strict=True):
            actions = self.source[episode].actions
            filled = np.concatenate([actions, np.repeat(actions[-1:], self.horizon - 1, axis=0)])
            windows = np.lib.stride_tricks.sliding_window_view(filled, self.horizon, axis=0)
            chosen.append(windows[-start % stride :: stride].swapaxes(1, 2))
        return np.concatenate(chosen)

    def _owners(self, indices: Int64[np.ndarray, " batch"]) -> Int64[np.ndarray, " batch"]:
        return np.searchsorted(self._ends, indices, side="right")


def split_episodes(ids: Sequence[str], *, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the episodes to train on and of those held out; `held_out` is a share in [0, 1).

    An episode's side depends on (seed, id) alone, so it stays when others come or go. Where that would leave a side
    empty (few episodes), the episode nearest to the border changes over; a share of 0 holds nothing out.
    """
    draws = np.array([_uniform(seed, name) for name in ids])
    aside = draws < held_out
    if held_out > 0 and len(ids) > 1:
        if not aside.any():
            aside[draws.argmin()] = True
        elif aside.all():
            aside[draws.argmax()] = False
    return np.flatnonzero(~aside).tolist(), np.flatnonzero(aside).tolist()


@functools.lru_cache(maxsize=4)
def sample_order(seed: int, epoch: int, count: int) -> Int64[np.ndarray, " count"]:
    """The order in which `count` samples are seen in an epoch, each once.

    Sorts the raw output of PCG64, which numpy keeps the same across versions (unlike `permutation`).
    """
    order = np.argsort(np.random.PCG64([seed, epoch]).random_raw(count), kind="stable")
    order.setflags(write=False)
    return order


def batch_indices(
    *, seed: int, step: int, batch_size: int, count: int, rank: int = 0, world: int = 1
) -> Int64[np.ndarray, " share"]:
    """Samples of one process in a training step (counted from 0); ranks together make the global batch.

    Batches run on across the borders of epochs; `batch_size` is global and must be divisible by `world`.
    """
    share = batch_size // world
    positions = step * batch_size + rank * share + np.arange(share, dtype=np.int64)
    epochs, within = np.divmod(positions, count)
    indices = np.empty(share, dtype=np.int64)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        indices[here] = sample_order(seed, epoch, count)[within[here]]
    return indices


def _uniform(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
