"""The paper's three trainings as recipes, and beside every number what the paper says and what the released code does.

`variant="released"` follows the released configurations where a recipe has a field for it; `paper_settings` lists all
differences, those without a field included. Where the paper is silent (augmentation, normalisation), both variants do
what the released code does, but for its second clip of Bridge's and LIBERO's actions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from vlm4vla.backbones.registry import ReleasedFacts, released_facts, with_released_facts
from vlm4vla.core.errors import RecipeError
from vlm4vla.core.recipes import DemonstrationRecipe, EvaluationRecipe, PolicyRecipe, TrainRecipe, Trial

Variant = Literal["paper", "released"]
Weights = Literal["pretrained", "random"]

REPEATS = {"calvin": 3, "bridge": 10, "libero": 5}
"""Plays of each episode by a head that draws noise: 3 runs of CALVIN, 240 and 250 plays of 24 and 50 episodes a task
(Paper A.3, of pi0)."""


def calvin(
    backbone: str = "qwen2.5-vl-3b",
    *,
    variant: Variant = "paper",
    weights: Weights = "pretrained",
    head: str = "mlp",
    steps: int = 30_000,
    seed: int = 0,
) -> Trial:
    """CALVIN ABC-D: 30,000 steps of 128, chunks of 10 (A.2.1), a checkpoint every 5,000 that stays (Figure 4)."""
    train = TrainRecipe(
        steps=steps,
        batch_size=128,
        learning_rate=2e-5,
        warmup_steps=2058,
        checkpoint_every=5_000,
        keep_every=5_000,
        seed=seed,
    )
    if variant == "released":
        _released("calvin", backbone)
        train = replace(train, steps=41_165, checkpoint_every=8_233, keep_every=8_233)
    return _trial(
        "calvin",
        backbone,
        train,
        variant=variant,
        weights=weights,
        head=head,
        horizon=10,
        executes=(10, 5, 1),
    )


def bridge(
    backbone: str = "qwen2.5-vl-3b",
    *,
    variant: Variant = "paper",
    weights: Weights = "pretrained",
    head: str = "mlp",
    steps: int = 50_000,
    seed: int = 0,
) -> Trial:
    """BridgeV2 for SimplerEnv: 50,000 steps of 512, chunks of 4, a checkpoint every 5,000 (A.2.1)."""
    train = TrainRecipe(
        steps=steps, batch_size=512, learning_rate=5e-5, warmup_steps=2_500, checkpoint_every=5_000, seed=seed
    )
    if variant == "released":
        facts = _released("bridge", backbone)
        train = replace(train, learning_rate=facts.learning_rate, checkpoint_every=facts.bridge_interval)
    return _trial(
        "bridge", backbone, train, variant=variant, weights=weights, head=head, horizon=4, executes=(4, 2, 1)
    )


def libero(
    backbone: str = "qwen2.5-vl-3b",
    *,
    variant: Variant = "paper",
    weights: Weights = "pretrained",
    head: str = "mlp",
    steps: int = 50_000,
    seed: int = 0,
) -> Trial:
    """LIBERO-Long (LIBERO-10): 50,000 steps of 512, chunks of 4 (A.2.1)."""
    train = TrainRecipe(
        steps=steps, batch_size=512, learning_rate=5e-5, warmup_steps=250, checkpoint_every=10_000, seed=seed
    )
    if variant == "released":
        train = replace(train, learning_rate=_released("libero", backbone).learning_rate)
    return _trial(
        "libero", backbone, train, variant=variant, weights=weights, head=head, horizon=4, executes=(4, 2, 1)
    )


PAPER_PRESETS: Mapping[str, Callable[..., Trial]] = {"calvin": calvin, "bridge": bridge, "libero": libero}
_DATA_SETS = {"calvin": "calvin", "bridge": "bridge", "libero": "libero_10"}
PAPER_BENCHMARKS = {"calvin": "calvin-abc-d", "bridge": "simpler-bridge", "libero": "libero-long"}
"""By preset, the benchmark that scores it."""


def _released(benchmark: str, backbone: str) -> ReleasedFacts:
    facts = released_facts(backbone, benchmark)
    if facts is None:
        raise RecipeError(
            f"the released code has no configuration of {benchmark} for {backbone!r}; it has them for "
            f"{', '.join(with_released_facts(benchmark))}. Use the paper's variant, and --set for what should differ"
        )
    return facts


def _trial(
    source: str,
    backbone: str,
    train: TrainRecipe,
    *,
    variant: Variant,
    weights: Weights,
    head: str,
    horizon: int,
    executes: tuple[int, ...],
) -> Trial:
    on_calvin = source == "calvin"
    policy = PolicyRecipe(
        backbone=backbone,
        weights=weights,
        head=head,
        horizon=horizon,
        normalization=("clip=0.65",) if on_calvin else ("quantiles",),
    )
    train = replace(
        train,
        precision="bf16",
        validate_every=train.checkpoint_every,
        augmentation="shift" if on_calvin else "crop_and_color",
    )
    if variant == "released":
        policy = replace(policy, query_init="zeros")
        train = replace(train, gripper_weight=0.01, clip_norm=0.0)
        if on_calvin:
            executes = (10,)
        else:
            policy = replace(policy, normalization=("quantiles", "clip=0.65"))
            executes = executes if source == "bridge" else (4, 2)
    return Trial(
        name=f"{source} {backbone} {weights}"
        + ("" if head == "mlp" else f" {head}")
        + (" released" if variant == "released" else ""),
        policy=policy,
        demonstrations=DemonstrationRecipe(source=_DATA_SETS[source], episodes=0, looks=(), image_size=224),
        train=train,
        evaluations=tuple(
            EvaluationRecipe(
                benchmark=PAPER_BENCHMARKS[source],
                look="",
                episodes_per_task=0,
                execute=execute,
                image_size={"calvin": 200, "libero": 256}.get(source, 224),
                renderer="lavapipe" if source == "bridge" else "egl",
                repeats=REPEATS[source] if head == "flow" else 1,
            )
            for execute in executes
        ),
    )
