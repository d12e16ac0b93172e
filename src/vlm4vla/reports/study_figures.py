"""Figures of a study: every row's score with its interval, and the spread over checkpoints."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from vlm4vla.reports.ability_figure import ability_figure
from vlm4vla.reports.drawing import Drawing
from vlm4vla.reports.overview import overview
from vlm4vla.reports.scores import Cell, StudyScores, unit
from vlm4vla.studies.study import Column

_ROW = 20.0
_LEFT = 230.0
_PLOT = 420.0


def figures_of(scores: StudyScores) -> dict[str, Drawing]:
    """By name: a column's scores, published ones hollow; its checkpoints as boxes where there are several."""
    drawn = overview(scores)
    found = {} if drawn is None else {"overview": drawn}
    for column in scores.study.columns:
        cells = [c for c in scores.cells.values() if c.column == column]
        if any(cell.estimate for cell in cells):
            found[f"scores-{_slug(column.name)}"] = _dots(column, cells)
        if any(len(cell.by_step) > 1 for cell in cells):
            found[f"checkpoints-{_slug(column.name)}"] = _boxes(column, cells)
    if (drawn := ability_figure(scores)) is not None:
        found["ability"] = drawn
    return found


def unit_name(column: Column) -> str:
    """Behind a column's name: % or nothing."""
    return "" if column.measure == "chain" or column.share else "%"


def _dots(column: Column, cells: Sequence[Cell]) -> Drawing:
    rows = [cell for cell in cells if cell.estimate or cell.published is not None]
    ends = [v for c in rows for v in _values(c)]
    low, high = _range(column, ends)
    drawing = _axes(column, len(rows), low, high, f"{column.name}: score of every row with its interval")
    for index, cell in enumerate(rows):
        y = 16 + _ROW * index + _ROW / 2
        with drawing.telling(_told(cell), cell.row):
            _named(drawing, y, cell.row)
            if cell.estimate:
                left, right = max(low, cell.estimate.low), min(high, cell.estimate.high)
                drawing.line(_x(left, low, high), y, _x(right, low, high), y, "accent", width=1.5)
                drawing.dot(_x(cell.estimate.value, low, high), y, 3.5, "accent")
            if cell.published is not None:
                drawing.dot(_x(cell.published, low, high), y, 3.5, "ink", hollow=True)
    return drawing


def _told(cell: Cell) -> str:
    """`row: 88.9 [83.5, 92.7], n = 180; published 50`."""
    parts = []
    if cell.estimate:
        e, digits = cell.estimate, 1 if unit(cell.column) == 100 else 2
        interval = f" [{e.low:.{digits}f}, {e.high:.{digits}f}]" if math.isfinite(e.low) else ""
        seeds = f" in {len(cell.seeds)} seeds" if len(cell.seeds) > 1 else ""
        parts.append(f"{e.value:.{digits}f}{interval}, n = {cell.episodes}{seeds}")
    if cell.published is not None:
        parts.append(f"published {cell.published:g}")
    return f"{cell.row}: {'; '.join(parts)}"


def _boxes(column: Column, cells: Sequence[Cell]) -> Drawing:
    """Paper Figure 4: the spread over checkpoints; lengths of chains over five, and the published best hollow."""
    rows = [cell for cell in cells if len(cell.by_step) > 1]
    whole = 5.0 if column.measure == "chain" else 1.0
    low, high = (0.0, 1.0) if whole == 5 else _range(column, [])
    name = f"{column.name} / 5" if whole == 5 else column.name
    drawing = _axes(column, len(rows), low, high, f"{name}: spread over checkpoints", name=name)
    for index, cell in enumerate(rows):
        y = 16 + _ROW * index + _ROW / 2
        values = sorted(value / whole for value in cell.by_step.values())
        first, middle, third = (_quantile(values, share) for share in (0.25, 0.5, 0.75))
        middles = f"median {middle:.3g}, quartiles {first:.3g} and {third:.3g}"
        text = f"{cell.row}: {middles}, all within {values[0]:.3g} and {values[-1]:.3g}, {len(values)} checkpoints"
        with drawing.telling(text, cell.row):
            _named(drawing, y, cell.row)
            drawing.line(_x(values[0], low, high), y, _x(values[-1], low, high), y, "muted")
            left = _x(first, low, high)
            drawing.box(left, y - 5, max(_x(third, low, high) - left, 0.5), 10, "ink", fill="paper")
            drawing.line(_x(middle, low, high), y - 5, _x(middle, low, high), y + 5, "accent", width=2)
            for value in values:
                drawing.dot(_x(value, low, high), y, 1.5, "muted")
            if cell.published is not None:
                drawing.dot(_x(cell.published / whole, low, high), y, 3.5, "ink", hollow=True)
    return drawing


def _named(drawing: Drawing, y: float, row: str) -> None:
    """Left of a row, in two lines where it is long."""
    first, *rest = textwrap.wrap(row, 44)
    drawing.text(4, y - 1 if rest else y + 3, first, size=8 if rest else 9)
    if rest:
        drawing.text(4, y + 8, " ".join(rest), size=8)


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _axes(column: Column, rows: int, low: float, high: float, title: str, *, name: str = "") -> Drawing:
    height = 16 + _ROW * rows + 30
    drawing = Drawing(_LEFT + _PLOT + 30, height, title)
    for step in range(5):
        value = low + (high - low) * step / 4
        x = _x(value, low, high)
        drawing.line(x, 12, x, height - 26, "line")
        drawing.text(x - 8, height - 13, f"{value:g}", "muted", size=8)
    drawing.text(_LEFT, 9, f"{name or column.name}{', %' if unit_name(column) else ''}", "muted", size=8)
    return drawing


def _x(value: float, low: float, high: float) -> float:
    return _LEFT + _PLOT * (min(max(value, low), high) - low) / (high - low)


def _values(cell: Cell) -> list[float]:
    found = [cell.published] if cell.published is not None else []
    if cell.estimate:
        found += [v for v in (cell.estimate.value, cell.estimate.low, cell.estimate.high) if math.isfinite(v)]
    return found


def _range(column: Column, values: Sequence[float]) -> tuple[float, float]:
    if column.measure == "success":
        return 0.0, 1.0 if column.share else 100.0
    return 0.0, max(5.0, math.ceil(max(values, default=5.0)))


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "-" for c in name.lower())
