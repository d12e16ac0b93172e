"""How many workers an evaluation gets: as many as asked for, or as fit, told before any of them starts."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from vlm4vla.benchmarks import machine
from vlm4vla.benchmarks.registry import BENCHMARKS
from vlm4vla.core.errors import RecipeError
from vlm4vla.core.recipes import EvaluationRecipe
from vlm4vla.studies.checks import AUTO, Resources

USABLE = 0.9
"""Of the memory that is free: the rest is for whatever else runs."""
UNKNOWN_GB = 1.0
"""What a worker of a benchmark that declares nothing is taken to need."""


def spread(
    recipes: Sequence[EvaluationRecipe], resources: Resources, *, policy: int = 0, told: bool = False
) -> Resources:
    """The resources with a number of workers that fits the largest of the recipes' simulators.

    `policy` is what the policy will take of the main memory, in bytes. `told`: print one line. Raises: RecipeError when
    more workers are asked for than fit; a single one is only warned of.
    """
    if not recipes or resources.workers == 0:
        return resources
    each, benchmark = max((memory_of(recipe), recipe.benchmark) for recipe in recipes)
    found = machine.memory()
    room = int(USABLE * found.free) - policy
    fitting = max(0, int(room // each))
    asked = resources.workers
    count = max(1, min(machine.cores(), fitting)) if asked == AUTO else asked
    needed = count * each + policy
    line = (
        f"{count} worker{'s' * (count > 1)} of {benchmark}: {count} x {each / 1e9:.2g} GB"
        f"{f' and {policy / 1e9:.2g} GB for the policy' if policy else ''}, {found.free / 1e9:.1f} GB of "
        f"{found.total / 1e9:.1f} are free{' (the limit of this container)' if found.limited else ''}, "
        f"{machine.cores()} cores"
    )
    if count > max(1, fitting):
        fits = f"`--workers {fitting}`" if fitting else "`--workers 1`, which may be killed"
        raise RecipeError(
            f"{line}: that is {needed / 1e9:.1f} GB at their peak. Use {fits}, or `--workers auto`"
        )
    if not fitting:
        print(f"{line}: it may be killed, close other programs", file=sys.stderr)
    elif told:
        print(line, file=sys.stderr)
    return dataclasses.replace(resources, workers=count)


def memory_of(recipe: EvaluationRecipe) -> int:
    """Bytes that a worker takes at its peak."""
    entry = BENCHMARKS.get(recipe.benchmark)
    return int(1e9 * (entry.memory if entry else UNKNOWN_GB))
