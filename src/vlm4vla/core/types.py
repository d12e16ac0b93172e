"""The values that cross package boundaries: frozen, typed, without behaviour of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8


@dataclass(frozen=True, slots=True)
class Observation:
    """What a policy sees at one step. The paper's recipe reads only `image` and `instruction` (Paper 3.3)."""

    image: UInt8[np.ndarray, "height width 3"]
    """RGB, upright, third-person."""
    instruction: str
    wrist_image: UInt8[np.ndarray, "height width 3"] | None = None
    """Not used by the paper's recipe; a policy must ask for it."""
    state: Float32[np.ndarray, " dim"] | None = None
    """Proprioception; likewise."""
    repeat: int = 0
    """Which play of the episode this is: policies that draw noise draw other noise in each."""
    episode: str = ""
    """Whose observation it is, as its result will be named: for policies that keep something per episode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """One expert episode that reaches one goal. `images[t]` is what the expert saw before `actions[t]`."""

    id: str
    instruction: str
    task: str
    """Name of the task, e.g. `push_left`; the instruction is one of its phrasings."""
    images: Sequence[UInt8[np.ndarray, "height width 3"]]
    """One frame per step; may decode lazily."""
    actions: Float32[np.ndarray, "steps 7"]
    """In the convention that the source's `action_spec` declares."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the source knows (look, seed); JSON values only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One instruction to fulfil, with the predicate known to the environment by `task`."""

    task: str
    instruction: str
    tier: str = ""
    """Group under which the task is reported, e.g. `single-block`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSpec:
    """An episode to be played: a list of goals from one initial state (one goal in LIBERO, five in CALVIN)."""

    id: str
    """Unique within the benchmark and stable; every random number of the episode derives from it."""
    goals: tuple[Goal, ...]
    max_steps_per_goal: int
    setup: Mapping[str, Any] = field(default_factory=dict)
    """What the environment needs to build the initial state; JSON values only."""


@dataclass(frozen=True, slots=True)
class Step:
    """Result of one environment step."""

    observation: Observation
    """Its instruction is that of the first goal not yet completed (the last goal's when all are)."""
    goals_completed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeResult:
    """Outcome of one episode. An `error` means the program broke; such an episode is in no rate."""

    episode: str
    task: str
    tier: str
    goals: int
    goals_completed: int
    steps: int
    seconds: float = 0.0
    actions: str = ""
    """Digest of the actions carried out: equal for equal rollouts."""
    last_image: str = ""
    """Digest of what was seen at the end."""
    software: str = ""
    """Which versions played it: `software/NAME.json` beside the results."""
    error: str | None = None

    @property
    def success(self) -> bool:
        """All goals were completed and nothing broke."""
        return self.error is None and self.goals_completed == self.goals
