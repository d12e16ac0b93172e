"""`simpler-bridge`: four tasks of 24 episodes with a WidowX, real photographs behind it (Paper 3.3, Table 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from vlm4vla.benchmarks.published import substitutes
from vlm4vla.benchmarks.simpler.rules import EPISODES, TASKS, LateOpening
from vlm4vla.benchmarks.simpler.scene import Scene
from vlm4vla.benchmarks.simulators import interpreter, pins, simulator_folder
from vlm4vla.core.actions import GRIPPER, ActionSpec
from vlm4vla.core.errors import RecipeError, SimulatorError, unknown_name
from vlm4vla.core.types import EpisodeSpec, Goal, Observation, Step

VERSION = "v1"
ACTION_SPEC = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="metres_radians")


class Simpler:
    """The published episodes of `tasks` (none: all four); `episodes_per_task` of each (0: all 24).

    Frames are `image_size` pixels square, made of 640 x 480 as the paper's code does: bicubic, and squeezed. The name
    says so when some models are substitutes.
    """

    action_spec = ACTION_SPEC

    def __init__(
        self,
        tasks: Sequence[str] = (),
        episodes_per_task: int = 0,
        *,
        image_size: int = 224,
        renderer: str = "lavapipe",
    ) -> None:
        """Raises: RecipeError for an unknown task, more episodes than there are, or another renderer."""
        if renderer != "lavapipe":
            raise RecipeError(f"simpler-bridge is drawn with lavapipe, not with {renderer!r}")
        for task in tasks:
            if task not in TASKS:
                raise unknown_name("task of simpler-bridge", task, TASKS)
        if not 0 <= episodes_per_task <= EPISODES:
            raise RecipeError(
                f"SimplerEnv-Bridge has {EPISODES} episodes a task; evaluation.episodes_per_task is {episodes_per_task}"
            )
        self._tasks, self._count, self._size = (
            tuple(tasks or TASKS),
            episodes_per_task or EPISODES,
            image_size,
        )
        replaced = "-substitutes" if substitutes("simpler", simulator_folder("simpler")) else ""
        self.name = f"simpler-bridge{replaced}-{VERSION}"

    def episodes(self) -> Sequence[EpisodeSpec]:
        """Task by task."""
        return tuple(
            EpisodeSpec(
                id=f"{self.name}/{task}/{number:02d}",
                goals=(Goal(task=task, instruction=TASKS[task].instruction),),
                max_steps_per_goal=TASKS[task].steps,
                setup={"task": task, "episode": number},
            )
            for task in self._tasks
            for number in range(self._count)
        )

    @property
    def python(self) -> str | None:
        """Raises: SimulatorError when it is not installed."""
        return interpreter("simpler")

    @property
    def software(self) -> Mapping[str, str]:
        """ManiSkill and SAPIEN."""
        return pins("simpler")

    def make_environment(self) -> SimplerEnvironment:
        """Raises: SimulatorError when ManiSkill, its models or a Vulkan driver is not there."""
        return SimplerEnvironment(self._size, self._tasks[0])

    def recipe(self) -> tuple[str, Mapping[str, Any]]:
        """For a worker."""
        arguments = {"tasks": self._tasks, "episodes_per_task": self._count, "image_size": self._size}
        return f"{Simpler.__module__}:{Simpler.__name__}", arguments


class SimplerEnvironment:
    """The four scenes, the first built at once, the others when they are needed.

    As in the paper's code an episode is played to its last step, and what counts is whether the object lies on its
    target then: the goal is completed at the last step or not at all.
    """

    def __init__(self, image_size: int = 224, first: str = "carrot") -> None:
        self._size = image_size
        self._scenes: dict[str, Scene] = {}
        self.scene(first)  # what cannot start is told now, and not in an episode

    def scene(self, task: str) -> Scene:
        """The scene of a task. Raises: SimulatorError when it cannot be built."""
        if task not in self._scenes:
            self._scenes[task] = Scene(TASKS[task])
        return self._scenes[task]

    def reset(self, episode: EpisodeSpec) -> Observation:
        """Build the scene, let the objects settle."""
        task = TASKS[episode.setup["task"]]
        self._scene, self._goal = self.scene(task.name), episode.goals[0]
        self._scene.begin(task.starts[episode.setup["episode"]])
        self._gripper, self._left = LateOpening(), episode.max_steps_per_goal
        return self.observe()

    def step(self, action: Float32[np.ndarray, "7"]) -> Step:
        """A fifth of a second."""
        completed = self.advance(action)
        return Step(self.observe(), completed)

    def advance(self, action: Float32[np.ndarray, "7"]) -> int:
        """The same without a picture, which costs as much as the physics and more."""
        if not np.isfinite(action).all():
            raise SimulatorError(f"the action {np.asarray(action).tolist()} is not finite")
        self._scene.act(action, self._gripper(float(action[GRIPPER])))
        self._left -= 1
        return int(self._left <= 0 and self._scene.solved())

    def observe(self) -> Observation:
        """The third-person camera, and what is to be done."""
        from PIL import Image

        size = (self._size, self._size)
        square = Image.fromarray(self._scene.picture()).resize(size, Image.Resampling.BICUBIC)
        return Observation(np.asarray(square), self._goal.instruction)

    def close(self) -> None:
        """Free the scenes."""
        for scene in self._scenes.values():
            scene.close()
