"""`calvin-abc-d`: 1,000 chains of five tasks in scene D, which training on A, B and C never shows (Paper 3.3)."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from vlm4vla.benchmarks.calvin.expert import PLANS
from vlm4vla.benchmarks.calvin.oracle import TASKS
from vlm4vla.benchmarks.calvin.sequences import chains, initial_state, instructions
from vlm4vla.benchmarks.calvin.world import SCENES, State, World
from vlm4vla.benchmarks.egl import instead, require_context
from vlm4vla.benchmarks.simulators import interpreter, pins, simulator_folder
from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import RecipeError, SimulatorError, unknown_name
from vlm4vla.core.types import EpisodeSpec, Goal, Observation, Step

VERSION = "v2"
ACTION_SPEC = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="controller")
MAX_STEPS = 360
"""Of one task."""
SIDE = 200
"""Pixels of the static camera, as the data set has it."""
_LOOK_FROM = (2.871459009488717, -2.166602199425597, 2.555159848480571)
_LOOK_AT = (-0.026242351159453392, -0.0302329882979393, 0.3920000493526459)
_UP = (0.4041403970338857, 0.22629790978217404, 0.8862616969685161)
_FIELD, _NEAR, _FAR = 10, 0.01, 10
_WRIST_SIDE, _WRIST_FIELD, _WRIST_FAR = 84, 75, 2
"""Of the gripper's camera."""
_UNSHADED = 4
"""The first two pictures of an OpenGL context have no shadows, also those of an empty world; two more to be sure."""
_PLUGIN = "_eglRendererPlugin"
RENDERERS = ("egl", "tiny")
"""The data set was drawn with EGL; TinyRenderer needs no OpenGL, and its pictures differ by 20 grey levels."""


class Calvin:
    """The published chains, in their order; `episodes` of them (0: all).

    With `tasks`: of each, the first `episodes` chains (0: all) that begin with it, and of those the first goal alone.
    """

    action_spec = ACTION_SPEC

    def __init__(
        self,
        episodes: int = 0,
        *,
        renderer: str = "egl",
        scene: str = "D",
        tasks: Sequence[str] = (),
        shows: Sequence[str] = (),
    ) -> None:
        """`shows`: `wrist_image`, `state` or both.

        Raises: RecipeError for a renderer, scene or task that there is not, or more episodes than chains."""
        if renderer not in RENDERERS:
            raise RecipeError(f"CALVIN is drawn with {' or '.join(RENDERERS)}, not with {renderer!r}")
        if scene not in SCENES:
            raise RecipeError(f"CALVIN has the scenes {', '.join(SCENES)}, not {scene!r}")
        if not 0 <= episodes <= len(chains()):
            raise RecipeError(
                f"CALVIN has {len(chains()):,} chains; evaluation.episodes_per_task is {episodes}"
            )
        first = [chain.tasks[0] for chain in chains()]
        for task in tasks:
            if task not in first:
                raise unknown_name("task that a chain of CALVIN begins with", task, sorted(set(first)))
        self._arguments = {"episodes": episodes, "renderer": renderer, "scene": scene, "tasks": list(tasks)}
        self._arguments["shows"] = self._shows = list(shows)
        self._scene, self._renderer, self._goals = scene, renderer, 1 if tasks else None
        begun = [[n for n, begins in enumerate(first) if begins == task] for task in tasks]
        self._numbers = [
            n for numbers in begun or [[*range(len(first))]] for n in numbers[: episodes or None]
        ]
        name = "calvin-abc-d" if scene == "D" and not tasks else f"calvin-{scene.lower()}"
        self.name = "-".join([name, *["tasks"] * bool(tasks), *[renderer] * (renderer != "egl"), VERSION])

    def episodes(self) -> Sequence[EpisodeSpec]:
        """One per chain; its goals are what a policy is told, one after the other."""
        told, tier = instructions(), "single" if self._goals else "chain"
        return tuple(
            EpisodeSpec(
                id=f"{self.name}/{number:04d}",
                goals=tuple(
                    Goal(task=task, instruction=told[task], tier=tier) for task in chain.tasks[: self._goals]
                ),
                max_steps_per_goal=MAX_STEPS,
                setup={"condition": dict(chain.condition)},
            )
            for number, chain in ((number, chains()[number]) for number in self._numbers)
        )

    @property
    def python(self) -> str | None:
        """Raises: SimulatorError when it is not installed."""
        return interpreter("calvin")

    @property
    def software(self) -> Mapping[str, str]:
        """PyBullet."""
        return pins("calvin")

    def make_environment(self) -> CalvinEnvironment:
        """Raises: SimulatorError when PyBullet or CALVIN's models are not there."""
        return CalvinEnvironment(self._scene, self._renderer, shows=self._shows)

    def recipe(self) -> tuple[str, Mapping[str, Any]]:
        """For a worker."""
        return f"{Calvin.__module__}:{Calvin.__name__}", self._arguments


def single_tasks(
    tasks: Sequence[str] = (), episodes: int = 0, *, renderer: str = "egl", shows: Sequence[str] = ()
) -> Calvin:
    """Single goals in scene D; none named: those that the scripted expert can do."""
    return Calvin(episodes, renderer=renderer, tasks=tasks or list(PLANS), shows=shows)


class CalvinEnvironment:
    """One scene. Every reset builds the world anew, so that an episode does not depend on those before it."""

    def __init__(self, scene: str = "D", renderer: str = "egl", *, shows: Sequence[str] = ()) -> None:
        self._shows = shows
        assets = simulator_folder("calvin") / "data"
        if not (assets / "franka_panda").is_dir():
            raise SimulatorError(
                f"{assets}: CALVIN's models are not there. `vlm4vla simulators install calvin` fetches them, "
                "`--from FOLDER` takes a copy (github.com/mees/calvin_env, folder data)"
            )
        self._client = _connect(renderer)
        self._renderer = renderer
        self.world = World(self._client, scene, assets)
        self._goals: tuple[Goal, ...] = ()
        self._completed = 0
        self._view = self._client.computeViewMatrix(_LOOK_FROM, _LOOK_AT, _UP)
        self._projection = self._client.computeProjectionMatrixFOV(_FIELD, 1, _NEAR, _FAR)
        if renderer == "egl":
            for _ in range(_UNSHADED):
                self._picture()

    def reset(self, episode: EpisodeSpec) -> Observation:
        """Build the desk as the chain finds it."""
        self.begin(*initial_state(episode.setup["condition"]), goals=episode.goals)
        return self.observe()

    def begin(self, robot_obs: Any, scene_obs: Any, *, goals: Sequence[Goal], seed: int = 0) -> None:
        """Build the desk in any state."""
        self.world.build(np.asarray(robot_obs), np.asarray(scene_obs), seed=seed)
        self._goals, self._completed = tuple(goals), 0
        self._start: State = self.world.state()

    def step(self, action: Float32[np.ndarray, "7"]) -> Step:
        """One action of 1/30 s."""
        completed = self.advance(action)
        return Step(self.observe(), completed)

    def advance(self, action: Float32[np.ndarray, "7"]) -> int:
        """The same without a picture, which costs six times as much as the physics."""
        if not np.isfinite(action).all():
            raise SimulatorError(f"the action {np.asarray(action).tolist()} is not finite")
        self.world.act(action)
        if self._completed < len(self._goals):
            now = self.world.state()
            if TASKS[self._goals[self._completed].task](self._start, now, self.world):
                self._completed += 1
                self._start = now
        return self._completed

    def observe(self) -> Observation:
        """The static camera, 200 x 200, what is to be done now, and what else is asked for.

        The wrist image is the gripper's camera, 84 x 84. The state is vla-eval's: the tool's place (3, metres), its
        Euler angles (3), how far the fingers are apart (metres), the gripper's last command.
        """
        current = self._goals[min(self._completed, len(self._goals) - 1)]
        wrist = self._wrist_picture() if "wrist_image" in self._shows else None
        state = self.world.robot_obs()[[*range(7), 14]].astype(np.float32) if "state" in self._shows else None
        return Observation(self._picture(), current.instruction, wrist_image=wrist, state=state)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()

    def _picture(self) -> UInt8[np.ndarray, "200 200 3"]:
        return self._drawn_from(self._view, self._projection, SIDE)

    def _wrist_picture(self) -> UInt8[np.ndarray, "84 84 3"]:
        place, forward, up = self.world.wrist_camera()
        view = self._client.computeViewMatrix(place, place + forward, up)
        lens = self._client.computeProjectionMatrixFOV(_WRIST_FIELD, 1, _NEAR, _WRIST_FAR)
        return self._drawn_from(view, lens, _WRIST_SIDE)

    def _drawn_from(self, view: Any, projection: Any, side: int) -> UInt8[np.ndarray, "side side 3"]:
        p = self._client
        kind = p.ER_BULLET_HARDWARE_OPENGL if self._renderer == "egl" else p.ER_TINY_RENDERER
        pixels = p.getCameraImage(
            side, side, view, projection, renderer=kind, flags=p.ER_NO_SEGMENTATION_MASK
        )[2]
        if self._renderer == "egl":
            require_context("CALVIN")
        return np.ascontiguousarray(np.asarray(pixels, dtype=np.uint8).reshape(side, side, 4)[:, :, :3])


def _connect(renderer: str) -> Any:
    """A PyBullet client of its own, with its OpenGL where that is asked for."""
    try:
        import pybullet
        from pybullet_utils.bullet_client import BulletClient
    except ImportError as error:
        raise SimulatorError(
            "CALVIN needs PyBullet: `vlm4vla simulators install calvin`, or pip install 'vlm4vla[calvin]'"
        ) from error
    client = BulletClient(connection_mode=pybullet.DIRECT, options=f"--width={SIDE} --height={SIDE}")
    if renderer == "egl":
        os.environ.setdefault("EGL_PLATFORM", "surfaceless")
        plugin = importlib.util.find_spec("eglRenderer")
        path = (plugin and plugin.origin) or ""
        if not _egl_loads(path) or client.loadPlugin(path, _PLUGIN) < 0:
            raise SimulatorError(
                "PyBullet's EGL renderer does not load: install Mesa's EGL (Debian: libegl1 libgl1-mesa-dri), or draw "
                f"with TinyRenderer, whose pictures differ: {instead('tiny')}"
            )
    return client


@functools.cache
def _egl_loads(path: str) -> bool:
    """Tried in a process of its own, since PyBullet's plugin ends its process where there is no EGL."""
    program = "import sys, pybullet as p; p.connect(p.DIRECT); sys.exit(p.loadPlugin(*sys.argv[1:]) < 0)"
    command = [sys.executable, "-c", program, path, _PLUGIN]
    return bool(path) and subprocess.run(command, capture_output=True, check=False).returncode == 0
