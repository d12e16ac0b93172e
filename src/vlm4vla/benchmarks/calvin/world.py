"""CALVIN's four scenes in PyBullet: a Panda arm before a desk with a sliding door, a drawer, a button, a switch.

Numbers, load order and control follow calvin_env (github.com/mees/calvin_env, conf/ and robot/robot.py). A world is
built anew for every episode: what PyBullet keeps (contacts, the fingers' motors, the button's edge) would otherwise
reach into the next one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from vlm4vla.core.errors import SimulatorError

SCALE = 0.8
"""Of table and blocks."""
BASE = (-0.34, -0.46, 0.24)
HOME = (-1.21779206, 1.03987646, 2.11978261, -2.34205014, -0.87015947, 1.64119353, 0.55344866)
ARM = tuple(range(7))
FINGERS = (9, 11)
TOOL = 15
_LOWER = (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973)
_UPPER = (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973)
_OPEN = 0.04
_ARM_FORCE, _ARM_SPEED = 200.0, 2.0
_FINGER_FORCE, _FINGER_SPEED = 200.0, 1.0
_RESISTANCE = 4.0
"""Force of doors, button and switch against being moved."""
MOST_MOVEMENT, MOST_TURN = 0.02, 0.05
"""Metres and radians of an action's largest component."""
SUBSTEPS = 8
_RATE = 240.0
DOORS, BUTTON, SWITCH = ("base__slide", "base__drawer"), "base__button", "base__switch"
LIGHTS = {"lightbulb": ("light_link", (1, 1, 0, 1)), "led": ("led_link", (0, 1, 0, 1))}
"""Their links and colours when they are on."""
SCENE_OBS, ROBOT_OBS = 24, 15


@dataclass(frozen=True, slots=True)
class SceneFacts:
    """What differs between scenes."""

    blocks: Mapping[str, str]
    """Name and file, in the order of the scene's state, which is not the same in all four."""
    surfaces: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]]
    """Where blocks may lie, low and high corner in metres."""


def _surfaces(
    table: tuple[float, float], left: tuple[float, float], right: tuple[float, float]
) -> dict[str, Any]:
    return {
        "table": ((table[0], -0.15, 0.46), (table[1], -0.03, 0.46)),
        "slider_left": ((left[0], 0.05, 0.46), (left[1], 0.12, 0.46)),
        "slider_right": ((right[0], 0.05, 0.46), (right[1], 0.12, 0.46)),
    }


SCENES: Mapping[str, SceneFacts] = {
    "A": SceneFacts(
        {"block_pink": "pink_small", "block_blue": "blue_big", "block_red": "red_middle"},
        _surfaces((-0.2, 0.35), (-0.32, -0.16), (-0.05, 0.13)),
    ),
    "B": SceneFacts(
        {"block_red": "red_small", "block_blue": "blue_big", "block_pink": "pink_middle"},
        _surfaces((-0.35, 0.15), (-0.12, 0.06), (0.15, 0.33)),
    ),
    "C": SceneFacts(
        {"block_blue": "blue_small", "block_red": "red_big", "block_pink": "pink_middle"},
        _surfaces((0.0, 0.35), (-0.12, 0.06), (0.15, 0.3)),
    ),
    "D": SceneFacts(
        {"block_red": "red_middle", "block_blue": "blue_small", "block_pink": "pink_big"},
        _surfaces((0.0, 0.35), (-0.32, -0.16), (-0.05, 0.13)),
    ),
}


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """What the oracle reads of a block."""

    position: Float[np.ndarray, "3"]
    orientation: Float[np.ndarray, "4"]
    """Quaternion, scalar last."""
    velocity: Float[np.ndarray, "6"]
    """Linear, then angular."""
    contacts: frozenset[tuple[int, int]]
    """Body and link of whatever it touches."""


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What the oracle compares at the beginning and now."""

    blocks: Mapping[str, Body]
    doors: Mapping[str, float]
    lights: Mapping[str, int]
    robot_contacts: frozenset[int]
    """Bodies that the robot touches."""


class World:
    """One scene with its robot, in a PyBullet client of its own."""

    def __init__(self, client: Any, scene: str, assets: Path) -> None:
        """`client`: a `BulletClient`; `assets`: CALVIN's folder `data`."""
        self.p, self.scene, self._assets = client, SCENES[scene], assets
        self.name = scene

    def build(
        self, robot_obs: Float[np.ndarray, "15"], scene_obs: Float[np.ndarray, "24"], *, seed: int = 0
    ) -> None:
        """Load everything anew and bring it into this state; `seed` draws where blocks are loaded before they move."""
        p = self.p
        # calvin_env asks for deterministicOverlappingPairs, but before its last reset, which forgets it.
        p.resetSimulation()
        p.setTimeStep(1 / _RATE)
        p.setGravity(0, 0, -9.8)
        self.robot: int = p.loadURDF(
            str(self._assets / "franka_panda" / "panda_longer_finger.urdf"), BASE, useFixedBase=True
        )
        cylinder = p.createVisualShape(
            shapeType=p.GEOM_CYLINDER,
            rgbaColor=[1, 1, 1, 1],
            radius=0.13,
            length=BASE[2],
            visualFramePosition=[BASE[0] - 0.05, BASE[1], BASE[2] / 2],
        )
        p.createMultiBody(baseVisualShapeIndex=cylinder)
        gear = p.createConstraint(
            self.robot, FINGERS[0], self.robot, FINGERS[1], p.JOINT_GEAR, [1, 0, 0], [0, 0, 0], [0, 0, 0]
        )
        p.changeConstraint(gear, gearRatio=-1, erp=0.1, maxForce=50)
        self._degrees = p.computeDofCount(self.robot)
        self._place_robot(np.array(HOME), _OPEN)
        self._load_scene(np.random.default_rng(seed))
        self._set_scene(scene_obs)
        self._place_robot(robot_obs[7:14], float(robot_obs[6]) / 2)
        p.stepSimulation()

    target: Float[np.ndarray, "3"]
    """Where the tool is driven to: actions add up on it, whatever the arm reaches."""
    turn: Float[np.ndarray, "3"]
    """Likewise, in Euler angles."""

    def act(self, action: Float32[np.ndarray, "7"]) -> None:
        """One control step of 1/30 s: the target pose moves by the action, the arm follows it."""
        p = self.p
        # As calvin_env: the target moves, not the measured pose, in double precision.
        self.target += np.asarray(action[:3], dtype=np.float64) * MOST_MOVEMENT
        self.turn += np.asarray(action[3:6], dtype=np.float64) * MOST_TURN
        joints = p.calculateInverseKinematics(
            self.robot,
            TOOL,
            self.target,
            p.getQuaternionFromEuler(self.turn),
            [-7] * self._degrees,
            [7] * self._degrees,
            [7] * self._degrees,
            [*HOME, _OPEN, _OPEN],
        )
        for joint, angle in zip(ARM, np.clip(joints[:7], _LOWER, _UPPER), strict=True):
            self._drive(joint, angle, force=_ARM_FORCE, speed=_ARM_SPEED)
        opened = action[6] > 0
        self.gripper_action = 1.0 if opened else -1.0
        for finger in FINGERS:
            force = _FINGER_FORCE / 100 if opened else _FINGER_FORCE
            self._drive(finger, _OPEN if opened else 0.0, force=force, speed=_FINGER_SPEED)
        for _ in range(SUBSTEPS):
            p.stepSimulation()
        self._switch_lights()

    def state(self) -> State:
        """What the oracle reads."""
        p, blocks = self.p, {}
        for name, body in self.blocks.items():
            position, orientation = p.getBasePositionAndOrientation(body)
            linear, angular = p.getBaseVelocity(body)
            blocks[name] = Body(
                np.array(position),
                np.array(orientation),
                np.array([*linear, *angular]),
                frozenset((contact[2], contact[4]) for contact in p.getContactPoints(bodyA=body)),
            )
        doors = {name: self._joint(self.table, self.joints[name]) for name in DOORS}
        robot = frozenset(contact[2] for contact in p.getContactPoints(bodyA=self.robot))
        return State(blocks, doors, dict(self.lights), robot)

    def robot_obs(self) -> Float[np.ndarray, "15"]:
        """Position, Euler angles, opening, seven joints, gripper action."""
        position, orientation = self.p.getLinkState(self.robot, TOOL)[:2]
        joints = [self._joint(self.robot, joint) for joint in ARM]
        opening = sum(self._joint(self.robot, finger) for finger in FINGERS)
        angles = self.p.getEulerFromQuaternion(orientation)
        return np.array([*position, *angles, opening, *joints, self.gripper_action])

    def wrist_camera(self) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
        """Where the gripper's camera is, where it looks to, what is up in its picture. camera/gripper_camera.py."""
        p = self.p
        names = [p.getJointInfo(self.robot, joint)[12] for joint in range(p.getNumJoints(self.robot))]
        place, turn = p.getLinkState(self.robot, names.index(b"gripper_cam"))[:2]
        axes = np.array(p.getMatrixFromQuaternion(turn)).reshape(3, 3)
        return np.array(place), axes[:, 1], -axes[:, 2]

    def scene_obs(self) -> Float[np.ndarray, "24"]:
        """Slider, drawer, button, switch, lightbulb, led; of every block in the scene's order position and angles."""
        names = (*DOORS, BUTTON, SWITCH)
        found = [self._joint(self.table, self.joints[name]) for name in names]
        found += [float(self.lights[name]) for name in LIGHTS]
        for body in self.blocks.values():
            position, orientation = self.p.getBasePositionAndOrientation(body)
            found += [*position, *self.p.getEulerFromQuaternion(orientation)]
        return np.array(found)

    def _load_scene(self, rng: np.random.Generator) -> None:
        p, self.blocks = self.p, dict[str, int]()
        for name, file in self.scene.blocks.items():
            surface = list(self.scene.surfaces.values())[int(rng.integers(3))]
            place, yaw = rng.uniform(*surface), rng.uniform(-math.pi, math.pi)
            path = str(self._assets / "blocks" / f"block_{file}.urdf")
            turned = p.getQuaternionFromEuler([0, 0, yaw])
            self.blocks[name] = p.loadURDF(path, place, turned, globalScaling=SCALE)
        table = self._assets / f"calvin_table_{self.name}" / "urdf" / f"calvin_table_{self.name}.urdf"
        self.table: int = p.loadURDF(str(table), [0, 0, 0], [0, 0, 0, 1], globalScaling=SCALE)
        facts = [p.getJointInfo(self.table, joint) for joint in range(p.getNumJoints(self.table))]
        self.joints = {fact[1].decode(): joint for joint, fact in enumerate(facts)}
        self.links = {fact[12].decode(): joint for joint, fact in enumerate(facts)} | {"base_link": -1}
        for name in DOORS:
            p.setJointMotorControl2(
                self.table, self.joints[name], controlMode=p.VELOCITY_CONTROL, force=_RESISTANCE
            )
        p.setJointMotorControl2(
            self.table,
            self.joints[BUTTON],
            controlMode=p.POSITION_CONTROL,
            targetPosition=0,
            force=_RESISTANCE,
        )
        p.setJointMotorControl2(
            self.table, self.joints[SWITCH], controlMode=p.VELOCITY_CONTROL, force=_RESISTANCE
        )
        self._middles = {name: sum(facts[self.joints[name]][8:10]) / 2 for name in (BUTTON, SWITCH)}
        p.loadURDF(str(self._assets / "plane" / "plane.urdf"))

    def _set_scene(self, obs: Float[np.ndarray, "24"]) -> None:
        p = self.p
        for name, value in zip((*DOORS, BUTTON, SWITCH), obs[:4], strict=True):
            p.resetJointState(self.table, self.joints[name], value)
        self.lights = dict.fromkeys(LIGHTS, 0)
        for name, value in zip(LIGHTS, obs[4:6], strict=True):
            if value not in (0, 1):
                raise SimulatorError(f"the scene's state has {name} {value}; a light is 0 or 1")
            self._light(name, int(value))
        self._pressed = self._joint(self.table, self.joints[BUTTON]) > self._middles[BUTTON]
        self._flipped = False
        for body, pose in zip(self.blocks.values(), obs[6:].reshape(3, 6), strict=True):
            turned = p.getQuaternionFromEuler(pose[3:])
            p.resetBasePositionAndOrientation(body, pose[:3], turned)

    def _place_robot(self, joints: Float[np.ndarray, "7"], opening: float) -> None:
        self.gripper_action = 1.0
        for joint, angle in zip(ARM, joints, strict=True):
            self.p.resetJointState(self.robot, joint, angle)
            self._drive(joint, angle, force=_ARM_FORCE, speed=_ARM_SPEED)
        for finger in FINGERS:
            self.p.resetJointState(self.robot, finger, opening)
            self._drive(finger, opening, force=_FINGER_FORCE, speed=_FINGER_SPEED)
        position, orientation = self.p.getLinkState(self.robot, TOOL)[:2]
        self.target = np.array(position)
        self.turn = np.array(self.p.getEulerFromQuaternion(orientation))

    def _switch_lights(self) -> None:
        """The button toggles the led when it is pressed down; the switch holds the lightbulb."""
        pressed = self._joint(self.table, self.joints[BUTTON]) > self._middles[BUTTON]
        if pressed and not self._pressed:
            self._light("led", 1 - self.lights["led"])
        self._pressed = pressed
        flipped = self._joint(self.table, self.joints[SWITCH]) > self._middles[SWITCH]
        if flipped != self._flipped:
            self._light("lightbulb", int(flipped))
        self._flipped = flipped

    def _light(self, name: str, value: int) -> None:
        link, color = LIGHTS[name]
        self.lights[name] = value
        self.p.changeVisualShape(self.table, self.links[link], rgbaColor=color if value else (1, 1, 1, 1))

    def _joint(self, body: int, joint: int) -> float:
        return float(self.p.getJointState(body, joint)[0])

    def _drive(self, joint: int, target: float, *, force: float, speed: float) -> None:
        self.p.setJointMotorControl2(
            bodyIndex=self.robot,
            jointIndex=joint,
            controlMode=self.p.POSITION_CONTROL,
            force=force,
            targetPosition=target,
            maxVelocity=speed,
        )
