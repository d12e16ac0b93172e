"""A study's report: one page, its tables for a paper, its figures as files; and an index over studies."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vlm4vla.reports import account, asked, sections, tables, videos, why
from vlm4vla.reports.ability import ability_tables
from vlm4vla.reports.findings import difference, findings, incomplete, number
from vlm4vla.reports.markup import Html, element, section
from vlm4vla.reports.overview import overview
from vlm4vla.reports.page import document, listed_problems
from vlm4vla.reports.published import separable, separated
from vlm4vla.reports.results import write_whole
from vlm4vla.reports.scores import NOT_STARTED, Cell, RowPair, StudyScores, score
from vlm4vla.reports.study_figures import figures_of, unit_name
from vlm4vla.reports.tables import DASH, Table
from vlm4vla.studies.study import Study


def write_study_report(study: Study, runs: Path, out: Path) -> Path:
    """Write `out`/index.html, tables.md, tables.tex, scores.json and figures/*.svg|pdf; the page's path.

    `runs` is the folder that the study's trials lie in. Whatever is missing or damaged is told in the page.
    """
    scores = score(study, runs)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    held, damaged = why.read(scores, runs)
    answered, unreadable = asked.read(scores, runs)
    shown = [*tables_of(scores), fairness_table(scores), *asked.tables(answered, scores), *why.tables(held)]
    told = findings(scores, answered)
    sentences = [*told, *incomplete([*scores.problems, *unreadable, *damaged])]
    listed = ["\n".join(f"- {sentence}" for sentence in sentences)] if sentences else []
    write_whole(out / "tables.md", "\n\n".join([*listed, *(table.markdown() for table in shown)]) + "\n")
    write_whole(out / "tables.tex", "\n\n".join(table.latex() for table in shown) + "\n")
    write_whole(out / "scores.json", json.dumps(_plain(scores), indent=1, ensure_ascii=False) + "\n")
    plotted = asked.figure(answered, scores)
    drawn = figures_of(scores) | ({} if plotted is None else {"vlms": plotted}) | why.figures(held)
    for name, drawing in drawn.items():
        write_whole(out / "figures" / f"{name}.svg", drawing.svg(alone=True) + "\n")
        (out / "figures" / f"{name}.pdf").write_bytes(drawing.pdf())
    path = out / "index.html"
    measured = [
        ("asked", "VLMs", asked.asked_section(answered, scores)),
        ("why", "Why", why.why_section(held)),
    ]
    write_whole(path, page(scores, measured, [*unreadable, *damaged], told))
    return path


def write_index(studies: Iterable[Study], runs: Path, out: Path) -> Path:
    """Write `out`/index.html: every study, how far it is, and where its report is, if it has one; and Figure 1."""
    body, drawn = [], []
    for study in studies:
        scores = score(study, runs)
        if (figure := overview(scores)) is not None:
            drawn.append(element("div", figure.svg(), class_="card scroll"))
        trials = len(study.trials)
        started = trials - len(scores.missing)
        unfinished = {name for name, problem in scores.problems if problem != NOT_STARTED}
        page_there = (out / study.name / "index.html").is_file()
        title = element("a", study.title, href=f"{study.name}/index.html") if page_there else study.title
        if not started:
            state = "not started"
        elif scores.missing or unfinished:
            state = f"incomplete: {started} of {trials} trials begun"
        else:
            state = "complete"
        cells = (study.question, str(len(study.rows)), f"{started} of {trials}", state)
        body.append(
            element("tr", element("th", title, scope="row"), *(element("td", cell) for cell in cells))
        )
    columns = sections.head(("study", "question", "rows", "trials begun", "state"))
    table = element("table", columns, element("tbody", *body), class_="sortable")
    head = element("header", element("p", "vlm4vla studies", class_="eyebrow"), element("h1", "Studies"))
    path = out / "index.html"
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, document("Studies", [head, element("div", table, class_="card scroll"), *drawn]))
    return path


def page(
    scores: StudyScores,
    measured: Sequence[tuple[str, str, Html | None]] = (),
    damaged: Sequence[tuple[str, str]] = (),
    told: Sequence[str] = (),
) -> str:
    """The page as text. `measured`: further sections, identity and name before each; `damaged`: problems beside those
    of the scores; `told`: the findings.
    """
    study = scores.study
    drawn = [drawing.svg() for drawing in figures_of(scores).values()]
    shown = tables_of(scores)
    notes = element("ul", *(element("li", note) for note in study.notes)) if study.notes else None
    parts: list[tuple[str, str, Html | None]] = [
        ("table", "Table", _main_section(scores, shown[0], notes)),
        ("figures", "Figures", _figures_section(drawn)),
        *(
            (f"more-{number}", table.title.partition(":")[0], _table_section(f"more-{number}", table))
            for number, table in enumerate(shown[1:])
        ),
        *measured,
        ("fairness", "Fairness", _fairness(scores)),
        ("rollouts", "Rollouts", videos.rollouts(scores.records, study.row_of) if scores.records else None),
        ("curves", "Learning curves", sections.curves(scores.records) if scores.records else None),
        ("time", "Time", account.costs(scores.records) if scores.records else None),
        ("recipes", "Recipes", account.recipes(scores.records) if scores.records else None),
    ]
    present = [(identity, name, part) for identity, name, part in parts if part is not None]
    links = [element("a", name, href=f"#{identity}") for identity, name, _ in present]
    head = element(
        "header",
        element("p", f"vlm4vla study · {study.name}", class_="eyebrow"),
        element("h1", f"{study.title}: {study.question}"),
        element("p", _kept_together(_headline(scores)), class_="lede"),
        _found(told),
        element("nav", *links, aria_label="Sections"),
    )
    return document(
        f"{study.title} · {study.question}",
        [head, listed_problems([*scores.problems, *damaged]), *(part for _, _, part in present), _method()],
    )


def tables_of(scores: StudyScores) -> list[Table]:
    """Ours beside published; then what else there is to tell: checkpoints, pairs, what the published n can separate."""
    found = [main_table(scores)]
    chosen = _selection_table(scores)
    pairs = _pairs_table(scores.pairs)
    within = _within_table(scores.within)
    printed = (separable(scores.study), separated(scores.study))
    further = (_steps_table(scores), chosen, pairs, within, *printed)
    found += [table for table in further if table is not None and table.rows]
    return [*found, *ability_tables(scores)]


def main_table(scores: StudyScores) -> Table:
    """A row of ours and one of the paper's, where both are."""
    rows = []
    anything = any(cell.published is not None for cell in scores.cells.values())
    for row in scores.study.rows:
        cells = [scores.cells.get((row.name, name)) for name in scores.study.column_names]
        if any(cell is not None and cell.published is not None for cell in cells):
            rows.append((f"{row.name} · published", *(_published(cell) for cell in cells)))
        if row.trials:
            marks = [scores.letters.get((row.name, name), "") for name in scores.study.column_names]
            ours = [_ours(cell, mark) for cell, mark in zip(cells, marks, strict=True)]
            rows.append((f"{row.name} · ours" if anything else row.name, *ours))
    return Table(
        f"{scores.study.title}: {scores.study.question}", ("row", *_heads(scores.study)), tuple(rows)
    )


def _heads(study: Study) -> list[str]:
    return [f"{c.name}, {unit_name(c)}" if unit_name(c) else c.name for c in study.columns]


def _published(cell: Cell | None) -> str:
    return DASH if cell is None or cell.published is None else f"{cell.published:g}"


def _ours(cell: Cell | None, mark: str) -> str:
    if cell is None or cell.estimate is None:
        return DASH
    errors = f", {cell.errors} broke" if cell.errors else ""
    seeds = f" in {len(cell.seeds)} seeds" if len(cell.seeds) > 1 else ""
    return f"{number(cell.estimate, cell.column)}{f' {mark}' if mark else ''} (n = {cell.episodes}{seeds}{errors})"


def _steps_table(scores: StudyScores) -> Table | None:
    """Paper Figure 4 in numbers, where several checkpoints were evaluated."""
    cells = [cell for cell in scores.cells.values() if len(cell.by_step) > 1]
    steps = sorted({step for cell in cells for step in cell.by_step})
    rows = tuple(
        (
            cell.row,
            cell.column.name,
            *(f"{cell.by_step[step]:.2f}" if step in cell.by_step else DASH for step in steps),
        )
        for cell in cells
    )
    columns = ("row", "column", *(f"step {step:,}" for step in steps))
    return Table("Checkpoints: what each scored, executing as the score's", columns, rows)


def _selection_table(scores: StudyScores) -> Table | None:
    rows = tuple(
        (
            cell.row,
            cell.column.name,
            str(cell.selection.tries),
            f"{cell.selection.reported:.2f}",
            number(cell.selection.honest, cell.column),
            f"{cell.selection.bias:+.2f}",
        )
        for cell in scores.cells.values()
        if cell.selection is not None
    )
    columns = ("row", "column", "tries", "best of them", "chosen on other episodes", "what choosing adds")
    return Table("Selection: the best of several checkpoints and ways to execute", columns, rows)


def _pairs_table(pairs: Sequence[RowPair]) -> Table | None:
    rows = tuple((pair.first, pair.second, pair.column.name, *_compared(pair)) for pair in pairs)
    return Table("Pairs: which rows differ", ("row", "against", "column", *_COMPARED), rows)


def _within_table(pairs: Sequence[RowPair]) -> Table | None:
    rows = tuple((pair.first, pair.column.name, pair.against.name, *_compared(pair)) for pair in pairs)
    title = "Columns: which cells of a row differ, on the same episodes"
    return Table(title, ("row", "column", "against", *_COMPARED), rows)


_COMPARED = ("difference", "corrected p", "", "n for 80 % power")


def _compared(pair: RowPair) -> tuple[str, ...]:
    return (
        difference(pair),
        tables.p_text(pair.adjusted_p),
        "differ" if pair.differs else "not told apart",
        DASH if pair.needed is None else f"{pair.needed:,}",
    )


def _headline(scores: StudyScores) -> str:
    done = sum(cell.estimate is not None for cell in scores.cells.values())
    possible = sum(bool(row.trials) for row in scores.study.rows) * len(scores.study.columns)
    if not done:
        return "None of its trials has been scored yet; the numbers below are the published ones."
    told = sum(pair.differs for pair in scores.pairs)
    state = "Complete" if not scores.problems else "Incomplete"
    across = sum(pair.differs for pair in scores.within)
    beside = f" and {across} of {len(scores.within)} pairs of a row's cells" if scores.within else ""
    return (
        f"{state}: {done} of {possible} cells are scored. {told} of {len(scores.pairs)} pairs of rows{beside} differ "
        "at a family-wise error of 5 %."
    )


def _found(told: Sequence[str]) -> Html | None:
    if not told:
        return None
    return element("ul", *(element("li", _kept_together(sentence)) for sentence in told), class_="findings")


def _kept_together(text: str) -> str:
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _main_section(scores: StudyScores, table: Table, notes: Html | None) -> Html:
    text = (
        "Mean with its 95 % interval, n scored episodes. Rows of a column that share a letter are not shown to differ. "
        "Published numbers are as printed; the paper reports the best over checkpoints and ways to execute."
    )
    shown = element("div", sections.plain_table(table), class_="card scroll")
    return section("table", scores.study.title, text, shown, notes)


def _table_section(identity: str, table: Table) -> Html:
    name, _, rest = table.title.partition(": ")
    return section(identity, name, rest, element("div", sections.plain_table(table), class_="card scroll"))


def _figures_section(drawn: Sequence[Html]) -> Html | None:
    if not drawn:
        return None
    note = (
        "Filled: ours with a 95 % interval. Hollow: published. Boxes: quartiles over checkpoints, each of them a small "
        "dot. The same figures lie beside this page as SVG and PDF."
    )
    return section("figures", "Figures", note, *(element("div", svg, class_="card scroll") for svg in drawn))


def fairness_table(scores: StudyScores) -> Table:
    """Every field in which trials of one column differ, those that the table is about left out."""
    rows = tuple(
        (
            difference.name,
            difference.trial or "all",
            "; ".join(f"{value}: {', '.join(names)}" for value, names in _grouped(difference.values).items()),
        )
        for difference in scores.differences
        if not difference.intended
    )
    told = f"fields that differ: {len(rows) or 'none'}"
    title = f"Fairness: beside what the table is about ({', '.join(scores.study.about)}), {told}"
    return Table(title, ("field", "of the trials", "values"), rows)


def _fairness(scores: StudyScores) -> Html:
    table = fairness_table(scores)
    note = "Trials that fill one column should differ in what the table is about, and in nothing else."
    about = ", ".join(scores.study.about)
    if not table.rows:
        return section("fairness", "Fairness", note, element("p", f"They differ in {about} alone."))
    intro = element("p", f"The table is about {about}. Beside it, {len(table.rows)} fields differ:")
    shown = element("div", sections.plain_table(table), class_="card scroll")
    return section("fairness", "Fairness", note, intro, shown)


def _grouped(values: Mapping[str, object]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row, value in values.items():
        found.setdefault(str(value), []).append(row)
    return found


def _method() -> Html:
    paragraphs = (
        "Rates carry Wilson's interval, chain lengths a bootstrap over episodes; over several seeds a t interval of "
        "the seeds' means. Pairs: McNemar's exact test on shared episodes (Fisher's otherwise), sign flips for chains, "
        "a paired t test over seeds; corrected with Holm's method within a column, or within a row.",
        "Scores are those of the evaluation that the recipe names first. An episode in which the program broke is in "
        "no rate and is counted beside it.",
    )
    return element("footer", *(element("p", text) for text in paragraphs))


def _plain(scores: StudyScores) -> dict[str, object]:
    cells = [
        {
            "row": cell.row,
            "column": cell.column.name,
            "published": cell.published,
            "ours": None if cell.estimate is None else round(cell.estimate.value, 6),
            "interval": None
            if cell.estimate is None or not math.isfinite(cell.estimate.low)
            else [round(cell.estimate.low, 6), round(cell.estimate.high, 6)],
            "episodes": cell.episodes,
            "seeds": sorted(cell.seeds),
            "checkpoints": {step: round(value, 6) for step, value in sorted(cell.by_step.items())},
            "errors": cell.errors,
            "tries": dict(cell.tries),
            "letters": scores.letters.get((cell.row, cell.column.name), ""),
            "problems": list(cell.problems),
        }
        for cell in scores.cells.values()
    ]
    fairness = [
        {"field": d.name, "trial": d.trial, "values": dict(d.values), "intended": d.intended}
        for d in scores.differences
    ]
    return {"cells": cells, "fairness": fairness}
