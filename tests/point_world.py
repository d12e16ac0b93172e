"""A real benchmark without a simulator: a point in the unit square that goes to coloured targets, in numpy.

Its image carries everything (position, target, a digest of the actions so far), so any leak between episodes shows.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.types import EpisodeSpec, Goal, Observation, Step

SPEC = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="controller")
SIZE = 24
TASKS = ("left", "right", "up")
TARGETS = {"left": (0.1, 0.5), "right": (0.9, 0.5), "up": (0.5, 0.9)}


class PointEnvironment:
    """`setup` may name a `fault` that happens at the second step of its episode, and a `delay` of every step."""

    def __init__(self, leaky: bool = False) -> None:
        self._leak = 0.0
        self._leaky = leaky

    def reset(self, episode: EpisodeSpec) -> Observation:
        self._episode = episode
        self._position = np.random.default_rng(episode.setup["seed"]).uniform(0.3, 0.7, 2)
        if self._leaky:
            self._position += self._leak
        self._completed = self._steps = 0
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        completed = self._move(action)
        return Step(self._observe(), completed)

    def _move(self, action: np.ndarray) -> int:
        assert action.shape == (7,) and action.dtype == np.float32
        self._steps += 1
        if self._steps == 2:
            self._fail(self._episode.setup.get("fault"))
        time.sleep(self._episode.setup.get("delay", 0.0))
        np.clip(action, -1, 1, out=action)  # in place, as environments do
        self._position = np.clip(self._position + 0.08 * action[:2], 0, 1)
        self._leak = 0.01
        goals = self._episode.goals
        if self._completed < len(goals):
            distance = np.linalg.norm(self._position - TARGETS[goals[self._completed].task])
            self._completed += bool(distance < 0.1)
        return self._completed

    def close(self) -> None:
        pass

    def _fail(self, fault: str | None) -> None:
        if fault == "raise":
            raise ValueError("the joint exploded")
        if fault == "exit":
            print("last words of the simulator")
            os._exit(3)
        if fault == "hang":
            time.sleep(1000)
        if fault == "torch":
            raise ValueError(
                f"torch imported: {'torch' in sys.modules}, threads: {os.environ['OMP_NUM_THREADS']}"
            )
        if fault == "once":  # breaks only where the file does not exist yet
            path = self._episode.setup["file"]
            if not Path(path).exists():
                Path(path).touch()
                raise ValueError("a hiccup")

    def _observe(self) -> Observation:
        goals = self._episode.goals
        goal = goals[min(self._completed, len(goals) - 1)]
        image = np.full((SIZE, SIZE, 3), 90, np.uint8)
        for (x, y), color in ((TARGETS[goal.task], (200, 40, 40)), (self._position, (40, 40, 200))):
            row, column = int((1 - y) * (SIZE - 3)), int(x * (SIZE - 3))
            image[row : row + 3, column : column + 3] = color
        image[0, 0] = np.frombuffer(hashlib.sha256(self._position.tobytes()).digest()[:3], np.uint8)
        return Observation(image, goal.instruction, state=self._position.astype(np.float32))


class LazyPointEnvironment(PointEnvironment):
    """Also steps without drawing."""

    def advance(self, action: np.ndarray) -> int:
        return self._move(action)

    def observe(self) -> Observation:
        return self._observe()


class PointWorld:
    """`goals` in a row per episode; `faults` maps episode numbers to faults."""

    def __init__(
        self,
        *,
        episodes_per_task: int = 4,
        goals: int = 1,
        max_steps: int = 10,
        faults: Mapping[str, str] | None = None,
        setup: Mapping[str, Any] | None = None,
        broken: str = "",
        leaky: bool = False,
        lazy: bool = False,
    ) -> None:
        self._arguments = {
            "episodes_per_task": episodes_per_task,
            "goals": goals,
            "max_steps": max_steps,
            "faults": dict(faults or {}),
            "setup": dict(setup or {}),
            "broken": broken,
            "leaky": leaky,
            "lazy": lazy,
        }
        self.name = "point-world-v1"
        self.action_spec = SPEC

    def episodes(self) -> Sequence[EpisodeSpec]:
        arguments = self._arguments
        specs = []
        for number in range(arguments["episodes_per_task"] * len(TASKS)):
            first = number // arguments["episodes_per_task"]
            names = [TASKS[(first + i) % len(TASKS)] for i in range(arguments["goals"])]
            fault = arguments["faults"].get(str(number))
            specs.append(
                EpisodeSpec(
                    id=f"{names[0]}/{number:03d}",
                    goals=tuple(Goal(task=name, instruction=f"go {name}", tier="point") for name in names),
                    max_steps_per_goal=arguments["max_steps"],
                    setup={"seed": number, **arguments["setup"], **({"fault": fault} if fault else {})},
                )
            )
        return specs

    def make_environment(self) -> PointEnvironment:
        if self._arguments["broken"]:
            print("no display found", file=sys.stderr)
            raise RuntimeError(self._arguments["broken"])
        kind = LazyPointEnvironment if self._arguments["lazy"] else PointEnvironment
        return kind(self._arguments["leaky"])

    def recipe(self) -> tuple[str, Mapping[str, Any]]:
        return "point_world:PointWorld", self._arguments


class Seeker:
    """Goes to the target at which the instruction points, with noise that depends on the observation alone."""

    action_spec = SPEC
    horizon = 5

    def __init__(self, noise: float = 1.0) -> None:
        self.noise = noise
        self.batches: list[int] = []

    def predict_chunk(self, observations: Sequence[Observation]) -> np.ndarray:
        self.batches.append(len(observations))
        chunks = np.zeros((len(observations), self.horizon, 7), np.float32)
        for chunk, observation in zip(chunks, observations, strict=True):
            digest = hashlib.sha256(observation.image.tobytes()).digest()
            noise = np.random.default_rng(list(digest[:8])).normal(0, self.noise, (self.horizon, 2))
            away = TARGETS[observation.instruction.split()[-1]] - observation.state
            chunk[:, :2] = away / (np.linalg.norm(away) + 1e-6) + noise
        return chunks
