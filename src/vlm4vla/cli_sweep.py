"""`vlm4vla evaluate` of several checkpoints and ways to execute: one plan, one progress, one table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm4vla.core.recipes import EvaluationRecipe
    from vlm4vla.studies.checks import Resources
    from vlm4vla.studies.tries import Try


def sweep(
    folder: Path, ways: Sequence[EvaluationRecipe], resources: Resources, options: argparse.Namespace
) -> None:
    """Play what is missing, print the table; with `--plan` only what is missing."""
    from vlm4vla.reports import sweep as tables
    from vlm4vla.reports.page import write_report
    from vlm4vla.studies.sweep import sweep as play
    from vlm4vla.studies.tries import note_of, plan, recorded

    tries = plan(folder, ways, options.checkpoints or "last")
    there = recorded(tries, resources.shard)
    played, total = sum(len(done) for _, done in there), sum(len(names) for names, _ in there)
    if options.plan:
        _print_plan(tries, [(len(done), len(names)) for names, done in there], as_json=options.json)
        return
    checkpoints = len({each.checkpoint for each in tries})
    if not options.quiet:
        print(
            f"{checkpoints} checkpoint{'s' * (checkpoints > 1)} x {len(ways)} way{'s' * (len(ways) > 1)} to execute: "
            f"{total:,} episodes, {played:,} of them played before",
            file=sys.stderr,
        )
    results, note = play(folder, tries, resources), note_of(folder)
    found = tables.selection(results)
    if options.json:
        print(json.dumps(tables.sweep_json(tries, results, found, note=note), indent=1))
    else:
        print(tables.sweep_table(tries, results, note=note).text(width=140))
        if found is not None:
            print(f"\n{tables.told(tries, results, found, note=note)}")
    if (folder / "trial.json").exists() and folder.parent.name == "trials":
        out = folder.parents[1]
        page = write_report(out, title=out.name)
        if not options.json:
            print(f"\nReport:  {page}")


def _print_plan(tries: Sequence[Try], counts: Sequence[tuple[int, int]], *, as_json: bool) -> None:
    from vlm4vla.reports.tables import Table

    entries = [
        {"step": t.step, "execute": t.recipe.execute, "played": played, "episodes": total}
        for t, (played, total) in zip(tries, counts, strict=True)
    ]
    if as_json:
        print(json.dumps(entries, indent=1))
        return
    rows = tuple(
        (t.name, f"{played:,}", f"{total:,}") for t, (played, total) in zip(tries, counts, strict=True)
    )
    print(Table("Nothing was started", ("try", "played", "episodes"), rows).text())
