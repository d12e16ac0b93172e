"""A study's cells: what its trials scored, beside what was published, with everything that a conclusion needs.

A cell's score is that of the first of a trial's evaluations, which was chosen before anything was seen; the best of
several ways to evaluate stands beside it as a `Selection`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlm4vla.benchmarks.records import REPEAT
from vlm4vla.core.recipes import Trial, fingerprint, to_json
from vlm4vla.core.types import EpisodeResult
from vlm4vla.demonstrations.scripted import labelled
from vlm4vla.reports import estimates
from vlm4vla.reports.comparisons import (
    Selection,
    best_of,
    compare_outcomes,
    episodes_to_separate,
    holm,
    letters,
    paired_difference,
)
from vlm4vla.reports.estimates import CONFIDENCE, Comparison, Estimate
from vlm4vla.reports.records import EvaluationRecord, TrialRecord, read_trial
from vlm4vla.studies.study import Column, Study, StudyRow

Scores = Mapping[str, float]
"""By episode: 0 or 1, or goals in a row. Episodes that broke are absent."""


NOT_STARTED = "has not been started"
"""The problem of a trial without a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One number of a table."""

    row: str
    column: Column
    estimate: Estimate | None
    """Percent or goals in a row; None when nothing was scored. Over several seeds: the mean of their means, with a t
    interval over seeds."""
    seeds: Mapping[int, Scores]
    """What the way of evaluating that was chosen in advance gave, by seed."""
    errors: int
    by_step: Mapping[int, float]
    """What each checkpoint scored that was evaluated, in the estimate's unit; of one seed."""
    tries: Mapping[str, int]
    """By trial, as its row calls it: checkpoints times ways to execute chunks that were scored."""
    selection: Selection | None
    """Of several checkpoints and ways to execute chunks, in the estimate's unit; None for one try or several seeds."""
    published: float | None
    """As printed."""
    problems: tuple[str, ...]

    @property
    def episodes(self) -> int:
        """Scored ones, of all seeds."""
        return sum(map(len, self.seeds.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPair:
    """Two rows of one column, or one row in two."""

    column: Column
    """The first's."""
    against: Column
    """The second's: the same, or that of another trial of the row on the same episodes."""
    first: str
    second: str
    comparison: Comparison
    """First minus second; success as shares of 1."""
    adjusted_p: float
    """Holm's, over the pairs of this column, or of this row's cells."""
    needed: int | None
    """Episodes each that would separate the two rates with a power of 80 %; None for chains or equal rates."""

    @property
    def differs(self) -> bool:
        """At a family-wise error of 5 %."""
        return self.adjusted_p < 1 - CONFIDENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfair:
    """A field in which trials differ that fill the same column."""

    trial: str
    name: str
    values: Mapping[str, Any]
    """By row."""
    intended: bool
    """The table is about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyScores:
    """A study as far as it has been run."""

    study: Study
    cells: Mapping[tuple[str, str], Cell]
    """By row and column."""
    records: tuple[TrialRecord, ...]
    """Every trial of it that has a folder."""
    missing: tuple[str, ...]
    """Names of the trials that have none."""
    pairs: tuple[RowPair, ...] = ()
    """Of rows, column by column."""
    within: tuple[RowPair, ...] = ()
    """Of cells of a row, row by row: what its trials were given differs from column to column (Tables 4, 5, 7)."""
    letters: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """By row and column: rows of a column that share a letter are not shown to differ."""
    differences: tuple[Unfair, ...] = ()

    @property
    def problems(self) -> list[tuple[str, str]]:
        """What is incomplete, as (row, sentence)."""
        found = [(name, NOT_STARTED) for name in self.missing]
        for cell in self.cells.values():
            found += [(cell.row, problem) for problem in cell.problems]
        return list(dict.fromkeys(found))


def score(study: Study, runs: Path) -> StudyScores:
    """Read what the trials of a study left under `runs`. Damaged records are told in `problems`, never raised.

    Trials on scripted demonstrations get rows of their own, which say so: theirs are no scores to compare with
    published ones.
    """
    folders = {trial: runs / "trials" / fingerprint(trial) for trial in study.trials}
    read = {trial: read_trial(folder) for trial, folder in folders.items() if folder.is_dir()}
    study = _told_apart(study, read)
    cells = {}
    for row in study.rows:
        for column in study.columns:
            cell = _cell(row, column, read, study.checkpoints)
            if cell is not None:
                cells[row.name, column.name] = cell
    pairs: list[RowPair] = []
    marks: dict[tuple[str, str], str] = {}
    for column in study.columns:
        of_column = [c for c in cells.values() if c.column == column and c.episodes]
        found = _pairs(list(itertools.combinations(of_column, 2)))
        pairs += found
        if len(of_column) > 1:
            shown = letters([c.row for c in of_column], [(p.first, p.second) for p in found if p.differs])
            marks |= {(row, column.name): text for row, text in shown.items()}
    within: list[RowPair] = []
    for row in study.rows:
        of_row = [c for c in cells.values() if c.row == row.name and c.episodes]
        within += _pairs([two for two in itertools.combinations(of_row, 2) if _comparable(row, *two)])
    return StudyScores(
        study=study,
        cells=cells,
        within=tuple(within),
        records=tuple(read.values()),
        missing=tuple(trial.name for trial in study.trials if trial not in read),
        pairs=tuple(pairs),
        letters=marks,
        differences=tuple(_differences(study, read, cells)),
    )


def _told_apart(study: Study, read: Mapping[Trial, TrialRecord]) -> Study:
    rows = []
    for row in study.rows:
        apart = {name: trial for name, trial in row.trials.items() if trial in read and read[trial].note}
        others = {name: trial for name, trial in row.trials.items() if name not in apart}
        if others or row.published or not apart:
            rows.append(replace(row, trials=others))
        if apart:
            told = read[next(iter(apart.values()))].note
            rows.append(replace(row, name=labelled(row.name, told), trials=apart, published={}))
    return replace(study, rows=tuple(rows))


def unit(column: Column) -> float:
    """What a score of 1 is in the column's own unit: 100 for percent."""
    return 1.0 if column.share or column.measure == "chain" else 100.0


def _cell(
    row: StudyRow, column: Column, read: Mapping[Trial, TrialRecord], checkpoints: Sequence[int]
) -> Cell | None:
    """None where the row has neither a trial for this column nor a published number."""
    trials = {name: t for name, t in row.trials.items() if column.trial in ("", name)}
    published = row.published.get(column.name)
    if not trials and published is None:
        return None
    seeds: dict[int, Scores] = {}
    tries: list[Scores] = []
    counts: dict[str, int] = {}
    problems: list[str] = []
    by_step: dict[int, float] = {}
    errors = 0
    for name, trial in trials.items():
        record = read.get(trial)
        if record is None:
            continue
        problems += record.problems
        mine = [e for e in record.evaluations if _is_for(column, e)]
        for evaluation in mine:
            problems += evaluation.problems_and_errors
        if not mine:
            continue
        scored = [_scores(column, evaluation) for evaluation in mine]
        errors += sum(e.error is not None for e in mine[0].episodes)
        if scored[0]:
            seeds[trial.train.seed] = scored[0]
        before = len(tries)
        first = mine[0].recipe
        tries += [
            scores
            for e, scores in zip(mine, scored, strict=True)
            if scores and (e.recipe.benchmark, e.recipe.look) == (first.benchmark, first.look)
        ]
        for step, evaluation in record.earlier:
            if _is_for(column, evaluation) and evaluation.recipe.benchmark == mine[0].recipe.benchmark:
                scores = _scores(column, evaluation)
                tries += [scores] if scores else []
                if scores and evaluation.recipe.execute == mine[0].recipe.execute:
                    by_step[step] = unit(column) * float(np.mean(list(scores.values())))
        for step in (s for s in checkpoints if s < trial.train.steps):
            found = [e for at, e in record.earlier if at == step and e.recipe in trial.evaluations]
            problems += [
                f"step {step:,}: {p}" for e in found for p in e.problems_and_errors if _is_for(column, e)
            ]
            if len(found) < len(trial.evaluations):
                problems.append(f"the checkpoint of step {step:,} has not been evaluated")
        if len(tries) > before:
            counts[name] = len(tries) - before
        if scored[0] and by_step:
            by_step.setdefault(trial.train.steps, unit(column) * float(np.mean(list(scored[0].values()))))
    return Cell(
        row=row.name,
        column=column,
        estimate=_estimate(column, seeds, trials),
        seeds=seeds,
        errors=errors,
        by_step=by_step if len(trials) == 1 else {},
        tries=counts,
        selection=_selection(column, tries) if len(seeds) == 1 else None,
        published=published,
        problems=tuple(dict.fromkeys(problems)),
    )


def _is_for(column: Column, evaluation: EvaluationRecord) -> bool:
    return column.look in ("", evaluation.recipe.look)


def _scores(column: Column, evaluation: EvaluationRecord) -> Scores:
    return {
        e.episode: _score(column, e)
        for e in evaluation.episodes
        if e.error is None and (not column.task or column.task in e.task)
    }


def _score(column: Column, episode: EpisodeResult) -> float:
    if column.measure == "chain":
        return float(episode.goals_completed)
    return float(episode.goals_completed >= (column.goals or episode.goals))


def _estimate(column: Column, seeds: Mapping[int, Scores], trials: Mapping[str, Trial]) -> Estimate | None:
    if not seeds:
        return None
    scale = unit(column)
    if len(trials) > 1:
        found = across_seeds(list(seeds.values()))
        if found is None:
            return None
        most = scale if column.measure == "success" else math.inf
        return Estimate(scale * found.value, max(scale * found.low, 0.0), min(scale * found.high, most))
    (scores,) = seeds.values()
    several = estimates.repeated(_plays(scores)) if len(_plays(scores)) < len(scores) else None
    if several is not None:
        found = several.estimate
    elif column.measure == "chain":
        goals = 5 if max(scores.values()) <= 5 else int(max(scores.values()))
        found = estimates.chain_length([int(value) for value in scores.values()], goals)
    else:
        found = estimates.success_rate(sum(scores.values()), len(scores))
    return None if found is None else Estimate(scale * found.value, scale * found.low, scale * found.high)


def _plays(scores: Scores) -> dict[str, list[float]]:
    """By episode what each play of it scored: plays of one episode are not independent."""
    found: dict[str, list[float]] = {}
    for play, value in scores.items():
        found.setdefault(play.partition(REPEAT)[0], []).append(value)
    return found


def across_seeds(seeds: Sequence[Scores]) -> Estimate | None:
    """Mean over seeds, each seed counting the same, with an interval; None for no seeds.

    Student's t over the seeds' means, or over the episodes where that is wider: few seeds may agree by chance.
    Infinitely wide for a single seed.
    """
    if not seeds:
        return None
    value, errors = _mean_and_errors(seeds)
    if len(seeds) == 1:
        return Estimate(value, -math.inf, math.inf)
    from scipy import stats

    half = max(float(stats.t.isf((1 - CONFIDENCE) / 2, n - 1)) * error for n, error in errors)
    return Estimate(value, value - half, value + half)


def compare_seeds(first: Mapping[int, Scores], second: Mapping[int, Scores]) -> Comparison | None:
    """First minus second over the seeds that both have: paired t tests over seeds and over episodes, the larger p.

    None for fewer than two shared seeds.
    """
    shared = sorted(first.keys() & second.keys())
    gaps = [
        {e: first[seed][e] - second[seed][e] for e in first[seed].keys() & second[seed].keys()}
        for seed in shared
    ]
    if len(shared) < 2 or not all(gaps):
        return None
    found = across_seeds(gaps)
    assert found is not None
    from scipy import stats

    value, errors = _mean_and_errors(gaps)
    p_values = [float(2 * stats.t.sf(abs(value) / error, n - 1)) for n, error in errors if error > 0]
    return Comparison(found, max(p_values, default=1.0 if value == 0 else 0.0), paired=True)


def _mean_and_errors(seeds: Sequence[Scores]) -> tuple[float, list[tuple[int, float]]]:
    """The mean, and its standard error over seeds and over episodes, each with how many there are."""
    means = [float(np.mean(list(scores.values()))) for scores in seeds]
    of_episode: dict[str, list[float]] = {}
    for scores in seeds:
        for episode, value in scores.items():
            of_episode.setdefault(episode, []).append(value)
    episodes = [float(np.mean(values)) for values in of_episode.values()]
    errors = [
        (len(values), float(np.std(values, ddof=1)) / math.sqrt(len(values)))
        for values in (means, episodes)
        if len(values) > 1
    ]
    return float(np.mean(means)), errors


def _selection(column: Column, tries: Sequence[Scores]) -> Selection | None:
    shared = sorted(set.intersection(*(set(scores) for scores in tries))) if len(tries) > 1 else []
    if len(shared) < 2:
        return None
    grid = np.array([[scores[episode] for episode in shared] for scores in tries]) * unit(column)
    return best_of(grid)


def _comparable(row: StudyRow, first: Cell, second: Cell) -> bool:
    """Whether two cells of a row are scores of one kind, on the same episodes, of different trials."""
    one, other = first.column, second.column
    if not (one.trial and other.trial) or one.trial == other.trial:
        return False
    played = [
        {(e.benchmark, e.look, e.tasks, e.seed) for e in row.trials[name].evaluations}
        for name in (one.trial, other.trial)
    ]
    return replace(one, name="", trial="") == replace(other, name="", trial="") and played[0] == played[1]


def _pairs(cells: Sequence[tuple[Cell, Cell]]) -> list[RowPair]:
    """Of one family: their p are corrected together."""
    found = []
    for first, second in cells:
        comparison = _compare(first.column, first, second)
        if comparison is not None:
            found.append((first, second, comparison))
    adjusted = holm([comparison.p_value for _, _, comparison in found])
    return [
        RowPair(
            column=first.column,
            against=second.column,
            first=first.row,
            second=second.row,
            comparison=comparison,
            adjusted_p=p,
            needed=_needed(first.column, first, second),
        )
        for (first, second, comparison), p in zip(found, adjusted, strict=True)
    ]


def _compare(column: Column, first: Cell, second: Cell) -> Comparison | None:
    if len(first.seeds) > 1 and len(second.seeds) > 1:
        return compare_seeds(first.seeds, second.seeds)
    mine, theirs = (_pooled(cell) for cell in (first, second))
    if column.measure == "success":
        return compare_outcomes(*({e: v == 1 for e, v in scores.items()} for scores in (mine, theirs)))
    shared = sorted(mine.keys() & theirs.keys())
    if not shared:
        return None
    return paired_difference(np.array([mine[e] for e in shared]), np.array([theirs[e] for e in shared]))


def _pooled(cell: Cell) -> dict[str, float]:
    """Of one seed by episode; of several by seed and episode."""
    if len(cell.seeds) == 1:
        return dict(next(iter(cell.seeds.values())))
    return {f"{seed}/{episode}": v for seed, scores in cell.seeds.items() for episode, v in scores.items()}


def _needed(column: Column, first: Cell, second: Cell) -> int | None:
    if column.measure == "chain":
        return None
    rates = [float(np.mean(list(_pooled(cell).values()))) for cell in (first, second)]
    return episodes_to_separate(*rates)


def _differences(
    study: Study, read: Mapping[Trial, TrialRecord], cells: Mapping[tuple[str, str], Cell]
) -> list[Unfair]:
    """Recipes as they are written, and of what was run: data, software, the share of new parameters and how many
    checkpoints and ways to execute were tried."""
    found = []
    for name in dict.fromkeys(column.trial for column in study.columns):
        rows: dict[str, dict[str, Any]] = {}
        for row in study.rows:
            for key, trial in row.trials.items():
                if name in ("", key):
                    label = row.name if name else f"{row.name}, {key}"
                    rows[label] = _facts(trial, read.get(trial))
        for cell in (c for c in cells.values() if c.column.trial == name):
            for key, count in cell.tries.items():
                facts = rows[cell.row if name else f"{cell.row}, {key}"]
                facts[f"run: tries for {cell.column.name}"] = count
        fields = list(dict.fromkeys(key for facts in rows.values() for key in facts))
        for key in fields:
            values = {label: facts[key] for label, facts in rows.items() if key in facts}
            if len({str(value) for value in values.values()}) > 1:
                intended = _is_about(study, key) or (key == "train.seed" and not name)
                found.append(Unfair(trial=name, name=key, values=values, intended=intended))
    return found


def _is_about(study: Study, name: str) -> bool:
    """Whether a field, or the whole part of the recipe that it is in, is what the table is about."""
    named = name.removeprefix("run: ")
    return any(named == about or named.startswith(f"{about}.") for about in study.about)


def _facts(trial: Trial, record: TrialRecord | None) -> dict[str, Any]:
    data = to_json(trial)
    facts = {
        f"{part}.{key}": value
        for part in ("policy", "demonstrations", "train")
        for key, value in data[part].items()
    }
    facts["evaluations"] = [
        ", ".join(f"{key} {value}" for key, value in entry.items() if value not in ("", 0, [], None))
        for entry in data["evaluations"]
    ]
    facts["tuning"] = data["tuning"]
    if record is not None:
        facts |= {
            f"run with {name}": version for name, version in record.provenance.get("versions", {}).items()
        }
        for name in ("demonstrations", "commit", "machine"):
            if name in record.provenance:
                facts[f"run: {name}"] = record.provenance[name]
        if record.new_share is not None:
            facts["run: share of new parameters"] = f"{100 * record.new_share:.3g} %"
    return facts
