"""The report: one HTML page that needs nothing but itself, with the same numbers as results.json beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from vlm4vla.reports import account, sections, videos
from vlm4vla.reports.markup import Html, element, join
from vlm4vla.reports.records import TrialRecord, collect
from vlm4vla.reports.results import (
    Row,
    evaluation_rows,
    labels,
    setting_labels,
    settings,
    write_results,
    write_whole,
)
from vlm4vla.reports.tables import incomplete, percent

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; media-src data:"
"""The browser is told to load nothing from anywhere, whatever a file's text might say."""
PROBLEMS_SHOWN = 8


def write_report(out: Path, *, title: str) -> Path:
    """Read all trials under `out` and write report.html, results.json and results.csv there; the page's path.

    Raises: RunError when there are no trials. Damaged or unfinished ones are shown as incomplete.
    """
    out = Path(out)
    records = collect(out)
    write_results(records, out)
    path = out / "report.html"
    write_whole(path, page(records, title=title))
    return path


def page(records: Sequence[TrialRecord], *, title: str) -> str:
    """The whole page as text."""
    parts: list[tuple[str, str, Html | None]] = []
    titles = setting_labels(settings(records))
    for number, (recipe, entries) in enumerate(settings(records).items()):
        identity = f"success-{number}"
        name = "Success" if len(titles) == 1 else f"Success ({titles[recipe].split(', ')[1]})"
        parts.append((identity, name, sections.success(identity, recipe, entries, records)))
    parts += [
        ("rollouts", "Rollouts", videos.rollouts(records)),
        ("weights", "Weights", sections.weights(records)),
        ("curves", "Learning curves", sections.curves(records)),
        ("time", "Time", account.costs(records)),
        ("recipes", "Recipes", account.recipes(records)),
    ]
    shown = [(identity, name, part) for identity, name, part in parts if part is not None]
    links = [element("a", name, href=f"#{identity}") for identity, name, _ in shown]
    head = element(
        "header",
        element("p", "vlm4vla report", class_="eyebrow"),
        element("h1", title),
        element("p", headline(records), class_="lede"),
        _facts(records),
        element("nav", *links, aria_label="Sections"),
    )
    parts_shown = [part for _, _, part in shown]
    return document(title, [head, listed_problems(incomplete(records)), *parts_shown, _method(records)])


def document(title: str, parts: Sequence[Html | None]) -> str:
    """A page that needs nothing but itself, and is allowed nothing else."""
    whole = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", http_equiv="Content-Security-Policy", content=POLICY),
            element("link", rel="icon", href="data:,"),
            element("title", title),
            element("style", _asset("page.css")),
        ),
        element("body", element("div", *parts, class_="page"), element("script", _asset("page.js"))),
        lang="en",
    )
    return f"<!doctype html>\n{whole}\n"


def headline(records: Sequence[TrialRecord]) -> Html:
    """One sentence: what was measured, and what came out for the best policy and the random one."""
    names = labels(records)
    for recipe, entries in settings(records).items():
        found = [(record, evaluation_rows(record, evaluation)[0]) for record, evaluation in entries]
        trained = [(record, row) for record, row in found if record.is_trained and row.rate is not None]
        chance = [row for record, row in found if not record.is_trained and row.rate is not None]
        if not trained:
            continue
        best, row = max(trained, key=lambda pair: pair[1].rate or 0.0)
        who = element("span", names[best.fingerprint], class_="nowrap")
        subject: list[str] = (
            [who] if len(trained) == 1 else [f"the best of {len(trained)} trained policies, ", who, ","]
        )
        sentence = [f"On {setting_labels(settings(records))[recipe]}, ", *subject, " ", *_solved(row)]
        if chance:
            sentence += ["; the random policy ", *_solved(chance[0])]
        return join([*sentence, "."])
    return join(["No trained policy has been scored yet, so nothing can be concluded about success."])


def _solved(row: Row) -> list[str]:
    return [
        "solved ",
        element("span", percent(row.estimate), class_="nowrap"),
        f" of {row.episodes} episodes",
    ]


def _facts(records: Sequence[TrialRecord]) -> Html:
    episodes = [e for record in records for evaluation in record.evaluations for e in evaluation.episodes]
    errors = sum(episode.error is not None for episode in episodes)
    facts = [
        ("policies", f"{len(records)}"),
        ("scored episodes", f"{len(episodes) - errors:,}"),
        ("episodes that broke", f"{errors}"),
        ("time in all", account.duration(account.total_seconds(records))),
    ]
    return element(
        "dl",
        *(element("div", element("dt", name), element("dd", value)) for name, value in facts),
        class_="facts",
    )


def listed_problems(problems: Sequence[tuple[str, str]]) -> Html | None:
    """What is incomplete, as (who, sentence), in a box; None when nothing is."""
    if not problems:
        return None
    entries = [element("li", element("strong", name), f": {problem}") for name, problem in problems]
    rest = entries[PROBLEMS_SHOWN:]
    more = element("details", element("summary", f"{len(rest)} more"), element("ul", *rest)) if rest else None
    heading = element("h2", "These results are incomplete")
    shown = element("ul", *entries[:PROBLEMS_SHOWN])
    return element("div", heading, shown, more, class_="card warning", id="incomplete", role="note")


def _method(records: Sequence[TrialRecord]) -> Html:
    paragraphs = [
        "Rates carry Wilson's 95 % interval. Differences carry Newcombe's, and McNemar's exact test where both "
        "policies played the same episodes, Fisher's otherwise. No correction is made for looking at many rows, and "
        "the best of several policies tends to look better than it is.",
        "An episode in which the program broke is an error: it is counted beside the rate and never inside it.",
    ]
    ours = [record for record in records if record.is_trained and record.weights != "given"]
    trained = [record.trial for record in ours if record.trial is not None]
    seeds = Counter(replace(trial, name="", train=replace(trial.train, seed=0)) for trial in trained)
    if trained and max(seeds.values()) == 1:
        paragraphs.append(
            "Every policy was trained once, with one seed: the intervals cover the choice of episodes, not what "
            "another seed would have given."
        )
    return element("footer", *(element("p", paragraph) for paragraph in paragraphs))


def _asset(name: str) -> Html:
    """A style or script of this package, put into the page as it is."""
    return Html(resources.files("vlm4vla.reports").joinpath(name).read_text(encoding="utf-8"))
