"""How far representations moved, and what can be read off them: linear CKA, and ridge probes split by scene.

Their intervals delete a twentieth of the scenes in turn (jackknife), with Student's t. Here is also the record of a
whole measurement, which reports read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int64

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the ridge, in shares of the features' mean variance."""
PARTS_DELETED = 20
SHUFFLES = 5
LOOK = "D"
SCENES = 100


Reference = Literal["the pretrained VLM", "the tuned VLM", "its own initialisation"]
"""What a policy was before it was trained; its query had learned nothing in any case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A value and its 95 % interval over scenes."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a linear probe reads off a layer, in scenes that it was not fitted on."""

    target: str
    error: Measured
    """Root mean square distance between truth and reading, in metres."""
    r_squared: Measured
    """Share of the held-out variance explained, over all directions together; 0: no better than the others' mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One place of a policy's VLM, before and after training."""

    place: str
    """`vision 1`, ..., `language 1 image`, `language 1 query`, ..."""
    similarity: Measured
    """Linear CKA between the reference and the trained policy, in [0, 1]; 1: not moved."""
    chance: float
    """The same with scenes shuffled on one side: what unrelated features would give."""
    before: tuple[Reading, ...]
    """Of the reference; none where there is no ground truth."""
    after: tuple[Reading, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesRecipe:
    """Which held-out frames a measurement looks at, and of which policy."""

    look: str = LOOK
    """Of Tabletop's scenes; empty: frames of the demonstrations that were held out."""
    scenes: int = SCENES
    frames: int = 3
    """Of each scene."""
    seed: int = 30_000
    checkpoint: str = ""
    """Its name and what it holds."""
    version: int = 1
    """Counts up with every change of how it is measured."""

    @property
    def step(self) -> int:
        """After which the checkpoint was written; 0 where its name does not say."""
        number = self.checkpoint.partition(" ")[0].removeprefix("step-")
        return int(number) if number.isdecimal() else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """A measurement of one run in one look: `why/FINGERPRINT.json` in its folder."""

    recipe: FramesRecipe
    reference: Reference
    scenes: int
    layers: tuple[Layer, ...]


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


def compact(features: Float[np.ndarray, "rows numbers"]) -> Float[np.ndarray, "rows fewer"]:
    """The same rows in at most as many dimensions as there are rows, turned: every distance and product stays.

    CKA and ridge regressions, which see nothing else, come out the same and cost less.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    if features.shape[1] <= len(features):
        return centred
    values, vectors = np.linalg.eigh(centred @ centred.T)
    kept = values > 1e-12 * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def similarity(
    first: Float[np.ndarray, "rows one"], second: Float[np.ndarray, "rows two"], scenes: Sequence[str]
) -> tuple[Measured, float]:
    """`linear_cka` with its interval over scenes, and what it would be by chance. Raises: as `linear_cka`.

    By chance: the second's rows are given to other scenes, a frame for a frame, and the mean of several such shuffles
    is taken. Scenes must be equally long.
    """
    value = linear_cka(first, second)
    found = jackknife(lambda rows: linear_cka(first[rows], second[rows]), scenes, value, most=1.0)
    names, place = np.unique(np.asarray(scenes), return_inverse=True)
    of_scene = np.argsort(place, kind="stable").reshape(len(names), -1)
    rng = np.random.default_rng(0)
    moved = np.empty(len(scenes), dtype=np.int64)
    chance = []
    for _ in range(SHUFFLES):
        moved[of_scene.ravel()] = of_scene[rng.permutation(len(names))].ravel()
        chance.append(linear_cka(first, second[moved]))
    return found, float(np.mean(chance))


def jackknife(
    statistic: Callable[[Int64[np.ndarray, " some"]], float],
    scenes: Sequence[str],
    value: float,
    *,
    least: float = 0.0,
    most: float = math.inf,
) -> Measured:
    """`value` with the interval that deleting a twentieth of the scenes in turn gives, cut to [least, most].

    `statistic` is called with the rows that stay. Delete-a-group jackknife (Shao and Tu 1995, 2.3), Student's t.
    """
    from scipy import stats

    names, place = np.unique(np.asarray(scenes), return_inverse=True)
    place = np.random.default_rng(0).permutation(len(names))[place]
    parts = min(PARTS_DELETED, len(names))
    without = [statistic(np.flatnonzero(place % parts != part)) for part in range(parts)]
    error = math.sqrt((parts - 1) / parts * float(np.square(np.array(without) - np.mean(without)).sum()))
    half = float(stats.t.isf(0.025, parts - 1)) * error
    return Measured(value=value, low=max(value - half, least), high=min(value + half, most))


def probe(
    features: Float[np.ndarray, "rows hidden"],
    targets: Float[np.ndarray, "rows targets"],
    scenes: Sequence[str],
    *,
    target: str = "",
    folds: int = 5,
    seed: int = 0,
) -> Reading:
    """A ridge regression in closed form, cross-validated: all rows of a scene are in the same fold.

    The penalty of each fold is chosen inside its training scenes, by another split by scene. Raises: ValueError for
    fewer than four scenes or folds that are fewer than two.
    """
    names = sorted(set(scenes))
    if len(features) != len(targets) or len(features) != len(scenes):
        raise ValueError(
            f"{len(features)} features, {len(targets)} targets, {len(scenes)} scenes: one each a row"
        )
    if len(names) < 4 or folds < 2:
        raise ValueError(
            f"{len(names)} scenes in {folds} folds: at least four scenes and two folds are needed"
        )
    x, y = features.astype(np.float64), targets.astype(np.float64)
    folds = min(folds, len(names))
    turn = {
        names[place]: number
        for number, place in enumerate(np.random.default_rng(seed).permutation(len(names)))
    }
    of_row = np.array([turn[name] for name in scenes])
    read, baseline = np.empty_like(y), np.empty_like(y)
    for fold in range(folds):
        held = of_row % folds == fold
        inner = ~held & ((of_row // folds) % 2 == 0)
        rest = ~held & ~inner
        if not inner.any() or not rest.any():
            others = np.unique(of_row[~held])
            inner = ~held & np.isin(of_row, others[::2])
            rest = ~held & ~inner
        losses = [np.square(tried - y[inner]).sum() for tried in _ridges(x, y, rest, inner)]
        read[held] = _ridges(x, y, ~held, held)[int(np.argmin(losses))]
        baseline[held] = y[~held].mean(axis=0)
    missed, spread = np.square(read - y).sum(axis=1), np.square(baseline - y).sum(axis=1)

    def error(rows: Int64[np.ndarray, " some"]) -> float:
        return float(missed[rows].mean()) ** 0.5

    def explained(rows: Int64[np.ndarray, " some"]) -> float:
        whole = float(spread[rows].sum())
        return 1 - float(missed[rows].sum()) / whole if whole else 0.0

    everything = np.arange(len(y))
    return Reading(
        target=target,
        error=jackknife(error, scenes, error(everything)),
        r_squared=jackknife(explained, scenes, explained(everything), least=-math.inf, most=1.0),
    )


def _ridges(
    x: Float[np.ndarray, "rows hidden"],
    y: Float[np.ndarray, "rows targets"],
    fitted: Bool[np.ndarray, " rows"],
    asked: Bool[np.ndarray, " rows"],
) -> list[Float[np.ndarray, "asked targets"]]:
    """Readings by penalty, from one factorisation."""
    middle, mean = x[fitted].mean(axis=0), y[fitted].mean(axis=0)
    centred = x[fitted] - middle
    values, vectors = np.linalg.eigh(centred.T @ centred)
    scale = max(float(values.mean()), np.finfo(np.float64).tiny)
    slopes = vectors.T @ (centred.T @ (y[fitted] - mean))
    turned = (x[asked] - middle) @ vectors
    return [turned @ (slopes / (values + p * scale)[:, None]) + mean for p in PENALTIES]
