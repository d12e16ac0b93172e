"""One of the four scenes in ManiSkill 3, set up, controlled and judged as in ManiSkill 2.

ManiSkill 3.0.1 differs from what the paper's scores were measured on. Changed here: links of the robot do not collide
with each other; fingers, contacts, solver and the spoon's parts are ManiSkill 2's, and so are commands and success;
objects fall and settle as there; every scene keeps its own photograph (ManiSkill 3's share the last one's).
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8
from scipy.spatial.transform import Rotation

from vlm4vla.benchmarks.lavapipe import driver
from vlm4vla.benchmarks.simpler.models import separate_parts
from vlm4vla.benchmarks.simpler.rules import TABLE_HEIGHT, Start, Task, controller_action, lies_on
from vlm4vla.benchmarks.simulators import simulator_folder
from vlm4vla.core.errors import SimulatorError

CAMERA = "3rd_view_camera"
_PHYSICS_HZ = 500
_PHYSICS = {
    "default_materials_config": {"static_friction": 1.0, "dynamic_friction": 1.0, "restitution": 0.0},
    "scene_config": {"contact_offset": 0.005, "enable_pcm": False, "solver_position_iterations": 25},
}
_FINGER = {"material": "gripper", "patch_radius": 0.01, "min_patch_radius": 0.01}
_ROBOT = {
    "_materials": {"gripper": {"static_friction": 2.0, "dynamic_friction": 2.0, "restitution": 0.0}},
    "link": {"left_finger_link": _FINGER, "right_finger_link": _FINGER},
}
_CLOSED, _OPEN = 0.014, 0.038
"""Where a finger stands, in metres."""
_LEAST_IMPULSE = 1e-6
DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
"""The hand when it points down: Bridge's angles are measured from it."""


class Scene:
    """A task's scene. Every `begin` builds it anew, so that nothing of earlier episodes remains."""

    def __init__(self, task: Task) -> None:
        """Raises: SimulatorError when ManiSkill, its models or a Vulkan driver is not there."""
        gym = _maniskill()
        try:
            self.env: Any = gym.make(
                task.environment,
                obs_mode="rgb+segmentation",
                sim_backend="physx_cpu",
                render_backend="cpu",
                sim_config=_PHYSICS,
            ).unwrapped
        except RuntimeError as error:
            raise SimulatorError(
                f"SAPIEN does not start ({error}): it draws with Vulkan, and found no driver that it accepts. "
                "`vlm4vla simulators install simpler` fetches one that needs no graphics card"
            ) from error
        self.env._rgb_overlay_images = dict(self.env._rgb_overlay_images)
        self.task = task

    def begin(self, start: Start, *, joints: Float[np.ndarray, "6"] | None = None) -> None:
        """Let the objects fall and settle, then place the robot, its arm bent by `joints` (radians) beside its home."""
        import sapien

        env, task = self.env, self.task
        env.reset(seed=0, options={"reconfigure": True, "episode_id": 0})
        robot = env.agent.robot
        home, base = robot.get_qpos(), robot.pose
        robot.set_pose(sapien.Pose([-10, 0, 0]))
        self._bodies = [self._body(name) for name in (task.source, task.target)]
        turns = (start.yaw, 0.0)
        for body, place, yaw in zip(self._bodies, (start.source, start.target), turns, strict=True):
            body.linear_damping = body.angular_damping = 0.1
            body.pose = sapien.Pose([*place, TABLE_HEIGHT + 0.5], [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
            body.set_locked_motion_axes([False, False, False, True, True, False])
        self._settle(0.5)
        for body in self._bodies:
            body.set_locked_motion_axes([False] * 6)
            body.pose = body.pose
            body.linear_velocity = body.angular_velocity = np.zeros(3)
        self._settle(0.5)
        speeds = [
            sum(np.linalg.norm(getattr(body, kind)) for body in self._bodies)
            for kind in ("linear_velocity", "angular_velocity")
        ]
        if speeds[0] > 1e-3 or speeds[1] > 1e-2:
            self._settle(1.5)
        self._sizes = [
            body.pose.to_transformation_matrix()[:3, :3] @ self.extent(index)
            for index, body in enumerate(self._bodies)
        ]
        robot.set_pose(base)
        if joints is not None:
            home[0, :6] += joints
        env.agent.reset(init_qpos=home)
        self._robot = [link._objs[0].entity for link in robot.get_links()]

    def act(self, action: Float32[np.ndarray, "7"], gripper: float) -> None:
        """A fifth of a second. `action` as in `rules.controller_action`; `gripper` is +1 (open) or -1 (close)."""
        told = controller_action(action, gripper, target=self.told()[:3, 3], reached=self.hand()[:3, 3])
        self.env._step_action(told.astype(np.float32))

    def solved(self) -> bool:
        """Whether the object lies on the target now; it may still be held (as in ManiSkill 2)."""
        source, target = (self.center(index) for index in (0, 1))
        on = lies_on(source - target, *self._sizes, slack=self.task.slack)
        return on and not (self.task.alone and self._touches_others())

    def picture(self) -> UInt8[np.ndarray, "480 640 3"]:
        """What the camera sees: robot and objects before the photograph."""
        seen = self.env.get_obs({}, unflattened=True)["sensor_data"][CAMERA]["rgb"][0]
        return np.ascontiguousarray(seen.numpy().astype(np.uint8))

    def center(self, index: int) -> Float[np.ndarray, "3"]:
        """Centre of mass of the object (0) or the target (1), metres in the world."""
        body = self._bodies[index]
        return np.asarray((body.pose * body.cmass_local_pose).p, dtype=np.float64)

    def seen(self, index: int) -> Float[np.ndarray, "4 4"]:
        """Pose of the object (0) or the target (1) seen from the robot's base, metres."""
        return _matrix(self.env.agent.robot.pose.inv() * _pose(self._bodies[index].pose))

    def extent(self, index: int) -> Float[np.ndarray, "3"]:
        """Size of the object's (0) or the target's (1) box along its own axes, metres."""
        box = self.env.model_db[(self.task.source, self.task.target)[index]]["bbox"]
        return np.subtract(box["max"], box["min"])

    def hand(self) -> Float[np.ndarray, "4 4"]:
        """Where the hand is, between the fingers, seen from the base."""
        return _matrix(self.env.agent.controller.controllers["arm"].ee_pose_at_base)

    def told(self) -> Float[np.ndarray, "4 4"]:
        """Where it was told to be."""
        return _matrix(self.env.agent.controller.controllers["arm"]._target_pose)

    def state(self) -> Float32[np.ndarray, "7"]:
        """As Bridge stores it: place of the hand seen from the base (metres), angles about x, y, z (radians) away from
        pointing down, and how far the gripper is open (0..1)."""
        hand = self.hand()
        angles = Rotation.from_matrix(hand[:3, :3] @ DOWN.T).as_euler("xyz")
        fingers = float(self.env.agent.robot.get_qpos()[0, 6:8].mean())
        opened = np.clip((fingers - _CLOSED) / (_OPEN - _CLOSED), 0, 1)
        return np.concatenate([hand[:3, 3], angles, [opened]]).astype(np.float32)

    def close(self) -> None:
        """Free it."""
        self.env.close()

    def _settle(self, seconds: float) -> None:
        for _ in range(int(_PHYSICS_HZ * seconds)):
            self.env.scene.step()

    def _body(self, name: str) -> Any:
        import sapien

        return self.env.objs[name]._objs[0].find_component_by_type(sapien.physx.PhysxRigidDynamicComponent)

    def _touches_others(self) -> bool:
        """Whether the object presses on anything but the robot and the target."""
        source, target = (body.entity for body in self._bodies)
        allowed = [target, *self._robot]
        for contact in self.env.scene.px.get_contacts():
            first, second = (body.entity for body in contact.bodies)
            if source not in (first, second):
                continue
            other = second if first == source else first
            impulse = np.sum([point.impulse for point in contact.points], axis=0)
            if other not in allowed and np.linalg.norm(impulse) > _LEAST_IMPULSE:
                return True
        return False


def _matrix(pose: Any) -> Float[np.ndarray, "4 4"]:
    """Of the only pose of ManiSkill's batch."""
    return np.asarray(pose.to_transformation_matrix()[0].numpy(), dtype=np.float64)


def _pose(pose: Any) -> Any:
    """SAPIEN's pose as ManiSkill's."""
    from mani_skill.utils.structs.pose import Pose

    return Pose.create(pose)


@functools.cache
def _maniskill() -> Any:
    """gymnasium with ManiSkill's tasks registered, reading our models and drawing with our driver."""
    folder = simulator_folder("simpler")
    if not (folder / "data" / "tasks" / "bridge_v2_real2sim_dataset").is_dir():
        raise SimulatorError(
            f"{folder / 'data'}: SimplerEnv's models are not there. `vlm4vla simulators install simpler` fetches them, "
            "`--from FOLDER` takes a copy (a folder `data` in ManiSkill 3's layout)"
        )
    os.environ["MS_ASSET_DIR"], os.environ["MS_SKIP_ASSET_DOWNLOAD_PROMPT"] = str(folder), "1"
    description = driver(folder)
    if description is not None:
        os.environ["VK_ICD_FILENAMES"] = str(description)
    try:
        import gymnasium
        import sapien
        from mani_skill.envs.tasks.digital_twins.bridge_dataset_eval import base_env
    except ImportError as error:
        raise SimulatorError(
            f"SimplerEnv needs ManiSkill 3 ({error}): `vlm4vla simulators install simpler`"
        ) from error
    for robot in (base_env.WidowX250SBridgeDatasetFlatTable, base_env.WidowX250SBridgeDatasetSink):
        robot.disable_self_collisions, robot.urdf_config = True, _ROBOT
    shape = sapien.physx.PhysxCollisionShapeConvexMesh
    joined = shape.load_multiple

    def load_multiple(filename: str, scale: Any, material: Any) -> list[Any]:
        # SAPIEN 3 joins parts that nearly touch, and the spoon becomes a brick; SAPIEN 2 keeps handle and bowl apart.
        if "bridge_spoon" not in filename:
            return list(joined(filename=filename, scale=scale, material=material))
        parts = separate_parts(Path(filename))
        return [shape(vertices=part, scale=scale, material=material) for part in parts]

    shape.load_multiple = staticmethod(load_multiple)
    return gymnasium
