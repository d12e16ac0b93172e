"""Studies on Tabletop alone, of a size that two cores finish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlm4vla.core.recipes import Trial
from vlm4vla.studies.paper import questions
from vlm4vla.studies.presets import quickstart
from vlm4vla.studies.scripted import SCRIPTED_STUDIES
from vlm4vla.studies.study import Column, MakeStudy, Scale, Study, StudyRow

SEEDS = (0, 1, 2)
EPISODES = 50
"""Of each of four tasks, in either look."""
_LOOKS = (Column(name="look A", look="A"), Column(name="look D", look="D"))
_ARMS: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "vision frozen": {"freeze": ("vision",)},
    "from scratch": {"weights": "random"},
}


def mini(
    scale: Scale = "tabletop",
    *,
    backbones: Sequence[str] = ("tiny-qwen3-vl", "tiny-paligemma-1"),
    steps: int = 2400,
    demonstrations: int = 3000,
) -> Study:
    """The paper's two sharpest findings in small, with three seeds each: tables 3 (vision frozen) and 8 (from scratch).

    The quickstart's trainings, scored in look A (seen in training) and look D (never seen). About an hour on two cores
    for each backbone. `scale` changes nothing.
    """
    rows = []
    for backbone in backbones:
        for arm, changes in _ARMS.items():
            name = f"{backbone}, {arm}" if arm else backbone
            trials = {
                f"seed {seed}": _trial(backbone, f"{name}, seed {seed}", seed, steps, demonstrations, changes)
                for seed in SEEDS
            }
            rows.append(StudyRow(name=name, trials=trials))
    return Study(
        name="mini",
        title="Tables 3 and 8 in small",
        question="Does training from scratch hurt? Does freezing the vision encoder hurt?",
        columns=_LOOKS,
        rows=tuple(rows),
        about=("policy.backbone", "policy.freeze", "policy.weights"),
        notes=(
            "VLMs of a million parameters, pretrained on pictures of this very simulator: an ordering here says "
            "nothing of VLMs of billions",
        ),
        asked=questions(),
    )


def _trial(
    backbone: str, name: str, seed: int, steps: int, demonstrations: int, changes: Mapping[str, Any]
) -> Trial:
    trial, _ = quickstart((backbone,), steps=steps, demonstrations=demonstrations, episodes=EPISODES)
    return replace(
        trial,
        name=name,
        policy=replace(trial.policy, **changes),
        train=replace(trial.train, seed=seed),
        evaluations=tuple(replace(e, episodes_per_task=EPISODES) for e in trial.evaluations),
    )


OWN_STUDIES: Mapping[str, MakeStudy] = {"mini": mini, **SCRIPTED_STUDIES}
"""Beside the paper's."""
