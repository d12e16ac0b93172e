"""Benchmarks by name, and how an evaluation recipe becomes one. Nothing is imported before it is asked for."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vlm4vla.core.errors import RecipeError, unknown_name
from vlm4vla.core.interfaces import Benchmark, Outlined
from vlm4vla.core.recipes import EvaluationRecipe
from vlm4vla.core.types import EpisodeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkEntry:
    """How a name becomes a benchmark."""

    factory: str
    """`module:callable`."""
    fields: Mapping[str, str]
    """Argument of the factory -> field of EvaluationRecipe that fills it."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the name itself decides; a recipe that has such a field must agree."""
    simulator: str | None = None
    """Its name among `simulators.SIMULATORS`, where it is another's."""
    shows: tuple[str, ...] = ()
    """What it can show beside the third-person picture, in the factory's argument `shows`."""
    memory: float = 0.3
    """GB that a worker is planned with, its measured peak; one that holds more is replaced between episodes."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a recipe that differ from the recipe's own defaults."""
    variant: str = ""
    """A part of its episodes' ids that says how it is installed, not which episodes there are."""


_TABLETOP = "vlm4vla.benchmarks.tabletop.benchmark:Tabletop"
_TABLETOP_FIELDS = {name: name for name in ("tasks", "episodes_per_task", "seed", "image_size", "renderer")}
_CHAIN = "vlm4vla.benchmarks.tabletop.benchmark:TabletopChain"
_CHAIN_FIELDS = {
    "episodes": "episodes_per_task",
    **{name: name for name in ("seed", "image_size", "renderer")},
}
_LOOK = {"look": "look"}

BENCHMARKS: Mapping[str, BenchmarkEntry] = {
    "tabletop": BenchmarkEntry(factory=_TABLETOP, fields=_TABLETOP_FIELDS | _LOOK),
    "tabletop-a": BenchmarkEntry(factory=_TABLETOP, fields=_TABLETOP_FIELDS, arguments={"look": "A"}),
    "tabletop-d": BenchmarkEntry(factory=_TABLETOP, fields=_TABLETOP_FIELDS, arguments={"look": "D"}),
    "tabletop-chain": BenchmarkEntry(factory=_CHAIN, fields=_CHAIN_FIELDS | _LOOK),
    "tabletop-chain-a": BenchmarkEntry(factory=_CHAIN, fields=_CHAIN_FIELDS, arguments={"look": "A"}),
    "tabletop-chain-d": BenchmarkEntry(factory=_CHAIN, fields=_CHAIN_FIELDS, arguments={"look": "D"}),
    **{
        f"libero-{suite}": BenchmarkEntry(
            factory="vlm4vla.benchmarks.libero.benchmark:Libero",
            fields={name: name for name in ("tasks", "episodes_per_task", "image_size", "renderer")},
            arguments={"suite": suite},
            simulator="libero",
            shows=("wrist_image", "state"),
            memory=2.4,
            defaults={"look": "", "renderer": "egl", "image_size": 256, "episodes_per_task": 0, "tasks": ()},
        )
        for suite in ("long", "object", "spatial", "goal", "90")
    },
    "calvin-abc-d": BenchmarkEntry(
        factory="vlm4vla.benchmarks.calvin.benchmark:Calvin",
        fields={"episodes": "episodes_per_task", "renderer": "renderer"},
        simulator="calvin",
        shows=("wrist_image", "state"),
        memory=1.0,
        defaults={"look": "", "renderer": "egl", "image_size": 200, "episodes_per_task": 0, "tasks": ()},
    ),
    "calvin-d-tasks": BenchmarkEntry(
        factory="vlm4vla.benchmarks.calvin.benchmark:single_tasks",
        fields={"tasks": "tasks", "episodes": "episodes_per_task", "renderer": "renderer"},
        simulator="calvin",
        shows=("wrist_image", "state"),
        memory=1.0,
        defaults={"look": "", "renderer": "egl", "image_size": 200, "episodes_per_task": 0, "tasks": ()},
    ),
    "simpler-bridge": BenchmarkEntry(
        factory="vlm4vla.benchmarks.simpler.benchmark:Simpler",
        fields={name: name for name in ("tasks", "episodes_per_task", "image_size")},
        arguments={"renderer": "lavapipe"},
        simulator="simpler",
        memory=1.3,
        defaults={"look": "", "renderer": "lavapipe", "image_size": 224, "episodes_per_task": 0, "tasks": ()},
        variant="-substitutes",
    ),
}


def make_benchmark(recipe: EvaluationRecipe) -> Benchmark:
    """The benchmark of a recipe. A name `module:callable` is called with the recipe itself.

    Raises: RecipeError for an unknown name, for a recipe whose fields contradict the name, and for tasks chosen
    where the benchmark has no choice of tasks.
    """
    if ":" in recipe.benchmark:
        made: Benchmark = load(recipe.benchmark)(recipe)
        return made
    if recipe.benchmark not in BENCHMARKS:
        raise unknown_name("benchmark", recipe.benchmark, BENCHMARKS)
    entry = BENCHMARKS[recipe.benchmark]
    if recipe.tasks and "tasks" not in entry.fields.values():
        raise RecipeError(
            f"benchmark {recipe.benchmark!r} has no choice of tasks, the recipe asks for {', '.join(recipe.tasks)}; "
            "leave tasks empty"
        )
    for name in recipe.shows:
        if name not in entry.shows:
            raise RecipeError(
                f"benchmark {recipe.benchmark!r} shows no {name.replace('_', ' ')}, which the policy asks for"
            )
    for argument, value in entry.arguments.items():
        if getattr(recipe, argument, value) != value:
            raise RecipeError(
                f"benchmark {recipe.benchmark!r} has {argument} {value!r}, but the recipe's field {argument} says "
                f"{getattr(recipe, argument)!r}; set it to {value!r}"
            )
    chosen = {argument: getattr(recipe, name) for argument, name in entry.fields.items()}
    if recipe.shows:
        chosen["shows"] = recipe.shows
    benchmark: Benchmark = load(entry.factory)(**entry.arguments, **chosen)
    return benchmark


def outline(recipe: EvaluationRecipe) -> tuple[EpisodeSpec, ...] | None:
    """Which episodes a recipe's benchmark has, without a simulator; their instructions and setups may be missing.

    None for a benchmark of somebody else: nothing is imported because a record names it. Raises: as `make_benchmark`.
    """
    if ":" in recipe.benchmark:
        return None
    # What is shown and how it is played changes no episode.
    return _outline(replace(recipe, execute=1, repeats=1, shows=()))


@functools.lru_cache(maxsize=16)
def _outline(recipe: EvaluationRecipe) -> tuple[EpisodeSpec, ...]:
    benchmark = make_benchmark(recipe)
    return tuple(benchmark.outline() if isinstance(benchmark, Outlined) else benchmark.episodes())


def load(address: str) -> Any:
    """What `module:name` names. Raises RecipeError when there is no such module or name."""
    module, colon, name = address.partition(":")
    if not (module and colon and name):
        raise RecipeError(f"{address!r} is no address of the form module:name")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        # A module that exists but misses one of its own dependencies is another problem than a wrong address.
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise
        raise RecipeError(
            f"{address!r}: there is no module {error.name!r}; is it on the Python path?"
        ) from error
    except AttributeError as error:
        raise RecipeError(
            f"{address!r}: {error}; it must be defined at the top level of the module"
        ) from error
