"""Figure 3 computed again: does what a VLM scores on general benchmarks go with what it scores as a policy?

The paper takes the mean of reported scores and weights those of specialised VLMs down, by a factor that it does not
tell (A.4). Here the factor is an assumption that is shown and varied, as is the set of benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlm4vla.reports.comparisons import Correlation, correlation
from vlm4vla.reports.estimates import CONFIDENCE, Estimate
from vlm4vla.reports.scores import StudyScores
from vlm4vla.reports.tables import DASH, Table, p_text
from vlm4vla.studies.published import FIGURE_3
from vlm4vla.studies.study import Study
from vlm4vla.studies.vlm_scores import EIGHTEEN, VLMScores, vlm_scores

FACTORS = tuple(round(1 - 0.05 * step, 2) for step in range(15))
"""1 (nothing is weighted down) to 0.3."""
_SHOWN = (1.0, 0.9, 0.8, 0.7, 0.5, 0.3)
_RESAMPLES = 10_000
Numbers = Mapping[str, float]
"""By VLM."""


@dataclass(frozen=True, slots=True)
class Assumption:
    """How one number is made of a VLM's scores."""

    factor: float | None
    """Of specialised VLMs' means; None: they are left out."""
    common: bool = False
    """General VLMs by the benchmarks that all of them have; else each by what is reported of it."""

    def __str__(self) -> str:
        weight = "general VLMs alone" if self.factor is None else f"factor {self.factor:g}"
        return f"{weight}, {'common' if self.common else 'reported'} benchmarks"


def ability(held: VLMScores, assumption: Assumption) -> Numbers:
    """One number for every VLM, in percent (A.4)."""
    found = {}
    for name, scores in held.scores.items():
        general = name in held.general
        if not general and assumption.factor is None:
            continue
        known = [
            score.value
            for benchmark, score in scores.items()
            if score is not None and not (general and assumption.common and benchmark not in held.common)
        ]
        weight = 1.0 if general or assumption.factor is None else assumption.factor
        found[name] = weight * sum(known) / len(known)
    return found


def correlated(first: Numbers, second: Numbers) -> Correlation | None:
    """Of the VLMs that have both numbers."""
    names = [name for name in first if name in second]
    return correlation([first[name] for name in names], [second[name] for name in names])


def bootstrapped(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Estimate:
    """Pearson's r with the percentile interval of the bootstrap over VLMs; draws without spread are left out.

    Raises: ValueError for no spread at all.
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(x) != len(y) or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("r is of two different scores of the same models")
    drawn = np.random.default_rng(seed).integers(len(x), size=(_RESAMPLES, len(x)))
    drawn = np.concatenate([np.arange(len(x))[None], drawn])
    a, b = (v[drawn] - v[drawn].mean(axis=1, keepdims=True) for v in (x, y))
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    kept = scale > 1e-9 * scale[0]
    values = (a * b).sum(axis=1)[kept] / scale[kept]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values[1:], [tail, 1 - tail])
    return Estimate(float(values[0]), float(low), float(high))


def nearest_factor(held: VLMScores, outcomes: Mapping[str, Numbers], *, common: bool = False) -> float:
    """The factor whose largest distance from the paper's three r is smallest: fitted, so no confirmation of them."""

    def distance(factor: float) -> float:
        numbers = ability(held, Assumption(factor, common))
        found = ((column, correlated(numbers, values)) for column, values in outcomes.items())
        return max(abs(c.r.value - FIGURE_3[column]) for column, c in found if c is not None)

    return min(FACTORS, key=distance)


def ability_tables(scores: StudyScores) -> list[Table]:
    """r, what it hangs on, the numbers behind it and what is missing; nothing for a study that is not Figure 3."""
    held = vlm_scores()
    outcomes = published_outcomes(scores.study, held)
    if scores.study.title != "Figure 3" or set(outcomes) != set(FIGURE_3):
        return []
    return [
        _recomputed(held, outcomes, _own_outcomes(scores, held)),
        _by_factor(held, outcomes),
        _one_at_a_time(held, outcomes),
        _numbers(held, outcomes),
        _missing(held),
    ]


def published_outcomes(study: Study, held: VLMScores) -> dict[str, Numbers]:
    """What the paper prints for every VLM as a policy, by the columns of Figure 3 that have any."""
    found = {
        column: {
            r.name: r.published[column] for r in study.rows if r.name in held.scores and column in r.published
        }
        for column in FIGURE_3
    }
    return {column: numbers for column, numbers in found.items() if numbers}


def _own_outcomes(scores: StudyScores, held: VLMScores) -> dict[str, Numbers]:
    found: dict[str, dict[str, float]] = {}
    for (row, column), cell in scores.cells.items():
        if cell.estimate is not None and row in held.scores:
            found.setdefault(column, {})[row] = cell.estimate.value
    return dict(found)


def _recomputed(held: VLMScores, outcomes: Mapping[str, Numbers], own: Mapping[str, Numbers]) -> Table:
    fitted = nearest_factor(held, outcomes)
    assumptions = (Assumption(1.0), Assumption(fitted), Assumption(None), Assumption(1.0, common=True))
    rows = []
    for column, printed in FIGURE_3.items():
        for values, whose in ((outcomes[column], "published success"), (own.get(column, {}), "our success")):
            for assumption in assumptions:
                numbers = ability(held, assumption)
                found = correlated(numbers, values)
                if found is None:
                    continue
                names = [name for name in numbers if name in values]
                x, y = [numbers[name] for name in names], [values[name] for name in names]
                at = int(np.nanargmax(np.abs(np.array(found.without_one) - found.r.value)))
                told = f"{assumption}{' (fitted)' if assumption == Assumption(fitted) else ''}; {whose}"
                rows.append(
                    (
                        f"{column} · {told}",
                        str(found.models),
                        f"{printed:+.3f}",
                        f"{found.r.value:+.3f}",
                        f"{found.r.value - printed:+.3f}",
                        f"{found.r_squared:.2f}",
                        _interval(found.r),
                        _interval(bootstrapped(x, y)),
                        p_text(found.p_value),
                        f"{np.nanmin(found.without_one):+.2f} to {np.nanmax(found.without_one):+.2f}",
                        f"{names[at]}: {found.without_one[at]:+.2f}",
                    )
                )
    columns = (
        *("column", "VLMs", "published r", "r", "difference", "R²", "Fisher 95 %", "bootstrap 95 %", "p"),
        *("leaving one out", "the one that matters most"),
    )
    return Table("General ability: the paper's r computed again", columns, tuple(rows))


def _by_factor(held: VLMScores, outcomes: Mapping[str, Numbers]) -> Table:
    rows = [("published", *(f"{printed:+.3f}" for printed in FIGURE_3.values()), DASH)]
    for common in (False, True):
        for factor in (*_SHOWN, None):
            assumption = Assumption(factor, common)
            found = [correlated(ability(held, assumption), outcomes[column]) for column in FIGURE_3]
            values = [c.r.value for c in found if c is not None]
            gap = max(abs(value - printed) for value, printed in zip(values, FIGURE_3.values(), strict=True))
            rows.append((str(assumption), *(f"{value:+.3f}" for value in values), f"{gap:.2f}"))
    columns = ("assumption", *FIGURE_3, "largest difference")
    return Table("Down-weighting: r by the factor that A.4 does not tell", columns, tuple(rows))


def _one_at_a_time(held: VLMScores, outcomes: Mapping[str, Numbers]) -> Table:
    rows = []
    for benchmark in EIGHTEEN:
        known = {
            name: s.value for name, scores in held.scores.items() if (s := scores.get(benchmark)) is not None
        }
        cells = []
        for column in FIGURE_3:
            found = correlated(known, outcomes[column])
            cells.append(DASH if found is None else f"{found.r.value:+.2f} {_interval(found.r)}")
        rows.append((benchmark, str(len(known)), *cells))
    columns = ("benchmark", "VLMs", *FIGURE_3)
    return Table("One benchmark: r of each alone, nothing weighted down", columns, tuple(rows))


def _numbers(held: VLMScores, outcomes: Mapping[str, Numbers]) -> Table:
    reported, common = (ability(held, Assumption(1.0, same)) for same in (False, True))
    rows = tuple(
        (
            name,
            f"{len(found) - len(held.missing(name))} of {len(found)}",
            f"{reported[name]:.1f}",
            f"{common[name]:.1f}",
            *(f"{outcomes[column][name]:g}" for column in FIGURE_3),
            ", ".join(
                sorted({score.where.partition(",")[0] for score in found.values() if score is not None})
            ),
        )
        for name, found in held.scores.items()
    )
    heads = ("VLM", "scores", "mean of reported", f"of the {len(held.common)} common", *FIGURE_3, "source")
    return Table("Scores: what is correlated, nothing weighted down", heads, rows)


def _missing(held: VLMScores) -> Table:
    rows = [(b, ", ".join(n for n in held.scores if b in held.missing(n))) for b in EIGHTEEN]
    told = tuple((b, names, held.notes.get(b, "")) for b, names in rows if names)
    return Table("Missing: scores that A.4 averages and no report gives", ("benchmark", "of", "note"), told)


def _interval(estimate: Estimate) -> str:
    return f"[{estimate.low:+.2f}, {estimate.high:+.2f}]"
