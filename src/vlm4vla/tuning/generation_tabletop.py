"""What to draw of Tabletop scenes: the picture again, its depth, its things, each in a colour (Paper 4.2, A.6)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vlm4vla.benchmarks.tabletop.benchmark import VERSION as TABLETOP
from vlm4vla.benchmarks.tabletop.benchmark import seed_of
from vlm4vla.core.errors import unknown_name
from vlm4vla.core.recipes import fingerprint
from vlm4vla.tuning.examples import IMAGE_MARK, Conversation, Drawing, Exchange
from vlm4vla.tuning.spatial_scene import MadeScenes, Table, table

VERSION = 1
QUESTIONS = {
    "image": "Draw the picture again.",
    "depth": "Draw the depth of the picture, near things dark and far things bright.",
    "segmentation": "Draw the picture with every thing in a color of its own.",
}
NEAR, FAR = 0.45, 1.0
"""Metres from the camera between which all of the scene but the wall lies; a grey level is 2.2 mm."""
_PARTS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "plate": (255, 255, 255),
    "button": (128, 128, 128),
    "cabinet": (255, 0, 255),
    "drawer": (255, 0, 255),
    "handle": (255, 0, 255),
    "palm": (0, 255, 255),
    "wrist": (0, 255, 255),
    "finger": (0, 255, 255),
}
"""By the beginning of a geom's name; table and wall are black."""
COLORS = ((0, 0, 0), *dict.fromkeys(_PARTS.values()))


class TabletopDrawings(MadeScenes):
    """A drawing of each of many scenes, its kind at random; a pure function of the options and a scene's number."""

    draws = True

    def __init__(
        self,
        folder: Path | None = None,
        *,
        kinds: str = "image+depth+segmentation",
        scenes: int = 10_000,
        split: str = "train",
        seed: int = 0,
        image_size: int = 64,
    ) -> None:
        """`kinds`: of QUESTIONS, joined by `+`; `split`: `train` or `test`.

        Raises: RecipeError for what does not exist, or a folder, of which there is no need.
        """
        self.kinds = tuple(kinds.split("+"))
        for kind in self.kinds:
            if kind not in QUESTIONS:
                raise unknown_name("kind of drawing", kind, QUESTIONS)
        super().__init__(
            "tabletop-drawings", folder, scenes=scenes, split=split, seed=seed, image_size=image_size
        )

    @property
    def fingerprint(self) -> str:
        """Of all options, and of what makes scenes and drawings."""
        parts = [self.kinds, self.scenes, self.split, self.seed, self.image_size]
        return fingerprint(TABLETOP, VERSION, *parts)

    def made(self, index: int) -> Conversation:
        """A scene's picture, some steps after an expert set out, and what is to be drawn of it."""
        rng = np.random.default_rng(seed_of("tabletop", TABLETOP, "drawings", self.split, self.seed, index))
        kind = self.kinds[int(rng.integers(len(self.kinds)))]
        scene = table(self.image_size, os.getpid())
        scene.begin(rng)
        if (goal := scene.goal(rng)) is not None:
            scene.play(goal, int(rng.integers(30)))
        pixels = scene.renderer.image()
        if kind == "depth":
            drawing = Drawing("depth", _depth(scene), metres=(NEAR, FAR))
        elif kind == "segmentation":
            drawing = Drawing("segmentation", _things(scene), colors=COLORS)
        else:
            drawing = Drawing("image", pixels)
        asked = Exchange(f"{IMAGE_MARK}\n{QUESTIONS[kind]}", "", drawing=drawing)
        where = f"{self.name}, {self.split}, seed {self.seed}, scene {index}"
        return Conversation(where, (pixels,), (asked,), task=self.name)


def _depth(scene: Table) -> UInt8[np.ndarray, "size size 3"]:
    share = (np.clip(scene.renderer.distances(), NEAR, FAR) - NEAR) / (FAR - NEAR)
    return np.repeat((share * 255 + 0.5).astype(np.uint8)[..., None], 3, axis=-1)


def _things(scene: Table) -> UInt8[np.ndarray, "size size 3"]:
    names = [scene.scene.model.geom(geom).name for geom in range(scene.scene.model.ngeom)]
    colors = [next((_PARTS[part] for part in _PARTS if name.startswith(part)), COLORS[0]) for name in names]
    return np.array([*colors, COLORS[0]], dtype=np.uint8)[scene.renderer.segmentation()]
