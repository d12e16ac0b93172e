"""The paper's Figure 3 drawn: a VLM's general ability against its success, a panel for every robot benchmark."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from vlm4vla.reports.ability import Assumption, Numbers, ability, correlated, published_outcomes
from vlm4vla.reports.drawing import Drawing
from vlm4vla.reports.scores import StudyScores
from vlm4vla.studies.published import FIGURE_3
from vlm4vla.studies.vlm_scores import vlm_scores

SIDE, GAP, TOP = 220.0, 60.0, 24.0
"""Of a panel, between panels, above them."""
_LETTER = 8.0


def ability_figure(scores: StudyScores) -> Drawing | None:
    """Nothing weighted down; specialised VLMs hollow; the line of least squares through all; None for other studies."""
    held = vlm_scores()
    outcomes = published_outcomes(scores.study, held)
    if scores.study.title != "Figure 3" or set(outcomes) != set(FIGURE_3):
        return None
    numbers = ability(held, Assumption(1.0))
    drawing = Drawing(
        GAP / 2 + len(FIGURE_3) * (SIDE + GAP),
        TOP + SIDE + 40,
        "Mean of published scores on general benchmarks against published success, nothing weighted down",
    )
    for place, (column, printed) in enumerate(FIGURE_3.items()):
        left = GAP / 2 + place * (SIDE + GAP)
        found = correlated(numbers, outcomes[column])
        assert found is not None, "nine VLMs"
        title = f"{column}: r = {found.r.value:.2f}, R² = {found.r_squared:.2f} (published r {printed:.2f})"
        axis = "mean of reported scores, % (hollow: specialised VLMs)"
        panel(drawing, left, title, axis, numbers, outcomes[column], filled=held.general)
    return drawing


def panel(
    drawing: Drawing,
    left: float,
    title: str,
    axis: str,
    first: Numbers,
    second: Numbers,
    *,
    filled: Collection[str],
    rows: Mapping[str, str] | None = None,
) -> None:
    """Two numbers of every model against each other, named, with the line of least squares; hollow but for `filled`.

    `rows`: which row a model is, where it has another name.
    """
    x, y = (_range([*numbers.values()]) for numbers in (first, second))

    def at(a: float, b: float) -> tuple[float, float]:
        across, up = (a - x[0]) / (x[1] - x[0]), (b - y[0]) / (y[1] - y[0])
        return left + SIDE * across, TOP + SIDE * (1 - up)

    drawing.text(left, TOP - 10, title)
    drawing.box(left, TOP, SIDE, SIDE, "line")
    for low, high, horizontal in ((*x, True), (*y, False)):
        for value in (low, high):
            px, py = at(value, y[0]) if horizontal else at(x[0], value)
            shown = (px - 6, py + 12) if horizontal else (px - 24, py + 3)
            drawing.text(*shown, f"{value:.3g}", "muted", size=8)
    drawing.text(left, TOP + SIDE + 24, axis, "muted", size=8)
    slope, offset = _line(first, second)
    drawing.line(*at(x[0], offset + slope * x[0]), *at(x[1], offset + slope * x[1]), "accent", dashed=True)
    places = sorted((at(value, second[name])[::-1], name) for name, value in first.items())
    words = -_LETTER
    for (py, px), name in places:
        words = max(py + 3, words + _LETTER)  # below one another, where dots are too near
        beside = px - 4.4 * len(name) - 2 if px > left + 0.6 * SIDE else px + 6
        with drawing.telling(
            f"{name}: {first[name]:.1f} across, {second[name]:.1f} upwards", (rows or {}).get(name, name)
        ):
            drawing.dot(px, py, 3.5, "ink", hollow=name not in filled)
            drawing.text(beside, words, name, "muted", size=7)


def _line(first: Numbers, second: Numbers) -> tuple[float, float]:
    """Slope and offset."""
    names = list(first)
    mean_x, mean_y = (sum(numbers[n] for n in names) / len(names) for numbers in (first, second))
    spread = sum((first[n] - mean_x) ** 2 for n in names)
    slope = sum((first[n] - mean_x) * (second[n] - mean_y) for n in names) / spread
    return slope, mean_y - slope * mean_x


def _range(values: list[float]) -> tuple[float, float]:
    edge = 0.12 * (max(values) - min(values))
    return min(values) - edge, max(values) + edge
