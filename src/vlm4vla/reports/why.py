"""What a study's policies hold in their layers, beside how well they act: section, figures and tables.

Read from what `vlm4vla why` kept beside the runs. Correlations are over runs, with their number and interval; they
name no cause.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.core.recipes import Trial, fingerprint, from_json
from vlm4vla.reports import sections
from vlm4vla.reports.comparisons import Correlation, correlation, holm
from vlm4vla.reports.drawing import Drawing
from vlm4vla.reports.estimates import CONFIDENCE
from vlm4vla.reports.markup import Html, element, section
from vlm4vla.reports.scores import StudyScores, unit
from vlm4vla.reports.tables import DASH, MINUS, Table, p_text
from vlm4vla.reports.why_figures import Course, courses, curves, scatter
from vlm4vla.studies.representation import Layer, Measured, Why
from vlm4vla.studies.runs import read_json
from vlm4vla.studies.study import Column


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One run that was measured, and how often it succeeded in the same look."""

    row: str
    trial: Trial
    why: Why
    """Of the last checkpoint that was measured."""
    success: float
    """In the column's unit."""
    course: tuple[Why, ...] = ()
    """Of every checkpoint that was measured alike, by step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A number that says something of a whole run."""

    name: str
    of: Callable[[Why, bool], Measured | None]
    """After training, or before it where the second argument says so; None where a run does not have it."""
    scale: float = 1.0
    """100 for metres shown in centimetres."""
    moved: bool = False
    """It compares before and after, and has no value before."""

    def values(self, found: Sequence[Found], *, before: bool = False) -> list[Measured]:
        """Of the runs that have it, in `scale`."""
        made = [self.at(run.why, before=before) for run in found]
        return [value for value in made if value is not None]

    def at(self, why: Why, *, before: bool = False) -> Measured | None:
        """Of one measurement, in `scale`."""
        value = self.of(why, before)
        return None if value is None else _scaled(value, self.scale)


def read(scores: StudyScores, runs: Path) -> tuple[dict[str, list[Found]], list[tuple[str, str]]]:
    """By column, every run of the study that was measured in its look and scored; and what is damaged."""
    problems: list[tuple[str, str]] = []
    measured: dict[Trial, list[Why]] = {}
    for trial in scores.study.trials:
        measured[trial] = []
        for path in sorted((runs / "trials" / fingerprint(trial) / "why").glob("[!.]*.json")):
            try:
                measured[trial].append(from_json(Why, read_json(path), where=str(path)))
            except (RecipeError, RunError) as error:
                problems.append((trial.name, f"{error}; delete it, and `vlm4vla why` measures again"))
    found: dict[str, list[Found]] = {}
    for (row, name), cell in scores.cells.items():
        trials = next(r for r in scores.study.rows if r.name == row).trials
        for key, trial in trials.items():
            scored = cell.seeds.get(trial.train.seed) if cell.column.trial in ("", key) else None
            why = _for(cell.column, measured[trial])
            if scored and why is not None:
                success = unit(cell.column) * float(np.mean(list(scored.values())))
                alike = replace(why.recipe, checkpoint="")
                course = [w for w in measured[trial] if replace(w.recipe, checkpoint="") == alike]
                course.sort(key=lambda w: w.recipe.step)
                run = Found(row=row, trial=trial, why=why, success=success, course=tuple(course))
                found.setdefault(name, []).append(run)
    return found, problems


def _for(column: Column, measured: Sequence[Why]) -> Why | None:
    """The newest way of measuring and the last checkpoint, in the column's look."""
    fitting = [why for why in measured if column.look in ("", why.recipe.look)]
    return max(fitting, key=lambda w: (w.recipe.version, w.recipe.step, w.recipe.scenes), default=None)


def measures(found: Sequence[Found]) -> list[Measure]:
    """What can be said of these runs in one number each: how far they moved, and what is read off their last layers."""
    kinds = [
        Measure(name="drift of vision", of=lambda why, _: _drift(why, "vision"), moved=True),
        Measure(name="drift of language, at the picture", of=lambda why, _: _drift(why, "image"), moved=True),
    ]
    targets = {reading.target: None for run in found for reading in run.why.layers[0].after}
    for target in targets:
        place = "image" if "block" in target else "query"
        told = "the picture" if place == "image" else "the query"
        kinds.append(Measure(name=f"{target} at {told}, cm off", of=_error_at(place, target), scale=100))
    return [kind for kind in kinds if kind.values(found)]


def tables(found: dict[str, list[Found]]) -> list[Table]:
    """Of every column: what the rows' layers hold, and how that goes with success."""
    return [
        table
        for name, runs in found.items()
        for table in (_rows_table(name, runs), _success_table(name, runs))
        if table.rows
    ]


def figures(found: dict[str, list[Found]]) -> dict[str, Drawing]:
    """Of every column: curves over layers by row, success against each measure, and these over training's steps."""
    drawn = {}
    for name, runs in found.items():
        slug = "".join(c if c.isalnum() else "-" for c in name.lower())
        rows = {row: [run.why for run in of_row] for row, of_row in _by_row(runs)}
        drawn[f"why-{slug}"] = curves(rows, f"{name}: what the layers of every row hold")
        points = [
            (
                measure.name,
                [
                    (
                        measure.values([run])[0].value,
                        run.success,
                        run.trial.policy.backbone,
                        run.trial.policy.weights,
                        run.row,
                    )
                    for run in runs
                    if measure.values([run])
                ],
            )
            for measure in measures(runs)
        ]
        drawn[f"why-success-{slug}"] = scatter(points, f"{name}: success of every run", name)
        if any(len(run.course) > 1 for run in runs):
            drawn[f"why-steps-{slug}"] = courses(
                [(measure.name, [_course(measure, run) for run in runs]) for measure in measures(runs)],
                f"{name}: over the steps of training",
            )
    return drawn


def _course(measure: Measure, run: Found) -> Course:
    """From step 0, where a policy is its own reference, to the last checkpoint."""
    points = [(why.recipe.step, measure.at(why)) for why in run.course]
    start = Measured(value=0, low=0, high=0) if measure.moved else measure.at(run.why, before=True)
    told = [(step, value.value) for step, value in [(0, start), *points] if value is not None]
    return told, run.trial.policy.backbone, run.trial.policy.weights, run.row


def why_section(found: dict[str, list[Found]]) -> Html | None:
    """The section of the page; None when nothing was measured."""
    if not found:
        return None
    shown = []
    for name, runs in found.items():
        shown.append(element("h3", name))
        for drawing in figures({name: runs}).values():
            shown.append(element("div", drawing.svg(), class_="card scroll"))
        for table in tables({name: runs}):
            shown.append(element("p", f"{table.title.partition(', ')[2]}:", class_="note"))
            shown.append(element("div", sections.plain_table(table), class_="card scroll"))
    references = sorted({run.why.reference for runs in found.values() for run in runs})
    note = (
        "Similarity (linear CKA, 1: not moved) of every layer before and after training, and how far off a linear "
        "probe is that reads a position from it, in held-out scenes that it was not fitted on. Compared with "
        f"{' or, from scratch, '.join(reversed(references))}; the query has learned nothing before training. Vision: "
        "its layers. Picture and query: the language model's, at the picture's tokens and at the query. Dots are means "
        "over seeds, bars their range; of a single seed the 95 % interval over scenes."
    )
    caution = (
        "Correlations are over runs: over all of them, where rows that share a VLM or a start lie together, so that "
        "the runs are fewer than n says; and within rows, their means subtracted, which is left of it between seeds. "
        "Policies from scratch drift from another start than pretrained ones. What goes with success need not be what "
        "brings it."
    )
    return section("why", "Why", note, *shown, element("p", caution, class_="note"))


def layers_table(name: str, why: Why) -> Table:
    """Every layer of one run; errors of linear probes in cm, before and after training."""
    targets = [reading.target for reading in why.layers[0].after]
    rows = []
    for layer in why.layers:
        pairs = zip(layer.before, layer.after, strict=True)
        errors = [f"{_text(_scaled(b.error, 100), 1)} → {_text(_scaled(a.error, 100), 1)}" for b, a in pairs]
        rows.append((layer.place, _text(layer.similarity, 2), f"{layer.chance:.2f}", *errors))
    look = f"look {why.recipe.look}" if why.recipe.look else "held-out demonstrations"
    title = f"{name} · {look}, {why.scenes} scenes, against {why.reference}"
    return Table(title, ("layer", "CKA", "by chance", *(f"{t}, cm off" for t in targets)), tuple(rows))


def _rows_table(name: str, runs: Sequence[Found]) -> Table:
    kinds = measures(runs)
    rows = []
    for row, of_row in _by_row(runs):
        cells = []
        for kind in kinds:
            after, before = kind.values(of_row), kind.values(of_row, before=True)
            digits = 2 if kind.moved else 1
            text = _text(over_seeds(after, most=1.0 if kind.moved else math.inf), digits) if after else DASH
            cells.append(
                text if kind.moved or not before else f"{over_seeds(before).value:.{digits}f} → {text}"
            )
        success = np.mean([run.success for run in of_row])
        rows.append((row, of_row[0].why.reference, *cells, f"{success:.1f}", str(len(of_row))))
    columns = ("row", "against", *(kind.name for kind in kinds), "success", "runs")
    return Table(
        f"Why: {name}, drift (1 {MINUS} CKA) and errors of probes before → after training, with 95 % intervals",
        columns,
        tuple(rows),
    )


def _success_table(name: str, runs: Sequence[Found]) -> Table:
    seeds = len(runs) > len({run.row for run in runs})
    told: list[tuple[str, str, Correlation]] = []
    for kind in measures(runs):
        having = [run for run in runs if kind.values([run])]
        values, success = [kind.values([run])[0].value for run in having], [run.success for run in having]
        for how, groups in (("all runs", []), ("within rows", [run.row for run in having]))[: 1 + seeds]:
            r = correlation(values, success, groups=groups)
            if r is not None:
                told.append((kind.name, how, r))
    rows = tuple(
        (
            measure,
            how,
            f"{r.r.value:+.2f} [{r.r.low:+.2f}, {r.r.high:+.2f}]",
            f"{r.r_squared:.2f}",
            p_text(p),
            str(r.models),
            f"{min(r.without_one):+.2f} to {max(r.without_one):+.2f}",
        )
        for (measure, how, r), p in zip(told, holm([r.p_value for _, _, r in told]), strict=True)
    )
    columns = ("measure", "over", "r with success", "R²", "corrected p", "n", "without any one run")
    return Table(f"Why: {name}, what goes with success over runs", columns, rows)


def over_seeds(values: Sequence[Measured], *, most: float = math.inf) -> Measured:
    """Their mean with Student's t interval, cut to [0, most]; a single one as it is."""
    if len(values) == 1:
        return values[0]
    from scipy import stats

    numbers = np.array([value.value for value in values])
    error = float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    half = float(stats.t.isf((1 - CONFIDENCE) / 2, len(numbers) - 1)) * error
    mean = float(numbers.mean())
    return Measured(value=mean, low=max(mean - half, 0.0), high=min(mean + half, most))


def _by_row(runs: Sequence[Found]) -> Iterator[tuple[str, list[Found]]]:
    for row in dict.fromkeys(run.row for run in runs):
        yield row, [run for run in runs if run.row == row]


def _drift(why: Why, kind: str) -> Measured | None:
    found = [layer.similarity for layer in why.layers if kind in layer.place.split()]
    if not found:
        return None
    value, low, high = (1 - float(np.mean([getattr(s, n) for s in found])) for n in ("value", "high", "low"))
    return Measured(value=value, low=low, high=high)


def _error_at(place: str, target: str) -> Callable[[Why, bool], Measured | None]:
    def of(why: Why, before: bool) -> Measured | None:
        last: Layer | None = None
        for layer in why.layers:
            last = layer if place in layer.place.split() else last
        readings = () if last is None else last.before if before else last.after
        return next((r.error for r in readings if r.target == target), None)

    return of


def _scaled(found: Measured, scale: float) -> Measured:
    return Measured(value=scale * found.value, low=scale * found.low, high=scale * found.high)


def _text(found: Measured, digits: int) -> str:
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
