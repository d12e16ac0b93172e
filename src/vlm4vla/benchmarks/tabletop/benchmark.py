"""The embedded benchmark `tabletop` (one goal an episode) and `tabletop-chain` (five in a row, as CALVIN has)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from vlm4vla.benchmarks.tabletop.expert import expert_action
from vlm4vla.benchmarks.tabletop.render import Look, check_renderer, jitter, look_named, make_renderer
from vlm4vla.benchmarks.tabletop.scene import Scene, SceneLayout, SceneState, random_layout
from vlm4vla.benchmarks.tabletop.tasks import (
    MAX_STEPS,
    TIER_OF,
    Assignment,
    candidates,
    fulfilled,
    tasks_named,
)
from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import SimulatorError
from vlm4vla.core.types import EpisodeSpec, Goal, Observation, Step

VERSION = "v1"
ACTION_SPEC = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="controller")
GOALS_PER_CHAIN = 5
CHAIN_STEPS = 60
"""Of one goal of a chain."""


def seed_of(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class TabletopEnvironment:
    """Plays Tabletop episodes; every reset rebuilds the state from the episode's seed alone."""

    def __init__(self, image_size: int = 64, renderer: str = "ray") -> None:
        self.scene = Scene()
        self.renderer = make_renderer(self.scene, image_size, renderer)
        self._goals: Sequence[Goal] = ()
        self._assignments: list[Assignment] = []
        self._completed = 0
        self._start: SceneState | None = None

    def reset(self, episode: EpisodeSpec) -> Observation:
        """Build the layout that the episode's setup describes. Raises SimulatorError for another benchmark's."""
        try:
            look = look_named(episode.setup["look"])
            layout = layout_from_json(episode.setup["layout"])
            assignments = [
                Assignment(task=goal.task, blocks=tuple(blocks))
                for goal, blocks in zip(episode.goals, episode.setup["blocks"], strict=True)
            ]
            seed = int(episode.setup["seed"])
        except (KeyError, TypeError, ValueError) as error:
            raise SimulatorError(
                f"episode {episode.id!r} is no Tabletop episode (setup: {error}); "
                "play the episodes that the benchmark itself lists"
            ) from error
        self.begin(layout, jitter(look, np.random.default_rng(seed_of(seed, "look"))))
        self.set_goals(episode.goals, assignments)
        return self.observe()

    def begin(self, layout: SceneLayout, look: Look) -> None:
        """Reset the physics and the colours, without a goal."""
        self.scene.reset(layout)
        self.renderer.dress(look)

    def set_goals(self, goals: Sequence[Goal], assignments: Sequence[Assignment]) -> None:
        """Ask for these goals, in this order, from the present state on."""
        self._goals = goals
        self._assignments = list(assignments)
        self._completed = 0
        self._start = self.scene.state()

    def step(self, action: Float32[np.ndarray, "7"]) -> Step:
        """Carry out one action and judge the present goal."""
        self.advance(action)
        return Step(self.observe(), self._completed)

    def advance(self, action: Float32[np.ndarray, "7"]) -> int:
        """`step` without the picture: how many goals are completed after this action."""
        if self._start is None:
            raise SimulatorError("step before reset: call reset(episode) first")
        self.scene.step(action)
        if self._completed < len(self._goals):
            now = self.scene.state()
            if fulfilled(self._assignments[self._completed], self._start, now):
                self._completed += 1
                self._start = now
        return self._completed

    def expert(self) -> Float32[np.ndarray, "7"]:
        """What the expert does now."""
        current = min(self._completed, len(self._assignments) - 1)
        return expert_action(self._assignments[current], self.scene.state())

    def close(self) -> None:
        """Nothing outlives the Python objects."""
        self._start = None

    def observe(self) -> Observation:
        """The scene as it is now, with the present goal's instruction."""
        current = min(self._completed, len(self._goals) - 1)
        return Observation(self.renderer.image(), self._goals[current].instruction)


class Tabletop:
    """`episodes_per_task` seeded episodes of each task, in one look."""

    def __init__(
        self,
        *,
        look: str = "D",
        tasks: Sequence[str] = (),
        episodes_per_task: int = 50,
        seed: int = 10_000,
        image_size: int = 64,
        renderer: str = "ray",
    ) -> None:
        """`tasks` may name tiers; empty means all nine. Raises RecipeError for unknown names."""
        look_named(look)
        check_renderer(renderer)
        self.look = look
        self.tasks = tasks_named(tasks)
        self.episodes_per_task = episodes_per_task
        self.seed = seed
        self.image_size = image_size
        self.renderer = renderer

    @property
    def name(self) -> str:
        """Includes look and renderer: rates of different pictures are different quantities."""
        return _versioned("tabletop", self.look, self.renderer)

    @property
    def action_spec(self) -> ActionSpec:
        """Deltas in [-1, 1]: 3.5 cm and 0.15 rad a unit, gripper positive opens."""
        return ACTION_SPEC

    def episodes(self) -> Sequence[EpisodeSpec]:
        """Tasks in order, each with its episodes; the first n stay the same when more are asked for."""
        scene = Scene()
        return [self._episode(scene, task, i) for task in self.tasks for i in range(self.episodes_per_task)]

    def outline(self) -> Sequence[EpisodeSpec]:
        """The same without scenes."""
        return [
            EpisodeSpec(
                id=f"{self.look}/{self._identity(task, i)}",
                goals=(Goal(task=task, instruction="", tier=TIER_OF[task]),),
                max_steps_per_goal=MAX_STEPS[task],
            )
            for task in self.tasks
            for i in range(self.episodes_per_task)
        ]

    @property
    def software(self) -> Mapping[str, str]:
        """MuJoCo."""
        return {"mujoco": ""}

    def make_environment(self) -> TabletopEnvironment:
        """A fresh environment of this benchmark's picture size."""
        return TabletopEnvironment(self.image_size, self.renderer)

    def recipe(self) -> tuple[str, Mapping[str, Any]]:
        """How another process builds the same benchmark."""
        return "vlm4vla.benchmarks.tabletop.benchmark:Tabletop", {
            "look": self.look,
            "tasks": list(self.tasks),
            "episodes_per_task": self.episodes_per_task,
            "seed": self.seed,
            "image_size": self.image_size,
            "renderer": self.renderer,
        }

    def _identity(self, task: str, index: int) -> str:
        return f"{task}/{self.seed}/{index:04d}"

    def _episode(self, scene: Scene, task: str, index: int) -> EpisodeSpec:
        identity = self._identity(task, index)
        seed = seed_of("tabletop", VERSION, identity)
        layout, assignment, goal = start_for(task, scene, np.random.default_rng(seed))
        return EpisodeSpec(
            id=f"{self.look}/{identity}",
            goals=(goal,),
            max_steps_per_goal=MAX_STEPS[task],
            setup={
                "look": self.look,
                "seed": seed,
                "layout": layout_to_json(layout),
                "blocks": [list(assignment.blocks)],
            },
        )


def _versioned(name: str, look: str, renderer: str) -> str:
    return "-".join([name, look.lower(), *([] if renderer == "ray" else [renderer]), VERSION])


class TabletopChain:
    """Five goals in a row in one scene, scored by how many were reached: CALVIN's protocol in small."""

    def __init__(
        self,
        *,
        look: str = "D",
        episodes: int = 100,
        seed: int = 10_000,
        image_size: int = 64,
        renderer: str = "ray",
    ) -> None:
        look_named(look)
        check_renderer(renderer)
        self.look = look
        self.count = episodes
        self.seed = seed
        self.image_size = image_size
        self.renderer = renderer

    @property
    def name(self) -> str:
        """Includes look and renderer."""
        return _versioned("tabletop-chain", self.look, self.renderer)

    @property
    def action_spec(self) -> ActionSpec:
        """The same as Tabletop's."""
        return ACTION_SPEC

    def episodes(self) -> Sequence[EpisodeSpec]:
        """Chains whose every goal makes sense after the expert has reached the one before."""
        environment = TabletopEnvironment(image_size=8)
        return [self._episode(environment, index) for index in range(self.count)]

    def outline(self) -> Sequence[EpisodeSpec]:
        """The same without scenes, and without the goals' names, which follow from what the expert reaches."""
        goals = (Goal(task="", instruction=""),) * GOALS_PER_CHAIN
        return [
            EpisodeSpec(id=f"{self.look}/{self._identity(i)}", goals=goals, max_steps_per_goal=CHAIN_STEPS)
            for i in range(self.count)
        ]

    @property
    def software(self) -> Mapping[str, str]:
        """MuJoCo."""
        return {"mujoco": ""}

    def make_environment(self) -> TabletopEnvironment:
        """A fresh environment of this benchmark's picture size."""
        return TabletopEnvironment(self.image_size, self.renderer)

    def recipe(self) -> tuple[str, Mapping[str, Any]]:
        """How another process builds the same benchmark."""
        return "vlm4vla.benchmarks.tabletop.benchmark:TabletopChain", {
            "look": self.look,
            "episodes": self.count,
            "seed": self.seed,
            "image_size": self.image_size,
            "renderer": self.renderer,
        }

    def _identity(self, index: int) -> str:
        return f"chain/{self.seed}/{index:04d}"

    def _episode(self, environment: TabletopEnvironment, index: int) -> EpisodeSpec:
        identity = self._identity(index)
        for attempt in range(100):
            seed = seed_of("tabletop", VERSION, identity, attempt)
            rng = np.random.default_rng(seed)
            layout = random_layout(rng)
            chain = self._play(environment, layout, rng)
            if chain is not None:
                break
        else:
            raise SimulatorError(f"no chain of {GOALS_PER_CHAIN} sensible goals found for episode {identity}")
        return EpisodeSpec(
            id=f"{self.look}/{identity}",
            goals=tuple(assignment.goal(rng) for assignment in chain),
            max_steps_per_goal=CHAIN_STEPS,
            setup={
                "look": self.look,
                "seed": seed,
                "layout": layout_to_json(layout),
                "blocks": [list(assignment.blocks) for assignment in chain],
            },
        )

    @staticmethod
    def _play(
        environment: TabletopEnvironment, layout: SceneLayout, rng: np.random.Generator
    ) -> list[Assignment] | None:
        """Choose goals one after the other, each played by the expert; None where the expert got stuck."""
        environment.begin(layout, look_named("A"))
        chain: list[Assignment] = []
        while len(chain) < GOALS_PER_CHAIN:
            done = [assignment.task for assignment in chain]
            choice = next_goal(environment.scene.state(), rng, avoid=done)
            if choice is None or not play_expert(environment, choice):
                return None
            chain.append(choice)
        return chain


def start_for(task: str, scene: Scene, rng: np.random.Generator) -> tuple[SceneLayout, Assignment, Goal]:
    """A random start in which the task makes sense, with its blocks and its wording."""
    facts = {"open": {"drawer": "closed"}, "close": {"drawer": "open"}}.get(task, {})
    for _ in range(1000):
        layout = random_layout(rng, facts)
        scene.reset(layout, settle=1)
        options = candidates(task, scene.state())
        if options:
            assignment = options[int(rng.integers(len(options)))]
            return layout, assignment, assignment.goal(rng)
    raise SimulatorError(f"no start found in which the task {task!r} makes sense")


def next_goal(
    state: SceneState, rng: np.random.Generator, *, avoid: Sequence[str] = (), tasks: Sequence[str] = ()
) -> Assignment | None:
    """A goal that makes sense now, of a task not in `avoid`; None when there is none."""
    names = [task for task in tasks_named(tasks) if task not in avoid]
    for index in rng.permutation(len(names)):
        options = candidates(names[index], state)
        if options:
            return options[int(rng.integers(len(options)))]
    return None


def play_expert(environment: TabletopEnvironment, assignment: Assignment, *, steps: int = 60) -> bool:
    """Let the expert reach one goal from the present state, without pictures."""
    start = environment.scene.state()
    for _ in range(steps):
        environment.scene.step(expert_action(assignment, environment.scene.state()))
        if fulfilled(assignment, start, environment.scene.state()):
            return True
    return False


def layout_to_json(layout: SceneLayout) -> dict[str, Any]:
    """A layout as JSON."""
    return {
        "blocks": {color: list(pose) for color, pose in layout.blocks.items()},
        "plate": list(layout.plate),
        "drawer": layout.drawer,
        "gripper": list(layout.gripper),
        "yaw": layout.yaw,
    }


def layout_from_json(data: Mapping[str, Any]) -> SceneLayout:
    """The inverse of `layout_to_json`."""
    return SceneLayout(
        blocks={color: tuple(pose) for color, pose in data["blocks"].items()},
        plate=tuple(data["plate"]),
        drawer=float(data["drawer"]),
        gripper=tuple(data["gripper"]),
        yaw=float(data["yaw"]),
    )
