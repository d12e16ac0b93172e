"""What can be concluded from published numbers alone: which rows their own number of episodes tells apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from vlm4vla.reports.comparisons import holm
from vlm4vla.reports.estimates import fisher_p
from vlm4vla.reports.tables import Table, p_text
from vlm4vla.studies.published import EPISODES
from vlm4vla.studies.study import Study

_TRIALS = {**EPISODES, "simpler": 4 * EPISODES["carrot"]}


def separable(study: Study) -> Table | None:
    """By column with published rates: how many pairs of rows differ, treating both as independent samples.

    Rates are compared with Fisher's exact test on counts rounded to whole episodes, CALVIN's mean chain length with a
    z test whose variance follows from the five printed rates; corrected with Holm's method. None without any.
    """
    rows = []
    for column in study.columns:
        printed = {row.name: row.published for row in study.rows if column.name in row.published}
        found = _p_values(column.name, printed)
        if found is None or len(printed) < 2:
            continue
        episodes, p_values = found
        adjusted = holm(list(p_values.values()))
        different = [pair for pair, p in zip(p_values, adjusted, strict=True) if p < 0.05]
        best = sorted(printed, key=lambda name: -printed[name][column.name])[:2]
        leading = p_values.get((best[0], best[1]), p_values.get((best[1], best[0]), 1.0))
        rows.append(
            (
                column.name,
                str(episodes),
                f"{len(different)} of {len(p_values)}",
                f"{best[0]} against {best[1]}",
                p_text(leading),
            )
        )
    if not rows:
        return None
    columns = ("column", "episodes a row", "pairs that differ", "the two best", "their p, uncorrected")
    return Table("Published: what the paper's own n can separate", columns, tuple(rows))


def _p_values(
    column: str, printed: Mapping[str, Mapping[str, float]]
) -> tuple[int, dict[tuple[str, str], float]] | None:
    if column == "calvin":
        if not all(f"task-{k}" in cells for cells in printed.values() for k in range(1, 6)):
            return None
        n = EPISODES["calvin"]
        spread = {name: chain_variance(cells) for name, cells in printed.items()}
        return n, {
            (a, b): _z_p(printed[a][column] - printed[b][column], math.sqrt((spread[a] + spread[b]) / n))
            for a, b in itertools.combinations(printed, 2)
        }
    if column.startswith("task-"):
        n, whole = EPISODES["calvin"], 1.0
    elif column in _TRIALS:
        n, whole = _TRIALS[column], 100.0
    else:
        return None
    counts = {name: (round(cells[column] / whole * n), n) for name, cells in printed.items()}
    return n, {(a, b): fisher_p(counts[a], counts[b]) for a, b in itertools.combinations(printed, 2)}


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
