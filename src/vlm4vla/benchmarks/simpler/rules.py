"""SimplerEnv-Bridge's protocol without a simulator: tasks, 24 episodes of each, what an action does, what success is.

Sources: `put_on_in_scene.py`, `move_near_in_scene.py` and `pd_ee_pose.py` of ManiSkill2_real2sim (ef7a4d4), on which
the paper's scores were measured; `eval/simpler/model_wrapper.py` and `scripts/bridge.bash` of the paper's code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from vlm4vla.core.actions import GRIPPER

EPISODES = 24
CONTROL_HZ = 5
TABLE_HEIGHT = 0.87
"""Metres; objects are let fall from half a metre above it."""
OPENS_AFTER = 2
"""So many predictions in a row must say open before the gripper opens (`late_close_gripper`)."""

Place = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where the two objects are let fall: x and y in metres, and the turn about the vertical in radians."""

    source: Place
    target: Place
    yaw: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One of the four."""

    name: str
    environment: str
    """ManiSkill 3's name of it."""
    instruction: str
    steps: int
    """Of an episode, all of which are played."""
    source: str
    target: str
    """Models: what is to be put, and onto what."""
    starts: tuple[Start, ...]
    alone: bool
    """Whether success forbids that the object touches anything but the robot and the target."""
    slack: float
    """Metres that the object may be too high above the target."""


def _corners(half: float) -> list[Place]:
    return [(-0.16 + half * x, half * y) for x, y in itertools.product((-1, 1), repeat=2)]


def _pairs(halves: Sequence[float], yaws: Sequence[float]) -> tuple[Start, ...]:
    """Every two different corners of a square, for every turn."""
    return tuple(
        Start(source=source, target=target, yaw=yaw)
        for half in halves
        for source, target in itertools.permutations(_corners(half), 2)
        for yaw in yaws
    )


def _in_sink() -> tuple[Start, ...]:
    places = itertools.product((-0.115, -0.095), np.linspace(0.191, 0.221, 4))
    turns = (0.0, math.pi / 4, -math.pi / 4)
    return tuple(
        Start(source=(x, float(y)), target=(-0.125, 0.025), yaw=yaw)
        for (x, y), yaw in itertools.product(places, turns)
    )


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="carrot",
            environment="PutCarrotOnPlateInScene-v1",
            instruction="put carrot on plate",
            steps=60,
            source="bridge_carrot_generated_modified",
            target="bridge_plate_objaverse_larger",
            starts=_pairs([0.075], [math.pi, -math.pi / 2]),
            alone=True,
            slack=0.02,
        ),
        Task(
            name="eggplant",
            environment="PutEggplantInBasketScene-v1",
            instruction="put eggplant into yellow basket",
            steps=120,
            source="eggplant",
            target="dummy_sink_target_plane",
            starts=_in_sink(),
            alone=False,
            slack=0.06,
        ),
        Task(
            name="spoon",
            environment="PutSpoonOnTableClothInScene-v1",
            instruction="put the spoon on the towel",
            steps=60,
            source="bridge_spoon_generated_modified",
            target="table_cloth_generated_shorter",
            starts=_pairs([0.075], [0.0, math.pi / 2]),
            alone=False,
            slack=0.02,
        ),
        Task(
            name="cube",
            environment="StackGreenCubeOnYellowCubeBakedTexInScene-v1",
            instruction="stack the green block on the yellow block",
            steps=60,
            source="baked_green_cube_3cm",
            target="baked_yellow_cube_3cm",
            starts=_pairs([0.05, 0.1], [0.0]),
            alone=True,
            slack=0.02,
        ),
    )
}
"""By name, in the paper's order (Table 2)."""


class LateOpening:
    """The gripper opens at the second of two commands to open in a row, and otherwise closes: the first step closes.

    Paper's code, `model_wrapper.transform_action`.
    """

    def __init__(self) -> None:
        self._in_a_row = 0

    def __call__(self, command: float) -> float:
        """+1 (open) or -1 (close) for a command that opens above zero."""
        self._in_a_row = self._in_a_row + 1 if command > 0 else 0
        return 1.0 if self._in_a_row >= OPENS_AFTER else -1.0


def controller_action(
    action: Float[np.ndarray, "7"],
    gripper: float,
    *,
    target: Float[np.ndarray, "3"],
    reached: Float[np.ndarray, "3"],
) -> Float[np.ndarray, "7"]:
    """What ManiSkill 3's controller must be told so that its target pose becomes what ManiSkill 2's would be.

    `action` holds metres, and radians about the fixed x, y and z axes. `target` and `reached` are where the hand was
    told to be and where it is, in metres, seen from the robot's base. ManiSkill 2 turns the target about the place
    reached (`ee_align2`), ManiSkill 3 about itself; ManiSkill 3 reads angles about moving axes.
    """
    rotation = Rotation.from_euler("xyz", action[3:GRIPPER])
    behind = np.asarray(target, dtype=np.float64) - reached
    moved = action[:3] + rotation.apply(behind) - behind
    return np.concatenate([moved, rotation.as_euler("XYZ"), [gripper]])


def lies_on(
    offset: Float[np.ndarray, "3"],
    source: Float[np.ndarray, "3"],
    target: Float[np.ndarray, "3"],
    *,
    slack: float,
) -> bool:
    """Whether an object is on another: `offset` from the target's centre of mass to the object's, in metres, and the
    sizes of their boxes, turned as the objects were at the start."""
    beside = np.linalg.norm(offset[:2]) > np.linalg.norm(target[:2] / 2) + 0.003
    gap = offset[2] - target[2] / 2 - source[2] / 2
    return bool(not beside and offset[2] > 0 and gap <= slack)
