"""Curves over the layers of every row, and success against what was measured, as small panels side by side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlm4vla.reports.drawing import Drawing, Ink
from vlm4vla.studies.representation import Measured, Why

_SIDES: tuple[tuple[str, Ink, bool], ...] = (("before", "muted", True), ("after", "accent", False))
"""Of training: the ink of its dots, and whether they are hollow."""
_ZONES = (("vision", "vision"), ("image", "picture"), ("query", "query"))
"""Word in a place's name, and what a reader sees: vision's layers, and language's at the picture and at the query."""
_LEFT, _TOP, _GAP = 26.0, 40.0, 34.0
_WIDTH, _HEIGHT = 146.0, 74.0
_ACROSS = 3
_SCATTER = (204.0, 130.0)
_INKS: tuple[Ink, ...] = ("accent", "ink", "muted")

Point = tuple[float, float, str, str, str]
"""Measure, success, backbone, weights, row."""
Course = tuple[Sequence[tuple[int, float]], str, str, str]
"""(step, measure) by step, backbone, weights, row."""


def curves(rows: Mapping[str, Sequence[Why]], title: str) -> Drawing:
    """A row of panels for every row of a study: CKA, then the error of every probe before and after training.

    Dots are means over a row's runs, bars their range over seeds or the interval of a single run.
    """
    targets = list(dict.fromkeys(r.target for of_row in rows.values() for r in of_row[0].layers[0].after))
    panels = ["CKA, before against after", *(f"{target}, cm off" for target in targets)]
    height = _TOP + len(rows) * (_HEIGHT + _GAP)
    drawing = Drawing(len(panels) * (_LEFT + _WIDTH) + 8, height + 24, title)
    errors = [
        100 * reading.error.value
        for of_row in rows.values()
        for why in of_row
        for layer in why.layers
        for reading in (*layer.before, *layer.after)
    ]
    most = 5 * math.ceil(max(errors, default=5) * 1.05 / 5)
    for column, name in enumerate(panels):
        drawing.text(_left(column), 11, name, size=9)
    for index, (row, of_row) in enumerate(rows.items()):
        top = _TOP + index * (_HEIGHT + _GAP)
        drawing.text(_left(0), top - 7, row, "muted", size=8.5)
        places = [layer.place for layer in of_row[0].layers]
        xs = _places(places)
        for column in range(len(panels)):
            _panel(drawing, _left(column), top, 1.0 if column == 0 else most)
        levels = [[layer.chance for layer in why.layers] for why in of_row]
        chance = [Measured(value=v, low=v, high=v) for v in np.mean(levels, axis=0).tolist()]
        _curve(drawing, places, xs, chance, _left(0), top, 1.0, "muted", hollow=None)
        moved = [_range([why.layers[i].similarity for why in of_row]) for i in range(len(places))]
        _curve(drawing, places, xs, moved, _left(0), top, 1.0, "accent", hollow=False, told=(row, "CKA"))
        for column, target in enumerate(targets, start=1):
            blind = [_blind(of_row, i, target) for i in range(len(places))]
            _curve(drawing, places, xs, blind, _left(column), top, most, "muted", hollow=None)
            for side, ink, hollow in _SIDES:
                found = [
                    _range(
                        [
                            _times(r.error, 100)
                            for why in of_row
                            for r in getattr(why.layers[i], side)
                            if r.target == target
                        ]
                    )
                    for i in range(len(places))
                ]
                told = (row, f"{target} {side} training, cm off")
                _curve(drawing, places, xs, found, _left(column), top, most, ink, hollow=hollow, told=told)
        for column in range(len(panels)):
            _zones(drawing, places, xs, _left(column), top)
    _key(drawing, height + 8)
    return drawing


def scatter(measures: Sequence[tuple[str, Sequence[Point]]], title: str, success: str) -> Drawing:
    """A panel for every measure, a dot for every run: filled from pretrained weights, hollow from scratch."""
    backbones = list(dict.fromkeys(point[2] for _, points in measures for point in points))
    tops = [point[1] for _, points in measures for point in points]
    most = 100.0 if max(tops, default=1) > 5 else 5.0 if max(tops, default=1) > 1 else 1.0
    drawing = _grid(len(measures), title)
    for index, (measure, points) in enumerate(measures):
        panel = _Panel(index, _axis([point[0] for point in points]), (0.0, most))
        panel.frame(drawing, measure)
        for value, score, backbone, weights, row in points:
            ink = _INKS[backbones.index(backbone) % len(_INKS)]
            with drawing.telling(f"{row}: {measure} {value:.3g}, success {score:.3g}, one run", row):
                drawing.dot(*panel.at(value, score), 3.2, ink, hollow=weights == "random")
    _legend(drawing, backbones, f"Upwards: success, {success}")
    return drawing


def courses(measures: Sequence[tuple[str, Sequence[Course]]], title: str) -> Drawing:
    """A panel for every measure, a line for every run from before its training on: dashed from scratch."""
    backbones = list(dict.fromkeys(course[1] for _, of_measure in measures for course in of_measure))
    drawing = _grid(len(measures), title)
    for index, (measure, of_measure) in enumerate(measures):
        points = [point for course in of_measure for point in course[0]]
        most = _axis([0.0, *(value for _, value in points)])[1]
        panel = _Panel(index, (0.0, float(max(step for step, _ in points))), (0.0, most))
        panel.frame(drawing, measure)
        for told, backbone, weights, row in of_measure:
            ink = _INKS[backbones.index(backbone) % len(_INKS)]
            for before, after in itertools.pairwise(told):
                drawing.line(
                    *panel.at(*before), *panel.at(*after), ink, width=1.2, dashed=weights == "random"
                )
            for step, value in told:
                with drawing.telling(f"{row}: {measure} {value:.3g} at step {step:,}, one run", row):
                    drawing.dot(*panel.at(step, value), 2.2, ink, hollow=weights == "random")
    _legend(drawing, backbones, "To the right: steps of training")
    return drawing


@dataclass(frozen=True, slots=True)
class _Panel:
    """One of a grid of panels, with its axes' ends."""

    index: int
    across: tuple[float, float]
    upwards: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies."""
        (left, right), (low, high) = self.across, self.upwards
        share, height = (x - left) / (right - left), (y - low) / (high - low)
        return self._left + _SCATTER[0] * share, self._top + _SCATTER[1] * (1 - height)

    def frame(self, drawing: Drawing, name: str) -> None:
        """Its name, lines and numbers."""
        left, right = self._left, self._left + _SCATTER[0]
        drawing.text(left, self._top - 12, name, size=9)
        for share in (0.0, 0.5, 1.0):
            value = self.upwards[0] + share * (self.upwards[1] - self.upwards[0])
            y = self.at(self.across[0], value)[1]
            drawing.line(left, y, right, y, "line")
            drawing.text(left - 22, y + 3, f"{value:.3g}", "muted", size=8)
            value = self.across[0] + share * (self.across[1] - self.across[0])
            x = left + _SCATTER[0] * share - 14 * share
            drawing.text(x, self._top + _SCATTER[1] + 12, f"{value:g}", "muted", size=8)

    @property
    def _left(self) -> float:
        return 24 + (self.index % _ACROSS) * (_SCATTER[0] + _LEFT)

    @property
    def _top(self) -> float:
        return 26 + (self.index // _ACROSS) * (_SCATTER[1] + 52)


def _grid(panels: int, title: str) -> Drawing:
    rows = math.ceil(panels / _ACROSS)
    return Drawing(_ACROSS * (_SCATTER[0] + _LEFT) + 8, rows * (_SCATTER[1] + 52) + 22, title)


def _legend(drawing: Drawing, backbones: Sequence[str], text: str) -> None:
    x, y = 24.0, drawing.height - 8
    for number, name in enumerate(backbones):
        drawing.dot(x + 3, y - 3, 3.2, _INKS[number % len(_INKS)])
        drawing.text(x + 11, y, name, "muted", size=8.5)
        x += 22 + 4.6 * len(name)
    drawing.text(x, y, f"hollow: from scratch.  {text}", "muted", size=8.5)


def _left(column: int) -> float:
    return _LEFT + column * (_LEFT + _WIDTH)


def _places(places: Sequence[str]) -> list[float]:
    """Across a panel: zones take turns, with a gap between them."""
    zones = [_zone(place) for place in places]
    ordered = sorted(range(len(places)), key=lambda i: (zones[i], i))
    steps, last = 0.0, -1
    found = [0.0] * len(places)
    for i in ordered:
        steps += 0.0 if last < 0 else 1.0 if zones[i] == last else 1.8
        found[i], last = steps, zones[i]
    return [8 + (_WIDTH - 16) * x / max(steps, 1.0) for x in found]


def _zone(place: str) -> int:
    return next(number for number, (word, _) in enumerate(_ZONES) if word in place.split())


def _panel(drawing: Drawing, left: float, top: float, most: float) -> None:
    for share in (0.0, 0.5, 1.0):
        y = top + _HEIGHT * (1 - share)
        drawing.line(left, y, left + _WIDTH, y, "line")
        text = f"{most * share:g}"
        drawing.text(left - 4 - 4.6 * len(text), y + 3, text, "muted", size=8)


def _curve(
    drawing: Drawing,
    places: Sequence[str],
    xs: Sequence[float],
    values: Sequence[Measured],
    left: float,
    top: float,
    most: float,
    ink: Ink,
    *,
    hollow: bool | None,
    told: tuple[str, str] = ("", ""),
) -> None:
    """Lines within a zone, bars, dots; without dots where `hollow` is None, which is then dashed.

    `told`: of which row the dots tell what.
    """

    def y(value: float) -> float:
        return top + _HEIGHT * (1 - min(max(value, 0.0), most) / most)

    for zone in range(len(_ZONES)):
        inside = [i for i, place in enumerate(places) if _zone(place) == zone]
        for a, b in itertools.pairwise(inside):
            drawing.line(
                left + xs[a],
                y(values[a].value),
                left + xs[b],
                y(values[b].value),
                ink,
                dashed=hollow is None,
            )
    if hollow is None:
        return
    for x, found, place in zip(xs, values, places, strict=True):
        row, what = told
        text = f"{row}, {place}: {what} {found.value:.3g} [{found.low:.3g}, {found.high:.3g}]"
        with drawing.telling(text, row):
            drawing.line(left + x, y(found.low), left + x, y(found.high), ink, width=1.5)
            drawing.dot(left + x, y(found.value), 2.2, ink, hollow=hollow)


def _zones(drawing: Drawing, places: Sequence[str], xs: Sequence[float], left: float, top: float) -> None:
    for number, (_, name) in enumerate(_ZONES):
        inside = [x for place, x in zip(places, xs, strict=True) if _zone(place) == number]
        if inside:
            drawing.text(left + min(inside) - 3, top + _HEIGHT + 10, name, "muted", size=7.5)


def _key(drawing: Drawing, y: float) -> None:
    x = _LEFT
    for side, ink, hollow in _SIDES:
        drawing.dot(x + 3, y - 3, 2.2, ink, hollow=hollow)
        drawing.text(x + 10, y, f"{side} training", "muted", size=8.5)
        x += 84
    drawing.line(x, y - 3, x + 14, y - 3, "muted", dashed=True)
    drawing.text(x + 18, y, "of features that have nothing to do with it", "muted", size=8.5)


def _range(values: Sequence[Measured]) -> Measured:
    """Mean, and the range over seeds; the interval of a single one."""
    if len(values) == 1:
        return values[0]
    numbers = [value.value for value in values]
    return Measured(value=float(np.mean(numbers)), low=min(numbers), high=max(numbers))


def _blind(of_row: Sequence[Why], place: int, target: str) -> Measured:
    """How far off the mean of other scenes is, in cm: from a probe's error and the share that it explains."""
    readings = [r for why in of_row for r in why.layers[place].after if r.target == target]
    known = [100 * r.error.value / math.sqrt(max(1 - r.r_squared.value, 1e-9)) for r in readings]
    mean = float(np.mean(known))
    return Measured(value=mean, low=mean, high=mean)


def _times(found: Measured, scale: float) -> Measured:
    return Measured(value=scale * found.value, low=scale * found.low, high=scale * found.high)


def _axis(values: Sequence[float]) -> tuple[float, float]:
    """Round ends around the values."""
    low, high = min(values), max(values)
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-9)))
    step = step / 2 if (high - low) / step < 3 else step
    low, high = step * math.floor(low / step), step * math.ceil(high / step)
    return low, high if high > low else low + step
