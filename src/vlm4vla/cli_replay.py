"""`vlm4vla replay`: recorded episodes played again without the policy, and compared with the record to the bit."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vlm4vla.cli_common import workers
from vlm4vla.core.errors import RecipeError, RunError, unknown_name

if TYPE_CHECKING:
    from vlm4vla.benchmarks.replay import Replay

_PLACES = ("", "evaluations/*/", "checkpoints/*/evaluations/*/")
"""Where the evaluations of a folder are, for a trial and what lies in it."""


def add_command(add: Callable[..., argparse.ArgumentParser]) -> None:
    """`add` makes a command as the rest of the command line does."""
    made = add(
        "replay", replay, "Play recorded episodes again, without the policy: is everything as recorded?"
    )
    made.add_argument(
        "folder", type=Path, metavar="FOLDER", help="of an evaluation, a trial, a checkpoint, or --out"
    )
    made.add_argument(
        "--episode", action="append", default=[], metavar="ID", help="default: all; may be repeated"
    )
    made.add_argument("--video", type=Path, metavar="FILE", help="write what one episode showed (mp4)")
    made.add_argument(
        "--workers",
        type=workers,
        default=0,
        metavar="N",
        help="processes, or auto; default 0: this one, and one beside it for simulators",
    )


def replay(options: argparse.Namespace) -> None:
    """Raises: RunError when anything is not as recorded."""
    chosen = _chosen(options.folder.resolve(), options.episode)
    if options.video is not None and (len(chosen), len(options.episode)) != (1, 1):
        raise RecipeError(
            f"--video shows one episode of one evaluation: name it with --episode; recorded in: "
            f"{', '.join(str(folder) for folder in chosen)}"
        )
    made = []
    for folder, names in chosen.items():
        made.append((folder, *_replayed(folder, names, options)))
        if not options.json:
            _print(*made[-1])
    if options.json:
        entries = [
            {"folder": str(folder), "evaluation": title, "episodes": [dataclasses.asdict(r) for r in found]}
            for folder, title, found in made
        ]
        print(json.dumps(entries, indent=1))
    everything = [each for _, _, found in made for each in found]
    other = [each for each in everything if not each.identical]
    if other:
        raise RunError(
            f"{len(other)} of {len(everything)} episodes are not as recorded; {other[0].episode}: {other[0].difference}"
        )


def _chosen(folder: Path, episodes: list[str]) -> dict[Path, list[str]]:
    """Folders of evaluations, with the episodes to replay there (none named: all).

    Raises: RunError when there are none, RecipeError for an episode that none of them recorded.
    """
    from vlm4vla.benchmarks.records import logs, read_log

    patterns = [f"{trial}{place}evaluation.json" for trial in ("", "trials/*/") for place in _PLACES]
    found = [path.parent for pattern in patterns for path in sorted(folder.glob(pattern))]
    if not found:
        raise RunError(
            f"{folder}: holds no evaluation (evaluation.json); name the folder of an evaluation, a trial or a "
            "checkpoint, or what a command wrote with --out"
        )
    recorded = {place: {r.episode for log in logs(place) for r in read_log(log)[0]} for place in found}
    everywhere = set().union(*recorded.values())
    for name in episodes:
        if name not in everywhere:
            raise unknown_name("recorded episode", name, everywhere)
    chosen = {place: [name for name in episodes if name in recorded[place]] for place in found}
    return {place: names for place, names in chosen.items() if names or not episodes}


def _replayed(folder: Path, names: list[str], options: argparse.Namespace) -> tuple[str, list[Replay]]:
    from vlm4vla.benchmarks.registry import BENCHMARKS, make_benchmark
    from vlm4vla.benchmarks.replay import replay
    from vlm4vla.core.recipes import EvaluationRecipe, fingerprint, from_json
    from vlm4vla.studies.checks import AUTO, Resources
    from vlm4vla.studies.display import Display
    from vlm4vla.studies.runs import read_json
    from vlm4vla.studies.spread import memory_of, spread

    path = folder / "evaluation.json"
    data = read_json(path)
    if folder.parent.name == "evaluations" and fingerprint(data) != folder.name:
        raise RunError(f"{path}: was changed by hand, so it is not what was played; restore it from a copy")
    recipe = from_json(EvaluationRecipe, data, where=str(path))
    title = f"{recipe.benchmark}, {recipe.execute} of each chunk executed"
    asked = Resources(workers=options.workers)
    count = spread([recipe], asked, told=options.workers == AUTO and not options.quiet).workers
    with Display(shown=not options.quiet) as display:
        found = replay(
            make_benchmark(recipe),
            folder,
            episodes=names,
            workers=count,
            environments=4 * max(1, count),
            memory=memory_of(recipe) if recipe.benchmark in BENCHMARKS else 0,
            video=options.video,
            say=lambda played, total: display.show([f"{title}: {played} of {total} replayed"]),
        )
    return title, found


def _print(folder: Path, title: str, found: list[Replay]) -> None:
    """How many are identical, and a row for each that is not."""
    from vlm4vla.reports.tables import Table

    good = sum(each.identical for each in found)
    print(f"{title}: {good} of {len(found)} episodes as recorded, to the bit ({folder})")
    rows = tuple(
        (r.episode, str(r.steps), f"{r.goals_completed}/{r.goals}", r.difference)
        for r in found
        if r.difference
    )
    if rows:
        print(Table("Not as recorded", ("episode", "steps", "goals", "what differs"), rows).text(width=200))
    changed = dict.fromkeys(change for each in found for change in each.software)
    if changed:
        print(f"Played with other versions: {'; '.join(changed)}")
