"""What is done to a data set's recordings before they are demonstrations: named steps, each with its source.

A step takes a recording and returns it changed, or None to leave it out. Behind the last one an action is seven numbers
in the convention that the data set's facts declare, the gripper -1 or +1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int64, UInt8

from vlm4vla.core.actions import ACTION_SIZE, GRIPPER
from vlm4vla.core.errors import DataError, unknown_name
from vlm4vla.demonstrations.frames import ChosenFrames, choose
from vlm4vla.demonstrations.recordings import Recording

Transform = Callable[[Recording], Recording | None]

_OPEN, _CLOSED = 0.95, 0.05
_STILL = 1e-4


def with_instruction(recording: Recording) -> Recording | None:
    """Leave out what has no instruction (OpenVLA's loader: `skip_unlabeled`)."""
    return recording if recording.instruction.strip() else None


def drop_first_step(recording: Recording) -> Recording | None:
    """Bridge: the first action is all zero (OpenVLA, `bridge_orig_dataset_transform`)."""
    return _kept(recording, np.arange(1, len(recording.actions)))


def decide_gripper_backwards(recording: Recording) -> Recording:
    """Above 0.95 is open (1), below 0.05 closed (0); between, what is decided next, looking back from the end, where
    the last value stands undecided as it is (OpenVLA, `binarize_gripper_actions`)."""
    gripper = np.array(recording.actions[:, GRIPPER], dtype=np.float64)
    decided = (gripper > _OPEN) | (gripper < _CLOSED)
    values = np.append(np.where(gripper > _OPEN, 1.0, 0.0), gripper[-1:])
    steps = np.where(decided, np.arange(len(gripper)), len(gripper))
    following = np.minimum.accumulate(steps[::-1])[::-1]
    return _with_gripper(recording, values[following])


def relabel_movement(recording: Recording) -> Recording | None:
    """Replace the commanded movement by the difference of the states reached; the last step, which reaches none, goes
    (OpenVLA, `relabel_bridge_actions`)."""
    state = recording.state
    if state is None or state.shape[1] < GRIPPER:
        raise DataError(
            f"{recording.id}: its movement cannot be relabelled, because the file has no state of at least six "
            "numbers; leave `relabel_movement` out of the transforms"
        )
    actions = np.array(recording.actions)
    actions[:-1, :GRIPPER] = state[1:, :GRIPPER] - state[:-1, :GRIPPER]
    return _kept(replace(recording, actions=actions), np.arange(len(actions) - 1))


def drop_still_steps(recording: Recording) -> Recording | None:
    """LIBERO: steps whose movement is below 1e-4 and whose gripper command is the kept step's before it (OpenVLA,
    `regenerate_libero_dataset.is_noop`)."""
    kept: list[int] = []
    for step, action in enumerate(recording.actions):
        still = np.linalg.norm(action[:-1]) < _STILL
        if not still or (kept and action[-1] != recording.actions[kept[-1], -1]):
            kept.append(step)
    return _kept(recording, np.array(kept, dtype=np.int64))


def turn_images(recording: Recording) -> Recording:
    """By 180 degrees: LIBERO's cameras are stored upside down and mirrored (OpenVLA, `regenerate_libero_dataset`)."""
    steps = np.arange(len(recording.images), dtype=np.int64)
    return replace(recording, images=ChosenFrames(recording.images, steps, _turned))


def flip_gripper(recording: Recording) -> Recording:
    """-1 (open) .. +1 (close) becomes 1 (open) .. 0 (closed): clipped to [0, 1], then inverted (OpenVLA,
    `libero_dataset_transform`)."""
    return _with_gripper(recording, 1 - np.clip(recording.actions[:, GRIPPER], 0, 1))


def gripper_from_changes(recording: Recording) -> Recording:
    """Fractal: the command says close (+1), open (-1) or stay (0); becomes the state, 1 open and 0 closed. Before the
    first change it is the opposite of it, and open when there is none (OpenVLA, `rel2abs_gripper_actions`)."""
    command = recording.actions[:, GRIPPER]
    change = np.where(command < -0.1, 1.0, np.where(command > 0.1, -1.0, 0.0))
    changes = np.flatnonzero(change)
    before = -change[changes[0]] if len(changes) else 1.0
    latest = np.maximum.accumulate(np.where(change != 0, np.arange(len(change)), -1))
    state = np.where(latest < 0, before, change[latest])
    return _with_gripper(recording, state / 2 + 0.5)


def gripper_sign(recording: Recording) -> Recording:
    """Above one half becomes +1, else -1."""
    return _with_gripper(recording, np.where(recording.actions[:, GRIPPER] > 0.5, 1.0, -1.0))


TRANSFORMS: dict[str, Transform] = {
    step.__name__: step
    for step in (
        with_instruction,
        drop_first_step,
        decide_gripper_backwards,
        relabel_movement,
        drop_still_steps,
        turn_images,
        flip_gripper,
        gripper_from_changes,
        gripper_sign,
    )
}


def transforms_named(names: Sequence[str]) -> tuple[Transform, ...]:
    """Raises: RecipeError with the nearest names for an unknown one."""
    for name in names:
        if name not in TRANSFORMS:
            raise unknown_name("transform", name, TRANSFORMS)
    return tuple(TRANSFORMS[name] for name in names)


def apply(transforms: Sequence[Transform], recording: Recording) -> Recording | None:
    """One after another. Raises: DataError for actions that are not seven numbers a step."""
    actions = recording.actions
    if actions.ndim != 2 or actions.shape[1] != ACTION_SIZE:
        raise DataError(
            f"{recording.id}: actions of shape {list(actions.shape)}; expected {ACTION_SIZE} numbers a step: "
            "translation, rotation, gripper. Name another action column, or convert the file"
        )
    changed: Recording | None = recording
    for transform in transforms:
        if changed is None or not len(changed.actions):
            return None
        changed = transform(changed)
    return changed if changed is not None and len(changed.actions) else None


def _kept(recording: Recording, steps: Int64[np.ndarray, " kept"]) -> Recording:
    state = recording.state
    return replace(
        recording,
        images=choose(recording.images, steps),
        actions=recording.actions[steps],
        state=None if state is None else state[steps],
    )


def _with_gripper(recording: Recording, gripper: Float[np.ndarray, " steps"]) -> Recording:
    actions = np.array(recording.actions)
    actions[:, GRIPPER] = gripper
    return replace(recording, actions=actions)


def _turned(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    return image[::-1, ::-1]
