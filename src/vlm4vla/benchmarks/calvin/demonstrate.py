"""Scripted demonstrations as CALVIN lays its data out: frames as npz, sentences for spans of them.

    python -m vlm4vla.benchmarks.calvin.demonstrate OUT --scenes ABC --episodes 300

Every demonstration begins at a random desk, never at a state that the benchmark begins with, and takes noisy steps; the
action that is written down is the expert's for the state that was seen. `scripted.json` says what this is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from vlm4vla.benchmarks.calvin.benchmark import RENDERERS, CalvinEnvironment
from vlm4vla.benchmarks.calvin.expert import PLANS, actions, fresh_state, possible
from vlm4vla.benchmarks.calvin.sequences import instructions
from vlm4vla.benchmarks.calvin.world import MOST_MOVEMENT, MOST_TURN, SCENES
from vlm4vla.benchmarks.pieces import Planned, add_options, made, make_share, whole
from vlm4vla.core.errors import SimulatorError
from vlm4vla.core.types import Goal

_TRIES = 40
_NOISE = 0.25
"""Standard deviation of what is added to the executed movement, in units of the action."""
_CHECKED = "turn_on_led"
GOLDEN = Path(__file__).with_name("golden.npy")
"""`first_picture` of every scene with each renderer; EGL's drawn by Mesa 22.3.6."""
_ALIKE = 3.0
"""Grey levels by which another machine's OpenGL may differ on average; without its shadows scene D does by 3.9."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripted:
    """One solved task."""

    task: str
    scene: str
    images: list[UInt8[np.ndarray, "200 200 3"]]
    actions: Float32[np.ndarray, "steps 7"]
    targets: Float[np.ndarray, "steps 7"]
    """The poses that the actions ask for: place in metres, Euler angles, gripper."""
    robot_obs: Float[np.ndarray, "steps 15"]
    scene_obs: Float[np.ndarray, "steps 24"]


def demonstrations(
    scenes: Sequence[str], tasks: Sequence[str], count: int, *, seed: int = 0, renderer: str = "egl"
) -> Iterator[Scripted]:
    """`count` of them, tasks and scenes taking turns; attempts that fail are drawn again. A function of (seed, index).

    Raises: SimulatorError when a task fails again and again, or is not one of the expert's.
    """
    desks: dict[str, CalvinEnvironment] = {}
    try:
        for _, make in planned(scenes, tasks, count, seed=seed, renderer=renderer, desks=desks):
            yield make()
    finally:
        for desk in desks.values():
            desk.close()


def planned(
    scenes: Sequence[str],
    tasks: Sequence[str],
    count: int,
    *,
    seed: int,
    renderer: str,
    desks: dict[str, CalvinEnvironment] | None = None,
) -> Planned[Scripted]:
    """The same as `demonstrations`, made when asked for; `desks` holds the scene that was built last."""
    unknown = [task for task in tasks if task not in PLANS]
    if unknown:
        raise SimulatorError(f"the expert cannot {unknown[0]!r}; it can {', '.join(PLANS)}")
    built = {} if desks is None else desks

    def make(scene: str, task: str, index: int) -> Scripted:
        if scene not in built:
            for other in list(built):
                built.pop(other).close()
            built[scene] = CalvinEnvironment(scene, renderer)
        return _one(built[scene], scene, task, (seed, index))

    for scene_number, scene in enumerate(scenes):
        for index in range(scene_number, count, len(scenes)):
            task = tasks[(index // len(scenes)) % len(tasks)]
            yield f"{scene}-{index:05d}", partial(make, scene, task, index)


def _one(environment: CalvinEnvironment, scene: str, task: str, seed: tuple[int, int]) -> Scripted:
    goal = [Goal(task=task, instruction=instructions()[task])]
    for attempt in range(_TRIES):
        rng = np.random.default_rng([*seed, attempt])
        robot, desk = fresh_state(environment.world, rng)
        if not possible(task, desk):
            continue
        environment.begin(robot, desk, goals=goal, seed=int(rng.integers(1 << 31)))
        found = _play(environment, task, rng)
        if found is not None:
            images, done, targets, robots, desks = found
            return Scripted(
                task=task,
                scene=scene,
                images=images,
                actions=np.stack(done),
                targets=np.stack(targets),
                robot_obs=np.stack(robots),
                scene_obs=np.stack(desks),
            )
    raise SimulatorError(f"the expert failed {_TRIES} times at {task!r} in scene {scene} (seed {seed})")


def _play(environment: CalvinEnvironment, task: str, rng: np.random.Generator) -> Any:
    images, done, targets, robots, desks = [], [], [], [], []
    world = environment.world
    for action in actions(task, world):
        images.append(environment.observe().image)
        done.append(action)
        exact = action.astype(np.float64)
        place, turn = world.target + exact[:3] * MOST_MOVEMENT, world.turn + exact[3:6] * MOST_TURN
        targets.append(np.array([*place, *turn, exact[6]]))
        robots.append(world.robot_obs())
        desks.append(world.scene_obs())
        executed = action.copy()
        executed[:3] += (_NOISE * rng.normal(size=3) * np.abs(action[:3]).max()).astype(np.float32)
        if environment.advance(executed.clip(-1, 1)):
            return images, done, targets, robots, desks
    return None


def write(demonstrations: Iterator[Scripted], folder: Path, *, note: str) -> int:
    """Write a split in CALVIN's layout, whole or not at all; returns how many demonstrations."""
    spans: list[tuple[int, int]] = []
    scenes: dict[str, list[int]] = {}
    sentences, tasks, number = [], [], 0
    with whole(folder) as unfinished:
        (unfinished / "lang_annotations").mkdir()
        for demonstration in demonstrations:
            first = number
            for step, image in enumerate(demonstration.images):
                np.savez_compressed(
                    unfinished / f"episode_{number:07d}.npz",
                    rgb_static=image,
                    actions=demonstration.targets[step],
                    rel_actions=demonstration.actions[step].astype(np.float64),
                    robot_obs=demonstration.robot_obs[step],
                    scene_obs=demonstration.scene_obs[step],
                )
                number += 1
            spans.append((first, number))
            sentences.append(instructions()[demonstration.task])
            tasks.append(demonstration.task)
            begun = scenes.setdefault(f"calvin_scene_{demonstration.scene}", [first, number - 1])
            begun[1] = number - 1
        annotations = {"language": {"ann": sentences, "task": tasks}, "info": {"episodes": [], "indx": spans}}
        np.save(unfinished / "lang_annotations" / "auto_lang_ann.npy", np.array(annotations, dtype=object))
        np.save(unfinished / "ep_start_end_ids.npy", np.array([(a, b - 1) for a, b in spans], dtype=np.int64))
        np.save(unfinished / "scene_info.npy", np.array(scenes, dtype=object))
        (unfinished / "scripted.json").write_text(json.dumps({"scripted": True, "note": note}, indent=1))
    return len(spans)


def check(renderer: str = "egl") -> dict[str, Any]:
    """Compare a picture and solve a task in every scene: what `vlm4vla simulators check` tells."""
    found: dict[str, Any] = {name: metadata.version(name) for name in ("pybullet", "numpy")}
    expected, works = np.load(GOLDEN, allow_pickle=False)[RENDERERS.index(renderer)], True
    for scene, picture in zip(SCENES, expected, strict=True):
        environment = CalvinEnvironment(scene, renderer)
        apart = float(np.abs(first_picture(environment).astype(float) - picture).mean())
        solved = any(environment.advance(action) for action in actions(_CHECKED, environment.world))
        environment.close()
        found[f"scene {scene}"] = {"apart": round(apart, 2), "solved": solved}
        works &= solved and apart < _ALIKE
    return {**found, "works": works}


def first_picture(environment: CalvinEnvironment) -> UInt8[np.ndarray, "25 25 3"]:
    """Of a scene with its led off: means of 8 x 8 pixels."""
    robot, desk = fresh_state(environment.world, np.random.default_rng(0))
    desk[5] = 0
    environment.begin(robot, desk, goals=[Goal(task=_CHECKED, instruction=instructions()[_CHECKED])])
    image = environment.observe().image
    return image.reshape(25, 8, 25, 8, 3).mean(axis=(1, 3)).round().astype(np.uint8)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a data set, or with `--check` say whether CALVIN works here; figures on the last line as JSON."""
    parser = argparse.ArgumentParser(prog="python -m vlm4vla.benchmarks.calvin.demonstrate")
    parser.add_argument("out", type=Path, nargs="?", help="the folder to write; the split is its `training`")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--scenes", default="ABC")
    parser.add_argument("--tasks", default="", help="separated by commas; default: all 15 of the expert")
    parser.add_argument("--episodes", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--renderer", choices=RENDERERS, default="egl")
    add_options(parser)
    options = parser.parse_args(arguments)
    try:
        if options.check:
            print(json.dumps(check(options.renderer)))
            return 0
        if options.out is None:
            parser.error("a folder to write is needed")
        tasks = [task for task in options.tasks.split(",") if task] or list(PLANS)
        plan = planned(options.scenes, tasks, options.episodes, seed=options.seed, renderer=options.renderer)
        if options.share:
            print(json.dumps({"made": make_share(plan, Scripted, options.pieces, options.share)}))
            return 0
        drawn = f"scenes {options.scenes}, seed {options.seed}, drawn with {options.renderer}"
        note = f"scripted expert, {drawn}: not CALVIN's own demonstrations"
        count = write(made(plan, Scripted, options.pieces), options.out / "training", note=note)
    except SimulatorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    settings = "" if options.renderer == "egl" else f" --set evaluation.renderer={options.renderer}"
    print(json.dumps({"folder": str(options.out), "demonstrations": count, "settings": settings}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
