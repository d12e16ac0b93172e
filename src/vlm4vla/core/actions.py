"""Action conventions: declared by both sides, compared before a step is spent, converted only here.

An action is seven numbers: translation xyz, rotation (3), gripper. What they mean is an `ActionSpec`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from vlm4vla.core.errors import ActionSpecMismatch

ACTION_SIZE = 7
GRIPPER = 6
"""Index of the gripper command; 0..5 are the pose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionSpec:
    """What seven numbers mean."""

    rotation: Literal["euler_xyz", "axis_angle"]
    """`euler_xyz`: extrinsic x, y, z; `axis_angle`: rotation vector. Radians when `unit` is metres_radians."""
    gripper: Literal["open_positive", "close_positive"]
    unit: Literal["metres_radians", "controller"]
    """`controller`: the simulator's own scaled command, usually in [-1, 1]; it cannot be converted."""
    frame: Literal["base", "tool"] = "base"

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `ActionSpec(**spec.to_json()) == spec`."""
        return asdict(self)


def require_same(producer: ActionSpec, consumer: ActionSpec, *, who: str) -> None:
    """Refuse to run when the two sides differ.

    Raises: ActionSpecMismatch naming every differing field; `who` says which two sides were compared.
    """
    differing = [
        f"{field.name}: {getattr(producer, field.name)} against {getattr(consumer, field.name)}"
        for field in fields(ActionSpec)
        if getattr(producer, field.name) != getattr(consumer, field.name)
    ]
    if differing:
        raise ActionSpecMismatch(
            f"{who} mean different things by an action ({'; '.join(differing)}). "
            "Convert the demonstrations with core.actions.convert, or train on ones of the benchmark's convention."
        )


def convert(
    actions: Float32[np.ndarray, "*batch 7"], source: ActionSpec, target: ActionSpec
) -> Float32[np.ndarray, "*batch 7"]:
    """Express actions of one convention in another.

    Raises: ActionSpecMismatch when the conversion needs knowledge the action does not carry: another frame,
    another unit, or another rotation in controller units (scaled angles are no rotation).
    """
    rotation_differs = source.rotation != target.rotation
    if (
        source.frame != target.frame
        or source.unit != target.unit
        or (rotation_differs and source.unit == "controller")
    ):
        require_same(source, target, who="The actions and their new convention")
    converted = np.array(actions, dtype=np.float32, copy=True)
    if rotation_differs:
        from vlm4vla.core import rotations  # scipy: half a second that only a conversion should cost

        change = (
            rotations.euler_xyz_to_axis_angle
            if target.rotation == "axis_angle"
            else rotations.axis_angle_to_euler_xyz
        )
        converted[..., 3:6] = change(converted[..., 3:6])
    if source.gripper != target.gripper:
        converted[..., GRIPPER] = -converted[..., GRIPPER]
    return converted
