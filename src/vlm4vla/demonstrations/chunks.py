"""Episode steps as training samples: observation, action chunk, valid mask."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Bool, Float32, Int64

from vlm4vla.core.actions import ACTION_SIZE
from vlm4vla.core.errors import DataError
from vlm4vla.core.interfaces import DemonstrationSource
from vlm4vla.core.types import Observation
from vlm4vla.demonstrations.columns import ColumnSource
from vlm4vla.demonstrations.sources import JoinedSource


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
        lengths = _lengths(source, self.episodes)
        self._ends: Int64[np.ndarray, " episodes"] = np.cumsum(lengths)
        self._starts: Int64[np.ndarray, " episodes"] = self._ends - lengths

        self.weights: tuple[float, ...] = getattr(source, "weights", ())
        """How often each part of a mixture is drawn from; empty: every sample once an epoch."""
        self.counts: tuple[int, ...] = (len(self),)
        """Samples of every part."""
        if self.weights:
            parts = cast(JoinedSource, source).part_of(self.episodes)
            counts = np.bincount(parts, weights=lengths, minlength=len(self.weights)).astype(np.int64)
            if not counts.all():
                raise DataError(f"{source.name}: part {int(counts.argmin())} of the mixture has no samples")
            self.counts = tuple(counts.tolist())

    def __len__(self) -> int:
        """Number of samples: the steps of all episodes."""
        return int(self._ends[-1])

    def fetch(self, indices: Sequence[int] | Int64[np.ndarray, " batch"]) -> ChunkBatch:
        """Decode the samples with these indices, in this order."""
        indices = np.asarray(indices, dtype=np.int64)
        owners = self.owners(indices)
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
        return int(np.minimum(self._ends[self.owners(indices)] - indices, self.horizon).sum())

    def all_actions(self) -> Float32[np.ndarray, "steps 7"]:
        """Every action once, in episode order: what normalisation is fitted to."""
        if isinstance(self.source, ColumnSource):
            chosen = np.zeros(len(self.source), dtype=bool)
            chosen[self.episodes] = True
            if np.all(np.diff(self.episodes) > 0):
                return self.source.actions[np.repeat(chosen, self.source.lengths)]
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

    def owners(self, indices: Int64[np.ndarray, " batch"]) -> Int64[np.ndarray, " batch"]:
        """Of these samples: which of `episodes` each is a step of."""
        return np.searchsorted(self._ends, indices, side="right")


def _lengths(
    source: DemonstrationSource, episodes: Int64[np.ndarray, " episodes"]
) -> Int64[np.ndarray, " episodes"]:
    if isinstance(source, ColumnSource | JoinedSource):
        return source.lengths[episodes]
    return np.array([len(source[index].actions) for index in episodes.tolist()], dtype=np.int64)


def ids_of(source: DemonstrationSource) -> list[str]:
    """Of all episodes, in order."""
    if isinstance(source, ColumnSource | JoinedSource):
        return source.ids()
    return [source[index].id for index in range(len(source))]


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


def _uniform(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
