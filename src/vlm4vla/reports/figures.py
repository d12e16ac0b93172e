"""Figures as inline SVG: intervals, success by task, learning curves.

Positions are percentages, so that a figure fills any width while its text and strokes keep their size. Colours are
CSS variables of the page; a backbone has a hue, filled marks are pretrained weights and hollow ones random weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlm4vla.reports.estimates import Estimate
from vlm4vla.reports.markup import Html, element
from vlm4vla.reports.records import TrialRecord
from vlm4vla.reports.results import ALL, Row
from vlm4vla.reports.tables import percent

HUES = 6
LANE = 13
CURVE_POINTS = 160


@dataclass(frozen=True, slots=True)
class Mark:
    """How a policy looks in every figure."""

    hue: str
    """A CSS class, `hue-0` to `hue-5` or `hue-none`."""
    hollow: bool

    @property
    def css(self) -> str:
        """Its CSS classes."""
        return f"{self.hue} hollow" if self.hollow else self.hue


def marks(records: Sequence[TrialRecord]) -> dict[str, Mark]:
    """A mark per trial: hue by backbone, or by trial where a backbone has several trials of the same weights."""
    trained = [record for record in records if record.is_trained]
    arms = [(record.backbone, record.weights) for record in trained]
    by_backbone = len(set(arms)) == len(arms)
    keys = list(dict.fromkeys(r.backbone if by_backbone else r.fingerprint for r in trained))
    found = {}
    for record in records:
        if not record.is_trained:
            found[record.fingerprint] = Mark("hue-none", hollow=False)
            continue
        key = record.backbone if by_backbone else record.fingerprint
        found[record.fingerprint] = Mark(f"hue-{keys.index(key) % HUES}", hollow=record.weights == "random")
    return found


def swatch(mark: Mark) -> Html:
    """The mark as it stands in legends and beside names."""
    dot = element("circle", cx="6", cy="6", r="4", class_="dot")
    return element("svg", dot, class_=f"swatch {mark.css}", width="12", height="12", aria_hidden="true")


def plain_words(task: str) -> str:
    """A task's name to be read: `push left`."""
    return task.replace("_", " ")


def interval(estimate: Estimate, mark: Mark, *, title: str) -> Html:
    """A rate and its interval on a track from 0 to 100 %."""
    return element(
        "svg",
        element("title", title),
        element("line", x1="0", x2="100%", y1="50%", y2="50%", class_="track"),
        *_interval(estimate, "50%"),
        class_=f"interval {mark.css}",
        role="img",
    )


def difference(estimate: Estimate, *, title: str) -> Html:
    """A difference of rates and its interval on a track from -100 to +100 points, zero in the middle."""
    scaled = Estimate(*((value + 1) / 2 for value in (estimate.value, estimate.low, estimate.high)))
    sure = estimate.low > 0 or estimate.high < 0
    return element(
        "svg",
        element("title", title),
        element("line", x1="0", x2="100%", y1="50%", y2="50%", class_="track"),
        element("line", x1="50%", x2="50%", y1="0", y2="100%", class_="zero"),
        *_interval(scaled, "50%"),
        class_="interval difference" + (" sure" if sure else ""),
        role="img",
    )


def success_by_task(
    policies: Mapping[str, Sequence[Row]], names: Mapping[str, str], looks: Mapping[str, Mark]
) -> Html:
    """Every task with one lane per policy: the dot is the rate, the bar its interval."""
    tasks = sorted({(row.tier, row.task) for rows in policies.values() for row in rows if row.task != ALL})
    found = {(policy, row.tier, row.task): row for policy, rows in policies.items() for row in rows}
    shown = [policy for policy, rows in policies.items() if any(row.task != ALL for row in rows)]
    height = LANE * len(shown) + 14
    grid = [
        element("line", x1=f"{x}%", x2=f"{x}%", y1="0", y2="100%", class_="grid") for x in range(0, 101, 25)
    ]
    lines: list[Html] = []
    previous = ""
    for tier, task in tasks:
        if tier != previous:
            lines.append(element("h4", tier))
            previous = tier
        lanes = []
        for index, policy in enumerate(shown):
            row = found.get((policy, tier, task))
            if row is None or row.estimate is None:
                continue
            text = f"{names[policy]} on {task}: {percent(row.estimate)}, {row.successes} of {row.episodes}"
            y = f"{7 + LANE * (index + 0.5):g}"
            drawn = (element("title", text), *_interval(row.estimate, y))
            lanes.append(element("g", *drawn, class_=looks[policy].css, data_row=names[policy]))
        label = f"Success on {task}, {len(lanes)} policies, 0 to 100 %"
        plot = element("svg", *grid, *lanes, class_="lanes", height=height, role="img", aria_label=label)
        lines.append(
            element("div", element("span", plain_words(task), class_="task"), plot, class_="lane-row")
        )
    axis = [
        element("text", f"{x} %", x=f"{x}%", y="12", text_anchor="middle", class_="tick")
        for x in range(0, 101, 25)
    ]
    scale = element("svg", *axis, class_="lanes", height="16", aria_hidden="true")
    lines.append(element("div", element("span"), scale, class_="lane-row"))
    return element("div", *lines, class_="success-plot")


def learning_curves(
    records: Sequence[TrialRecord], names: Mapping[str, str], looks: Mapping[str, Mark]
) -> Html:
    """Held-out loss of all trials together, then train and held-out loss of each; one logarithmic scale."""
    curves = {
        record.fingerprint: {split: record.curve(split) for split in ("train", "held_out")}
        for record in records
    }
    curves = {key: value for key, value in curves.items() if any(value.values())}
    if not curves:
        return Html("")
    every = [point for splits in curves.values() for curve in splits.values() for point in curve]
    scale = _Scale(max(step for step, _ in every), *loss_bounds([loss for _, loss in every if loss > 0]))
    panels = []
    if sum(bool(splits["held_out"]) for splits in curves.values()) > 1:
        together = [
            (names[key], "held_out", splits["held_out"], looks[key].css) for key, splits in curves.items()
        ]
        legend_entries = [
            element("li", swatch(looks[key]), names[key], data_row=names[key])
            for key, splits in curves.items()
            if splits["held_out"]
        ]
        panels.append(
            element(
                "figure",
                element("figcaption", element("strong", "Held-out loss, all policies")),
                _plot(scale, together, height=260, label="Held-out loss of every policy over training steps"),
                element("ul", *legend_entries, class_="legend"),
                class_="card wide",
            )
        )
    for key, splits in curves.items():
        last = [
            f"{name} {splits[s][-1][1]:.3f}"
            for s, name in (("train", "train"), ("held_out", "held-out"))
            if splits[s]
        ]
        panels.append(
            element(
                "figure",
                element(
                    "figcaption",
                    swatch(looks[key]),
                    element("strong", names[key]),
                    element("small", "last: " + ", ".join(last)),
                ),
                _plot(
                    scale,
                    [(names[key], split, curve, looks[key].css) for split, curve in splits.items()],
                    height=170,
                    label=f"Train and held-out loss of {names[key]}",
                ),
                class_="card",
            )
        )
    return element("div", *panels, class_="curves")


def stack(parts: Mapping[str, float], total: float) -> Html:
    """Shares of a total as one bar; `total` is the full width."""
    bars, x = [], 0.0
    for index, (name, value) in enumerate(parts.items()):
        width = 100 * value / total if total else 0.0
        title = element("title", f"{name}: {value:.0f} s")
        bars.append(
            element("rect", title, x=f"{x:.2f}%", width=f"{width:.2f}%", height="10", class_=f"part-{index}")
        )
        x += width
    return element("svg", *bars, class_="stack", height="10", role="img", aria_label="Share of the time")


@dataclass(frozen=True, slots=True)
class _Scale:
    """Steps and losses to percentages of a plot; losses logarithmic."""

    steps: int
    low: float
    high: float

    def x(self, step: float) -> float:
        return 100 * step / max(self.steps, 1)

    def y(self, loss: float) -> float:
        share = math.log(max(loss, self.low) / self.low) / math.log(self.high / self.low)
        return 100 * (1 - min(max(share, 0.0), 1.0))


def _plot(
    scale: _Scale,
    curves: Sequence[tuple[str, str, Sequence[tuple[int, float]], str]],
    *,
    height: int,
    label: str,
) -> Html:
    parts = []
    for loss in loss_ticks(scale.low, scale.high):
        y = f"{scale.y(loss):.2f}%"
        parts.append(element("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
        parts.append(element("text", f"{loss:g}", x="-8", y=y, dy="0.32em", text_anchor="end", class_="tick"))
    parts.append(element("line", x1="0", x2="100%", y1="100%", y2="100%", class_="base"))
    for share in (0, 0.5, 1):
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        text = f"{round(scale.steps * share):,}" + (" steps" if share == 1 else "")
        parts.append(
            element(
                "text", text, x=f"{100 * share:g}%", y=str(height + 18), text_anchor=anchor, class_="tick"
            )
        )
    lines, dots = [], []
    for name, split, curve, css in curves:
        drawn = _thinned(curve) if split == "train" else list(curve)
        path = " ".join(f"{10 * scale.x(step):.1f},{10 * scale.y(loss):.1f}" for step, loss in drawn)
        said = element("title", f"{name}: {split.replace('_', '-')} loss")
        lines.append(element("polyline", said, points=path, class_=f"curve {split} {css}", data_row=name))
        if split == "held_out":
            for step, loss in drawn:
                title = element("title", f"{name}: held-out loss {loss:.4f} at step {step:,}")
                x, y = f"{scale.x(step):.2f}%", f"{scale.y(loss):.2f}%"
                dots.append(element("circle", title, cx=x, cy=y, r="3.2", class_=f"dot {css}", data_row=name))
    inner = element(
        "svg", *lines, viewBox="0 0 1000 1000", preserveAspectRatio="none", width="100%", height="100%"
    )
    return element("svg", *parts, inner, *dots, class_="plot", height=height, role="img", aria_label=label)


def _interval(estimate: Estimate, y: str) -> list[Html]:
    low, value, high = (f"{100 * v:.2f}%" for v in (estimate.low, estimate.value, estimate.high))
    return [
        element("line", x1=low, x2=high, y1=y, y2=y, class_="bar"),
        element("circle", cx=value, cy=y, r="4", class_="dot"),
    ]


def _thinned(curve: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most CURVE_POINTS means of neighbouring points."""
    size = math.ceil(len(curve) / CURVE_POINTS) if curve else 1
    groups = [curve[i : i + size] for i in range(0, len(curve), size)]
    return [(sum(s for s, _ in g) / len(g), sum(v for _, v in g) / len(g)) for g in groups]


def loss_bounds(losses: Sequence[float]) -> tuple[float, float]:
    """Bounds of the loss axis at round numbers around the losses."""
    low, high = min(losses, default=0.1), max(losses, default=1.0)
    return _round(low, up=False), max(_round(high, up=True), _round(low, up=False) * 2)


def _round(value: float, *, up: bool) -> float:
    decade = 10.0 ** math.floor(math.log10(value))
    steps = [1, 1.5, 2, 3, 5, 7, 10]
    if up:
        return decade * next(step for step in steps if decade * step >= value * (1 - 1e-9))
    return decade * next(step for step in reversed(steps) if decade * step <= value * (1 + 1e-9))


def loss_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of every decade within the bounds."""
    first = math.floor(math.log10(low))
    last = math.ceil(math.log10(high))
    ticks = [float(f"{m}e{e}") for e in range(first, last + 1) for m in (1, 2, 5)]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
