"""Recipes by name: functions of what one usually varies. Their numbers stand here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Literal

from vlm4vla.benchmarks.tabletop.tasks import tasks_named
from vlm4vla.core.recipes import DemonstrationRecipe, EvaluationRecipe, PolicyRecipe, TrainRecipe, Trial
from vlm4vla.studies.paper_presets import PAPER_PRESETS

Weights = Literal["pretrained", "random"]

RANDOM_POLICY = "random-policy"
"""The backbone of a trial without any: nothing is trained, actions are drawn at random."""


def tabletop(
    backbone: str = "tiny-qwen3-vl",
    *,
    weights: Weights = "pretrained",
    head: str = "mlp",
    demonstrations: int = 12_000,
    steps: int = 14_000,
    batch_size: int = 64,
    learning_rate: float = 5e-4,
    image_size: int = 64,
    episodes: int = 50,
    seed: int = 0,
) -> Trial:
    """The embedded benchmark in earnest: every task learnable by a tiny VLM; three quarters of an hour on two cores.

    Trained on looks A, B and C; `episodes` a task are scored in A and as many in D, which training never shows.
    """
    return Trial(
        name=f"tabletop {short_name(backbone)} {weights}" + suffix(head),
        policy=_tiny_policy(backbone, weights, image_size, head),
        demonstrations=DemonstrationRecipe(episodes=demonstrations, image_size=image_size, seed=seed),
        train=TrainRecipe(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=min(200, steps // 10),
            schedule="cosine",
            gripper_weight=0.5,
            seed=seed,
            log_every=25,
            validate_every=500,
            checkpoint_every=500,
        ),
        evaluations=_both_looks(episodes, episodes, image_size),
    )


def quickstart(
    backbones: Sequence[str] = ("tiny-qwen3-vl", "tiny-kosmos-2"),
    *,
    weights: Weights = "pretrained",
    head: str = "mlp",
    tasks: Sequence[str] = ("fixed-target", "reach"),
    demonstrations: int = 3000,
    steps: int = 2400,
    episodes: int = 20,
    image_size: int = 64,
    seed: int = 0,
) -> tuple[Trial, ...]:
    """The whole pipeline within minutes on two cores: a trial per backbone, and the random policy.

    Where it differs from the paper (3.2, A.2) it does so because a VLM of a million parameters sees 64 pixels:

    - 64 instead of 224 pixels: what the tiny VLMs were pretrained on; the short prompt halves the text.
    - Head layers of 128 instead of 1024: else the head would be larger than the VLM below it.
    - Chunks of 4 instead of 10 actions, of which half are executed: Tabletop's episodes have some 15 steps.
    - Learning rate 1e-3 instead of 2e-5, batch 32 instead of 128, cosine schedule: small models, a short training.
    - Gripper weight 0.5: between the paper's Eq. 1 (1) and the released code (0.01).
    - Four of the nine tasks: the others need more training than minutes (`tabletop`).

    `episodes` a task are scored in look A, half as many in the held-out look D.
    """
    trials = [
        Trial(
            name=f"quickstart {short_name(backbone)} {weights}" + suffix(head),
            policy=_tiny_policy(backbone, weights, image_size, head),
            demonstrations=DemonstrationRecipe(
                episodes=demonstrations, tasks=tasks_named(tasks), image_size=image_size, seed=seed
            ),
            train=TrainRecipe(
                steps=steps,
                batch_size=32,
                learning_rate=1e-3,
                warmup_steps=min(100, steps // 10),
                schedule="cosine",
                gripper_weight=0.5,
                seed=seed,
                log_every=10,
                validate_every=250,
                checkpoint_every=250,
            ),
            evaluations=_both_looks(episodes, (episodes + 1) // 2, image_size, tasks),
        )
        for backbone in backbones
    ]
    return (*trials, random_policy(trials[0].evaluations, seed=seed))


def random_policy(evaluations: Sequence[EvaluationRecipe], *, seed: int = 0) -> Trial:
    """What chance achieves under the same evaluations."""
    return Trial(
        name="random policy",
        policy=PolicyRecipe(
            backbone=RANDOM_POLICY, weights="random", horizon=max(recipe.execute for recipe in evaluations)
        ),
        demonstrations=DemonstrationRecipe(source="none", episodes=0, looks=()),
        train=TrainRecipe(steps=0, seed=seed),
        evaluations=tuple(evaluations),
    )


PRESETS: Mapping[str, Callable[..., Trial]] = {"tabletop": tabletop, **PAPER_PRESETS}
"""What `vlm4vla train` knows by name; any other function is named `module:function`."""


def short_name(backbone: str) -> str:
    """A registered name as it is, the last part of a folder or hub id."""
    return PurePath(backbone).name


def suffix(head: str) -> str:
    """What a trial's name tells of a head other than the paper's."""
    return "" if head == "mlp" else f" {head}"


def _tiny_policy(backbone: str, weights: Weights, image_size: int, head: str) -> PolicyRecipe:
    return PolicyRecipe(
        backbone=backbone,
        weights=weights,
        image_size=image_size,
        prompt="short",
        horizon=4,
        head=head,
        head_trunk=128,
        head_width=128,
        head_body=(128, 128, 64),
        expert_layers=4,
        expert_width=64,
        expert_mlp=128,
        expert_heads=4,
        expert_head_width=16,
        fast_vocabulary=128,
    )


def _both_looks(
    seen: int, unseen: int, image_size: int, tasks: Sequence[str] = ()
) -> tuple[EvaluationRecipe, ...]:
    """Look A was trained on, look D was not."""
    return tuple(
        EvaluationRecipe(
            benchmark=f"tabletop-{look.lower()}",
            look=look,
            tasks=tasks_named(tasks) if tasks else (),
            episodes_per_task=episodes,
            execute=2,
            image_size=image_size,
        )
        for look, episodes in (("A", seen), ("D", unseen))
    )
