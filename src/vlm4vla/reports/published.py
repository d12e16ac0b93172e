"""What can be concluded from published numbers alone: which rows their own number of episodes tells apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from vlm4vla.reports.comparisons import episodes_to_separate, holm, power_of
from vlm4vla.reports.estimates import CONFIDENCE, fisher_p
from vlm4vla.reports.tables import DASH, Table, p_text
from vlm4vla.studies.published import EPISODES
from vlm4vla.studies.study import Study

_TRIALS = {**EPISODES, "simpler": 4 * EPISODES["carrot"]}


@dataclass(frozen=True, slots=True)
class _Compared:
    """A published column, every pair of its rows as independent samples."""

    episodes: int
    printed: Mapping[str, float]
    """By row."""
    whole: float
    """What a rate of 1 is printed as; 0: a mean chain length."""
    p_values: Mapping[tuple[str, str], float]

    @property
    def different(self) -> dict[tuple[str, str], float]:
        """Pairs that differ, with Holm's p."""
        adjusted = holm(list(self.p_values.values()))
        return {pair: p for pair, p in zip(self.p_values, adjusted, strict=True) if p < 1 - CONFIDENCE}


def separable(study: Study) -> Table | None:
    """By column with published rates: how many pairs of rows differ, treating both as independent samples.

    Rates are compared with Fisher's exact test on counts rounded to whole episodes, CALVIN's mean chain length with a
    z test whose variance follows from the five printed rates; corrected with Holm's method. Power is that of telling
    the two best apart, were their true rates the printed ones. None without any.
    """
    rows = []
    for name, found in _compared(study).items():
        best = tuple(sorted(found.printed, key=lambda row: -found.printed[row])[:2])
        leading = found.p_values.get(best, found.p_values.get(best[::-1], 1.0))  # type: ignore[arg-type]
        power, needed = DASH, DASH
        if found.whole:
            first, second = (found.printed[row] / found.whole for row in best)
            power = f"{100 * power_of(first, second, found.episodes):.0f} %"
            enough = episodes_to_separate(first, second)
            needed = DASH if enough is None else f"{enough:,}"
        rows.append(
            (
                name,
                str(found.episodes),
                f"{len(found.different)} of {len(found.p_values)}",
                f"{best[0]} against {best[1]}",
                p_text(leading),
                power,
                needed,
            )
        )
    if not rows:
        return None
    told = ("their p, uncorrected", "their power", "n for 80 %")
    columns = ("column", "episodes a row", "pairs that differ", "the two best", *told)
    return Table("Published: what the paper's own n can separate", columns, tuple(rows))


def separated(study: Study) -> Table | None:
    """Which pairs of `separable` differ: the printed difference, first minus second, and Holm's p; None for no pair."""
    compared = _compared(study)
    by_column = {name: found.different for name, found in compared.items()}
    order = itertools.combinations([row.name for row in study.rows], 2)
    pairs = [pair for pair in order if any(pair in different for different in by_column.values())]
    rows = tuple(
        (
            *pair,
            *(
                f"{compared[name].printed[pair[0]] - compared[name].printed[pair[1]]:+.4g} ({p_text(different[pair])})"
                if pair in different
                else DASH
                for name, different in by_column.items()
            ),
        )
        for pair in pairs
    )
    if not rows:
        return None
    title = (
        "Published pairs: which rows the paper's own n separates, with corrected p; all others it does not"
    )
    return Table(title, ("row", "against", *compared), rows)


def _compared(study: Study) -> dict[str, _Compared]:
    """By column; those without rates of known numbers of episodes are left out."""
    found = {}
    for column in study.columns:
        printed = {row.name: row.published for row in study.rows if column.name in row.published}
        compared = _p_values(column.name, printed) if len(printed) > 1 else None
        if compared is not None:
            episodes, whole, p_values = compared
            numbers = {row: cells[column.name] for row, cells in printed.items()}
            found[column.name] = _Compared(episodes, numbers, whole, p_values)
    return found


def _p_values(
    column: str, printed: Mapping[str, Mapping[str, float]]
) -> tuple[int, float, dict[tuple[str, str], float]] | None:
    """Episodes, what a rate of 1 is printed as (0 for a chain), and p by pair."""
    if column == "calvin":
        if not all(f"task-{k}" in cells for cells in printed.values() for k in range(1, 6)):
            return None
        n = EPISODES["calvin"]
        spread = {name: chain_variance(cells) for name, cells in printed.items()}
        return (
            n,
            0.0,
            {
                (a, b): _z_p(printed[a][column] - printed[b][column], math.sqrt((spread[a] + spread[b]) / n))
                for a, b in itertools.combinations(printed, 2)
            },
        )
    if column.startswith("task-"):
        n, whole = EPISODES["calvin"], 1.0
    elif column in _TRIALS:
        n, whole = _TRIALS[column], 100.0
    else:
        return None
    counts = {name: (round(cells[column] / whole * n), n) for name, cells in printed.items()}
    return n, whole, {(a, b): fisher_p(counts[a], counts[b]) for a, b in itertools.combinations(printed, 2)}


def chain_variance(cells: Mapping[str, float]) -> float:
    """Of a chain's length, from the shares that reached at least 1 to 5 goals.

    E[L^2] is the sum over k of (2k - 1) P(L >= k).
    """
    reached = [cells[f"task-{k}"] for k in range(1, 6)]
    mean = sum(reached)
    return sum((2 * k - 1) * share for k, share in enumerate(reached, start=1)) - mean**2


def _z_p(difference: float, error: float) -> float:
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return math.erfc(abs(difference) / error / math.sqrt(2))
