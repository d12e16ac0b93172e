"""A scripted expert for 15 of CALVIN's tasks, in every scene: waypoints from the desk's true state.

It makes demonstrations where none can be downloaded. A policy trained on them has not seen CALVIN's data, and its score
is no score of CALVIN's: say so wherever it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from vlm4vla.benchmarks.calvin.world import (
    FINGERS,
    HOME,
    MOST_MOVEMENT,
    MOST_TURN,
    ROBOT_OBS,
    SCENE_OBS,
    TOOL,
    World,
)

_SAFE = 0.60
"""Height in metres at which nothing is in the way."""
_NEAR = 0.006
_PATIENCE = 40
"""Steps for one waypoint; then the next is tried."""


@dataclass(frozen=True, slots=True)
class Waypoint:
    """Where the tool goes, how it is turned about the vertical (None: as it is), and the fingers."""

    place: Float[np.ndarray, "3"]
    opened: bool
    yaw: float | None = None
    steps: int = 0
    """So many steps exactly, e.g. for the fingers to close; 0: until it is there."""


def actions(task: str, world: World) -> Iterator[Float32[np.ndarray, "7"]]:
    """What to do next, one action at a time; the caller carries each out before asking for another."""
    return follow(PLANS[task](world), world)


def follow(waypoints: Sequence[Waypoint], world: World) -> Iterator[Float32[np.ndarray, "7"]]:
    """The actions that lead along them, likewise."""
    for waypoint in waypoints:
        done = 0
        while done < (waypoint.steps or _PATIENCE):
            position, _ = tool_pose(world)
            turn = 0.0 if waypoint.yaw is None else _shortest(waypoint.yaw - world.turn[2])
            away = waypoint.place - position
            if not waypoint.steps and np.linalg.norm(away) < _NEAR and abs(turn) < 0.05:
                break
            # The arm lags behind its target: what is left is measured from the target, nudged by the error.
            left = waypoint.place - world.target + 0.2 * away
            action = np.zeros(7, dtype=np.float32)
            action[:3] = _held(left / MOST_MOVEMENT)
            action[5] = float(np.clip(turn / MOST_TURN, -1, 1))
            action[6] = 1.0 if waypoint.opened else -1.0
            yield action
            done += 1


def tool_pose(world: World) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Position in metres and Euler angles of the point between the fingertips."""
    position, orientation = world.p.getLinkState(world.robot, TOOL)[:2]
    return np.array(position), np.array(world.p.getEulerFromQuaternion(orientation))


def fresh_state(
    scene: World | Any, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "15"], Float[np.ndarray, "24"]]:
    """A random desk and a random arm above it: robot_obs and scene_obs. Never a state that CALVIN evaluates."""
    facts = scene.scene
    obs = np.zeros(SCENE_OBS)
    ends = {"A": 0.28, "B": 0.304, "C": 0.24, "D": 0.28}
    obs[0] = ends[scene.name] * rng.integers(2)
    obs[1] = 0.22 * rng.integers(2)
    obs[3] = 0.088 * rng.integers(2)
    obs[4], obs[5] = float(obs[3] > 0), rng.integers(2)
    low, high = (np.array(corner) for corner in facts.surfaces["table"])
    places: list[Float[np.ndarray, "3"]] = []
    while len(places) < 3:
        place = rng.uniform(low, high)
        if all(np.linalg.norm(place[:2] - other[:2]) > 0.11 for other in places):
            places.append(place)
    for index, place in enumerate(places):
        obs[6 + 6 * index : 9 + 6 * index] = place
        obs[11 + 6 * index] = rng.uniform(math.pi / 2 - 0.5, math.pi / 2 + 0.5)
    robot = np.zeros(ROBOT_OBS)
    robot[6], robot[7:14], robot[14] = 0.08, np.array(HOME) + rng.normal(0, 0.03, 7), 1
    return robot, obs


def _held(step: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    """The same direction, no component above 1."""
    return step / max(1.0, float(np.abs(step).max()))


def _shortest(angle: float) -> float:
    return (angle + math.pi) % (2 * math.pi) - math.pi


def _at(x: float, y: float, z: float) -> Float[np.ndarray, "3"]:
    return np.array([x, y, z])


def _box(world: World, link: str) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Low and high corner of what surrounds a link of the desk, in metres."""
    low, high = world.p.getAABB(world.table, world.links[link])
    return np.array(low), np.array(high)


def _over(world: World, x: float, y: float, *, opened: bool) -> list[Waypoint]:
    """Up, and across."""
    here, _ = tool_pose(world)
    return [Waypoint(_at(here[0], here[1], _SAFE), opened), Waypoint(_at(x, y, _SAFE), opened)]


def _press(world: World) -> Sequence[Waypoint]:
    low, high = _box(world, "button_link")
    x, y = (low + high)[:2] / 2
    down, up = _at(x, y, high[2] - 0.03), _at(x, y, high[2] + 0.08)
    return [
        *_over(world, x, y, opened=False),
        Waypoint(up, False),
        Waypoint(down, False, steps=14),
        Waypoint(up, False),
    ]


def _handle(world: World, z: float) -> tuple[float, float]:
    """Where the sliding door's handle begins and ends along x at this height: what stands out, felt by rays."""
    low, high = _box(world, "slide_link")
    xs = np.arange(low[0], high[0], 0.004)
    starts = [(x, low[1] - 0.02, z) for x in xs]
    ends = [(x, low[1] + 0.04, z) for x in xs]
    link = world.links["slide_link"]
    hits = [hit[0] == world.table and hit[1] == link for hit in world.p.rayTestBatch(starts, ends)]
    felt = xs[np.array(hits)] if any(hits) else (low[:1] + high[:1]) / 2
    return float(felt.min()), float(felt.max())


def _slide(to_left: bool, world: World) -> Sequence[Waypoint]:
    """Push the door's handle sideways."""
    low, _ = _box(world, "slide_link")
    sign, z = -1 if to_left else 1, 0.50
    left, right = _handle(world, z)
    beside, y = (right + 0.035 if to_left else left - 0.035), low[1] + 0.025
    end = beside + sign * 0.32
    return [
        *_over(world, beside, -0.2, opened=False),
        Waypoint(_at(beside, -0.2, z), False),
        Waypoint(_at(beside, y, z), False),
        Waypoint(_at(end, y, z), False),
    ]


def _drawer(to_open: bool, world: World) -> Sequence[Waypoint]:
    """Pull the handle from behind, or push the front."""
    low, high = _box(world, "drawer_link")
    x, front = (low + high)[0] / 2, low[1]
    if to_open:
        behind = front + 0.034
        return [
            *_over(world, x, behind, opened=False),
            Waypoint(_at(x, behind, 0.40), False),
            Waypoint(_at(x, behind, 0.345), False),
            Waypoint(_at(x, behind - 0.20, 0.345), False),
        ]
    before = front - 0.05
    return [
        *_over(world, x, before, opened=False),
        Waypoint(_at(x, before, 0.36), False),
        Waypoint(_at(x, before + 0.27, 0.36), False),
    ]


def _block(world: World, color: str) -> tuple[Float[np.ndarray, "3"], float]:
    """Place and yaw of its long side, in radians."""
    position, orientation = world.p.getBasePositionAndOrientation(world.blocks[f"block_{color}"])
    return np.array(position), world.p.getEulerFromQuaternion(orientation)[2]


def _grasp_yaw(world: World, along: float) -> float:
    """Of the tool, so that the fingers close across a side that lies along this direction; the nearer of two."""
    fingers = [np.array(world.p.getLinkState(world.robot, finger)[0]) for finger in FINGERS]
    across = fingers[0] - fingers[1]
    now = math.atan2(across[1], across[0])
    turn = _shortest(along + math.pi / 2 - now)
    if abs(turn) > math.pi / 2:
        turn = _shortest(turn + math.pi)
    return float(world.turn[2] + turn)


def _lift(color: str, world: World) -> Sequence[Waypoint]:
    (x, y, z), along = _block(world, color)
    yaw = _grasp_yaw(world, along)
    return [
        *_over(world, x, y, opened=True),
        Waypoint(_at(x, y, z + 0.08), True, yaw),
        Waypoint(_at(x, y, z + 0.002), True, yaw),
        Waypoint(_at(x, y, z + 0.002), False, yaw, steps=8),
        Waypoint(_at(x, y, z + 0.13), False, yaw),
    ]


def _push(color: str, to_left: bool, world: World) -> Sequence[Waypoint]:
    (x, y, z), _ = _block(world, color)
    sign = -1 if to_left else 1
    beside = x - 0.075 * sign
    return [
        *_over(world, beside, y, opened=False),
        Waypoint(_at(beside, y, z + 0.08), False),
        Waypoint(_at(beside, y, z + 0.005), False),
        Waypoint(_at(x + 0.125 * sign, y, z + 0.005), False),
    ]


Plan = Callable[[World], Sequence[Waypoint]]

PLANS: Mapping[str, Plan] = {
    "turn_on_led": _press,
    "turn_off_led": _press,
    "move_slider_left": partial(_slide, True),
    "move_slider_right": partial(_slide, False),
    "open_drawer": partial(_drawer, True),
    "close_drawer": partial(_drawer, False),
    **{f"lift_{color}_block_table": partial(_lift, color) for color in ("red", "blue", "pink")},
    **{
        f"push_{color}_block_{side}": partial(_push, color, side == "left")
        for color in ("red", "blue", "pink")
        for side in ("left", "right")
    },
}
"""Tasks it can do."""


def possible(task: str, scene_obs: Float[np.ndarray, "24"]) -> bool:
    """Whether the desk is such that the task can be begun."""
    match task:
        case "turn_on_led":
            return scene_obs[5] == 0
        case "turn_off_led":
            return scene_obs[5] == 1
        case "move_slider_left":
            return scene_obs[0] < 0.05
        case "move_slider_right":
            return scene_obs[0] > 0.2
        case "open_drawer":
            return scene_obs[1] < 0.05
        case "close_drawer":
            return scene_obs[1] > 0.15
    return True
