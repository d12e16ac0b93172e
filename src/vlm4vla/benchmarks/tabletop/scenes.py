"""Random scenes with their ground truth, for making questions: never those of episodes or demonstrations.

Layouts are wider than the benchmark's (two to four blocks, stacked, on the plate, held, the gripper anywhere, the
drawer at any opening) and looks are drawn at random, so that whoever learns from them has not seen the benchmark.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float32, UInt8

from vlm4vla.benchmarks.tabletop.benchmark import VERSION, seed_of
from vlm4vla.benchmarks.tabletop.render import RayRenderer, project, random_look
from vlm4vla.benchmarks.tabletop.scene import (
    BLOCK_HALF,
    BUTTON_CENTRE,
    BUTTON_TOP,
    COLORS,
    DRAWER_TRAVEL,
    FINGER_TRAVEL,
    PLATE_RADIUS,
    PLATE_TOP,
    Scene,
    SceneLayout,
)

THINGS = (*COLORS, "plate", "handle", "button", "gripper")
"""Whatever a question can be about, in the order of `SceneBatch` columns."""
VISIBLE = 0.0012
"""Share of the picture below which a thing is asked for by nobody: five pixels of 64 x 64."""
_GEOMS = (*COLORS, "plate", "handle", "button_cap", "finger")


@dataclass(frozen=True, slots=True)
class SceneBatch:
    """Pictures and ground truth of many scenes, one row each."""

    images: UInt8[np.ndarray, "scenes size size 3"]
    positions: Float32[np.ndarray, "scenes things 3"]
    """Metres in the scene's frame; NaN for a block that is not there."""
    places: Float32[np.ndarray, "scenes things 2"]
    """Where its centre appears: x, y in [0, 1] from the top-left corner."""
    visible: Float32[np.ndarray, "scenes things"]
    """Share of the picture's pixels that show it."""
    drawer: Float32[np.ndarray, " scenes"]
    """How far open, 0 to 1."""
    gap: Float32[np.ndarray, " scenes"]
    """Between the fingers, 0 to 1."""
    held: UInt8[np.ndarray, " scenes"]
    """Index of the held block's colour, or len(COLORS) for none."""


def sample_scenes(count: int, *, seed: int, image_size: int, processes: int = 1) -> Iterator[SceneBatch]:
    """Batches of up to 500 scenes, `count` in all; a pure function of the arguments but `processes`."""
    make = partial(_sample_batch, seed, image_size)
    spans = [range(i, min(i + 500, count)) for i in range(0, count, 500)]
    if processes <= 1:
        yield from map(make, spans)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(make, spans)


def _sample_batch(seed: int, image_size: int, indices: range) -> SceneBatch:
    scene = Scene()
    renderer = RayRenderer(scene, image_size)
    names = [renderer.geom_name(i) for i in range(scene.model.ngeom)]
    columns = np.array(
        [next((t for t, geom in enumerate(_GEOMS) if name.startswith(geom)), -1) for name in names] + [-1]
    )
    count = len(indices)
    images = np.empty((count, image_size, image_size, 3), dtype=np.uint8)
    positions = np.full((count, len(THINGS), 3), np.nan, dtype=np.float32)
    visible = np.zeros((count, len(THINGS)), dtype=np.float32)
    drawer = np.empty(count, dtype=np.float32)
    gap = np.empty(count, dtype=np.float32)
    held = np.full(count, len(COLORS), dtype=np.uint8)
    for row, index in enumerate(indices):
        rng = np.random.default_rng(seed_of("tabletop", VERSION, "scene", seed, index))
        held_color = _arrange(scene, rng)
        renderer.dress(random_look(rng))
        images[row] = renderer.image()
        state = scene.state()
        for column, color in enumerate(COLORS):
            if color in state.blocks:
                positions[row, column] = state.blocks[color]
        rest = (
            [*state.plate, PLATE_TOP],
            state.handle,
            [*BUTTON_CENTRE, BUTTON_TOP - state.button],
            state.gripper,
        )
        for column, position in enumerate(rest, start=len(COLORS)):
            positions[row, column] = np.asarray(position)
        shown = columns[renderer.segmentation().ravel()]
        visible[row] = np.bincount(shown[shown >= 0], minlength=len(THINGS)) / image_size**2
        drawer[row] = state.drawer / DRAWER_TRAVEL
        gap[row] = state.gap / (2 * FINGER_TRAVEL)
        if held_color is not None:
            held[row] = COLORS.index(held_color)
    places = project(positions).astype(np.float32)
    return SceneBatch(images, positions, places, visible, drawer, gap, held)


def _arrange(scene: Scene, rng: np.random.Generator) -> str | None:
    """Pose the scene at random; the colour of the held block, if any."""
    colors = [COLORS[i] for i in rng.permutation(len(COLORS))[: int(rng.integers(2, 5))]]
    while True:
        spots = rng.uniform([-0.19, -0.17], [0.19, 0.09], size=(len(colors) + 1, 2))
        apart = [np.linalg.norm(a - b) for i, a in enumerate(spots) for b in spots[i + 1 :]]
        if min(apart) > 0.05:
            break
    plate = spots[-1]
    blocks = {
        color: (float(x), float(y), float(rng.uniform(-0.8, 0.8)))
        for color, (x, y) in zip(colors, spots[:-1], strict=True)
    }
    heights = {
        color: BLOCK_HALF + PLATE_TOP
        for color, (x, y, _) in blocks.items()
        if np.hypot(x - plate[0], y - plate[1]) < PLATE_RADIUS + BLOCK_HALF
    }
    kind = rng.random()
    gripper = rng.uniform([-0.2, -0.17, 0.015], [0.2, 0.2, 0.19])
    gap = float(rng.choice([0.0, 1.0, rng.random()], p=[0.3, 0.5, 0.2])) * 2 * FINGER_TRAVEL
    held = None
    first = colors[0]
    x, y, yaw = blocks[first]
    if kind < 0.2:  # held, anywhere
        held, gap = first, 2 * BLOCK_HALF
        blocks[first] = (float(gripper[0]), float(gripper[1]), 0.0)
        heights[first] = float(max(BLOCK_HALF, gripper[2] + rng.normal(0, 0.004)))
    elif kind < 0.55:  # about to touch something
        near = [(x, y), tuple(plate), (BUTTON_CENTRE[0], BUTTON_CENTRE[1])][
            int(rng.choice(3, p=[0.7, 0.2, 0.1]))
        ]
        gripper[:2] = np.array(near) + rng.normal(0, 0.03, size=2)
        gripper[2] = rng.uniform(0.02, 0.11)
    elif kind < 0.68 and len(colors) > 1:  # stacked
        below = blocks[colors[1]]
        blocks[first] = (below[0] + rng.normal(0, 0.005), below[1] + rng.normal(0, 0.005), yaw)
        heights[first] = heights.get(colors[1], BLOCK_HALF) + 2 * BLOCK_HALF
    elif kind < 0.78:  # on the plate
        blocks[first] = (plate[0] + rng.normal(0, 0.012), plate[1] + rng.normal(0, 0.012), yaw)
        heights[first] = BLOCK_HALF + PLATE_TOP
    drawer = float(rng.choice([0.0, 1.0, rng.random()], p=[0.35, 0.35, 0.3])) * DRAWER_TRAVEL
    layout = SceneLayout(
        blocks=blocks,
        plate=(float(plate[0]), float(plate[1])),
        drawer=drawer,
        gripper=(float(gripper[0]), float(gripper[1]), float(gripper[2])),
        yaw=float(rng.choice([0.0, rng.normal(0, 0.3)])),
    )
    scene.pose(layout, heights=heights, gap=gap)
    return held
