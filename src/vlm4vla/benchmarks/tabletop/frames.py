"""Frames of scenes that no policy was trained or scored on, with where things are: what layers are probed for."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64

from vlm4vla.benchmarks.tabletop.benchmark import (
    VERSION,
    TabletopEnvironment,
    seed_of,
    start_for,
)
from vlm4vla.benchmarks.tabletop.render import jitter, look_named
from vlm4vla.benchmarks.tabletop.scene import BUTTON_CENTRE, BUTTON_TOP, COLORS, SceneState
from vlm4vla.benchmarks.tabletop.tasks import Assignment, tasks_named
from vlm4vla.core.types import Observation

BLOCK = COLORS[0]
"""Its place is asked for, whatever the instruction is about; every scene has it."""
_MOST_STEPS = 6
"""Between two frames of a scene."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Observations, a row each; scenes stand together and are equally long."""

    observations: tuple[Observation, ...]
    scenes: tuple[str, ...]
    """By row."""
    positions: Mapping[str, Float64[np.ndarray, "rows 3"]] = field(default_factory=dict)
    """By what it is: metres. Empty where nobody knows."""


@functools.lru_cache(maxsize=4)
def labelled_frames(
    *,
    look: str,
    tasks: Sequence[str],
    scenes: int,
    frames: int,
    seed: int,
    image_size: int,
    renderer: str,
) -> Frames:
    """`frames` of each of `scenes` scenes, while the expert is at work on them; tasks take turns.

    Positions are the gripper's, the block `BLOCK`'s, and the way from the gripper to what the instruction is about
    first. Raises: RecipeError for unknown looks, tasks or renderers.
    """
    environment = TabletopEnvironment(image_size, renderer)
    names = tasks_named(tasks)
    observations, rows = [], []
    places: dict[str, list[Float64[np.ndarray, "3"]]] = {
        "gripper": [],
        f"{BLOCK} block": [],
        "way to the goal": [],
    }
    for index in range(scenes):
        identity = f"{look}/{seed}/{index:04d}"
        rng = np.random.default_rng(seed_of("tabletop", VERSION, "frames", identity))
        while True:
            layout, assignment, goal = start_for(names[index % len(names)], environment.scene, rng)
            if BLOCK in layout.blocks:
                break
        environment.begin(layout, jitter(look_named(look), rng))
        environment.set_goals([goal], [assignment])
        for number in range(frames):
            for _ in range(int(rng.integers(1, _MOST_STEPS + 1)) if number else 0):
                environment.advance(environment.expert())
            state = environment.scene.state()
            observations.append(environment.observe())
            rows.append(identity)
            known = (state.gripper, state.blocks[BLOCK], _goal(assignment, state) - state.gripper)
            for found, place in zip(places.values(), known, strict=True):
                found.append(np.array(place, dtype=np.float64))
    return Frames(
        observations=tuple(observations),
        scenes=tuple(rows),
        positions={name: np.stack(found) for name, found in places.items()},
    )


def _goal(assignment: Assignment, state: SceneState) -> Float64[np.ndarray, "3"]:
    """Where the first thing is that an instruction is about."""
    if assignment.blocks:
        return np.asarray(state.blocks[assignment.blocks[0]], dtype=np.float64)
    return np.array([*BUTTON_CENTRE, BUTTON_TOP]) if assignment.task == "press" else state.handle
