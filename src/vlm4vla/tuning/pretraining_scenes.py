"""The questions that tiny backbones were pretrained on, about scenes that they have not seen.

Tiny VLMs know one way of asking and answering. What they make of it stands for what benchmarks tell of a large VLM.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np

from vlm4vla.benchmarks.tabletop.benchmark import VERSION as TABLETOP
from vlm4vla.benchmarks.tabletop.benchmark import seed_of
from vlm4vla.benchmarks.tabletop.scenes import SceneBatch, sample_scenes
from vlm4vla.core.recipes import fingerprint
from vlm4vla.tuning.examples import IMAGE_MARK, Conversation, Exchange
from vlm4vla.tuning.questions import AREAS, AnswerTokens, SceneQuestions
from vlm4vla.tuning.spatial_scene import MadeScenes

VERSION = 1
_BEYOND = 1_000_000
"""Added to seeds, so that no pretraining draws the same scenes."""
_TOGETHER = 100
"""Scenes that are made at once."""
_NEAR = {"loc": 2, "offset": 2, "area": AREAS}
"""Steps beside the right one within which a token counts as right: 3 % of the picture's width, about 1 cm for what
is near the gripper. An area is the place again, coarser."""


class PretrainingQuestions(MadeScenes):
    """One question about each of many scenes, a pure function of split, seed and number."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        scenes: int = 10_000,
        split: str = "train",
        seed: int = 0,
        image_size: int = 64,
    ) -> None:
        """`split`: `train` or `test`. Raises: RecipeError for what does not exist, or a folder."""
        name = "tabletop-pretraining"
        super().__init__(name, folder, scenes=scenes, split=split, seed=seed, image_size=image_size)

    @property
    def fingerprint(self) -> str:
        """Of all options, and of what makes scenes and questions."""
        return fingerprint(TABLETOP, VERSION, self.name, self.scenes, self.split, self.seed, self.image_size)

    def made(self, index: int) -> Conversation:
        """A scene's picture and question."""
        block, row = divmod(index, _TOGETHER)
        batch = _scenes(_BEYOND + 2 * self.seed + (self.split == "test"), self.image_size, block)
        rng = np.random.default_rng(seed_of("tabletop", TABLETOP, self.name, self.split, self.seed, index))
        (turn,) = SceneQuestions(AnswerTokens()).draw(batch, row, 1, rng)
        question = f"{IMAGE_MARK}\n{turn.question}"
        if re.fullmatch(r"(<[a-z]+\d+>)+", turn.answer):
            exchange = Exchange(question, turn.answer, "near", {"near": _NEAR})
        else:
            exchange = Exchange(question, turn.answer, "exact")
        where = f"{self.name}, {self.split}, seed {self.seed}, scene {index}"
        return Conversation(where, (batch.images[row],), (exchange,), task=self.name)


@functools.lru_cache(maxsize=8)
def _scenes(seed: int, image_size: int, block: int) -> SceneBatch:
    (batch,) = sample_scenes(_TOGETHER, seed=seed + 2 * _BEYOND * block, image_size=image_size)
    return batch
