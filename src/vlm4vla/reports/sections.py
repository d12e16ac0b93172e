"""The sections of the page that conclude: success, weights, learning curves. One with nothing to say is None."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from vlm4vla.core.recipes import EvaluationRecipe
from vlm4vla.reports import figures, tables
from vlm4vla.reports.figures import Mark, plain_words
from vlm4vla.reports.markup import Html, element, section
from vlm4vla.reports.records import EvaluationRecord, TrialRecord
from vlm4vla.reports.results import (
    ALL,
    Row,
    evaluation_rows,
    labels,
    setting_labels,
    settings,
    weights_comparisons,
)

Entries = Sequence[tuple[TrialRecord, EvaluationRecord]]


def success(
    identity: str, recipe: EvaluationRecipe, entries: Entries, records: Sequence[TrialRecord]
) -> Html | None:
    """Overview by tier, the plot by task, and the table by task, of one evaluation setting."""
    names, looks = labels(records), figures.marks(records)
    policies = {record.fingerprint: evaluation_rows(record, evaluation) for record, evaluation in entries}
    scored = [(record, evaluation) for record, evaluation in entries if evaluation.episodes]
    if not scored:
        return None
    setting = setting_labels(settings(records))[recipe]
    if any(evaluation.is_chain for _, evaluation in scored):
        table = tables.chain_table(setting, entries, names)
        note = f"{setting}. Goals completed in a row, mean with its 95 % bootstrap interval over episodes."
        return section(
            identity, "Chains of goals", note, element("div", plain_table(table), class_="card scroll")
        )
    tiers = sorted({row.tier for rows in policies.values() for row in rows if row.tier != ALL})
    columns = ("policy", "all tasks", *tiers, "errors")
    body = []
    for record, _ in entries:
        found = {row.tier: row for row in policies[record.fingerprint] if row.task == ALL}
        whole = found[ALL]
        cells = [
            _rate(found.get(tier), looks[record.fingerprint], column, bar=True)
            for tier, column in zip((ALL, *tiers), columns[1:], strict=False)
        ]
        css = "number" if whole.errors else "number none"
        errors = element("td", _errors(whole), class_=css, data_label="errors", data_sort=whole.errors)
        row = (policy_name(record, names, looks), *cells, errors)
        body.append(element("tr", *row, data_row=names[record.fingerprint]))
    overview = element("table", head(columns), element("tbody", *body), class_="overview sortable")
    legend = element("ul", *(_legend(r, names, looks) for r, _ in scored), class_="legend")
    plot = figures.success_by_task(policies, names, looks)
    return section(
        identity,
        "Success",
        f"{setting}. Share of episodes solved with its 95 % interval, how many of how many below.",
        element("div", overview, class_="card scroll"),
        element("div", legend, plot, class_="card"),
        element(
            "details", element("summary", "Every task in numbers"), _by_task(policies, scored, names, looks)
        ),
    )


def weights(records: Sequence[TrialRecord]) -> Html | None:
    """Pretrained against random weights, wherever both were scored alike."""
    found = weights_comparisons(records)
    if not found:
        return None
    looks, titles = figures.marks(records), setting_labels(settings(records))
    body = []
    for (key, recipe), group in groupby(found, key=lambda arms: (arms.pretrained.fingerprint, arms.recipe)):
        pairs = list(group)
        first = pairs[0]
        losses = [(r.weights, r.final_loss()) for r in (first.pretrained, first.random)]
        held_out = " against ".join(f"{loss:.3f} {name}" for name, loss in losses if loss is not None)
        same = (
            "otherwise equal recipes"
            if not first.differing
            else f"recipes differ in {', '.join(first.differing)}"
        )
        facts = [titles[recipe], same, *([f"held-out loss {held_out}"] if held_out else [])]
        heading = element("div", first.pretrained.backbone, element("small", " · ".join(facts)))
        name = element("div", figures.swatch(looks[key]), heading, class_="name")
        body.append(element("tr", element("th", name, colspan=4), class_="group arms"))
        for arms in pairs:
            value = arms.comparison.difference
            text = tables.points(value)
            estimate, interval = text.split(" ", 1)
            title = f"{arms.tier}: pretrained minus random {text} points"
            how = "paired, same episodes" if arms.comparison.paired else "different episodes"
            body.append(
                element(
                    "tr",
                    element("td", "all tasks" if arms.tier == ALL else arms.tier, class_="tier"),
                    element("td", figures.difference(value, title=title), class_="plot-cell"),
                    element("td", element("b", estimate), " ", element("small", interval), class_="number"),
                    element(
                        "td",
                        tables.p_text(arms.comparison.p_value),
                        " ",
                        element("small", how),
                        class_="number",
                    ),
                )
            )
    columns = head(("tier", f"{tables.MINUS}100 to +100 points", "difference", "exact test"))
    return section(
        "weights",
        "Pretrained against random weights",
        "Success from pretrained weights minus success from random ones, in percentage points with a 95 % interval.",
        element(
            "div", element("table", columns, element("tbody", *body), class_="weights"), class_="card scroll"
        ),
    )


def curves(records: Sequence[TrialRecord]) -> Html | None:
    """Learning curves of every trained trial."""
    drawn = figures.learning_curves(records, labels(records), figures.marks(records))
    if not drawn:
        return None
    note = (
        "Loss on a logarithmic scale over training steps. Thin: demonstrations trained on. With dots: "
        "held-out demonstrations, the one to judge by. Dashed: random weights."
    )
    return section("curves", "Learning curves", note, drawn)


def plain_table(table: tables.Table) -> Html:
    """A table of text as HTML."""
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell, class_="number") for cell in row[1:]),
            data_row=row[0].removesuffix(" · published").removesuffix(" · ours"),
        )
        for row in table.rows
    ]
    return element("table", head(table.columns), element("tbody", *body), class_="sortable")


def _by_task(
    policies: Mapping[str, Sequence[Row]],
    scored: Entries,
    names: Mapping[str, str],
    looks: Mapping[str, Mark],
) -> Html:
    shown = [record.fingerprint for record, _ in scored]
    found = {(policy, row.tier, row.task): row for policy in shown for row in policies[policy]}
    tasks = sorted({(tier, task) for _, tier, task in found if task != ALL})
    body = []
    for tier, group in groupby(tasks, key=lambda pair: pair[0]):
        body.append(element("tr", element("th", tier, colspan=len(shown) + 1), class_="group"))
        for _, task in group:
            cells = [_rate(found.get((p, tier, task)), looks[p], names[p], bar=False) for p in shown]
            body.append(element("tr", element("th", plain_words(task), scope="row"), *cells))
    return element(
        "div",
        element(
            "table", head(("task", *(names[p] for p in shown))), element("tbody", *body), class_="sortable"
        ),
        class_="scroll",
    )


def _rate(row: Row | None, mark: Mark, label: str, *, bar: bool) -> Html:
    if row is None or row.estimate is None:
        broke = f" {row.errors} broke" if row and row.errors else ""
        return element("td", "not scored" + broke, class_="rate unscored", data_label=label, data_sort=-1)
    text = tables.percent(row.estimate)
    rate, interval = text.split(" [")
    count = f"{row.successes}/{row.episodes}"
    return element(
        "td",
        element("b", rate),
        " ",
        element("small", f"[{interval}"),
        figures.interval(row.estimate, mark, title=f"{label}: {text}, {count} episodes")
        if bar
        else element("br"),
        element("small", count),
        element("span", f" {row.errors} broke", class_="broke") if row.errors and not bar else None,
        class_="rate",
        data_label=label,
        data_sort=f"{row.estimate.value:.6f}",
    )


def _errors(row: Row) -> Html:
    return element("span", f"{row.errors} broke", class_="broke") if row.errors else element("small", "none")


def policy_name(record: TrialRecord, names: Mapping[str, str], looks: Mapping[str, Mark]) -> Html:
    """The heading cell of a policy's row."""
    first, _, rest = names[record.fingerprint].partition(", ")
    complete = not record.problems and not any(evaluation.problems for evaluation in record.evaluations)
    text = element(
        "div",
        first,
        element("small", rest) if rest else None,
        None if complete else element("a", "incomplete", href="#incomplete", class_="broke"),
    )
    return element(
        "th", element("div", figures.swatch(looks[record.fingerprint]), text, class_="name"), scope="row"
    )


def _legend(record: TrialRecord, names: Mapping[str, str], looks: Mapping[str, Mark]) -> Html:
    name = names[record.fingerprint]
    return element("li", figures.swatch(looks[record.fingerprint]), name, data_row=name)


def head(columns: Iterable[str]) -> Html:
    """The heading row of a table."""
    return element("thead", element("tr", *(element("th", column, scope="col") for column in columns)))
