"""Small tunings: pictures of one colour and questions about it, in LLaVA's layout on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlm4vla.core.recipes import TaskRecipe, TrainRecipe, TuneRecipe

SIDE = 32
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220), "white": (240, 240, 240)}
QUESTION = "what colour is it"
TEXTS = (QUESTION, *COLOURS, "A. red. B. green. C. blue. D. white.", "answer with the letter")


def write(folder: Path, count: int = 40) -> Path:
    """`questions.json` and its pictures; half of the rows ask for a letter, every fifth asks both."""
    folder.mkdir(parents=True)
    rows = []
    for index in range(count):
        rng = np.random.default_rng([5, index])
        name = list(COLOURS)[int(rng.integers(len(COLOURS)))]
        pixels = np.clip(np.array(COLOURS[name]) + rng.integers(-12, 13, (SIDE, SIDE, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
        turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": name}]
        if index % 5 == 0:
            turns += [{"from": "human", "value": "again"}, {"from": "gpt", "value": f"it is {name}"}]
        rows.append({"id": index, "image": f"{index}.png", "conversations": turns})
    (folder / "questions.json").write_text(json.dumps(rows))
    return folder


def tuning(backbone: Path, folder: Path, *, fields: dict[str, Any] | None = None, **train: Any) -> TuneRecipe:
    """A tuning of few steps; `train` are fields of TrainRecipe."""
    chosen = {"steps": 8, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 2, "log_every": 1}
    chosen |= {"validate_every": 4, "checkpoint_every": 4} | train
    return TuneRecipe(
        backbone=str(backbone),
        tasks=(TaskRecipe(task="llava", path=str(folder)),),
        held_out=0.2,
        train=TrainRecipe(**chosen),
        **(fields or {}),
    )
