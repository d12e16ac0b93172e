"""A scripted expert for the four tasks: it knows where everything is, takes hold of the object and puts it down.

It makes demonstrations where none can be downloaded. A policy trained on them has not seen Bridge's data, and its score
is not comparable with one that has: say so wherever it stands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32
from scipy.spatial.transform import Rotation

from vlm4vla.benchmarks.simpler.rules import Place, Start, Task
from vlm4vla.benchmarks.simpler.scene import DOWN, Scene

MOST_MOVEMENT = 0.025
"""Metres a step, along the longest axis."""
MOST_TURN = 0.2
"""Radians a step."""
_NEAR = 0.008
_PATIENCE = 14
"""Steps for one waypoint; then the next is tried."""
_HOLD = {"spoon": -0.036}
"""Metres from the object's origin along its long side at which it is taken: the spoon's handle is too thin."""
_DROP = 0.01
"""Metres above its target at which it is let go."""
_CLEAR = 0.09
"""Metres above an object at which nothing is in the way."""


@dataclass(frozen=True, slots=True)
class Waypoint:
    """Where the hand goes, how it is turned about the vertical, and the fingers."""

    place: Float[np.ndarray, "3"]
    yaw: float
    opened: bool
    steps: int = 0
    """So many steps exactly, e.g. for the fingers to close; 0: until it is there."""


def actions(scene: Scene) -> Iterator[Float32[np.ndarray, "7"]]:
    """What to do next, one action at a time; the caller carries each out before asking for another."""
    for waypoint in _plan(scene):
        done = 0
        while done < (waypoint.steps or _PATIENCE):
            action = _towards(scene, waypoint)
            away = np.linalg.norm(waypoint.place - scene.hand()[:3, 3])
            if not waypoint.steps and away < _NEAR and np.abs(action[3:6]).max() < 0.05:
                break
            yield action
            done += 1


def fresh_start(task: Task, rng: np.random.Generator) -> Start:
    """Objects anywhere among the published places, turned at random; never a published start."""
    sources = np.array([start.source for start in task.starts])
    targets = np.array([start.target for start in task.starts])
    while True:
        source, target = (_between(places, rng) for places in (sources, targets))
        apart = math.dist(source, target)
        if apart > 0.09 or (task.name == "cube" and apart > 0.06):
            return Start(source=source, target=target, yaw=float(rng.uniform(-math.pi, math.pi)))


def _between(places: Float[np.ndarray, "starts 2"], rng: np.random.Generator) -> Place:
    x, y = rng.uniform(places.min(axis=0), places.max(axis=0))
    return float(x), float(y)


def _towards(scene: Scene, waypoint: Waypoint) -> Float32[np.ndarray, "7"]:
    told, hand = scene.told(), scene.hand()
    # The arm lags behind what it is told: what is left is measured from there, nudged by the error.
    left = waypoint.place - told[:3, 3] + 0.2 * (waypoint.place - hand[:3, 3])
    left /= max(1.0, float(np.abs(left).max()) / MOST_MOVEMENT)
    upright = Rotation.from_euler("z", waypoint.yaw) * Rotation.from_matrix(DOWN)
    turn = (upright * Rotation.from_matrix(told[:3, :3]).inv()).as_rotvec()
    turn /= max(1.0, float(np.linalg.norm(turn)) / MOST_TURN)
    angles = Rotation.from_rotvec(turn).as_euler("xyz")
    return np.concatenate([left, angles, [1.0 if waypoint.opened else -1.0]]).astype(np.float32)


def _plan(scene: Scene) -> Iterator[Waypoint]:
    """Take, carry, put, leave. What comes later looks at the scene when it is reached."""
    seen, yaw = scene.seen(0), _grasp_yaw(scene)
    grasp = seen[:3, 3] + _HOLD.get(scene.task.name, 0.0) * seen[:3, 0]
    up = np.array([0, 0, _CLEAR])
    yield Waypoint(grasp + up, yaw, opened=True)
    yield Waypoint(grasp, yaw, opened=True)
    yield Waypoint(grasp, yaw, opened=False, steps=4)
    yield Waypoint(grasp + up, yaw, opened=False)
    # The hand goes where the object, held as it is, is above the middle of the target.
    held = scene.hand()[:3, 3] - scene.seen(0)[:3, 3]
    top = scene.seen(1)[:3, 3] + [0, 0, (scene.extent(0)[2] + scene.extent(1)[2]) / 2]
    down = top + held + [0, 0, _DROP]
    yield Waypoint(down + up, yaw, opened=False)
    yield Waypoint(down, yaw, opened=False)
    yield Waypoint(down, yaw, opened=True, steps=4)
    yield Waypoint(down + up, yaw, opened=True)


def _grasp_yaw(scene: Scene) -> float:
    """Of the hand, so that the fingers close across the object's long side; the smallest turn of those."""
    long_side = scene.seen(0)[:3, 0]
    width, depth = scene.extent(0)[:2]
    period = math.pi / 2 if math.isclose(width, depth) else math.pi
    return math.remainder(math.atan2(long_side[1], long_side[0]), period)
