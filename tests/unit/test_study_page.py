"""A study's report: page, tables and figures, whatever of the study is there."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from run_folders import two_rows, write_trial

from vlm4vla.cli import main
from vlm4vla.core.recipes import fingerprint
from vlm4vla.demonstrations.scripted import SCRIPTED
from vlm4vla.reports.drawing import Drawing
from vlm4vla.reports.overview import overview
from vlm4vla.reports.scores import score
from vlm4vla.reports.study_figures import figures_of
from vlm4vla.reports.study_page import main_table, write_index, write_study_report
from vlm4vla.reports.tables import Table
from vlm4vla.studies.paper import STUDIES


def test_a_report_has_its_tables_and_figures(tmp_path: Path) -> None:
    made = two_rows(tmp_path)
    path = write_study_report(made, tmp_path, tmp_path / "reports" / made.name)
    text = path.read_text()
    for part in ('id="table"', 'id="figures"', 'id="fairness"', 'id="recipes"', 'id="incomplete"'):
        assert part in text, part
    assert "1 of 1 pairs of rows differ" in text and "http" not in re.sub(
        r"http://www\.w3\.org|http-equiv", "", text
    )
    beside = {p.name for p in path.parent.rglob("*") if p.is_file()}
    assert beside == {
        "index.html",
        "tables.md",
        "tables.tex",
        "scores.json",
        "scores-look-a.svg",
        "scores-look-a.pdf",
    }
    assert "good · ours" in (path.parent / "tables.md").read_text()
    index = write_index([made, *(make("paper") for make in STUDIES.values())], tmp_path, tmp_path / "reports")
    assert f'href="{made.name}/index.html"' in index.read_text() and "not started" in index.read_text()
    assert (
        index.read_text().count("Every VLM from the worst to the best score") == 2
    )  # drawn: its title, and the words


def test_the_overview_is_of_published_numbers_until_there_are_ours(tmp_path: Path) -> None:
    study = STUDIES["figure-1"]("paper")
    assert main(["study", "figure-1", "--report", "--out", str(tmp_path)]) == 0
    alone = ElementTree.parse(tmp_path / "reports" / "figure-1" / "figures" / "overview.svg").getroot()
    dots = [child for child in alone if child.tag.endswith("circle")]
    assert len(dots) == 9 * 12 and {dot.attrib["fill"] for dot in dots} == {"var(--paper)"}
    joined = [c for c in alone if c.tag.endswith("line") and c.attrib["stroke"] == "var(--muted)"]
    assert len(joined) == 9 * (5 + 4)  # CALVIN's six columns, SimplerEnv's five, LIBERO by itself
    # The best of task 1 is at the top of its band, the worst at the bottom of its own.
    printed = [row.published["task-1"] for row in study.rows]
    heights = [float(dot.attrib["cy"]) - 36 * index for index, dot in enumerate(dots[::12])]
    assert heights.index(min(heights)) == printed.index(max(printed))
    assert heights.index(max(heights)) == printed.index(min(printed)) and max(heights) - min(heights) == 26

    row = study.rows[2]
    trial = row.trials["calvin"]
    trial = replace(trial, evaluations=(replace(trial.evaluations[0], episodes_per_task=4),))
    write_trial(tmp_path, trial, skill=0.5)
    rows = (*study.rows[:2], replace(row, trials={**row.trials, "calvin": trial}), *study.rows[3:])
    drawn = overview(score(replace(study, rows=rows), tmp_path))
    assert drawn is not None and drawn.svg().count('fill="var(--accent)"') == 6
    assert overview(score(STUDIES["figure-3"]("paper"), tmp_path)) is None


def test_ours_stands_beside_published(tmp_path: Path) -> None:
    rows = {row[0]: row[1] for row in main_table(score(two_rows(tmp_path), tmp_path)).rows}
    assert rows["good · published"] == "50"
    assert re.fullmatch(r"\d\d\.\d \[\d\d\.\d, \d\d\.\d\] a \(n = 180\)", rows["good · ours"])
    assert rows["bad · ours"].endswith("b (n = 177, 3 broke)")


def test_scores_on_scripted_demonstrations_stand_in_rows_of_their_own(tmp_path: Path) -> None:
    """They say so in every table and figure, and no published number stands in their row."""
    made = two_rows(tmp_path)
    (trial,) = made.rows[0].trials.values()
    kept = tmp_path / "trials" / fingerprint(trial) / "provenance.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "scripted": "by a test"}))
    scores = score(made, tmp_path)
    own = f"good ({SCRIPTED})"
    assert [row.name for row in scores.study.rows] == ["good", own, "bad"]
    assert [row[0] for row in main_table(scores).rows] == [
        *("good · published", f"{own} · ours"),
        *("bad · published", "bad · ours"),
    ]
    assert scores.cells["good", "look A"].estimate is None and scores.cells[own, "look A"].published is None
    assert scores.cells[own, "look A"].episodes == 180 and [p.first for p in scores.pairs] == [own]
    path = write_study_report(made, tmp_path, tmp_path / "report")
    for name in ("index.html", "tables.md", "tables.tex", "scores.json"):
        assert SCRIPTED in (path.parent / name).read_text(), name
    drawn = ElementTree.parse(path.parent / "figures" / "scores-look-a.svg").getroot()
    words = " ".join(element.text or "" for element in drawn.iter() if element.tag.endswith("text"))
    assert own in words


def test_the_command_reports_a_study_that_was_never_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "table-2", "--report", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "qwen3-vl-4b · published" in printed and str(tmp_path / "reports" / "index.html") in printed
    page = (tmp_path / "reports" / "table-2" / "index.html").read_text()
    assert "None of its trials has been scored yet" in page and "0 of 66" in page


def test_latex_is_escaped() -> None:
    table = Table("50 % & more", ("row", "a_b"), (("x", "1 \N{EM DASH} #2"),))
    text = table.latex()
    assert r"\caption{50 \% \& more}" in text and r"row & a\_b \\" in text and r"1 --- \#2" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2


def drawing() -> Drawing:
    made = Drawing(100, 50, "a <figure>")
    made.line(0, 10, 100, 10, "line", dashed=True)
    made.box(10, 20, 30, 10, "ink", fill="paper")
    made.dot(50, 25, 4, "accent", hollow=True)
    made.text(5, 40, "(n = 3) \\ é", size=8)
    return made


def test_a_drawing_is_valid_svg() -> None:
    root = ElementTree.fromstring(drawing().svg(alone=True))
    tags = [child.tag.rpartition("}")[2] for child in root]
    assert tags == ["title", "style", "line", "rect", "circle", "text"]
    assert root.attrib["viewBox"] == "0 0 100 50" and root[0].text == "a <figure>"


def test_what_a_drawing_tells_is_in_the_page_and_its_files_are_pictures() -> None:
    made = drawing()
    alone, pdf = made.svg(alone=True), made.pdf()
    with made.telling("good: 3 <4>", "good"):
        made.line(0, 30, 100, 30, "accent")
        made.dot(50, 30, 3, "accent")
    made.text(5, 45, "after")
    root = ElementTree.fromstring(made.svg())
    assert [child.tag for child in root] == ["title", "line", "rect", "circle", "text", "g", "text"]
    told = root[5]
    assert told.get("data-row") == "good" and told.findtext("title") == "good: 3 <4>"
    assert [child.get("class") for child in told] == [None, None, None, "near"], "room around a thin line"
    again = drawing()
    again.line(0, 30, 100, 30, "accent")
    again.dot(50, 30, 3, "accent")
    again.text(5, 45, "after")
    assert made.svg(alone=True) == again.svg(alone=True) != alone
    assert made.pdf() == again.pdf() != pdf


def test_figures_tell_row_value_interval_and_n(tmp_path: Path) -> None:
    scores = score(two_rows(tmp_path), tmp_path)
    root = ElementTree.fromstring(figures_of(scores)["scores-look-a"].svg())
    told = {group.get("data-row"): group.findtext("title") for group in root.findall("g")}
    ours = {row: scores.cells[row, "look A"].estimate for row in ("good", "bad")}
    for row, n in (("good", 180), ("bad", 177)):
        estimate = ours[row]
        assert estimate is not None
        numbers = f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}], n = {n}"
        assert told[row] == f"{row}: {numbers}; published 50"


def test_a_drawing_is_a_pdf_whose_places_are_right() -> None:
    data = drawing().pdf()
    start = int(data.rsplit(b"startxref\n", 1)[1].split()[0])
    assert data[start : start + 4] == b"xref"
    places = [int(line[:10]) for line in data[start:].splitlines()[3:8]]
    for number, place in enumerate(places, start=1):
        assert data[place:].startswith(b"%d 0 obj" % number)
    stream = data.split(b"stream\n", 1)[1].split(b"\nendstream")[0]
    content = zlib.decompress(stream).decode("latin-1")
    assert r"(\(n = 3\) \\ é) Tj" in content and content.count(" c") == 4 and "[3 3] 0 d" in content
