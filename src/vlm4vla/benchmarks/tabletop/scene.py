"""The Tabletop scene: a floating parallel gripper, three of four coloured blocks, a plate, a drawer and a button.

Frame: metres; x to the right of the picture, y away from the camera, z up, the table's surface at z = 0.
The gripper's position is that of the point between its fingertips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float, Float32

COLORS = ("red", "green", "blue", "yellow")
BLOCKS_PER_SCENE = 3
BLOCK_HALF = 0.022
PLATE_RADIUS = 0.055
PLATE_TOP = 0.006
DRAWER_TRAVEL = 0.07
BUTTON_TRAVEL = 0.012
FINGER_TRAVEL = 0.042
"""Each finger's; the gap between the fingers is twice as wide."""
HANDLE_HEIGHT = 0.035
BUTTON_TOP = 0.042

METRES_PER_UNIT = 0.035
RADIANS_PER_UNIT = 0.15
CONTROL_HZ = 10
_TIMESTEP = 0.004
_GLIDE_STEPS = 5
_SUBSTEPS = round(1 / CONTROL_HZ / _TIMESTEP / _GLIDE_STEPS)

WORKSPACE_LOW = np.array([-0.24, -0.20, 0.013])
WORKSPACE_HIGH = np.array([0.24, 0.22, 0.20])
_MAX_TILT = 0.3
_MAX_YAW = 0.8

DRAWER_CENTRE = np.array([-0.135, 0.20])
DRAWER_FRONT = 0.145
"""y of the closed drawer's front."""
HANDLE_OFFSET = 0.022
"""The handle's centre stands this far before the drawer's front."""
BUTTON_CENTRE = np.array([0.14, 0.165])
_DOWN = np.array([0.0, 0.0, -1.0])
_SUPPORTING_GROUPS = np.array([1, 0, 0, 0, 0, 0], dtype=np.uint8)
"""Geom groups: 0 what things can lie on, 2 the gripper, 3 the disc, 4 what is not shown."""
_PARKED = np.array([0.0, -2.0, 0.5])
"""Where blocks wait that the episode does not use: below the table's edge, out of sight."""


def _block_xml(color: str) -> str:
    return (
        f'<body name="{color}" pos="0 -2 .5"><freejoint name="{color}"/>'
        f'<geom name="{color}" type="box" size="{BLOCK_HALF} {BLOCK_HALF} {BLOCK_HALF}" mass=".06" '
        'friction=".5 .02 .001"/></body>'
    )


XML = f"""
<mujoco>
  <option timestep="{_TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual><global offwidth="512" offheight="512"/></visual>
  <default><geom condim="4" solref=".01 1" friction=".5 .02 .001"/></default>
  <worldbody>
    <geom name="table" type="box" size=".34 .30 .02" pos="0 .02 -.02"/>
    <geom name="floor" type="box" size="3 3 .02" pos="0 -2 .3" contype="1" conaffinity="1" group="4"/>
    <body name="plate" mocap="true" pos="0 0 0">
      <geom name="plate" type="cylinder" size="{PLATE_RADIUS} {PLATE_TOP / 2}" pos="0 0 {PLATE_TOP / 2}"/>
    </body>
    <body name="disc" mocap="true">
      <geom name="disc" type="cylinder" size=".016 .0004" contype="0" conaffinity="0" group="3"/>
    </body>
    <body name="cabinet" pos="{DRAWER_CENTRE[0]} {DRAWER_CENTRE[1]} 0">
      <geom name="cabinet_top" type="box" size=".062 .055 .004" pos="0 0 .074"/>
      <geom name="cabinet_left" type="box" size=".004 .055 .037" pos="-.058 0 .037"/>
      <geom name="cabinet_right" type="box" size=".004 .055 .037" pos=".058 0 .037"/>
      <geom name="cabinet_back" type="box" size=".062 .004 .037" pos="0 .051 .037"/>
      <body name="drawer" pos="0 0 0">
        <joint name="drawer" type="slide" axis="0 -1 0" range="0 {DRAWER_TRAVEL}" damping="6" frictionloss=".6"/>
        <geom name="drawer_front" type="box" size=".052 .005 .026" pos="0 -.050 .042" mass=".15"/>
        <geom name="drawer_floor" type="box" size=".052 .045 .003" pos="0 0 .019" mass=".15"/>
        <geom name="handle" type="box" size=".008 .012 .020" pos="0 -.077 {HANDLE_HEIGHT}" mass=".03"
          friction="2 .02 .001"/>
        <geom name="handle_stem" type="box" size=".004 .006 .006" pos="0 -.060 {HANDLE_HEIGHT}" mass=".01"/>
      </body>
    </body>
    <body name="button" pos="{BUTTON_CENTRE[0]} {BUTTON_CENTRE[1]} 0">
      <geom name="button_base" type="cylinder" size=".038 .011" pos="0 0 .011"/>
      <body name="button_cap" pos="0 0 .022">
        <joint name="button" type="slide" axis="0 0 -1" range="0 {BUTTON_TRAVEL}"
          stiffness="60" damping="2" springref="0"/>
        <geom name="button_cap" type="cylinder" size=".028 .010" pos="0 0 .010" mass=".05"/>
      </body>
    </body>
    {"".join(_block_xml(color) for color in COLORS)}
    <body name="target" mocap="true" pos="0 0 .12"/>
    <body name="hand" pos="0 0 .12" gravcomp="1">
      <freejoint name="hand"/>
      <inertial pos="0 0 .04" mass=".6" diaginertia=".001 .001 .001"/>
      <geom name="palm" type="box" group="2" size=".052 .010 .007" pos="0 0 .047" mass="0"/>
      <geom name="wrist" type="cylinder" group="2" size=".011 .030" pos="0 0 .084" mass="0" contype="0"
        conaffinity="0"/>
      <body name="finger_left" pos="-.006 0 0" gravcomp="1">
        <joint name="finger_left" type="slide" axis="-1 0 0" range="0 {FINGER_TRAVEL}" damping="4" armature=".01"/>
        <geom name="finger_left" type="box" group="2" size=".006 .011 .025" pos="0 0 .017" mass=".03"
          friction="2 .02 .001"/>
      </body>
      <body name="finger_right" pos=".006 0 0" gravcomp="1">
        <joint name="finger_right" type="slide" axis="1 0 0" range="0 {FINGER_TRAVEL}" damping="4" armature=".01"/>
        <geom name="finger_right" type="box" group="2" size=".006 .011 .025" pos="0 0 .017" mass=".03"
          friction="2 .02 .001"/>
      </body>
    </body>
  </worldbody>
  <contact>
    <exclude body1="drawer" body2="cabinet"/><exclude body1="drawer" body2="world"/>
    <exclude body1="hand" body2="finger_left"/><exclude body1="hand" body2="finger_right"/>
    <exclude body1="finger_left" body2="finger_right"/>
  </contact>
  <equality><weld body1="target" body2="hand" solref=".02 1" solimp=".95 .99 .001"/></equality>
  <actuator>
    <position name="finger_left" joint="finger_left" kp="400" forcerange="-8 8" ctrlrange="0 {FINGER_TRAVEL}"/>
    <position name="finger_right" joint="finger_right" kp="400" forcerange="-8 8" ctrlrange="0 {FINGER_TRAVEL}"/>
  </actuator>
</mujoco>
"""


@dataclass(frozen=True, slots=True)
class SceneState:
    """Ground truth at one moment; what predicates, the expert and question makers read. Metres and radians."""

    gripper: Float[np.ndarray, "3"]
    tilt_and_yaw: Float[np.ndarray, "3"]
    """Gripper's rotation about x, y, z."""
    gap: float
    """Between the fingers."""
    blocks: Mapping[str, Float[np.ndarray, "3"]]
    """Centres of the blocks in play."""
    held: str | None
    """The block that both fingers touch."""
    plate: Float[np.ndarray, "2"]
    drawer: float
    """How far the drawer is open."""
    button: float
    """How far the button is pressed."""

    @property
    def handle(self) -> Float[np.ndarray, "3"]:
        """Centre of the drawer's handle."""
        return np.array([DRAWER_CENTRE[0], DRAWER_FRONT - HANDLE_OFFSET - self.drawer, HANDLE_HEIGHT])


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneLayout:
    """A start: everything that differs between episodes but the looks."""

    blocks: Mapping[str, tuple[float, float, float]]
    """Colour -> x, y, yaw; blocks not named are not in play."""
    plate: tuple[float, float]
    drawer: float
    gripper: tuple[float, float, float]
    yaw: float
    """Of the gripper."""


class Scene:
    """The physics: reset to a layout, step actions, read the state."""

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_string(XML)
        self.data = mujoco.MjData(self.model)
        joint = self.model.joint
        self._block_qpos = {color: int(joint(color).qposadr[0]) for color in COLORS}
        self._block_body = {color: int(self.model.body(color).id) for color in COLORS}
        self._hand_qpos = int(joint("hand").qposadr[0])
        self._finger_qpos = [int(joint(name).qposadr[0]) for name in ("finger_left", "finger_right")]
        self._drawer_qpos = int(joint("drawer").qposadr[0])
        self._button_qpos = int(joint("button").qposadr[0])
        self._mocap = {name: int(self.model.body(name).mocapid[0]) for name in ("target", "plate", "disc")}
        self._block_of_geom = {self.model.geom(color).id: color for color in COLORS}
        self._fingers = (self.model.geom("finger_left").id, self.model.geom("finger_right").id)
        self._in_play: tuple[str, ...] = ()
        self._position = np.zeros(3)
        self._rotation = np.zeros(3)

    def reset(self, layout: SceneLayout, *, settle: int = 25) -> None:
        """Build the layout from a fresh state, so that nothing of earlier episodes remains."""
        mujoco.mj_resetData(self.model, self.data)
        data = self.data
        self._in_play = tuple(color for color in COLORS if color in layout.blocks)
        for index, color in enumerate(COLORS):
            address = self._block_qpos[color]
            if color in layout.blocks:
                x, y, yaw = layout.blocks[color]
                data.qpos[address : address + 3] = x, y, BLOCK_HALF
                data.qpos[address + 3 : address + 7] = np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
            else:
                data.qpos[address : address + 3] = _PARKED + np.array(
                    [0.2 * index, 0, -0.5 + 0.32 + BLOCK_HALF]
                )
        data.qpos[self._drawer_qpos] = layout.drawer
        data.mocap_pos[self._mocap["plate"]] = (*layout.plate, 0)
        self._position = np.clip(np.asarray(layout.gripper, dtype=np.float64), WORKSPACE_LOW, WORKSPACE_HIGH)
        self._rotation = np.array([0.0, 0.0, layout.yaw])
        address = self._hand_qpos
        data.qpos[address : address + 3] = self._position
        data.qpos[address + 3 : address + 7] = _quaternion(self._rotation)
        for address in self._finger_qpos:
            data.qpos[address] = FINGER_TRAVEL
        data.ctrl[:] = FINGER_TRAVEL
        target = self._mocap["target"]
        data.mocap_pos[target] = self._position
        data.mocap_quat[target] = _quaternion(self._rotation)
        mujoco.mj_forward(self.model, data)
        mujoco.mj_step(self.model, data, settle)
        self._place_disc()

    def pose(
        self, layout: SceneLayout, *, heights: Mapping[str, float], gap: float, button: float = 0.0
    ) -> None:
        """Put everything in place without physics, for pictures of scenes nobody played.

        `heights`: z of blocks that do not rest on the table; `gap`: between the fingers.
        """
        self.reset(layout, settle=0)
        for color, height in heights.items():
            self.data.qpos[self._block_qpos[color] + 2] = height
        for address in self._finger_qpos:
            self.data.qpos[address] = gap / 2
        self.data.qpos[self._button_qpos] = button
        mujoco.mj_kinematics(self.model, self.data)
        self._place_disc()

    def step(self, action: Float32[np.ndarray, "7"]) -> None:
        """Carry out one action: deltas in [-1, 1] of METRES_PER_UNIT and RADIANS_PER_UNIT, gripper > 0 opens."""
        command = np.clip(np.asarray(action, dtype=np.float64), -1, 1)
        self._position = np.clip(
            self._position + command[:3] * METRES_PER_UNIT, WORKSPACE_LOW, WORKSPACE_HIGH
        )
        limit = np.array([_MAX_TILT, _MAX_TILT, _MAX_YAW])
        self._rotation = np.clip(self._rotation + command[3:6] * RADIANS_PER_UNIT, -limit, limit)
        self.data.ctrl[:] = FINGER_TRAVEL if command[6] > 0 else 0.0
        target = self._mocap["target"]
        start = self.data.mocap_pos[target].copy()
        self.data.mocap_quat[target] = _quaternion(self._rotation)
        for index in range(_GLIDE_STEPS):
            # The target arrives before the interval ends: no jerk, no slip, and time to settle.
            share = min(1.0, (index + 1) / (_GLIDE_STEPS - 1))
            self.data.mocap_pos[target] = start + (self._position - start) * share
            mujoco.mj_step(self.model, self.data, _SUBSTEPS)
        self._place_disc()

    def state(self) -> SceneState:
        """Ground truth now."""
        qpos = self.data.qpos
        address = self._hand_qpos
        w, x, y, z = qpos[address + 3 : address + 7]
        rotation = np.array(
            [
                np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y)),
                np.arcsin(np.clip(2 * (w * y - z * x), -1, 1)),
                np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)),
            ]
        )
        blocks = {
            color: qpos[self._block_qpos[color] : self._block_qpos[color] + 3].copy()
            for color in self._in_play
        }
        return SceneState(
            gripper=qpos[address : address + 3].copy(),
            tilt_and_yaw=rotation,
            gap=float(sum(qpos[finger] for finger in self._finger_qpos)),
            blocks=blocks,
            held=self._held(),
            plate=self.data.mocap_pos[self._mocap["plate"]][:2].copy(),
            drawer=float(qpos[self._drawer_qpos]),
            button=float(qpos[self._button_qpos]),
        )

    def _held(self) -> str | None:
        if sum(self.data.qpos[finger] for finger in self._finger_qpos) < BLOCK_HALF:
            return None  # closed fingers that push a block touch it with both, too
        pairs = self.data.contact.geom
        touched = [
            set(pairs[pairs[:, 1] == finger, 0].tolist()) | set(pairs[pairs[:, 0] == finger, 1].tolist())
            for finger in self._fingers
        ]
        return next(
            (color for geom, color in self._block_of_geom.items() if geom in touched[0] & touched[1]), None
        )

    def _place_disc(self) -> None:
        """The dark disc below the gripper stands in for its shadow: a cue for height, on whatever is below."""
        mujoco.mj_kinematics(self.model, self.data)
        x, y, z = self.data.qpos[self._hand_qpos : self._hand_qpos + 3]
        self.data.mocap_pos[self._mocap["disc"]] = (x, y, self._surface_below(np.array([x, y, z])) + 0.0006)
        mujoco.mj_kinematics(self.model, self.data)

    def _surface_below(self, point: Float[np.ndarray, "3"]) -> float:
        """Height of what is below a point, the block that surrounds the point left out."""
        excluded = -1
        for color, address in self._block_qpos.items():
            if np.abs(self.data.qpos[address : address + 3] - point).max() < BLOCK_HALF:
                excluded = self._block_body[color]
        hit = np.zeros(1, dtype=np.int32)
        distance = mujoco.mj_ray(self.model, self.data, point, _DOWN, _SUPPORTING_GROUPS, True, excluded, hit)
        return float(point[2] - distance) if distance >= 0 else 0.0


def _quaternion(rotation: Float[np.ndarray, "3"]) -> Float[np.ndarray, "4"]:
    """Scalar-first quaternion of extrinsic x, y, z angles."""
    cx, cy, cz = np.cos(rotation / 2)
    sx, sy, sz = np.sin(rotation / 2)
    return np.array(
        [
            cx * cy * cz + sx * sy * sz,
            sx * cy * cz - cx * sy * sz,
            cx * sy * cz + sx * cy * sz,
            cx * cy * sz - sx * sy * cz,
        ]
    )


def before_drawer(spot: Float[np.ndarray, " axes"]) -> bool:
    """Whether x, y lies where the opening drawer and a gripper at its handle need room."""
    return bool(spot[0] < -0.05 and spot[1] > -0.02)


def random_layout(rng: np.random.Generator, facts: Mapping[str, Any] | None = None) -> SceneLayout:
    """A start with three blocks and the plate apart from each other.

    `facts` may fix `colors` (which blocks are in play) and `drawer` ("open" or "closed").
    """
    facts = facts or {}
    order = rng.permutation(len(COLORS))[:BLOCKS_PER_SCENE]
    colors = tuple(facts.get("colors") or (COLORS[index] for index in order))
    while True:
        plate = rng.uniform([-0.15, -0.13], [0.15, 0.04])
        spots = rng.uniform([-0.165, -0.15], [0.165, 0.05], size=(len(colors), 2))
        apart = all(
            abs(a[0] - b[0]) > 0.088 or abs(a[1] - b[1]) > 0.055
            for i, a in enumerate(spots)
            for b in spots[i + 1 :]
        )
        if any(before_drawer(spot) for spot in (*spots, plate)):
            continue
        if apart and all(np.linalg.norm(spot - plate) > PLATE_RADIUS + 0.035 for spot in spots):
            break
    drawer = {"open": True, "closed": False}.get(facts.get("drawer", ""), bool(rng.random() < 0.5))
    travel = float(rng.uniform(0.055, DRAWER_TRAVEL)) if drawer else 0.0
    low, high = np.array([-0.13, -0.11, 0.085]), np.array([0.13, 0.06, 0.15])
    return SceneLayout(
        blocks={
            color: (float(x), float(y), float(rng.uniform(-0.25, 0.25)))
            for color, (x, y) in zip(colors, spots, strict=True)
        },
        plate=(float(plate[0]), float(plate[1])),
        drawer=travel,
        gripper=tuple(float(v) for v in rng.uniform(low, high)),  # type: ignore[arg-type]
        yaw=float(rng.uniform(-0.4, 0.4)),
    )
