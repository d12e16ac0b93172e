"""Checkpoints times ways to execute: one table, and beside the best of it what choosing it is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm4vla.benchmarks.records import REPEAT
from vlm4vla.core.recipes import fingerprint
from vlm4vla.core.types import EpisodeResult
from vlm4vla.demonstrations.scripted import labelled
from vlm4vla.reports.comparisons import Selection, best_of
from vlm4vla.reports.estimates import Estimate
from vlm4vla.reports.records import EvaluationRecord, TrialRecord
from vlm4vla.reports.results import Row, evaluation_rows
from vlm4vla.reports.tables import DASH, Table, cell, mean, percent
from vlm4vla.studies.tries import Try

Results = Sequence[EpisodeResult]


def row_of(each: Try, results: Results) -> Row:
    """A try's rate or chain length, with its interval."""
    record = TrialRecord(fingerprint="", trial=None, provenance={}, seconds={})
    evaluation = EvaluationRecord(
        fingerprint=fingerprint(each.recipe), recipe=each.recipe, episodes=tuple(results)
    )
    return evaluation_rows(record, evaluation)[0]


def sweep_table(tries: Sequence[Try], results: Sequence[Results], *, note: str = "") -> Table:
    """A row for each checkpoint, a column for each number of actions executed. `note`: what is told of the policy."""
    modes = sorted({each.recipe.execute for each in tries})
    made = {(t.step, t.recipe.execute): row_of(t, r) for t, r in zip(tries, results, strict=True)}
    rows = []
    for step in dict.fromkeys(each.step for each in tries):
        cells = [_cell(made.get((step, mode))) for mode in modes]
        rows.append((DASH if step is None else f"{step:,}", *cells))
    recipe = tries[0].recipe
    title = f"{recipe.benchmark}, look {recipe.look}" if recipe.look else recipe.benchmark
    title = labelled(f"{title}: by step and actions of each chunk executed", note)
    return Table(title, ("step", *map(str, modes)), tuple(rows))


def selection(results: Sequence[Results]) -> Selection | None:
    """The best try, as it scores and as choosing it can be expected to score, on the episodes that all scored.

    Chains score by goals in a row. None for one try, or fewer than two episodes that every try scored.
    """
    scores = [_scores(each) for each in results]
    shared = sorted(set.intersection(*(set(each) for each in scores))) if len(scores) > 1 else []
    if len(shared) < 2:
        return None
    return best_of(np.array([[each[episode] for episode in shared] for each in scores]))


def told(tries: Sequence[Try], results: Sequence[Results], found: Selection, *, note: str = "") -> str:
    """The selection in a sentence."""
    chains = any(result.goals > 1 for each in results for result in each)
    show = mean if chains else percent
    best, unit = (f"{found.reported:.2f}", "goals") if chains else (f"{found.reported:.1%}", "points")
    bias = found.bias if chains else 100 * found.bias
    name = labelled(tries[found.best].name, note)
    return (
        f"Best of {found.tries}: {name}, {best}. Chosen on one half of the episodes and scored on "
        f"the other: {show(found.honest)}; choosing adds {bias:.1f} {unit}."
    )


def sweep_json(
    tries: Sequence[Try], results: Sequence[Results], found: Selection | None, *, note: str = ""
) -> dict[str, Any]:
    """Every number of the table and of the selection."""
    rows = [row_of(t, r) for t, r in zip(tries, results, strict=True)]
    entries = [
        {
            "step": each.step,
            "execute": each.recipe.execute,
            "successes": row.successes,
            "episodes": row.episodes,
            "errors": row.errors,
            "success": _estimate(row.estimate),
            "chain_length": _estimate(row.chain),
            "evaluation": str(each.folder / "evaluations" / fingerprint(each.recipe)),
        }
        for each, row in zip(tries, rows, strict=True)
    ]
    if found is None:
        return {"note": note, "tries": entries, "selection": None}
    best = {
        "best": found.best,
        "reported": found.reported,
        "honest": _estimate(found.honest),
        "bias": found.bias,
    }
    return {"note": note, "tries": entries, "selection": best}


def _scores(results: Results) -> Mapping[str, float]:
    """By episode, the mean over its plays; those that broke are absent."""
    plays: dict[str, list[float]] = {}
    for result in results:
        if result.error is None:
            score = float(result.goals_completed if result.goals > 1 else result.success)
            plays.setdefault(result.episode.partition(REPEAT)[0], []).append(score)
    return {episode: float(np.mean(scores)) for episode, scores in plays.items()}


def _cell(row: Row | None) -> str:
    if row is None or row.chain is None:
        return cell(row)
    broke = f" ({row.errors} broke)" if row.errors else ""
    return f"{mean(row.chain)} n = {row.episodes}{broke}"


def _estimate(estimate: Estimate | None) -> list[float] | None:
    return None if estimate is None else [estimate.value, estimate.low, estimate.high]
