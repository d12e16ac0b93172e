"""Small trainings: a random tiny VLM, synthetic demonstrations that can be learned, a trial on both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vlm4vla.backbones.tiny import TinySize, build_tiny
from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.recipes import DemonstrationRecipe, PolicyRecipe, TrainRecipe, Trial, to_json
from vlm4vla.core.types import Demonstration
from vlm4vla.demonstrations.packed import PackedSource, write_packed

SPEC = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="controller")
SIDE = 32
SIZE = TinySize(
    hidden=32, layers=2, mlp=64, vision_hidden=32, vision_layers=2, vision_mlp=64, image_size=SIDE
)
SAYINGS = ("go to the light", "move over to the bright spot")


def demonstrations(count: int, *, seed: int = 0) -> Iterator[Demonstration]:
    """A hand walks to a light in 4 to 12 steps; the action is the way left, the gripper closes on arrival."""
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        steps = int(rng.integers(4, 13))
        start, goal = rng.uniform(3, SIDE - 3, size=(2, 2))
        places = np.linspace(start, goal, steps)
        images = []
        for place in places:
            image = np.full((SIDE, SIDE, 3), 90, dtype=np.uint8) + rng.integers(
                0, 9, (SIDE, SIDE, 3), np.uint8
            )
            for (row, column), colour in ((goal, (255, 255, 200)), (place, (40, 60, 250))):
                image[int(row) - 2 : int(row) + 3, int(column) - 2 : int(column) + 3] = colour
            images.append(image)
        actions = np.zeros((steps, 7), dtype=np.float32)
        actions[:, :2] = (goal - places) / SIDE
        actions[:, 2:6] = rng.normal(scale=0.05, size=(steps, 4))
        actions[:, 6] = np.where(np.linalg.norm(goal - places, axis=1) < 3, -1, 1)
        yield Demonstration(
            id=f"walk-{seed}-{index}",
            instruction=SAYINGS[index % 2],
            task="walk",
            images=images,
            actions=actions,
        )


def packed(folder: Path, count: int = 40) -> PackedSource:
    """Demonstrations in a packed folder."""
    return write_packed(
        demonstrations(count), folder, name="walks", action_spec=SPEC, fingerprint=f"walks-{count}"
    )


def tiny_vlm(folder: Path, family: str = "qwen3-vl") -> Path:
    """A random checkpoint folder."""
    return build_tiny(family, SIZE, folder, texts=SAYINGS, seed=0)


def trial(backbone: Path, *, head: str = "mlp", **train: Any) -> Trial:
    """A trial of few steps; `train` are fields of TrainRecipe."""
    recipe = TrainRecipe(
        steps=8,
        batch_size=4,
        learning_rate=1e-3,
        warmup_steps=2,
        log_every=1,
        validate_every=4,
        checkpoint_every=4,
    )
    return Trial(
        name="walk",
        policy=PolicyRecipe(
            backbone=str(backbone),
            image_size=SIDE,
            horizon=5,
            head=head,
            head_width=32,
            head_body=(32, 16),
            expert_layers=2,
            expert_width=32,
            expert_mlp=64,
            expert_heads=2,
            expert_head_width=16,
            fast_vocabulary=128,
        ),
        demonstrations=DemonstrationRecipe(source="walks", held_out=0.1),
        train=replace(recipe, **train),
        evaluations=(),
    )


def write_trial(trial: Trial, path: Path) -> Path:
    """A trial as the worker program reads it."""
    path.write_text(json.dumps(to_json(trial)))
    return path


def metrics(folder: Path, *names: str, split: str = "train") -> list[tuple[float, ...]]:
    """Values of metrics.jsonl by name, a row per line of one split."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [tuple(line[name] for name in names) for line in lines if line["split"] == split]
