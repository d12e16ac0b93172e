"""Sentences that say what a study shows, and what it does not."""

from __future__ import annotations

from pathlib import Path

from run_folders import make_trial, small_study, two_rows, write_trial

from vlm4vla.reports.findings import findings, incomplete
from vlm4vla.reports.scores import NOT_STARTED, StudyScores, score
from vlm4vla.reports.study_page import write_study_report
from vlm4vla.studies.study import Study

NAMES = ("tiny-qwen3-vl", "tiny-qwen2.5-vl", "tiny-kosmos-2", "tiny-paligemma-1")


def rows_of(out: Path, *skills: float) -> Study:
    """A row for every skill."""
    rows = []
    for name, skill in zip(NAMES, skills, strict=False):
        trial = make_trial(name)
        write_trial(out, trial, skill=skill)
        rows.append((name, {"tabletop": trial}))
    return small_study(*rows)


def test_two_rows_are_compared(tmp_path: Path) -> None:
    study = two_rows(tmp_path)
    scores = score(study, tmp_path)
    (sentence,) = findings(scores)
    (pair,) = scores.pairs
    gap = 100 * pair.comparison.difference.value
    assert sentence.startswith(f"look A, %: good against bad {gap:.1f} [") and sentence.endswith("p < 0.001")
    path = write_study_report(study, tmp_path, tmp_path / "report")
    assert f"- {sentence}\n" in (path.parent / "tables.md").read_text()
    assert '<ul class="findings"><li>look A,\N{NO-BREAK SPACE}%: ' in path.read_text()


def test_what_is_not_told_apart_is_said(tmp_path: Path) -> None:
    (sentence,) = findings(score(rows_of(tmp_path / "alike", 0.5, 0.5), tmp_path / "alike"))
    assert "not told apart (a power of 80 % takes " in sentence or sentence.endswith("not told apart")
    (sentence,) = findings(score(rows_of(tmp_path / "three", 0.5, 0.5, 0.5), tmp_path / "three"))
    assert sentence.startswith("look A, %: no two of 3 rows are told apart; from ")


def test_the_highest_row_is_told_apart_from_some(tmp_path: Path) -> None:
    scores = score(rows_of(tmp_path, 0.9, 0.88, 0.3, 0.1), tmp_path)
    (sentence,) = findings(scores)
    best, other = sorted(NAMES[:2], key=lambda name: -value(scores, name))
    assert sentence.startswith(f"look A, %: {best} is highest, ")
    assert f"told apart from 2 of 3 others; not from {other}. 5 of 6 pairs of rows differ" in sentence


def test_equal_rows_lead_together(tmp_path: Path) -> None:
    (sentence,) = findings(score(rows_of(tmp_path, 1, 1, 0), tmp_path))
    assert "tiny-qwen3-vl and tiny-qwen2.5-vl are highest, 93.3 [" in sentence
    assert "told apart from 1 of 1 others" in sentence


def test_a_changed_record_is_told_wherever_its_score_is(tmp_path: Path) -> None:
    study = two_rows(tmp_path)
    scores = score(study, tmp_path)
    told = incomplete(scores.problems)
    assert any("episodes broke" in sentence for sentence in told)
    path = next(tmp_path.glob("trials/*/evaluations/*/episodes.jsonl"))
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(first[:-20] + "\n" + "".join(rest))
    write_study_report(study, tmp_path, tmp_path / "report")
    found = set(incomplete(score(study, tmp_path).problems)) - set(told)
    assert any("line 1" in sentence for sentence in found)
    tables = (tmp_path / "report" / "tables.md").read_text()
    assert all(f"- {sentence}\n" in tables for sentence in found)


def test_trials_that_were_not_started_are_counted() -> None:
    problems = [("a", NOT_STARTED), ("b", "broke"), ("c", NOT_STARTED)]
    assert incomplete(problems) == ["Incomplete: b: broke", "Incomplete: 2 trials have not been started"]


def test_nothing_is_said_of_one_row_or_none(tmp_path: Path) -> None:
    made = rows_of(tmp_path, 0.5)
    assert findings(score(made, tmp_path)) == findings(score(made, tmp_path / "empty")) == []
    write_study_report(made, tmp_path, tmp_path / "report")
    assert 'class="findings"' not in (tmp_path / "report" / "index.html").read_text()


def value(scores: StudyScores, row: str) -> float:
    estimate = scores.cells[row, "look A"].estimate
    assert estimate is not None
    return estimate.value
