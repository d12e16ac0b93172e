"""A declared, invertible chain of steps from a benchmark's actions to what the head is trained on.

The chain is data: it is saved in the checkpoint and travels with it. Pose dimensions are 0..5; the gripper becomes
0/1 for the loss (1 = positive in the data's `ActionSpec`) and comes back as -1/+1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from vlm4vla.core.actions import GRIPPER
from vlm4vla.core.errors import DataError


@dataclass(frozen=True, slots=True)
class ClipScale:
    """Clip pose to [-limit, limit] and divide by limit: CALVIN's preset with limit 0.65."""

    limit: float

    def forward(self, pose: Float32[np.ndarray, "*batch 6"]) -> Float32[np.ndarray, "*batch 6"]:
        """To [-1, 1]."""
        return (np.clip(pose, -self.limit, self.limit) / self.limit).astype(np.float32)

    def inverse(self, pose: Float32[np.ndarray, "*batch 6"]) -> Float32[np.ndarray, "*batch 6"]:
        """Back to the data's unit."""
        return (pose * self.limit).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """The step as JSON."""
        return {"step": "clip_scale", "limit": self.limit}


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Map [low, high] of every pose dimension to [-1, 1] and clip. A constant dimension becomes 0 and returns `low`."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def forward(self, pose: Float32[np.ndarray, "*batch 6"]) -> Float32[np.ndarray, "*batch 6"]:
        """To [-1, 1]."""
        low, span = self._bounds()
        scaled = np.where(span > 0, 2 * (pose - low) / np.where(span > 0, span, 1) - 1, 0)
        return np.clip(scaled, -1, 1).astype(np.float32)

    def inverse(self, pose: Float32[np.ndarray, "*batch 6"]) -> Float32[np.ndarray, "*batch 6"]:
        """Back to the data's unit."""
        low, span = self._bounds()
        return (np.where(span > 0, (pose + 1) / 2 * span, 0) + low).astype(np.float32)

    def _bounds(self) -> tuple[Float[np.ndarray, "6"], Float[np.ndarray, "6"]]:
        low = np.asarray(self.low, dtype=np.float64)
        return low, np.asarray(self.high, dtype=np.float64) - low

    def to_json(self) -> dict[str, Any]:
        """The step as JSON."""
        return {"step": "quantiles", "low": list(self.low), "high": list(self.high)}

    @classmethod
    def fit(
        cls, actions: Float32[np.ndarray, "steps 7"], *, low: float = 0.01, high: float = 0.99
    ) -> Quantiles:
        """Exact quantiles of the pose dimensions; dimensions are done one at a time to bound memory."""
        if len(actions) == 0:
            raise DataError(
                "cannot fit normalization on zero actions; check the task and episode filters of the recipe"
            )
        columns = [np.quantile(actions[:, d].astype(np.float64), [low, high]) for d in range(GRIPPER)]
        return cls(tuple(float(c[0]) for c in columns), tuple(float(c[1]) for c in columns))


PoseStep = ClipScale | Quantiles


@dataclass(frozen=True, slots=True)
class Normalization:
    """The chain. `normalize` is applied left to right, `denormalize` right to left."""

    steps: tuple[PoseStep, ...] = ()

    def normalize(self, actions: Float32[np.ndarray, "*batch 7"]) -> Float32[np.ndarray, "*batch 7"]:
        """Pose through the chain; gripper > 0 becomes 1, else 0."""
        result = np.array(actions, dtype=np.float32, copy=True)
        for step in self.steps:
            result[..., :GRIPPER] = step.forward(result[..., :GRIPPER])
        result[..., GRIPPER] = (actions[..., GRIPPER] > 0).astype(np.float32)
        return result

    def denormalize(self, actions: Float32[np.ndarray, "*batch 7"]) -> Float32[np.ndarray, "*batch 7"]:
        """Pose back through the chain; gripper probability > 0.5 becomes +1, else -1."""
        result = np.array(actions, dtype=np.float32, copy=True)
        for step in reversed(self.steps):
            result[..., :GRIPPER] = step.inverse(result[..., :GRIPPER])
        result[..., GRIPPER] = np.where(actions[..., GRIPPER] > 0.5, 1.0, -1.0)
        return result

    def to_json(self) -> list[dict[str, Any]]:
        """The chain as JSON."""
        return [step.to_json() for step in self.steps]

    @classmethod
    def from_json(cls, data: Sequence[Mapping[str, Any]]) -> Normalization:
        """The inverse of `to_json`. Raises DataError for a step nobody knows."""
        steps: list[PoseStep] = []
        for entry in data:
            match entry.get("step"):
                case "clip_scale":
                    steps.append(ClipScale(float(entry["limit"])))
                case "quantiles":
                    steps.append(Quantiles(tuple(entry["low"]), tuple(entry["high"])))
                case other:
                    raise DataError(
                        f"normalization: unknown step {other!r}; known: clip_scale, quantiles. "
                        "The checkpoint was written by another version of vlm4vla or is damaged."
                    )
        return cls(tuple(steps))
