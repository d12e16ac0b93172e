"""Whether records are whole and as they were written: names of folders, lines of a log, episodes that there can be.

Everything here is told as a sentence, for the report to show; what cannot be true is left out of the rates. It finds
edits and mix-ups, not a forger who computes fingerprints and digests anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm4vla.benchmarks.records import REPEAT, misfits
from vlm4vla.benchmarks.registry import BENCHMARKS, outline
from vlm4vla.benchmarks.rollout import CHAIN, task_and_tier
from vlm4vla.core.errors import VLAError
from vlm4vla.core.recipes import EvaluationRecipe, fingerprint
from vlm4vla.core.types import EpisodeResult, EpisodeSpec

_NAMED = 9
"""Sentences about tasks, at most; more of them become one."""


def misnamed(path: Path, data: Mapping[str, Any], recipe: Any = None) -> Iterator[str]:
    """A recipe's folder has its fingerprint as a name: with the fields of the version that wrote it (`data`), or all
    that there are now (`recipe`; None: not readable)."""
    name, found = path.parent.name, fingerprint(data)
    if name not in (found, fingerprint(recipe)):
        yield (
            f"{path.name}: is not what its folder is named by (the folder is {name}, the recipe {found}): it was "
            "changed afterwards, the folder was renamed, or another version wrote it otherwise; restore it from a copy"
        )


def changed(
    name: str, entries: Sequence[Mapping[str, Any] | None], expected: Mapping[str, Any]
) -> Iterator[str]:
    """Lines of a log that are not as they were written, and those that say to be of another evaluation.

    `entries`: None for a damaged line. `expected`: fields of `Origin`; a line that has none is an older version's.
    """
    wrong = misfits(entries)
    if wrong:
        yield (
            f"{name}: {_lines(wrong)} not as written: changed afterwards, or following on a line that was changed or "
            "removed; restore the file from a copy"
        )
    foreign = [
        number
        for number, entry in enumerate(entries, start=1)
        if entry is not None
        and any(entry.get(key, value) not in (value, "") for key, value in expected.items())
    ]
    if foreign:
        entry = entries[foreign[0] - 1] or {}
        said = ", ".join(f"{key} {entry.get(key)}" for key in expected)
        yield f"{name}: {_lines(foreign)} of another evaluation ({said}), put here afterwards; restore the file"


def believable(
    recipe: EvaluationRecipe, results: Iterable[EpisodeResult], problems: list[str], *, listed: bool = True
) -> dict[str, EpisodeResult]:
    """By name, the result of every episode that the benchmark has and that it can have; only errors are played again.

    What else there is, and what is missing, is told in `problems`. `listed`: the recipe can be trusted to say which
    episodes there are.
    """
    specs, variant = None, BENCHMARKS[recipe.benchmark].variant if recipe.benchmark in BENCHMARKS else ""
    try:
        specs = outline(recipe) if listed else None
    except VLAError as error:
        problems.append(f"evaluation.json: {error}")
    known = {spec.id.replace(variant, ""): spec for spec in specs or ()}
    kept: dict[str, EpisodeResult] = {}
    doubts: dict[str, list[str]] = {}
    for result in results:
        name, again, repeat = result.episode.partition(REPEAT)
        spec = known.get(name.replace(variant, ""))
        if specs is not None and spec is None:
            doubt = "not of this benchmark"
        elif again and not (repeat.isdecimal() and 0 < int(repeat) < recipe.repeats):
            doubt = f"played more often than {recipe.repeats} times"
        elif not _possible(result, spec):
            doubt = "impossible, in goals or steps"
        elif result.episode in kept and kept[result.episode].error is None:
            # The same play twice, in files that were put together or by two that played side by side.
            if replace(result, seconds=0.0) == replace(kept[result.episode], seconds=0.0):
                continue
            doubt = "played again though nothing broke"
        else:
            kept[result.episode] = result
            continue
        doubts.setdefault(doubt, []).append(result.episode)
    for doubt, episodes in doubts.items():
        count = f"{len(episodes)} results are" if len(episodes) > 1 else "1 result is"
        problems.append(f"{count} {doubt}, and left out: {', '.join(map(repr, episodes[:3]))}")
    problems.extend(_missing(recipe, specs, kept, variant))
    return kept


def _possible(result: EpisodeResult, spec: EpisodeSpec | None) -> bool:
    if spec is None:
        return 0 <= result.goals_completed <= result.goals and result.steps >= 0
    goals = len(spec.goals)
    if result.goals != goals or not 0 <= result.goals_completed <= goals:
        return False
    return 0 <= result.steps <= spec.max_steps_per_goal * min(goals, result.goals_completed + 1)


def _missing(
    recipe: EvaluationRecipe,
    specs: Sequence[EpisodeSpec] | None,
    kept: Mapping[str, EpisodeResult],
    variant: str,
) -> Iterator[str]:
    if not kept:
        yield "no episode was played"
        return
    if specs is None:  # somebody else's benchmark: as many as the recipe says, of what was played
        chains = any(result.goals > 1 for result in kept.values())
        played = Counter(CHAIN if chains else result.task for result in kept.values())
        wanted = dict.fromkeys(played, recipe.episodes_per_task * recipe.repeats)
    else:
        tasks = {spec.id.replace(variant, ""): task_and_tier(spec)[0] for spec in specs}
        played = Counter(tasks[name.partition(REPEAT)[0].replace(variant, "")] for name in kept)
        wanted = {task: count * recipe.repeats for task, count in Counter(tasks.values()).items()}
    short = {task: count for task, count in wanted.items() if played[task] < count}
    if len(short) > _NAMED:
        yield f"{len(kept)} of {sum(wanted.values())} episodes were played; {len(short)} tasks lack some"
        return
    for task, count in sorted(short.items()):
        what = "chains" if task == CHAIN else task
        yield f"{played[task]} of {count} episodes of {what} were played"


def _lines(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    if len(numbers) == 1:
        return f"line {shown} is"
    return f"lines {shown}{f' and {len(numbers) - 5} more' if len(numbers) > 5 else ''} are"
