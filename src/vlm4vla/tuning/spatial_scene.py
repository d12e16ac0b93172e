"""A Tabletop scene that is played and looked at: its picture, and what is known of the things in it."""

from __future__ import annotations

import functools
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from vlm4vla.benchmarks.tabletop.expert import expert_action
from vlm4vla.benchmarks.tabletop.render import RayRenderer, camera_distance, project, random_look
from vlm4vla.benchmarks.tabletop.scene import (
    BLOCK_HALF,
    COLORS,
    PLATE_RADIUS,
    Scene,
    SceneState,
    random_layout,
)
from vlm4vla.benchmarks.tabletop.tasks import TASKS, Assignment, candidates, fulfilled
from vlm4vla.core.errors import RecipeError, unknown_name
from vlm4vla.tuning.examples import Conversation
from vlm4vla.tuning.spatial import CLEAR, Pixels, Thing

_SMALL = 0.0015
"""Share of the picture below which a thing is not seen."""
_LIFTED = 0.01
"""Metres above the table from which everyone sees that a block is held."""
_CABINET = ("top", "left", "right", "back")
_PARTS: Mapping[str, Sequence[str]] = {
    **{f"{color} block": (color,) for color in COLORS},
    "plate": ("plate",),
    "drawer handle": ("handle", "handle_stem"),
    "pink button": ("button_cap",),
    "cabinet": (*(f"cabinet_{s}" for s in _CABINET), "drawer_front", "drawer_floor", "handle", "handle_stem"),
    "gripper": ("palm", "wrist", "finger_left", "finger_right"),
}
"""Geoms by thing. The first one's centre is the thing's, but for what moves in itself."""
_JOINTED = ("cabinet", "gripper")
_WIDTHS: Mapping[str, float] = {
    **{f"{color} block": 2 * BLOCK_HALF for color in COLORS},
    "plate": 2 * PLATE_RADIUS,
    "drawer handle": 0.016,
    "pink button": 0.056,
}
_CORNERS = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))


@dataclass(slots=True)
class Table:
    """A scene and its renderer; `begin` makes a new start."""

    scene: Scene
    renderer: RayRenderer

    def begin(self, rng: np.random.Generator) -> None:
        """Two to four blocks in a new look."""
        colors = [COLORS[i] for i in rng.permutation(len(COLORS))[: int(rng.integers(2, 5))]]
        self.scene.reset(random_layout(rng, {"colors": colors}))
        self.renderer.dress(random_look(rng))

    def goal(self, rng: np.random.Generator, tasks: Sequence[str] = TASKS) -> Assignment | None:
        """One that makes sense now."""
        found = [goal for task in tasks for goal in candidates(task, self.scene.state())]
        return found[int(rng.integers(len(found)))] if found else None

    def play(self, goal: Assignment, steps: int, start: SceneState | None = None) -> Play:
        """What the expert does within so many steps; it stops when done. `start`: the state when the goal was set."""
        state = self.scene.state()
        start = start or state
        way = [state.gripper]
        while not (done := fulfilled(goal, start, state)) and len(way) <= steps:
            self.scene.step(expert_action(goal, state))
            state = self.scene.state()
            way.append(state.gripper)
        return Play(np.array(way), done)

    def look(self) -> tuple[Pixels, list[Thing]]:
        """The picture, and the things of which enough is seen."""
        pixels = self.renderer.image()
        geoms = self.renderer.segmentation()
        found = []
        for name, parts in _PARTS.items():
            ids = [self.scene.model.geom(part).id for part in parts]
            thing = self._thing(name, ids, np.isin(geoms, ids))
            found += [] if thing is None else [thing]
        return pixels, found

    def _thing(self, name: str, geoms: Sequence[int], region: Bool[np.ndarray, "size size"]) -> Thing | None:
        rows, columns = np.nonzero(region)
        if len(rows) < _SMALL * region.size:
            return None
        low = np.array([columns.min(), rows.min()]) / len(region)
        high = np.array([columns.max() + 1, rows.max() + 1]) / len(region)
        outline = self._outline(geoms)
        hidden = np.abs(low + high - outline.min(axis=0) - outline.max(axis=0)).max() / 2
        place = None if name in _JOINTED else self.scene.data.geom_xpos[geoms[0]].copy()
        return Thing(
            name,
            (float(low[0]), float(low[1]), float(high[0]), float(high[1])),
            region=region,
            depth=None if place is None else float(camera_distance(place)),
            position=place,
            width=_WIDTHS.get(name),
            whole=bool(hidden < CLEAR / 2),
        )

    def _outline(self, geoms: Sequence[int]) -> Float[np.ndarray, "corners 2"]:
        """Where the corners of geoms' boxes would be seen if nothing hid them."""
        model, data = self.scene.model, self.scene.data
        corners = [
            data.geom_xpos[geom]
            + (model.geom_aabb[geom, :3] + _CORNERS * model.geom_aabb[geom, 3:])
            @ data.geom_xmat[geom].reshape(3, 3).T
            for geom in geoms
        ]
        return np.clip(project(np.concatenate(corners)), 0, 1)


@dataclass(frozen=True, slots=True)
class Play:
    """What an expert did."""

    way: Float[np.ndarray, "places 3"]
    """The gripper's positions before each step and at the end, in metres."""
    done: bool


@functools.lru_cache(maxsize=4)
def table(image_size: int, pid: int) -> Table:
    """One a process and size of picture: `begin` leaves nothing of earlier scenes. `pid`: the process's."""
    assert pid == os.getpid()
    scene = Scene()
    return Table(scene, RayRenderer(scene, image_size))


def carried(state: SceneState) -> str | None:
    """The block that is held so high that everyone sees it."""
    lifted = state.held and state.blocks[state.held][2] > BLOCK_HALF + _LIFTED
    return state.held if lifted else None


def nearest_block(state: SceneState) -> float:
    """Metres from the gripper to the nearest block's centre."""
    return min(float(np.linalg.norm(block - state.gripper)) for block in state.blocks.values())


class MadeScenes(ABC):
    """A source that makes a conversation of each of many scenes: the options that all of its kind have."""

    def __init__(
        self, name: str, folder: Path | None, *, scenes: int, split: str, seed: int, image_size: int
    ) -> None:
        """`split`: `train` or `test`. Raises: RecipeError for what does not exist, or a folder: there is no need."""
        if split not in ("train", "test"):
            raise unknown_name("split", split, ("train", "test"))
        if scenes < 1 or image_size < 16:
            raise RecipeError(f"{name} needs at least one scene, and pictures of at least 16 pixels")
        if folder is not None:
            raise RecipeError(f"{name}: makes its pictures; name no folder")
        self.name, self.scenes, self.split = name, scenes, split
        self.seed, self.image_size = seed, image_size

    @abstractmethod
    def made(self, index: int) -> Conversation:
        """Of one scene, from 0."""

    def __len__(self) -> int:
        """Scenes."""
        return self.scenes

    def __getitem__(self, index: int) -> Conversation:
        """Of one scene. Raises: IndexError beyond the last."""
        if not 0 <= index < self.scenes:
            raise IndexError(f"{self.name}: scene {index} of {self.scenes}")
        return self.made(index)
