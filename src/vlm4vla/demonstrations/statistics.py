"""What a data set's actions look like: exact quantiles, and the statistics that others published of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from vlm4vla.core.actions import ACTION_SIZE, GRIPPER
from vlm4vla.core.errors import unknown_name
from vlm4vla.core.normalization import ClipScale, Normalization, PoseStep, Quantiles
from vlm4vla.core.recipes import normalization_step

DIMENSIONS = ("x", "y", "z", "rotation 1", "rotation 2", "rotation 3", "gripper")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Statistics of a data set as the paper's released code ships them (configs/data/oxe_dataset_stats)."""

    q01: tuple[float, ...]
    q99: tuple[float, ...]
    """Of the six pose dimensions."""
    transitions: int
    trajectories: int


PUBLISHED: dict[str, Published] = {
    "bridge": Published(
        q01=(
            -0.02872725307941437,
            -0.04170349963009357,
            -0.026093858778476715,
            -0.08092105075716972,
            -0.09288699507713317,
            -0.20718276381492615,
        ),
        q99=(
            0.028309678435325586,
            0.040855254605412394,
            0.040161586627364146,
            0.08192047759890528,
            0.07792850524187081,
            0.20382574498653397,
        ),
        transitions=2_135_463,
        trajectories=60_064,
    ),
    "libero_10": Published(
        q01=(
            -0.6348214149475098,
            -0.7741071581840515,
            -0.7633928656578064,
            -0.09749999642372131,
            -0.14819999992847435,
            -0.2742857038974762,
        ),
        q99=(
            0.7714285850524902,
            0.8464285731315613,
            0.9375,
            0.13928571343421936,
            0.15964286029338837,
            0.3246428668498993,
        ),
        transitions=101_469,
        trajectories=379,
    ),
}


def published(name: str) -> Published:
    """Raises: RecipeError with the nearest names for a data set without published statistics."""
    if name not in PUBLISHED:
        raise unknown_name("published statistics", name, PUBLISHED)
    return PUBLISHED[name]


def fit_normalization(steps: Sequence[str], actions: Float32[np.ndarray, "steps 7"]) -> Normalization:
    """The chain that `PolicyRecipe.normalization` names; quantiles are of the actions as the steps before leave them.

    Raises: RecipeError for an unknown step or name, DataError when there are no actions.
    """
    chain: list[PoseStep] = []
    pose = actions
    for text in steps:
        kind, value = normalization_step(text)
        step: PoseStep
        if kind == "clip":
            step = ClipScale(float(value))
        elif value:
            step = Quantiles(published(value).q01, published(value).q99)
        else:
            step = Quantiles.fit(pose)
        chain.append(step)
        if len(chain) < len(steps):
            pose = np.concatenate([step.forward(pose[:, :GRIPPER]), pose[:, GRIPPER:]], axis=1)
    return Normalization(tuple(chain))


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One dimension of the actions; quantiles are exact."""

    name: str
    least: float
    q01: float
    median: float
    q99: float
    most: float
    mean: float
    deviation: float
    histogram: tuple[int, ...]
    """In equal bins from `least` to `most`."""


def describe(actions: Float32[np.ndarray, "steps 7"], *, bins: int = 40) -> list[Column]:
    """Every dimension, one at a time to bound memory."""
    columns = []
    for index in range(ACTION_SIZE):
        values = actions[:, index].astype(np.float64)
        q01, median, q99 = np.quantile(values, [0.01, 0.5, 0.99])
        counts, _ = np.histogram(values, bins=bins)
        columns.append(
            Column(
                name=DIMENSIONS[index],
                least=float(values.min()),
                q01=float(q01),
                median=float(median),
                q99=float(q99),
                most=float(values.max()),
                mean=float(values.mean()),
                deviation=float(values.std()),
                histogram=tuple(counts.tolist()),
            )
        )
    return columns
