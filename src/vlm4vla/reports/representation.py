"""How far representations moved, and what can be read off them: linear CKA, and ridge probes split by episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the ridge, in shares of the features' mean variance."""


def linear_cka(first: Float[np.ndarray, "rows one"], second: Float[np.ndarray, "rows two"]) -> float:
    """Similarity in [0, 1] of two representations of the same rows (Kornblith et al. 2019, eq. 3 and 5).

    Exactly 1 for identical arrays; unchanged by rotation and isotropic scaling of either. Its bias is upwards where
    rows are not many more than dimensions. Raises: ValueError for fewer than two rows, other numbers of rows, values
    that are not finite, or a side that is the same in every row.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"{len(first)} and {len(second)} rows: give the same rows twice, at least two")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("features that are not finite have no similarity; look at the checkpoint's training")
    sides = [side - side.mean(axis=0) for side in (first.astype(np.float64), second.astype(np.float64))]
    if not all(side.any() for side in sides):
        raise ValueError(
            "features that are the same in every row have no similarity; give other observations"
        )
    if np.array_equal(first, second):
        return 1.0
    x, y = (side / np.linalg.norm(side) for side in sides)
    return float(np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a linear probe reads off features of episodes that it was not fitted on."""

    r_squared: float
    """Share of the held-out variance explained, over all targets together; 0: no better than the mean of the rest."""
    error: float
    """Root mean square distance between truth and reading, in the targets' unit."""
    rows: int
    episodes: int


def probe(
    features: Float[np.ndarray, "rows hidden"],
    targets: Float[np.ndarray, "rows targets"],
    episodes: Sequence[str],
    *,
    folds: int = 5,
    seed: int = 0,
) -> Probe:
    """A ridge regression in closed form, cross-validated: all rows of an episode are in the same fold.

    The penalty of each fold is chosen inside its training episodes, by another split by episode. Raises: ValueError
    for fewer than four episodes or folds that are fewer than two.
    """
    names = sorted(set(episodes))
    if len(features) != len(targets) or len(features) != len(episodes):
        raise ValueError(
            f"{len(features)} features, {len(targets)} targets, {len(episodes)} episodes: one each a row"
        )
    if len(names) < 4 or folds < 2:
        raise ValueError(
            f"{len(names)} episodes in {folds} folds: at least four episodes and two folds are needed"
        )
    x, y = features.astype(np.float64), targets.astype(np.float64)
    folds = min(folds, len(names))
    turn = {
        names[place]: number
        for number, place in enumerate(np.random.default_rng(seed).permutation(len(names)))
    }
    of_row = np.array([turn[name] for name in episodes])
    read, baseline = np.empty_like(y), np.empty_like(y)
    for fold in range(folds):
        held = of_row % folds == fold
        inner = ~held & ((of_row // folds) % 2 == 0)
        rest = ~held & ~inner
        if not inner.any() or not rest.any():
            others = np.unique(of_row[~held])
            inner = ~held & np.isin(of_row, others[::2])
            rest = ~held & ~inner
        losses = [np.square(_ridge(x, y, rest, inner, penalty) - y[inner]).sum() for penalty in PENALTIES]
        read[held] = _ridge(x, y, ~held, held, PENALTIES[int(np.argmin(losses))])
        baseline[held] = y[~held].mean(axis=0)
    missed = float(np.square(read - y).sum())
    spread = float(np.square(baseline - y).sum())
    return Probe(
        r_squared=1 - missed / spread if spread else 0.0,
        error=(missed / len(y)) ** 0.5,
        rows=len(y),
        episodes=len(names),
    )


def _ridge(
    x: Float[np.ndarray, "rows hidden"],
    y: Float[np.ndarray, "rows targets"],
    fitted: Bool[np.ndarray, " rows"],
    asked: Bool[np.ndarray, " rows"],
    penalty: float,
) -> Float[np.ndarray, "asked targets"]:
    middle, mean = x[fitted].mean(axis=0), y[fitted].mean(axis=0)
    centred = x[fitted] - middle
    gram = centred.T @ centred
    weight = penalty * max(float(np.trace(gram)) / len(gram), np.finfo(np.float64).tiny)
    solved = np.linalg.solve(gram + weight * np.eye(len(gram)), centred.T @ (y[fitted] - mean))
    return (x[asked] - middle) @ solved + mean
