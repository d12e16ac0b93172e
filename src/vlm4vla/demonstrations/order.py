"""Which samples a training step sees: a pure function of (seed, step, batch size).

A run resumes exactly from one integer, and a global batch is the same whatever the number of processes and workers.
The same holds for mixtures: how often each source was drawn before a position follows from the position.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from vlm4vla.core.errors import RecipeError

_SORTED_UP_TO = 1 << 24
"""Larger orders are computed place by place and take no memory; smaller ones are sorted once and kept."""
_BLOCK = 1000
"""Positions within which a mixture keeps its weights exactly."""
_ROUNDS = 6


class Order:
    """The endless order of samples of one or several sources."""

    def __init__(self, seed: int, counts: Sequence[int], weights: Sequence[float] = ()) -> None:
        """`counts`: samples of every source, which stand behind one another in the data set; `weights`: shares of the
        positions each source gets, to a thousandth (none: all sources are one, every sample once an epoch).

        Raises: RecipeError for weights that are no shares or of another number than the sources.
        """
        self.seed, self.weighted = seed, bool(weights)
        self.counts: Int64[np.ndarray, " sources"] = np.asarray(
            counts if weights else [sum(counts)], dtype=np.int64
        )
        if not weights:
            self._shares: Int64[np.ndarray, " sources"] = np.array([_BLOCK])
        elif len(weights) != len(counts) or not all(0 < weight < float("inf") for weight in weights):
            raise RecipeError(
                f"demonstrations.weights {tuple(weights)}: give one positive number for each of {len(counts)} sources"
            )
        else:
            self._shares = _whole(np.asarray(weights, dtype=np.float64) / sum(weights))

    def batch(
        self, *, step: int, batch_size: int, rank: int = 0, world: int = 1
    ) -> tuple[Int64[np.ndarray, " share"], Int64[np.ndarray, " share"]]:
        """Epochs and indices of one process's samples in a step (counted from 0); ranks together make the global batch.

        Batches run on across the borders of epochs; `batch_size` is global and must be divisible by `world`. An epoch
        is counted for each source of a mixture by itself.
        """
        share = batch_size // world
        positions = step * batch_size + rank * share + np.arange(share, dtype=np.int64)
        sources, places = self._sources(positions)
        epochs, within = np.divmod(places, self.counts[sources])
        indices = np.empty(share, dtype=np.int64)
        starts = np.cumsum(self.counts) - self.counts
        for source in np.unique(sources).tolist():
            for epoch in np.unique(epochs[sources == source]).tolist():
                here = (sources == source) & (epochs == epoch)
                seed = (self.seed, source) if self.weighted else (self.seed,)
                indices[here] = starts[source] + shuffled(
                    (*seed, epoch), within[here], int(self.counts[source])
                )
        return epochs, indices

    def _sources(
        self, positions: Int64[np.ndarray, " share"]
    ) -> tuple[Int64[np.ndarray, " share"], Int64[np.ndarray, " share"]]:
        """Of every position its source and how many earlier positions were that source's."""
        if not self.weighted:
            return np.zeros_like(positions), positions
        blocks, within = np.divmod(positions, _BLOCK)
        sources, earlier = np.empty_like(positions), np.empty_like(positions)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            dealt = _dealt(self.seed, block, tuple(self._shares.tolist()))
            sources[here] = dealt[0][within[here]]
            earlier[here] = block * self._shares[sources[here]] + dealt[1][within[here]]
        return sources, earlier


def shuffled(
    seeds: tuple[int, ...], places: Int64[np.ndarray, " batch"], count: int
) -> Int64[np.ndarray, " batch"]:
    """Which of `count` samples stand at these places of a random order; every sample stands at one place."""
    return _sorted_order(seeds, count)[places] if count <= _SORTED_UP_TO else _scattered(seeds, places, count)


@functools.lru_cache(maxsize=8)
def _sorted_order(seeds: tuple[int, ...], count: int) -> Int64[np.ndarray, " count"]:
    """Sorts the raw output of PCG64, which numpy keeps the same across versions (unlike `permutation`)."""
    order = np.argsort(np.random.PCG64(list(seeds)).random_raw(count), kind="stable")
    order.setflags(write=False)
    return order


def _scattered(
    seeds: tuple[int, ...], places: Int64[np.ndarray, " batch"], count: int
) -> Int64[np.ndarray, " batch"]:
    """A Feistel network on the smallest even number of bits that holds `count`; what falls outside goes round again."""
    half = np.uint64((int(count - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.PCG64(list(seeds)).random_raw(_ROUNDS)
    result = places.astype(np.uint64)
    outside = np.ones(len(places), dtype=bool)
    while outside.any():
        left, right = result[outside] >> half, result[outside] & mask
        for key in keys:
            left, right = right, left ^ (mixed(right ^ key) & mask)
        result[outside] = (left << half) | right
        outside = result >= np.uint64(count)
    return result.astype(np.int64)


def mixed(bits: np.ndarray) -> np.ndarray:
    """SplitMix64's step on uint64: every bit of the result depends on every bit of the argument."""
    with np.errstate(over="ignore"):
        bits = np.asarray(bits, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))


@functools.lru_cache(maxsize=64)
def _dealt(
    seed: int, block: int, shares: tuple[int, ...]
) -> tuple[Int64[np.ndarray, " block"], Int64[np.ndarray, " block"]]:
    """Sources of one block's positions, and how many of the same source stand before each within the block."""
    deck = np.repeat(np.arange(len(shares)), shares)
    sources = deck[_sorted_order((seed, 1 << 32, block), _BLOCK)]
    earlier = np.empty_like(sources)
    for source, share in enumerate(shares):
        earlier[sources == source] = np.arange(share)
    return sources, earlier


def _whole(shares: np.ndarray) -> Int64[np.ndarray, " sources"]:
    """Thousandths that add up, at least one each; the largest remainders are rounded up."""
    exact = np.maximum(shares * _BLOCK, 1)
    exact *= _BLOCK / exact.sum()
    whole = np.maximum(np.floor(exact).astype(np.int64), 1)
    for source in np.argsort(-(exact - whole), kind="stable")[: _BLOCK - int(whole.sum())]:
        whole[source] += 1
    if whole.sum() != _BLOCK:
        whole[whole.argmax()] -= whole.sum() - _BLOCK
    return whole
