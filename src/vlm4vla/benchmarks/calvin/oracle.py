"""When a CALVIN task is done: what changed between the goal's first state and now.

Thresholds are calvin_env's (conf/tasks/new_playtable_tasks.yaml and envs/tasks.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from jaxtyping import Float

from vlm4vla.benchmarks.calvin.world import State, World

Done = Callable[[State, State, World], bool]
"""Of the state at the goal's beginning, the state now, and the world for its bodies' numbers."""

_MOST_TILT = 30.0
_MOST_DRIFT = 0.1
_CALM = 1.0
"""Metres or radians a second below which a block counts as resting."""


def rotated(block: str, degrees: float, start: State, now: State, world: World) -> bool:
    """Turned about the vertical by more than `degrees` (negative: clockwise), neither tilted nor moved away."""
    before, after = start.blocks[block], now.blocks[block]
    x, y, z = turned(before.orientation, after.orientation)
    if np.linalg.norm(after.position - before.position) > _MOST_DRIFT:
        return False
    if not {body for body, _ in after.contacts} - {world.robot}:
        return False
    upright = abs(x) < _MOST_TILT and abs(y) < _MOST_TILT
    return bool(upright and (degrees < z < 180 if degrees > 0 else -180 < z < degrees))


def turned(before: Float[np.ndarray, "4"], after: Float[np.ndarray, "4"]) -> tuple[float, float, float]:
    """The turn between two quaternions (scalar last) as extrinsic x, y, z angles in degrees."""
    turn = _matrix(after) @ _matrix(before).T
    x, z = math.atan2(turn[2, 1], turn[2, 2]), math.atan2(turn[1, 0], turn[0, 0])
    y = -math.asin(min(1.0, max(-1.0, turn[2, 0])))
    return math.degrees(x), math.degrees(y), math.degrees(z)


def _matrix(quaternion: Float[np.ndarray, "4"]) -> Float[np.ndarray, "3 3"]:
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def pushed(block: str, along_x: float, start: State, now: State, world: World) -> bool:
    """Moved by more than `along_x` metres, on what it lay on."""
    before, after = start.blocks[block], now.blocks[block]
    lay = {contact for contact in before.contacts if contact[0] != world.robot}
    lies = {contact for contact in after.contacts if contact[0] != world.robot}
    if not lay or not lies or not lay <= lies:
        return False
    moved = float(after.position[0] - before.position[0])
    return moved > along_x if along_x > 0 else moved < along_x


def lifted(block: str, height: float, link: str, start: State, now: State, world: World) -> bool:
    """Raised by more than `height` metres off a link of the table, and touched by the robot alone."""
    before, after = start.blocks[block], now.blocks[block]
    return bool(
        after.position[2] - before.position[2] > height
        and {body for body, _ in after.contacts} == {world.robot}
        and (world.table, world.links[link]) in before.contacts
    )


def placed(link: str, start: State, now: State, world: World) -> bool:
    """The block that the robot alone held lies on the link, and the robot has let go."""
    if len(start.robot_contacts) != 1:
        return False
    (held,) = start.robot_contacts
    names = [name for name, body in world.blocks.items() if body == held]
    if held in now.robot_contacts or not names:
        return False
    held_by = {body for body, _ in start.blocks[names[0]].contacts}
    return held_by == {world.robot} and (world.table, world.links[link]) in now.blocks[names[0]].contacts


def pushed_into(start: State, now: State, world: World) -> bool:
    """A block that lay on the desk alone lies in the drawer.

    That the robot does not touch it in the end is meant upstream, but its comparison never holds: it may.
    """
    desk, drawer = (world.table, world.links["base_link"]), (world.table, world.links["drawer_link"])
    return any(
        start.blocks[name].contacts == {desk} and drawer in now.blocks[name].contacts for name in world.blocks
    )


def moved(door: str, by: float, start: State, now: State, world: World) -> bool:
    """Slid by more than `by` metres."""
    change = now.doors[door] - start.doors[door]
    return 0 < by < change or 0 > by > change


def switched(light: str, to: int, start: State, now: State, world: World) -> bool:
    """From off to on, or from on to off."""
    return start.lights[light] == 1 - to and now.lights[light] == to


def stacked(start: State, now: State, world: World) -> bool:
    """A block that touched no other rests on blocks alone."""
    bodies = set(world.blocks.values())
    for name in world.blocks:
        before = {body for body, _ in start.blocks[name].contacts}
        after = {body for body, _ in now.blocks[name].contacts}
        calm = bool(np.all(np.abs(now.blocks[name].velocity) < _CALM))
        if not bodies & before and bodies & after and after <= bodies and calm:
            return True
    return False


def unstacked(start: State, now: State, world: World) -> bool:
    """A block that rested on blocks alone touches none."""
    bodies = set(world.blocks.values())
    for name in world.blocks:
        before = {body for body, _ in start.blocks[name].contacts}
        after = {body for body, _ in now.blocks[name].contacts}
        calm = bool(np.all(np.abs(start.blocks[name].velocity) < _CALM))
        if bodies & before and before <= bodies and not bodies & after and calm:
            return True
    return False


def _tasks() -> dict[str, Done]:
    found: dict[str, Done] = {}
    for color in ("red", "blue", "pink"):
        block = f"block_{color}"
        for side, sign in (("right", 1), ("left", -1)):
            found[f"rotate_{color}_block_{side}"] = partial(rotated, block, -60 * sign)
            found[f"push_{color}_block_{side}"] = partial(pushed, block, 0.1 * sign)
        for place, height, link in (
            ("table", 0.05, "base_link"),
            ("slider", 0.03, "plank_link"),
            ("drawer", 0.05, "drawer_link"),
        ):
            found[f"lift_{color}_block_{place}"] = partial(lifted, block, height, link)
    for door, name, by in (("slider", "base__slide", 0.15), ("drawer", "base__drawer", 0.12)):
        more, less = ("left", "right") if door == "slider" else ("open", "close")
        for word, sign in ((more, 1), (less, -1)):
            task = f"move_slider_{word}" if door == "slider" else f"{word}_drawer"
            found[task] = partial(moved, name, by * sign)
    found["place_in_slider"] = partial(placed, "plank_link")
    found["place_in_drawer"] = partial(placed, "drawer_link")
    for light in ("lightbulb", "led"):
        found[f"turn_on_{light}"] = partial(switched, light, 1)
        found[f"turn_off_{light}"] = partial(switched, light, 0)
    return found | {"stack_block": stacked, "unstack_block": unstacked, "push_into_drawer": pushed_into}


TASKS: Mapping[str, Done] = _tasks()
"""All 34."""
