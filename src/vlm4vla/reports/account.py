"""The sections of the page that account for it: time spent, recipes, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm4vla.core.recipes import to_json
from vlm4vla.reports import figures, tables
from vlm4vla.reports.markup import Html, element, section
from vlm4vla.reports.records import TrialRecord
from vlm4vla.reports.results import labels
from vlm4vla.reports.sections import policy_name

PHASES = ("demonstrations", "train", "evaluate")


def costs(records: Sequence[TrialRecord]) -> Html:
    """Wall time of every trial by phase, and the energy of training and evaluation where it was readable."""
    names, looks = labels(records), figures.marks(records)
    longest = max((sum(record.seconds.values()) for record in records), default=0.0)
    told = any(record.joules for record in records)
    body = []
    for record in records:
        parts = {phase: record.seconds.get(phase, 0.0) for phase in PHASES}
        cells = [
            element("td", duration(record.seconds.get(phase)), class_="number", data_sort=parts[phase])
            for phase in PHASES
        ]
        whole = sum(parts.values())
        if told:
            joules = sum(record.joules.get(phase, 0.0) for phase in PHASES[1:]) if record.joules else None
            cells.append(element("td", energy(joules), class_="number", data_sort=joules or 0.0))
        body.append(
            element(
                "tr",
                policy_name(record, names, looks),
                element("td", duration(whole), class_="number", data_sort=whole),
                element("td", figures.stack(parts, longest)),
                *cells,
            )
        )
    keys = [[element("span", class_=f"key part-{i}"), phase] for i, phase in enumerate(PHASES)]
    heads = (["policy"], ["time"], [""], *keys, *([["energy"]] if told else []))
    columns = element("thead", element("tr", *(element("th", *c, scope="col") for c in heads)))
    table = element("table", columns, element("tbody", *body), class_="sortable")
    note = "Wall-clock time on the machine named under each recipe. Demonstrations are made once and shared. "
    note += (
        "Energy: what the whole machine's processors and GPUs spent on training and evaluation, and on whatever ran "
        f"beside them; {tables.DASH}: not readable on this machine."
        if told
        else "Energy: not readable on this machine."
    )
    return section("time", "What it cost in time", note, element("div", table, class_="card scroll"))


def recipes(records: Sequence[TrialRecord]) -> Html:
    """The full recipe and provenance of every trial, folded."""
    names, looks = labels(records), figures.marks(records)
    folded = []
    for record in records:
        groups: list[tuple[str, Mapping[str, Any]]] = []
        if record.trial is not None and record.weights != "given":
            data = to_json(record.trial)
            groups = [(part, data[part]) for part in ("policy", "demonstrations", "train")]
        groups += [(f"evaluation {e.fingerprint}", to_json(e.recipe)) for e in record.evaluations]
        groups.append(("provenance", {"trial": record.fingerprint, **record.provenance}))
        summary = element(
            "summary",
            figures.swatch(looks[record.fingerprint]),
            names[record.fingerprint],
            element("small", record.trial.name if record.trial else "", f" {record.fingerprint}"),
        )
        lists = [element("div", element("h4", title), _pairs(values)) for title, values in groups]
        folded.append(element("details", summary, element("div", *lists, class_="recipe")))
    note = "Everything that can change a result, and where each row was made."
    return section("recipes", "Recipes and provenance", note, element("div", *folded, class_="folded"))


def total_seconds(records: Sequence[TrialRecord]) -> float:
    """Wall time of all trials; demonstrations that several share count once."""
    shared: dict[Any, float] = {}
    own = 0.0
    for record in records:
        key = record.trial.demonstrations if record.trial else record.fingerprint
        shared[key] = max(shared.get(key, 0.0), record.seconds.get("demonstrations", 0.0))
        own += sum(record.seconds.get(phase, 0.0) for phase in PHASES[1:])
    return own + sum(shared.values())


def duration(seconds: float | None) -> str:
    """`2 h 05 min`, `7 min 12 s`, `3.2 s`, or a dash when there was none."""
    if not seconds:
        return tables.DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def energy(joules: float | None) -> str:
    """`431 J`, `12.3 kJ`, `4.56 MJ`, or a dash for what was not readable."""
    if joules is None:
        return tables.DASH
    for size, name, digits in ((1e6, "MJ", 2), (1e3, "kJ", 1)):
        if joules >= size:
            return f"{joules / size:.{digits}f} {name}"
    return f"{joules:.0f} J"


def _pairs(values: Mapping[str, Any]) -> Html:
    entries = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            value = [f"{key} {_plain(key, item)}" for key, item in value.items()]
        entries += [element("dt", name), element("dd", _plain(name, value))]
    return element("dl", *entries)


def _plain(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or ("every task" if name == "tasks" else "none")
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "default"}[value]
    return str(value)
