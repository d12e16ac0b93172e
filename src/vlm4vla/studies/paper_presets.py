"""The paper's three trainings as recipes, and beside every number what the paper says and what the released code does.

`variant="released"` follows the released configurations where a recipe has a field for it; `settings_of` lists all
differences, those without a field included. Sources: *A.2.1*, *Eq. 1* and so on are the paper's; names of files are the
released repository's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from vlm4vla.backbones.registry import released_facts
from vlm4vla.core.recipes import DemonstrationRecipe, EvaluationRecipe, PolicyRecipe, TrainRecipe, Trial

Variant = Literal["paper", "released"]
Weights = Literal["pretrained", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One choice of a training: what this recipe has, what the paper states, what the released code does."""

    name: str
    here: str
    paper: str
    released: str
    source: str


def calvin(
    backbone: str = "qwen2.5-vl-3b",
    *,
    variant: Variant = "paper",
    weights: Weights = "pretrained",
    steps: int = 30_000,
    seed: int = 0,
) -> Trial:
    """CALVIN ABC-D: 30,000 steps of 128, chunks of 10 (A.2.1)."""
    train = TrainRecipe(
        steps=steps, batch_size=128, learning_rate=2e-5, warmup_steps=2058, checkpoint_every=5_000, seed=seed
    )
    if variant == "released":
        train = replace(train, steps=41_165, checkpoint_every=8_233)
    return _trial(
        "calvin", backbone, train, variant=variant, weights=weights, horizon=10, executes=(10, 5, 1)
    )


def bridge(
    backbone: str = "qwen2.5-vl-3b",
    *,
    variant: Variant = "paper",
    weights: Weights = "pretrained",
    steps: int = 50_000,
    seed: int = 0,
) -> Trial:
    """BridgeV2 for SimplerEnv: 50,000 steps of 512, chunks of 4, a checkpoint every 5,000 (A.2.1)."""
    train = TrainRecipe(
        steps=steps, batch_size=512, learning_rate=5e-5, warmup_steps=2_500, checkpoint_every=5_000, seed=seed
    )
    if variant == "released":
        facts = released_facts(backbone)
        train = replace(train, learning_rate=facts.learning_rate, checkpoint_every=facts.bridge_interval)
    return _trial("bridge", backbone, train, variant=variant, weights=weights, horizon=4, executes=(4, 2, 1))


def libero(
    backbone: str = "qwen2.5-vl-3b",
    *,
    variant: Variant = "paper",
    weights: Weights = "pretrained",
    steps: int = 50_000,
    seed: int = 0,
) -> Trial:
    """LIBERO-Long (LIBERO-10): 50,000 steps of 512, chunks of 4 (A.2.1)."""
    train = TrainRecipe(
        steps=steps, batch_size=512, learning_rate=5e-5, warmup_steps=250, checkpoint_every=10_000, seed=seed
    )
    if variant == "released":
        train = replace(train, learning_rate=released_facts(backbone).learning_rate)
    return _trial("libero", backbone, train, variant=variant, weights=weights, horizon=4, executes=(4, 2, 1))


PAPER_PRESETS: Mapping[str, Callable[..., Trial]] = {"calvin": calvin, "bridge": bridge, "libero": libero}
_BENCHMARKS = {"calvin": "calvin-abc-d", "bridge": "simpler-bridge", "libero": "libero-10"}


def _trial(
    source: str,
    backbone: str,
    train: TrainRecipe,
    *,
    variant: Variant,
    weights: Weights,
    horizon: int,
    executes: tuple[int, ...],
) -> Trial:
    policy = PolicyRecipe(backbone=backbone, weights=weights, horizon=horizon)
    train = replace(train, precision="bf16", validate_every=train.checkpoint_every)
    if variant == "released":
        policy = replace(policy, query_init="zeros")
        train = replace(train, gripper_weight=0.01, clip_norm=0.0)
        if source == "calvin":
            executes = (10,)
        elif source == "libero":
            executes = (4, 2)
    return Trial(
        name=f"{source} {backbone} {weights}{' released' if variant == 'released' else ''}",
        policy=policy,
        demonstrations=DemonstrationRecipe(source=source, episodes=0, looks=(), image_size=224),
        train=train,
        evaluations=tuple(
            EvaluationRecipe(
                benchmark=_BENCHMARKS[source], look="", episodes_per_task=0, execute=execute, image_size=224
            )
            for execute in executes
        ),
    )


def settings_of(preset: str, trial: Trial) -> list[Setting]:
    """Every choice of a paper preset's trial, with its sources."""
    policy, train = trial.policy, trial.train
    facts = released_facts(policy.backbone)
    on_calvin = preset == "calvin"
    rows = [
        (
            "batch size",
            f"{train.batch_size}",
            "128" if on_calvin else "512",
            f"{128 if on_calvin else 512} on 8 GPUs; the launch script starts 4, which halves it",
            "A.2.1; configs, scripts/run.sh",
        ),
        (
            "learning rate",
            f"{train.learning_rate:g}",
            "2e-05" if on_calvin else "5e-05",
            "2e-05" if on_calvin else f"{facts.learning_rate:g} for this backbone; 2e-05 or 5e-05",
            "A.2.1; configs",
        ),
        (
            "steps",
            f"{train.steps:,}",
            "30,000" if on_calvin else "50,000",
            "41,165 (5 epochs of 8,233)" if on_calvin else "50,000",
            "A.2.1; configs",
        ),
        (
            "warm-up",
            f"{train.warmup_steps:,} steps",
            "not stated",
            {"calvin": "2,058 (a quarter epoch)", "bridge": "2,500", "libero": "250"}[preset],
            "configs, warmup_epochs",
        ),
        ("schedule", train.schedule, "not stated", "constant", "main.py"),
        ("weight decay", f"{train.weight_decay:g}", "not stated", "0", "configs"),
        (
            "gradient clipping",
            f"{train.clip_norm:g}" if train.clip_norm else "off",
            "not stated",
            "off: 1.0 is configured and overwritten by 0",
            "main.py l.68",
        ),
        (
            "precision",
            train.precision,
            "not stated",
            f"{facts.precision} for this backbone; bf16 or fp16",
            "configs",
        ),
        ("gripper's weight in the loss", f"{train.gripper_weight:g}", "1", "0.01", "Eq. 1; base_policy.py"),
        (
            "chunk",
            f"{policy.horizon} actions",
            "10" if on_calvin else "4",
            "10" if on_calvin else "4",
            "A.2.1",
        ),
        (
            "executed of a chunk",
            ", ".join(str(recipe.execute) for recipe in trial.evaluations),
            "all, half, one; the best is reported",
            {"calvin": "10, hard-coded", "bridge": "4, 2, 1", "libero": "4, 2"}[preset],
            "3.3; evaluation scripts",
        ),
        (
            "checkpoints",
            f"every {train.checkpoint_every:,} steps",
            {
                "calvin": "10k to 30k in steps of 5k (Figure 4)",
                "bridge": "every 5,000: 10",
                "libero": "not stated",
            }[preset],
            {
                "calvin": "every epoch (8,233)",
                "bridge": f"every {facts.bridge_interval:,} for this backbone: {50_000 // facts.bridge_interval}",
                "libero": "every 10,000: 5",
            }[preset],
            "A.2.1; configs",
        ),
        (
            "image",
            f"{policy.image_size}, then the VLM's own",
            "224, then the VLM's own",
            "same; 448 where any size is allowed",
            "3.3",
        ),
        (
            "augmentation",
            "none",
            "not stated",
            "random shift, 10 pixels"
            if on_calvin
            else "crop of 0.9 of the area, brightness, contrast, saturation, hue",
            "calvin_dataset.py; dlimp",
        ),
        (
            "normalisation",
            "by the reader of the demonstrations",
            "not stated",
            "clip at 0.65, scale" if on_calvin else "quantiles, then clip at 0.65 and scale once more",
            "calvin_dataset.py; openvla/",
        ),
        ("query's start", policy.query_init, "not stated", "zeros", "base_backbone.py"),
        (
            "evaluation",
            trial.evaluations[0].benchmark,
            {"calvin": "1,000 sequences", "bridge": "24 trials a task", "libero": "50 trials a task"}[preset],
            {"calvin": "1,000 sequences", "bridge": "24 trials a task", "libero": "50 trials a task"}[preset],
            "A.2.1",
        ),
    ]
    return [Setting(name=n, here=h, paper=p, released=r, source=s) for n, h, p, r, s in rows]
