"""The expert: a smooth, reactive function of the present state.

Smoothness decides what can be learned from it: heights are continuous cones of the distance still to go, not
thresholds, so that an action is nowhere a jump of what a camera sees.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32

from vlm4vla.benchmarks.tabletop.scene import (
    BLOCK_HALF,
    BUTTON_CENTRE,
    BUTTON_TOP,
    FINGER_TRAVEL,
    HANDLE_HEIGHT,
    METRES_PER_UNIT,
    PLATE_TOP,
    RADIANS_PER_UNIT,
    SceneState,
)
from vlm4vla.benchmarks.tabletop.tasks import Assignment

OPEN, CLOSE = 1.0, -1.0
_GRASP_HEIGHT = 0.020
_TRAVEL_HEIGHT = 0.085
_CARRY_CLEARANCE = 0.050
_SLOPE = 1.6
"""Metres of height per metre of distance, beyond a small flat bottom."""
_BOTTOM = 0.010
_GAIN = 0.75
"""Share of the remaining distance covered per step."""
_PUSH_STANDOFF = 0.048
"""From a block's centre to the gripper's beside it, before the push."""


def expert_action(assignment: Assignment, state: SceneState) -> Float32[np.ndarray, "7"]:
    """The next action towards the goal, in the benchmark's convention."""
    target, gripper, speed = _aim(assignment, state)
    delta = (target - state.gripper) * _GAIN / METRES_PER_UNIT
    largest = float(np.abs(delta).max())
    if largest > speed:
        delta *= speed / largest
    turn = np.clip(-state.tilt_and_yaw * 0.6 / RADIANS_PER_UNIT, -1, 1)
    return np.concatenate([delta, turn, [gripper]]).astype(np.float32)


def _aim(assignment: Assignment, state: SceneState) -> tuple[Float[np.ndarray, "3"], float, float]:
    """Where to be, whether open or closed, and the largest speed in units per step."""
    wanted = assignment.blocks[0] if assignment.blocks else None
    if state.held is not None and (
        state.held != wanted or assignment.task in ("reach", "push_left", "push_right")
    ):
        return state.gripper + np.array([0, 0, 0.03]), OPEN, 1.0
    match assignment.task:
        case "press":
            above = np.array([*BUTTON_CENTRE, 0.0])
            return _cone(state.gripper, above, BUTTON_TOP - 0.016), CLOSE, 1.0
        case "open":
            return _open(state)
        case "close":
            return _push(state, state.handle, np.array([0.0, 1.0]), HANDLE_HEIGHT, 0.040)
        case "reach":
            return _cone(state.gripper, state.blocks[assignment.blocks[0]], BLOCK_HALF + 0.022), OPEN, 1.0
        case "push_left":
            return _push(
                state,
                state.blocks[assignment.blocks[0]],
                np.array([-1.0, 0.0]),
                _GRASP_HEIGHT,
                _PUSH_STANDOFF,
            )
        case "push_right":
            return _push(
                state, state.blocks[assignment.blocks[0]], np.array([1.0, 0.0]), _GRASP_HEIGHT, _PUSH_STANDOFF
            )
    block = state.blocks[assignment.blocks[0]]
    if state.held != wanted:
        return _grasp(state, block)
    if assignment.task == "lift":
        return state.gripper + np.array([0, 0, METRES_PER_UNIT / _GAIN]), CLOSE, 1.0
    if assignment.task == "place":
        goal, support = np.array([*state.plate, 0.0]), PLATE_TOP
    else:
        goal = state.blocks[assignment.blocks[1]]
        support = goal[2] + BLOCK_HALF
    return _carry(state, block, goal, support)


def _cone(
    gripper: Float[np.ndarray, "3"], over: Float[np.ndarray, "3"], bottom: float
) -> Float[np.ndarray, "3"]:
    """A point above or at `over`: high when far, `bottom` when near, continuous between."""
    distance = float(np.linalg.norm(gripper[:2] - over[:2]))
    height = bottom + min(_SLOPE * max(0.0, distance - _BOTTOM), max(0.0, _TRAVEL_HEIGHT - bottom))
    return np.array([over[0], over[1], height])


def _grasp(state: SceneState, block: Float[np.ndarray, "3"]) -> tuple[Float[np.ndarray, "3"], float, float]:
    bottom = max(_GRASP_HEIGHT, float(block[2]) - 0.002)
    offset = state.gripper - block
    near = bool(np.linalg.norm(offset[:2]) < 0.013 and state.gripper[2] < bottom + 0.012)
    closing = bool(
        state.gap < 1.85 * FINGER_TRAVEL and np.linalg.norm(offset[:2]) < 0.02 and abs(offset[2]) < 0.02
    )
    return _cone(state.gripper, block, bottom), CLOSE if near or closing else OPEN, 1.0


def _carry(
    state: SceneState, block: Float[np.ndarray, "3"], goal: Float[np.ndarray, "3"], support: float
) -> tuple[Float[np.ndarray, "3"], float, float]:
    """Bring the held block over `goal` and let go just above the support."""
    offset = block - state.gripper
    distance = float(np.linalg.norm(block[:2] - goal[:2]))
    rest = support + BLOCK_HALF
    height = rest + 0.004 + min(_SLOPE * max(0.0, distance - _BOTTOM), _CARRY_CLEARANCE)
    if distance < 0.014 and block[2] < rest + 0.012:
        return state.gripper, OPEN, 1.0
    target = np.array([goal[0], goal[1], height]) - np.array([offset[0], offset[1], offset[2]])
    # Far away and low: rise before moving sideways, or the block drags over what stands between.
    low = np.clip((height - block[2]) / _CARRY_CLEARANCE, 0, 1)
    target[:2] = state.gripper[:2] + (target[:2] - state.gripper[:2]) * (1 - 0.8 * low)
    return target, CLOSE, 1.0


def _push(
    state: SceneState,
    thing: Float[np.ndarray, "3"],
    direction: Float[np.ndarray, "2"],
    height: float,
    standoff: float,
) -> tuple[Float[np.ndarray, "3"], float, float]:
    """Go behind the thing with closed fingers, then through it along `direction`."""
    across = np.array([-direction[1], direction[0]])
    relative = state.gripper[:2] - thing[:2]
    along, beside = float(relative @ direction), float(relative @ across)
    low = float(np.clip(1.6 - (state.gripper[2] - height) / 0.020, 0, 1))
    aligned = float(np.clip(1.6 - abs(beside) / 0.014, 0, 1))
    ready = low * aligned if along < -0.2 * standoff else 0.0
    behind = np.array([*(thing[:2] - standoff * direction), 0.0])
    approach = _cone(state.gripper, behind, height)
    through = np.array([*(thing[:2] + 0.06 * direction - 0.5 * beside * across), height])
    return approach * (1 - ready) + through * ready, CLOSE, 1.0 - 0.3 * ready


def _open(state: SceneState) -> tuple[Float[np.ndarray, "3"], float, float]:
    handle = state.handle
    offset = state.gripper - handle
    around = bool(
        abs(offset[0]) < 0.016 and abs(offset[1]) < 0.014 and state.gripper[2] < HANDLE_HEIGHT + 0.014
    )
    if around and state.gap < 0.026:
        return np.array([handle[0], handle[1] - 0.06, HANDLE_HEIGHT]), CLOSE, 0.8
    return _cone(state.gripper, handle, HANDLE_HEIGHT), CLOSE if around else OPEN, 1.0
