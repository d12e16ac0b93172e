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
    told = (
        "write SECTION.FIELD=VALUE, where SECTION is policy, demonstrations, train or evaluation (then for every "
        "evaluation)"
    )
    changes = _settings(options.set, ("policy", "demonstrations", "train", "evaluation"), told)
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
    names = ("execute", "seed", "repeats", "renderer")
    fields = {name: name for name in names} | {"episodes": "episodes_per_task"}
    for name, field in fields.items():
        if getattr(options, name, None) is not None:
            changes[field] = getattr(options, name)
    told = "write FIELD=VALUE with a field of the evaluation, as renderer=tiny"
    settings = _settings(options.set, ("evaluation",), told, default="evaluation")
    return override(
        dataclasses.replace(recipe, **changes), settings.get("evaluation", {}), where="evaluation"
    )


def _settings(
    texts: Sequence[str], sections: Sequence[str], told: str, *, default: str = ""
) -> dict[str, dict[str, str]]:
    """What `--set` asks for, by section. Raises: RecipeError for another form."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        section, _, name = path.rpartition(".")
        section = section or default
        if not equals or section not in sections:
            raise RecipeError(f"--set {text!r}: {told}")
        found.setdefault(section, {})[name] = value
    return found


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Options that were given."""
    return {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}
