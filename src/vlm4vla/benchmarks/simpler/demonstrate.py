"""Scripted demonstrations in Bridge V2's layout, and whether SimplerEnv works here.

    python -m vlm4vla.benchmarks.simpler.demonstrate OUT --episodes 100

Objects and arm begin somewhere at random, never at a start that the benchmark has, and steps are noisy. As in Bridge,
the movement of a step is to be read from the states (`relabel_movement`). `scripted.json` says what this is.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import metadata, resources
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vlm4vla.benchmarks import lavapipe
from vlm4vla.benchmarks.pieces import Planned, add_options, made, make_share
from vlm4vla.benchmarks.simpler.benchmark import Simpler
from vlm4vla.benchmarks.simpler.expert import MOST_MOVEMENT, actions, fresh_start
from vlm4vla.benchmarks.simpler.rules import TASKS, LateOpening
from vlm4vla.benchmarks.simpler.scene import Scene
from vlm4vla.benchmarks.simpler.tfds import SIDE, BridgeEpisode, write
from vlm4vla.benchmarks.simulators import simulator_folder
from vlm4vla.core.actions import GRIPPER
from vlm4vla.core.errors import SimulatorError, VLAError, unknown_name

_TRIES = 20
_NOISE = 0.15
"""Standard deviation of what is added to the executed movement, of the longest step."""
_BENT = 0.05
"""Standard deviation of a joint's first angle, radians."""
_SMALL = 64
"""Pixels of a frame that is compared."""
_TOLERANCE = 2.0
"""Grey levels by which frames may differ on average; another scene, photograph or light differs by far more."""


def demonstrations(tasks: Sequence[str], count: int, *, seed: int = 0) -> Iterator[BridgeEpisode]:
    """`count` of them, tasks taking turns; attempts that fail are drawn again. A function of (seed, index).

    Raises: RecipeError for an unknown task, SimulatorError when one fails again and again.
    """
    for _, make in planned(tasks, count, seed=seed):
        yield make()


def planned(tasks: Sequence[str], count: int, *, seed: int) -> Planned[BridgeEpisode]:
    """The same as `demonstrations`, made when asked for."""
    for task in tasks:
        if task not in TASKS:
            raise unknown_name("task of simpler-bridge", task, TASKS)
    scenes: dict[str, Scene] = {}

    def make(name: str, index: int) -> BridgeEpisode:
        if name not in scenes:
            scenes[name] = Scene(TASKS[name])
        for attempt in range(_TRIES):
            found = _attempt(scenes[name], np.random.default_rng([seed, index, attempt]))
            if found is not None:
                return found
        raise SimulatorError(f"the expert failed {_TRIES} times at {name!r} (seed {seed}, {index})")

    for index in range(count):
        yield f"{index:05d}", partial(make, tasks[index % len(tasks)], index)


def _attempt(scene: Scene, rng: np.random.Generator) -> BridgeEpisode | None:
    """One episode; None when the object is not where it belongs at its end."""
    task, gripper = scene.task, LateOpening()
    scene.begin(fresh_start(task, rng), joints=rng.normal(0, _BENT, 6))
    images, states, done = [_jpeg(scene)], [scene.state()], [np.zeros(7, np.float32)]
    for action in actions(scene):
        if len(done) > task.steps:
            return None
        images.append(_jpeg(scene))
        states.append(scene.state())
        done.append(np.append(action[:GRIPPER], action[GRIPPER] > 0).astype(np.float32))
        executed = action.copy()
        if np.abs(action[:3]).max() > MOST_MOVEMENT / 5:
            executed[:3] += rng.normal(0, _NOISE * MOST_MOVEMENT, 3).astype(np.float32)
        scene.act(executed, gripper(float(action[GRIPPER])))
    if not scene.solved():
        return None
    return BridgeEpisode(
        instruction=task.instruction,
        images=[*images, _jpeg(scene)],
        states=np.stack([*states, scene.state()]),
        actions=np.stack([*done, np.array([0] * GRIPPER + [1], np.float32)]),
    )


def _jpeg(scene: Scene) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    square = Image.fromarray(scene.picture()).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    square.save(file, "JPEG", quality=95)
    return file.getvalue()


def check() -> dict[str, Any]:
    """Compare, play and solve the first episode of every task: what `vlm4vla simulators check` tells."""
    folder = simulator_folder("simpler")
    expected = dict(zip(TASKS, np.split(_pictures_kept(), len(TASKS), axis=1), strict=True))
    found: dict[str, Any] = {
        name: metadata.version(name) for name in ("mani_skill", "sapien", "torch", "numpy")
    }
    found["vulkan"] = f"lavapipe {lavapipe.version(folder)}" if lavapipe.driver(folder) else "the system's"
    benchmark = Simpler(episodes_per_task=1, image_size=_SMALL)
    environment, works = benchmark.make_environment(), True
    for spec in benchmark.episodes():
        task = spec.setup["task"]
        apart = float(np.abs(environment.reset(spec).image.astype(int) - expected[task]).mean())
        chosen = chain(actions(environment.scene(task)), repeat(np.array([0] * GRIPPER + [1], np.float32)))
        completed = [environment.advance(action) for action in islice(chosen, spec.max_steps_per_goal)][-1]
        found[task] = {"apart": round(apart, 2), "solved": bool(completed)}
        works &= bool(completed) and apart < _TOLERANCE
    environment.close()
    return {**found, "works": works}


def _pictures_kept() -> UInt8[np.ndarray, "64 256 3"]:
    """The first frame of every task, side by side, drawn with Mesa 25.0.7 and substitutes for table and eggplant."""
    from PIL import Image

    with resources.files(__package__).joinpath("frames.png").open("rb") as file:
        return np.asarray(Image.open(file).convert("RGB"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a data set, or with `--check` say whether SimplerEnv works here; figures on the last line as JSON."""
    parser = argparse.ArgumentParser(prog="python -m vlm4vla.benchmarks.simpler.demonstrate")
    parser.add_argument("out", type=Path, nargs="?", help="the folder to write")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--tasks", default="", help="separated by commas; default: all four")
    parser.add_argument("--episodes", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    add_options(parser)
    options = parser.parse_args(arguments)
    try:
        if options.check:
            print(json.dumps(check()))
            return 0
        if options.out is None:
            parser.error("a folder to write is needed")
        tasks = [task for task in options.tasks.split(",") if task] or list(TASKS)
        plan = planned(tasks, options.episodes, seed=options.seed)
        if options.share:
            print(json.dumps({"made": make_share(plan, BridgeEpisode, options.pieces, options.share)}))
            return 0
        note = f"scripted expert in simulation, seed {options.seed}: not Bridge's own demonstrations"
        episodes = made(plan, BridgeEpisode, options.pieces)
        count = write(episodes, options.episodes, options.out, note=note)
    except VLAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"folder": str(options.out), "demonstrations": count, "preset": "bridge"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
