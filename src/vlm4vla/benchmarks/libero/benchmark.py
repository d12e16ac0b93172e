"""`libero-long`, `libero-object`, `libero-spatial`, `libero-goal` and `libero-90`: 50 shipped initial states a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from vlm4vla.benchmarks.libero.suites import STATES, SUITES, instruction
from vlm4vla.benchmarks.libero.world import CAMERAS, World
from vlm4vla.benchmarks.simulators import interpreter, pins
from vlm4vla.core.actions import GRIPPER, ActionSpec
from vlm4vla.core.errors import RecipeError, SimulatorError, unknown_name
from vlm4vla.core.types import EpisodeSpec, Goal, Observation, Step

VERSION = "v1"
ACTION_SPEC = ActionSpec(rotation="axis_angle", gripper="open_positive", unit="controller")
"""As in the data that the paper trains on; LIBERO's own gripper has the other sign."""
SEED = 0
"""Of every reset: fixtures' places come from it, and no initial state holds them."""
RENDERERS = ("egl", "osmesa")
"""Their pictures were the same wherever both were tried; EGL may use a GPU, whose pictures differ a little."""


class Libero:
    """A suite; `tasks` of it (none: all), in its order, and of each the first `episodes_per_task` states (0: all)."""

    action_spec = ACTION_SPEC

    def __init__(
        self,
        suite: str = "long",
        tasks: Sequence[str] = (),
        episodes_per_task: int = 0,
        *,
        image_size: int = 256,
        renderer: str = "egl",
        shows: Sequence[str] = (),
    ) -> None:
        """`shows`: `wrist_image`, `state` or both.

        Raises: RecipeError for a suite, task, renderer or number of episodes that there is not.
        """
        if suite not in SUITES:
            raise unknown_name("suite of LIBERO", suite, SUITES)
        for task in tasks:
            if task not in SUITES[suite].tasks:
                raise unknown_name(f"task of libero-{suite}", task, SUITES[suite].tasks)
        if renderer not in RENDERERS:
            raise RecipeError(f"LIBERO is drawn with {' or '.join(RENDERERS)}, not with {renderer!r}")
        if not 0 <= episodes_per_task <= STATES:
            raise RecipeError(
                f"LIBERO ships {STATES} initial states a task; evaluation.episodes_per_task is {episodes_per_task}"
            )
        if image_size < 1:
            raise RecipeError(f"evaluation.image_size must be at least 1, not {image_size}")
        self._suite, self._renderer, self._side = suite, renderer, image_size
        self._tasks = [task for task in SUITES[suite].tasks if not tasks or task in tasks]
        self._count = episodes_per_task or STATES
        self._shows = list(shows)
        self.name = f"libero-{suite}-{VERSION}"

    def episodes(self) -> Sequence[EpisodeSpec]:
        """Task by task, since building another one takes seconds."""
        suite = SUITES[self._suite]
        return tuple(
            EpisodeSpec(
                id=f"{self.name}/{task}/{state:02d}",
                goals=(Goal(task=task, instruction=instruction(task), tier=suite.folder),),
                max_steps_per_goal=suite.max_steps,
                setup={"suite": suite.folder, "task": task, "state": state},
            )
            for task in self._tasks
            for state in range(self._count)
        )

    @property
    def python(self) -> str | None:
        """Raises: SimulatorError when it is not installed."""
        return interpreter("libero")

    @property
    def software(self) -> Mapping[str, str]:
        """LIBERO's packages, robosuite, MuJoCo and what they compute with."""
        return pins("libero")

    def make_environment(self) -> LiberoEnvironment:
        """Raises: SimulatorError when LIBERO or its OpenGL is not there."""
        return LiberoEnvironment(self._side, renderer=self._renderer, shows=self._shows)

    def recipe(self) -> tuple[str, Mapping[str, Any]]:
        """For a worker."""
        arguments = {
            "suite": self._suite,
            "tasks": self._tasks,
            "episodes_per_task": self._count,
            "image_size": self._side,
            "renderer": self._renderer,
            "shows": self._shows,
        }
        return f"{Libero.__module__}:{Libero.__name__}", arguments


class LiberoEnvironment:
    """One simulator. Every reset is a hard one, so that an episode does not depend on those before it."""

    def __init__(self, image_size: int = 256, *, renderer: str = "egl", shows: Sequence[str] = ()) -> None:
        self._shows = shows
        self.world = World(image_size, renderer=renderer)
        self._instruction, self._done = "", False

    def reset(self, episode: EpisodeSpec) -> Observation:
        """Bring the simulator into the shipped state and let its objects settle."""
        setup = episode.setup
        self.world.begin(setup["suite"], setup["task"], seed=SEED, state=setup["state"])
        self._instruction, self._done = episode.goals[0].instruction, False
        return self.observe()

    def step(self, action: Float32[np.ndarray, "7"]) -> Step:
        """One action of 1/20 s."""
        completed = self.advance(action)
        return Step(self.observe(), completed)

    def advance(self, action: Float32[np.ndarray, "7"]) -> int:
        """The same without a picture, which costs several times as much as the physics."""
        if not np.isfinite(action).all():
            raise SimulatorError(f"the action {np.asarray(action).tolist()} is not finite")
        action = np.array(action)
        action[GRIPPER] = -action[GRIPPER]
        self._done |= self.world.act(action)
        return int(self._done)

    def observe(self) -> Observation:
        """The third-person camera, what is to be done, and what else is asked for.

        The state is openpi's: where the hand is (3, metres), its rotation vector (3), its two fingers (2).
        """
        wrist = self.world.picture(CAMERAS[1]) if "wrist_image" in self._shows else None
        state = None
        if "state" in self._shows:
            felt = self.world.proprioception()
            state = np.concatenate([felt["ee_states"], felt["gripper_states"]]).astype(np.float32)
        return Observation(self.world.picture(), self._instruction, wrist_image=wrist, state=state)

    def close(self) -> None:
        """Free the simulator."""
        self.world.close()
