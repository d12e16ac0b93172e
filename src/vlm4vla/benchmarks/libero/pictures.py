"""Pictures of LIBERO's scenes with a box around everything, for questions about them: `boxes.json` and PNG files.

    python -m vlm4vla.benchmarks.libero.pictures OUT --tasks libero_object --episodes 20

Boxes, and depths along the camera's view, are the simulator's own segmentation and depth. Scenes begin at fresh resets,
never at a state that LIBERO ships, and are seen while the scripted expert is at work.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlm4vla.benchmarks.libero.benchmark import RENDERERS
from vlm4vla.benchmarks.libero.demonstrate import chosen
from vlm4vla.benchmarks.libero.expert import actions
from vlm4vla.benchmarks.libero.suites import suite_of
from vlm4vla.benchmarks.libero.world import CAMERAS, World
from vlm4vla.benchmarks.pieces import Planned, add_options, made, make_share, whole
from vlm4vla.core.errors import VLAError

PICTURES = 8
"""Of every episode, evenly over its first steps."""
_APART = 12
"""Steps between two of them."""
_SMALL = 0.001
"""Share of the picture below which a thing is not listed."""
_GEOM = 5
"""MuJoCo's number for geometries in a segmentation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Pictures of one episode."""

    images: Sequence[bytes]
    """PNG."""
    rows: str
    """What `boxes.json` says of each, but its name: JSON."""


def planned(tasks: Sequence[str], episodes: int, *, seed: int, side: int, renderer: str) -> Planned[Seen]:
    """Episodes of tasks in turn, seen when asked for; a function of (seed, number)."""
    worlds: list[World] = []

    def make(number: int) -> Seen:
        if not worlds:
            worlds.append(World(side, renderer=renderer))
        return _episode(worlds[0], tasks[number % len(tasks)], (seed, number), side)

    for number in range(episodes):
        yield f"{number:05d}", partial(make, number)


def _episode(world: World, task: str, seed: tuple[int, int], side: int) -> Seen:
    from PIL import Image

    # From 1: number 0 places the fixtures of what is evaluated.
    world.begin(suite_of(task).folder, task, seed=int(np.random.default_rng(seed).integers(1, 1 << 31)))
    images, rows = [], []
    for step, action in enumerate(actions(world)):
        if step % _APART == 0:
            picture, row = look(world, side)
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            images.append(file.getvalue())
            rows.append(row)
        if len(images) == PICTURES or world.act(action):
            break
    return Seen(images=images, rows=json.dumps(rows))


def look(world: World, side: int) -> tuple[Any, dict[str, Any]]:
    """The picture, turned as policies see it, and its row of `boxes.json`: boxes in pixels, metres."""
    sim = world.env.sim
    shot = {"camera_name": CAMERAS[0], "width": side, "height": side}
    picture, depth = sim.render(**shot, depth=True)
    kinds = sim.render(**shot, segmentation=True)[::-1, ::-1]
    extent = sim.model.stat.extent
    near, far = (extent * limit for limit in (sim.model.vis.map.znear, sim.model.vis.map.zfar))
    metres = (near / (1 - depth * (1 - near / far)))[::-1, ::-1]
    geoms = np.where(kinds[..., 0] == _GEOM, kinds[..., 1], -1)
    roots = np.append(sim.model.body_rootid[sim.model.geom_bodyid], -1)[geoms]
    things = []
    for name, body in world.env.env.obj_body_id.items():
        rows, columns = np.nonzero(roots == body)
        if len(rows) >= _SMALL * side * side:
            box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
            distance = float(np.median(metres[rows, columns]))
            things.append({"name": words(name), "box": box, "depth": round(distance, 4)})
    fovy = sim.model.cam_fovy[sim.model.camera_name2id(CAMERAS[0])]
    focal = side / 2 / np.tan(np.radians(fovy) / 2)
    return np.ascontiguousarray(picture[::-1, ::-1]), {"things": things, "focal": round(float(focal), 3)}


def words(name: str) -> str:
    """What people call one of LIBERO's things.

    >>> words("akita_black_bowl_1")
    'akita black bowl'
    """
    return re.sub(r"_\d+$", "", name).replace("_", " ")


def write(episodes: Iterator[Seen], folder: Path, *, note: str) -> int:
    """Write `boxes.json` and the pictures beside it, whole or not at all; returns how many pictures."""
    rows: list[dict[str, Any]] = []
    with whole(folder) as unfinished:
        for episode in episodes:
            for image, row in zip(episode.images, json.loads(episode.rows), strict=True):
                name = f"{len(rows):06d}.png"
                (unfinished / name).write_bytes(image)
                rows.append({"image": name, **row})
        (unfinished / "boxes.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        (unfinished / "note.json").write_text(json.dumps({"note": note}, indent=1), encoding="utf-8")
    return len(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make pictures; figures on the last line as JSON."""
    parser = argparse.ArgumentParser(prog="python -m vlm4vla.benchmarks.libero.pictures")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument(
        "--tasks", default="", help="tasks or suites, separated by commas; default: the expert's"
    )
    parser.add_argument("--episodes", type=int, default=25, help=f"{PICTURES} pictures of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=256, help="of the pictures, in pixels")
    parser.add_argument("--renderer", choices=RENDERERS, default="egl")
    add_options(parser)
    options = parser.parse_args(arguments)
    try:
        plan = planned(
            chosen(options.tasks),
            options.episodes,
            seed=options.seed,
            side=options.side,
            renderer=options.renderer,
        )
        if options.share:
            print(json.dumps({"made": make_share(plan, Seen, options.pieces, options.share)}))
            return 0
        note = f"LIBERO's scenes, fresh resets, seed {options.seed}"
        count = write(made(plan, Seen, options.pieces), options.out, note=note)
    except VLAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"folder": str(options.out), "pictures": count}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
