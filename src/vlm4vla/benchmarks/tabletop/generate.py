"""Demonstrations of the expert, noisy on the way and clean in the label, each a pure function of (seed, index)."""

from __future__ import annotations

import functools
import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
from jaxtyping import Float, Float32, UInt8

from vlm4vla.benchmarks.tabletop.benchmark import (
    ACTION_SPEC,
    VERSION,
    TabletopEnvironment,
    next_goal,
    play_expert,
    seed_of,
    start_for,
)
from vlm4vla.benchmarks.tabletop.render import check_opengl, check_renderer, jitter, look_named
from vlm4vla.benchmarks.tabletop.scene import Scene
from vlm4vla.benchmarks.tabletop.tasks import MAX_STEPS, Assignment, candidates, sensible, tasks_named
from vlm4vla.benchmarks.workers import die_with_parent
from vlm4vla.core.errors import RecipeError, SimulatorError
from vlm4vla.core.recipes import DemonstrationRecipe, fingerprint
from vlm4vla.core.types import Demonstration, Goal

NAME = f"tabletop-{VERSION}"
GENERATION = 5
"""Counts up with every change of what is demonstrated or drawn: older demonstrations are not taken for these."""
SPEC = ACTION_SPEC
_NOISY_SHARE = 0.35
"""Of the steps are carried out with noise. Noise in every step would blur the rest of every chunk: its later labels
answer disturbances that nobody could foresee (privileged state: pose loss 0.031 instead of 0.025)."""
_NOISE = 0.4
"""Standard deviation of the executed motion's noise, as a share of its largest component."""
_LEAST_NOISE = 0.25
"""Added to it, in units: near its target the expert hardly moves, and there a policy must see how to mend errors."""
_BUMP_PROBABILITY = 0.05
_WANDERED_SHARE = 0.4
"""Of the demonstrations start after some steps in a random direction. A policy that misses its target comes to
places where the expert never is, and stays there unless it was shown the way back."""
_CONTINUED_SHARE = 0.25
"""Of the demonstrations start where the expert has just reached another goal, as in a chain."""


def demonstrations_fingerprint(recipe: DemonstrationRecipe) -> str:
    """Changes with whatever would change a demonstration; the held-out share does not."""
    parts = [
        NAME,
        GENERATION,
        recipe.episodes,
        list(recipe.tasks),
        list(recipe.looks),
        recipe.image_size,
        recipe.seed,
    ]
    return fingerprint(*parts, *([] if recipe.renderer == "ray" else [recipe.renderer]))


def check(recipe: DemonstrationRecipe) -> None:
    """Raises: RecipeError for unknown tasks, looks or renderers, or zero episodes; SimulatorError as `check_opengl`."""
    tasks_named(recipe.tasks)
    check_renderer(recipe.renderer)
    if recipe.renderer == "opengl":
        check_opengl()
    for look in recipe.looks:
        look_named(look)
    if recipe.episodes <= 0 or not recipe.looks:
        raise RecipeError("demonstrations of tabletop: `episodes` and `looks` must not be empty")


def generate_demonstrations(recipe: DemonstrationRecipe, *, processes: int = 1) -> Iterator[Demonstration]:
    """`recipe.episodes` demonstrations, tasks taking turns, in an order that `processes` does not change.

    Raises: RecipeError as `check` does.
    """
    check(recipe)
    make = partial(_make_many, recipe)
    spans = [range(i, min(i + 25, recipe.episodes)) for i in range(0, recipe.episodes, 25)]
    if processes <= 1:
        for span in spans:
            yield from make(span)
        return
    # spawn, because a forked child would inherit the caller's threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_process) as pool:
        for batch in pool.map(make, spans):
            yield from batch


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    die_with_parent()


def _make_many(recipe: DemonstrationRecipe, indices: range) -> list[Demonstration]:
    environment = _environment(recipe.image_size, recipe.renderer)
    return [make_demonstration(recipe, index, environment) for index in indices]


@functools.lru_cache
def _environment(image_size: int, renderer: str) -> TabletopEnvironment:
    """One per process and kind of picture: building the model costs more than a demonstration."""
    return TabletopEnvironment(image_size, renderer)


def make_demonstration(
    recipe: DemonstrationRecipe, index: int, environment: TabletopEnvironment
) -> Demonstration:
    """The demonstration with this index. Attempts that do not reach the goal are dropped and drawn again."""
    tasks = tasks_named(recipe.tasks)
    task = tasks[index % len(tasks)]
    for attempt in range(50):
        seed = seed_of(NAME, "demonstration", recipe.seed, index, attempt)
        rng = np.random.default_rng(seed)
        look = recipe.looks[int(rng.integers(len(recipe.looks)))]
        started = _start(environment, task, look, rng)
        if started is None:
            continue
        goal, assignment = started
        if rng.random() < _WANDERED_SHARE:
            _wander(environment.scene, rng)
            if not sensible(assignment, environment.scene.state()):
                continue
        recorded = _record(environment, goal, assignment, rng)
        if recorded is not None:
            images, actions = recorded
            return Demonstration(
                id=f"{recipe.seed}/{index:06d}",
                instruction=goal.instruction,
                task=task,
                images=images,
                actions=actions,
                facts={"look": look, "seed": seed},
            )
    raise SimulatorError(f"the expert failed 50 times at demonstration {index} of task {task!r}")


def _start(
    environment: TabletopEnvironment, task: str, look: str, rng: np.random.Generator
) -> tuple[Goal, Assignment] | None:
    """Put the scene where the task makes sense: a fresh start, or just after another goal."""
    colors = jitter(look_named(look), rng)
    if rng.random() >= _CONTINUED_SHARE:
        layout, assignment, goal = start_for(task, environment.scene, rng)
        environment.begin(layout, colors)
        return goal, assignment
    before = next_goal_from_scratch(environment, rng, avoid=task)
    environment.renderer.dress(colors)
    if before is None or not play_expert(environment, before):
        return None
    options = candidates(task, environment.scene.state())
    if not options:
        return None
    assignment = options[int(rng.integers(len(options)))]
    return assignment.goal(rng), assignment


def _wander(scene: Scene, rng: np.random.Generator) -> None:
    """Two to nine steps in one direction, the fingers open or closed."""
    direction = rng.uniform(-1, 1, size=3)
    action = np.array([*direction, 0, 0, 0, rng.choice([-1.0, 1.0])], dtype=np.float32)
    for _ in range(int(rng.integers(2, 10))):
        scene.step(action)


def next_goal_from_scratch(
    environment: TabletopEnvironment, rng: np.random.Generator, *, avoid: str
) -> Assignment | None:
    """A random start and a random goal in it that is not `avoid`."""
    layout, _, _ = start_for("press", environment.scene, rng)
    environment.scene.reset(layout)
    return next_goal(environment.scene.state(), rng, avoid=(avoid,))


def _record(
    environment: TabletopEnvironment, goal: Goal, assignment: Assignment, rng: np.random.Generator
) -> tuple[list[UInt8[np.ndarray, "size size 3"]], Float32[np.ndarray, "steps 7"]] | None:
    environment.set_goals([goal], [assignment])
    images: list[UInt8[np.ndarray, "size size 3"]] = []
    actions: list[Float32[np.ndarray, "7"]] = []
    bump = np.zeros(3)
    bump_steps = 0
    for _ in range(MAX_STEPS[goal.task]):
        images.append(environment.renderer.image())
        action = environment.expert()
        actions.append(action)
        if bump_steps == 0 and rng.random() < _BUMP_PROBABILITY:
            bump, bump_steps = rng.uniform(-1, 1, size=3), int(rng.integers(1, 4))
        executed = _disturbed(action, bump if bump_steps else None, rng)
        bump_steps = max(0, bump_steps - 1)
        if environment.advance(executed):
            return images, np.stack(actions)
    return None


def _disturbed(
    action: Float32[np.ndarray, "7"], bump: Float[np.ndarray, "3"] | None, rng: np.random.Generator
) -> Float32[np.ndarray, "7"]:
    executed = action.copy()
    if rng.random() < _NOISY_SHARE:
        executed[:3] += (_NOISE * np.abs(action[:3]).max() + _LEAST_NOISE) * rng.normal(size=3)
        executed[5] += _NOISE * abs(action[5]) * rng.normal()
    if bump is not None:
        executed[:3] = bump
    return executed
