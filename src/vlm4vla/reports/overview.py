"""The paper's Figure 1, top right, drawn: how every VLM does in every task, ours where there is any."""

from __future__ import annotations

import itertools

from vlm4vla.reports.drawing import Drawing
from vlm4vla.reports.scores import Cell, StudyScores

_LEFT, _TOP, _STEP, _BAND, _GAP = 120.0, 40.0, 56.0, 26.0, 10.0
"""Words left, above the bands, between columns, of a VLM's band, between bands."""


def overview(scores: StudyScores) -> Drawing | None:
    """A band for every VLM, a place for every column, from the column's worst score (below) to its best (above).

    Filled where the score is ours, hollow where it is published and ours is missing; columns of one training are
    joined. None for other studies than Figure 1.
    """
    if scores.study.title != "Figure 1":
        return None
    columns = scores.study.columns
    rows = [row.name for row in scores.study.rows]
    height = _TOP + len(rows) * (_BAND + _GAP) + 22
    told = "Every VLM from the worst to the best score of every column (filled: ours; hollow: published)"
    drawing = Drawing(_LEFT + _STEP * len(columns), height, told)
    drawing.text(_LEFT, 12, told, "muted", size=8)
    for index, row in enumerate(rows):
        y = _TOP + index * (_BAND + _GAP)
        drawing.text(4, y + _BAND / 2 + 3, row)
        drawing.line(_LEFT, y, drawing.width - 4, y, "line")
        drawing.line(_LEFT, y + _BAND, drawing.width - 4, y + _BAND, "line")
    places: dict[tuple[str, str], tuple[float, float]] = {}
    for number, column in enumerate(columns):
        x = _LEFT + _STEP * number + _STEP / 2
        drawing.text(x - 2.2 * len(column.name), 28, column.name, size=8)
        shown = {
            row: value for row in rows if (value := _value(scores.cells.get((row, column.name)))) is not None
        }
        if not shown:
            continue
        low, high = min(shown.values()), max(shown.values())
        drawing.text(x - 20, height - 8, f"{low:.3g} to {high:.3g}", "muted", size=7)
        for row, value in shown.items():
            share = (value - low) / (high - low) if high > low else 0.5
            y = _TOP + rows.index(row) * (_BAND + _GAP) + _BAND * (1 - share)
            places[row, column.name] = (x, y)
    for row in rows:
        for one, other in itertools.pairwise(columns):
            ends = [places.get((row, column.name)) for column in (one, other)]
            if one.trial == other.trial and ends[0] and ends[1]:
                drawing.line(*ends[0], *ends[1], "muted")
        for column in columns:
            if (row, column.name) in places:
                ours = scores.cells[row, column.name].estimate is not None
                drawing.dot(*places[row, column.name], 3, "accent" if ours else "ink", hollow=not ours)
    return drawing


def _value(cell: Cell | None) -> float | None:
    """Ours, or what is published."""
    if cell is None:
        return None
    return cell.published if cell.estimate is None else cell.estimate.value
