"""What the VLMs answered that a study's policies were made of, beside how well these act: section, figure and tables.

Read from what `vlm4vla study NAME --ask` kept beside the runs. It is the paper's Figure 3 with one's own VLMs, and for
VLMs that were tuned before (Table 10) what tuning taught them and what it cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlm4vla.core.errors import RunError
from vlm4vla.core.recipes import Trial, TuneRecipe, fingerprint
from vlm4vla.reports import sections
from vlm4vla.reports.ability import Numbers, bootstrapped, correlated
from vlm4vla.reports.ability_figure import GAP, SIDE, TOP, panel
from vlm4vla.reports.comparisons import Correlation, holm, paired_difference
from vlm4vla.reports.drawing import Drawing
from vlm4vla.reports.estimates import Estimate, success_rate
from vlm4vla.reports.markup import Html, element, section
from vlm4vla.reports.scores import StudyScores
from vlm4vla.reports.tables import Table, p_text
from vlm4vla.studies.answers import Asked, read_asked
from vlm4vla.tuning.tasks import TASKS

_EVERY = "mean of all tasks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A row's VLM; over several seeds, of the first."""

    row: str
    trial: Trial
    by_task: Mapping[str, Asked]

    @property
    def vlm(self) -> tuple[str, str, TuneRecipe | None]:
        """What tells VLMs apart: rows whose policies were trained in other ways may share one."""
        return self.trial.policy.backbone, self.trial.policy.weights, self.trial.tuning

    def score(self, task: str) -> float:
        """Percent."""
        tasks = list(self.by_task) if task == _EVERY else [task]
        return 100 * float(np.mean([np.mean(self.by_task[name].values) for name in tasks]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Success:
    """How what VLMs score on a task goes with success in a column, each VLM counting once."""

    column: str
    task: str
    correlation: Correlation
    drawn: Estimate
    """Bootstrap over VLMs."""
    adjusted_p: float
    """Holm's, over all columns and tasks."""
    every: bool
    """All that they were asked."""


def read(scores: StudyScores, runs: Path) -> tuple[list[Answered], list[tuple[str, str]]]:
    """Rows whose VLM was asked, in their order, with the tasks that all of them were asked; and what is damaged."""
    found: list[tuple[str, Trial, dict[tuple[str, str], Asked]]] = []
    problems: list[tuple[str, str]] = []
    for row in scores.study.rows:
        for trial in list(row.trials.values())[:1]:
            try:
                asked = list(read_asked(runs / "trials" / fingerprint(trial)))
            except RunError as error:
                problems.append((row.name, str(error)))
                continue
            if asked:
                found.append((row.name, trial, {(a.task, a.questions): a for a in asked}))
    asked_of = {row for row, _, _ in found}
    scored = {row for (row, _), cell in scores.cells.items() if cell.estimate is not None}
    problems += [(row, "its VLM was not asked; --ask asks it") for row in scored - asked_of if found]
    shared = [key for key in found[0][2] if all(key in kept for _, _, kept in found)] if found else []
    if found and not shared:
        problems.append(
            (found[0][0], "its VLM was asked other questions than the rest; --ask asks all the same")
        )
    order = [] if scores.study.asked is None else [task.task for task in scores.study.asked.tasks]
    shared.sort(key=lambda key: order.index(key[0]) if key[0] in order else len(order))
    if not shared:
        return [], problems
    names = [key[0] for key in shared]
    labels = {key: key[0] if names.count(key[0]) == 1 else f"{key[0]} ({key[1]})" for key in shared}
    return [
        Answered(row=row, trial=trial, by_task={labels[key]: kept[key] for key in shared})
        for row, trial, kept in found
    ], problems


def tables(found: Sequence[Answered], scores: StudyScores) -> list[Table]:
    """What every VLM scored, what tuning taught, and how it goes with success."""
    made = [_scores_table(found), _tuning_table(found), _success_table(found, scores)] if found else []
    return [table for table in made if table.rows]


def figure(found: Sequence[Answered], scores: StudyScores) -> Drawing | None:
    """A panel for every column: the mean of all tasks against success; None for fewer than four rows."""
    panels = [(name, values) for name, values in _outcomes(found, scores).items() if len(values) >= 4]
    if not panels:
        return None
    task = _measures(found)[-1]
    first = {answered.row: answered.score(task) for answered in found}
    drawing = Drawing(
        GAP / 2 + len(panels) * (SIDE + GAP), TOP + SIDE + 40, "What VLMs answer right against success"
    )
    for place, (name, outcome) in enumerate(panels):
        r = correlated(first, outcome)
        if r is None:
            return None
        title = f"{name}: r = {r.r.value:.2f} [{r.r.low:.2f}, {r.r.high:.2f}]"
        names = _short(list(outcome))
        values = ({names[row]: numbers[row] for row in outcome} for numbers in (first, outcome))
        left, rows = GAP / 2 + place * (SIDE + GAP), {name: row for row, name in names.items()}
        panel(drawing, left, title, f"{task}, %", *values, filled=names.values(), rows=rows)
    return drawing


def asked_section(found: Sequence[Answered], scores: StudyScores) -> Html | None:
    """The section of the page; None when nobody was asked."""
    if not found:
        return None
    shown = []
    drawing = figure(found, scores)
    if drawing is not None:
        shown.append(element("div", drawing.svg(), class_="card scroll"))
    for table in tables(found, scores):
        shown.append(element("p", f"{table.title.partition(': ')[2]}:", class_="note"))
        shown.append(element("div", sections.plain_table(table), class_="card scroll"))
    note = (
        "The VLM that every row's policy was made of is asked the same held-out questions, and answers greedily. A "
        "score is the share of right answers, or 1 minus the error where an error is measured. The mean of all tasks "
        "puts both together, and what guessing would give differs between them."
    )
    caution = (
        "Correlations are over VLMs, each counting once, with the mean success of the rows that were made of it: with "
        "so few, one of them can make a correlation. What goes with success need not be what brings it."
    )
    return section("asked", "VLMs", note, *shown, element("p", caution, class_="note"))


def _measures(found: Sequence[Answered]) -> list[str]:
    tasks = list(found[0].by_task)
    return [*tasks, _EVERY] if len(tasks) > 1 else tasks


def _outcomes(found: Sequence[Answered], scores: StudyScores) -> dict[str, Numbers]:
    """By column and the first row of every VLM that was asked: the mean of its scored rows."""
    made: dict[str, Numbers] = {}
    for name in scores.study.column_names:
        values: dict[object, tuple[str, list[float]]] = {}
        for answered in found:
            cell = scores.cells.get((answered.row, name))
            if cell is not None and cell.estimate is not None:
                values.setdefault(answered.vlm, (answered.row, []))[1].append(cell.estimate.value)
        made[name] = {row: float(np.mean(of_vlm)) for row, of_vlm in values.values()}
    return made


def _scores_table(found: Sequence[Answered]) -> Table:
    rows = []
    for answered in found:
        cells = []
        for asked in answered.by_task.values():
            estimate = success_rate(sum(asked.values), len(asked.values))
            assert estimate is not None
            cells.append(_text(estimate) + (f", {asked.unreadable} unreadable" if asked.unreadable else ""))
        rows.append((answered.row, *cells))
    columns = ("row", *(f"{task}, n = {len(a.values)}" for task, a in found[0].by_task.items()))
    return Table("VLMs: what they answered, %", columns, tuple(rows))


def _tuning_table(found: Sequence[Answered]) -> Table:
    rows = []
    for answered in found:
        before = _untuned(answered, found)
        if before is None or answered.trial.tuning is None:
            continue
        tuned = list(_own_tasks(answered))
        for task in answered.by_task:
            was, now = (np.array(a.by_task[task].values) for a in (before, answered))
            gap = paired_difference(now, was)
            kind = "tuned on it" if task in tuned else "not tuned on it"
            moved = f"{100 * was.mean():.0f} → {100 * now.mean():.0f}"
            rows.append((answered.row, task, kind, moved, _text(gap.difference, sign=True), gap.p_value))
    adjusted = holm([row[-1] for row in rows])
    told = tuple((*row[:-1], p_text(p)) for row, p in zip(rows, adjusted, strict=True))
    columns = ("row", "task", "", "before, after", "change, points", "corrected p")
    return Table("VLMs: what tuning taught them and what it cost", columns, told)


def successes(found: Sequence[Answered], scores: StudyScores) -> list[Success]:
    """Of every column and task, where enough VLMs were asked."""
    made: list[tuple[str, str, Correlation, Estimate]] = []
    measures = _measures(found) if found else []
    for name, outcome in _outcomes(found, scores).items():
        for task in measures:
            numbers = {answered.row: answered.score(task) for answered in found if answered.row in outcome}
            r = correlated(numbers, outcome)
            if r is not None:
                drawn = bootstrapped(list(numbers.values()), [outcome[row] for row in numbers])
                made.append((name, task, r, drawn))
    adjusted = holm([r.p_value for _, _, r, _ in made])
    return [
        Success(column=name, task=task, correlation=r, drawn=drawn, adjusted_p=p, every=task == measures[-1])
        for (name, task, r, drawn), p in zip(made, adjusted, strict=True)
    ]


def _success_table(found: Sequence[Answered], scores: StudyScores) -> Table:
    told = tuple(
        (
            success.column,
            success.task,
            f"{success.correlation.r.value:+.2f}",
            f"[{success.correlation.r.low:+.2f}, {success.correlation.r.high:+.2f}]",
            f"[{success.drawn.low:+.2f}, {success.drawn.high:+.2f}]",
            p_text(success.adjusted_p),
            str(success.correlation.models),
            f"{np.nanmin(success.correlation.without_one):+.2f} to {np.nanmax(success.correlation.without_one):+.2f}",
        )
        for success in successes(found, scores)
    )
    columns = (
        "column",
        "task",
        "r",
        "Fisher 95 %",
        "bootstrap 95 %",
        "corrected p",
        "VLMs",
        "without any one",
    )
    return Table("VLMs: what goes with success", columns, told)


def _untuned(answered: Answered, found: Sequence[Answered]) -> Answered | None:
    """The row whose VLM this one was before."""
    mine = answered.trial.policy
    for other in found:
        theirs = other.trial.policy
        alike = (theirs.backbone, theirs.weights) == (mine.backbone, mine.weights)
        if other.trial.tuning is None and alike:
            return other
    return None


def _own_tasks(answered: Answered) -> Iterator[str]:
    """What it was tuned on: tasks, and those that they are mixed of."""
    left = [] if answered.trial.tuning is None else [task.task for task in answered.trial.tuning.tasks]
    while left:
        name = left.pop()
        yield name
        left += TASKS[name].parts if name in TASKS else ()


def _short(rows: Sequence[str]) -> dict[str, str]:
    """Row names without what they share, where that leaves them different."""
    ends = {row: row.rpartition(", ")[2] for row in rows}
    return ends if len(set(ends.values())) == len(rows) else {row: row for row in rows}


def _text(estimate: Estimate, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    value, low, high = (f"{100 * v:{plus}.0f}" for v in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"
