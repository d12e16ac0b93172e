"""A scripted expert for LIBERO's pick-and-place tasks: it sees where everything is, takes hold of it and puts it down.

It makes demonstrations where none can be downloaded. A policy trained on them has not seen LIBERO's data, and its score
is no score of LIBERO's: say so wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from vlm4vla.benchmarks.libero.shapes import Boxes, shortest
from vlm4vla.benchmarks.libero.suites import SUITES
from vlm4vla.benchmarks.libero.world import World

_MOST_MOVEMENT, _MOST_TURN = 0.05, 0.5
"""Metres and radians of an action's largest component."""
_GAIN = 1.5
_NEAR, _ARM = 0.008, 0.1
"""Metres from a waypoint that are near enough; a radian counts as so many."""
_PATIENCE, _STUCK, _PROGRESS = 80, 8, 0.001
"""Steps for one waypoint, and without so many metres of progress; then the next is tried."""
_LIFTED = 0.03
_TRIES = 4
_DOWN = np.array([0.0, 0.0, -1.0])
_MEASURED = {"long": (0, 1, 4, 5, 6, 7), "object": range(10), "spatial": range(10), "goal": (1, 2, 4, 6, 8)}
TASKS = tuple(SUITES[suite].tasks[number] for suite, numbers in _MEASURED.items() for number in numbers)
"""Tasks that it was tried on and mostly solves: goals that are all `in` or `on`, and a way there from above."""


@dataclass(frozen=True, slots=True)
class Waypoint:
    """Where the point between the fingertips goes, the fingers' angle in the plane, and whether they are open."""

    place: Float[np.ndarray, "3"]
    yaw: float
    opened: bool
    steps: int = 0
    """So many steps exactly, for the fingers to move; 0: until it is there."""


def actions(world: World) -> Iterator[Float32[np.ndarray, "7"]]:
    """What to do next in the task that was begun, as LIBERO has it (gripper -1 opens); each is carried out before the
    next is asked for."""
    env = world.env.env
    for attempt in range(_TRIES):
        for number, (_, thing, target) in enumerate(env.parsed_problem["goal_state"]):
            if not env._eval_predicate(env.parsed_problem["goal_state"][number]):
                yield from _bring(world, thing, target, number, attempt)


def _bring(
    world: World, thing: str, target: str, number: int, attempt: int
) -> Iterator[Float32[np.ndarray, "7"]]:
    boxes, (place, facing), lay = Boxes(world.env), tool(world), _center(world, thing)[2]
    grasp = boxes.grasp(thing, facing, turn=attempt)
    safe = max(place[2], grasp.place[2] + 0.12)
    yield from _along(
        world,
        Waypoint(np.array([*place[:2], safe]), facing, True),
        Waypoint(np.array([*grasp.place[:2], safe]), grasp.yaw, True),
        Waypoint(grasp.place + np.array([0, 0, 0.04]), grasp.yaw, True),
        Waypoint(grasp.place, grasp.yaw, True),
        Waypoint(grasp.place, grasp.yaw, False, steps=10),
    )
    end, floor = _target(world, target, number)
    under = grasp.place[2] - boxes.corners(thing)[:, :, 2].min()
    clear = boxes.highest_between(grasp.place[:2], end, but=thing) + under + 0.03
    high = max(clear, grasp.place[2] + 0.08)
    yield from _along(world, Waypoint(np.array([*grasp.place[:2], high]), grasp.yaw, False))
    if _center(world, thing)[2] < lay + _LIFTED:
        return
    held = tool(world)[0][:2] - _center(world, thing)[:2]
    yield from _along(
        world,
        Waypoint(np.array([*(end + held), high]), grasp.yaw, False),
        Waypoint(np.array([*(end + held), floor + under]), grasp.yaw, False),
        Waypoint(np.array([*(end + held), floor + under]), grasp.yaw, True, steps=6),
        Waypoint(np.array([*(end + held), floor + under + 0.1]), grasp.yaw, True),
    )


def _target(world: World, target: str, number: int) -> tuple[Float[np.ndarray, "2"], float]:
    """Where an object's middle goes in the plane, and the height at which its lowest point is let go."""
    env, sim = world.env.env, world.env.sim
    if target in env.obj_body_id:
        return _center(world, target)[:2], float(_center(world, target)[2]) + 0.02
    site = sim.model.site_name2id(target)
    place, size = sim.data.site_xpos[site], sim.model.site_size[site]
    if target.endswith("contain_region"):
        # One beside the other, let go where the hand does not touch the rim.
        beside = 0.03 * (2 * number - 1) if len(env.parsed_problem["goal_state"]) > 1 else 0.0
        return place[:2] + np.array([beside, 0]), float(place[2] + size[2]) - 0.05
    return place[:2].copy(), float(place[2]) + 0.02


def _center(world: World, name: str) -> Float[np.ndarray, "3"]:
    return world.env.sim.data.body_xpos[world.env.env.obj_body_id[name]].copy()


def tool(world: World) -> tuple[Float[np.ndarray, "3"], float]:
    """Place in metres of the point between the fingertips, and the angle of the line from finger to finger."""
    data = world.env.sim.data
    line = data.get_body_xpos("gripper0_leftfinger") - data.get_body_xpos("gripper0_rightfinger")
    return data.get_site_xpos("gripper0_grip_site").copy(), float(np.arctan2(line[1], line[0]))


def _along(world: World, *waypoints: Waypoint) -> Iterator[Float32[np.ndarray, "7"]]:
    for waypoint in waypoints:
        best, since = np.inf, 0
        for step in range(waypoint.steps or _PATIENCE):
            place, facing = tool(world)
            away, turn = waypoint.place - place, shortest(waypoint.yaw - facing)
            left = float(np.linalg.norm(away)) + _ARM * abs(turn)
            if left < best - _PROGRESS:
                best, since = left, step
            if not waypoint.steps and (left < _NEAR or step - since > _STUCK):
                break
            # Turn about the vertical, and tilt back to where the fingers point straight down.
            pointing = world.env.sim.data.get_site_xmat("gripper0_grip_site")[:, 2]
            tilt = np.cross(pointing, _DOWN)
            action = np.empty(7, dtype=np.float32)
            action[:3] = _held(_GAIN * away / _MOST_MOVEMENT)
            action[3:6] = np.clip(_GAIN * (tilt + np.array([0, 0, turn])) / _MOST_TURN, -1, 1)
            action[6] = -1.0 if waypoint.opened else 1.0
            yield action


def _held(step: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    """The same direction, no component above 1."""
    return step / max(1.0, float(np.abs(step).max()))
