"""From what was typed on a command line to recipes."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from vlm4vla.benchmarks.registry import BENCHMARKS, load
from vlm4vla.core.errors import RecipeError, unknown_name
from vlm4vla.core.recipes import EvaluationRecipe, Trial, override
from vlm4vla.studies.presets import PRESETS


def chosen_trial(options: argparse.Namespace) -> Trial:
    """A preset's trial with the changes asked for. Raises: RecipeError for whatever is not there."""
    if options.preset not in PRESETS and ":" not in options.preset:
        raise unknown_name("preset", options.preset, PRESETS)
    make = PRESETS[options.preset] if options.preset in PRESETS else load(options.preset)
    names = ("backbone", "weights", "head", "demonstrations", "steps", "episodes", "seed", "variant")
    chosen = given(options, *names)
    try:
        trial: Trial = make(**chosen)
    except TypeError as error:
        raise RecipeError(f"preset {options.preset!r}: {error}") from error
    if options.data:
        found = dataclasses.replace(trial.demonstrations, path=tuple(options.data))
        trial = dataclasses.replace(trial, demonstrations=found)
    changes: dict[str, dict[str, str]] = {}
    for setting in options.set:
        path, equals, value = setting.partition("=")
        section, dot, name = path.partition(".")
        if not (equals and dot) or section not in ("policy", "demonstrations", "train", "evaluation"):
            raise RecipeError(
                f"--set {setting!r}: write SECTION.FIELD=VALUE, where SECTION is policy, demonstrations, train or "
                "evaluation (then for every evaluation)"
            )
        changes.setdefault(section, {})[name] = value
    for section in ("policy", "demonstrations", "train"):
        if section in changes:
            changed = override(getattr(trial, section), changes[section], where=section)
            trial = dataclasses.replace(trial, **{section: changed})
    if "evaluation" in changes:
        every = tuple(override(e, changes["evaluation"], where="evaluation") for e in trial.evaluations)
        trial = dataclasses.replace(trial, evaluations=every)
    return trial


def chosen_evaluation(options: argparse.Namespace, base: Sequence[EvaluationRecipe]) -> EvaluationRecipe:
    """The first of `base` (look D, one action at a time when it is empty) with the changes asked for."""
    recipe = base[0] if base else EvaluationRecipe(execute=1)
    look = options.look or recipe.look
    benchmark = options.benchmark or (recipe.benchmark if look == recipe.look else "tabletop")
    changes: dict[str, Any] = {"benchmark": benchmark, "look": look}
    if benchmark[-2:] in ("-a", "-d") and not options.look:
        changes["look"] = benchmark[-1].upper()
    if benchmark != recipe.benchmark and benchmark in BENCHMARKS:
        changes |= BENCHMARKS[benchmark].defaults
    if "chain" in benchmark:
        changes["tasks"] = ()
    if options.tasks is not None:
        changes["tasks"] = tuple(task for task in options.tasks.split(",") if task)
    fields = {name: name for name in ("execute", "seed", "repeats")} | {"episodes": "episodes_per_task"}
    for name, field in fields.items():
        if getattr(options, name, None) is not None:
            changes[field] = getattr(options, name)
    return dataclasses.replace(recipe, **changes)


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Options that were given."""
    return {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}
