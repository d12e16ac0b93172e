"""From gradients to steps: the optimizer, its learning rate, and when to give up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from vlm4vla.core.recipes import TrainRecipe, rate_factors

REMEMBERED = 100
"""Losses that decide what is normal."""
DIVERGED = 20.0
"""A loss this many times the usual one, and above the first, means that the training has diverged."""


def make_optimizer(learners: Mapping[str, Sequence[nn.Parameter]], recipe: TrainRecipe) -> torch.optim.AdamW:
    """AdamW with torch's defaults; frozen parameters stay outside.

    One group, as the released code has it, or one for every factor of `part_rates`, which `set_rate` multiplies with.
    """
    factors = rate_factors(recipe)
    groups: dict[float, list[nn.Parameter]] = {}
    for part, parameters in learners.items():
        groups.setdefault(factors[part], []).extend(p for p in parameters if p.requires_grad)
    return torch.optim.AdamW(
        [{"params": parameters, "factor": factor} for factor, parameters in groups.items() if parameters],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Before a step: every group's learning rate is `rate` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def learning_rate(recipe: TrainRecipe, step: int) -> float:
    """Of a step, counted from 0: linear warm-up over `warmup_steps`, then constant or cosine to 0."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    if recipe.schedule == "constant":
        return recipe.learning_rate
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def what_is_wrong(loss: float, gradient_norm: float, recent: Sequence[float], first: float) -> str | None:
    """Why training must stop: a number that is none, or a loss far above the `recent` and the `first` ones."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(gradient_norm):
        return f"the norm of the gradient is {gradient_norm}"
    if len(recent) >= REMEMBERED // 5 and loss > first:
        usual = statistics.median(recent)
        if loss > DIVERGED * usual:
            return (
                f"the loss is {loss:.4g}, {loss / usual:.0f} times the median of the last {len(recent)} steps"
            )
    return None
