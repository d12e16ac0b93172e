"""What a study's VLMs answer before they become policies, and how that goes with success."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from run_folders import make_trial, small_study, write_json, write_trial

from vlm4vla.cli import main
from vlm4vla.core.recipes import TaskRecipe, TuneRecipe, fingerprint, to_json
from vlm4vla.reports import asked as reported
from vlm4vla.reports.findings import findings
from vlm4vla.reports.scores import score
from vlm4vla.reports.study_page import write_study_report
from vlm4vla.studies.answers import FOLDER, Asked
from vlm4vla.studies.study import Study, StudyRow
from vlm4vla.tuning.answering import AnsweringVLM
from vlm4vla.tuning.examples import Exchange
from vlm4vla.tuning.scoring import score as answered
from vlm4vla.tuning.scoring import value_of
from vlm4vla.tuning.tasks import open_task

VLMS = ("tiny-qwen3-vl", "tiny-qwen2.5-vl", "tiny-paligemma-1", "tiny-paligemma-2", "tiny-kosmos-2")


def keep(folder: Path, task: str, right: int, of: int = 20) -> Path:
    path = folder / FOLDER / f"{fingerprint(task)}.json"
    path.parent.mkdir(exist_ok=True)
    values = (1.0,) * right + (0.0,) * (of - right)
    write_json(path, to_json(Asked(task=task, questions="q", values=values, unreadable=1)))
    return path


def rows_of(out: Path, rights: list[int], **tunings: TuneRecipe) -> tuple[Study, list[Path]]:
    """Rows that succeed the more often the more their VLMs answer right."""
    rows, folders = [], []
    for number, right in enumerate(rights):
        tuning = tunings.get(f"row_{number}")
        trial = make_trial(VLMS[0 if tuning else number])
        trial = dataclasses.replace(trial, name=f"row {number}", tuning=tuning)
        folder = write_trial(out, trial, skill=0.2 + 0.035 * right)
        keep(folder, "tabletop-pretraining", right)
        keep(folder, "tabletop-vica", 20 - right)
        rows.append((f"vlm, row {number}", {"tabletop": trial}))
        folders.append(folder)
    return small_study(*rows), folders


def test_what_goes_with_success_is_told(tmp_path: Path) -> None:
    study, _ = rows_of(tmp_path, [2, 5, 9, 14, 18])
    scores = score(study, tmp_path)
    found, problems = reported.read(scores, tmp_path)
    assert not problems and [a.row for a in found] == [f"vlm, row {n}" for n in range(5)]
    told, correlations = reported.tables(found, scores)
    by_task = dict(zip(told.columns, told.rows[1], strict=True))
    assert by_task["tabletop-pretraining, n = 20"] == "25 [11, 47], 1 unreadable"
    by_task = {row[1]: row for row in correlations.rows}
    assert float(by_task["tabletop-pretraining"][2]) > 0.9 > -0.9 > float(by_task["tabletop-vica"][2])
    assert "mean of all tasks" not in by_task, "20 right of 40 in every row: nothing can go with it"
    assert {row[6] for row in correlations.rows} == {"5"}


def test_a_vlm_counts_once_however_many_policies_were_made_of_it(tmp_path: Path) -> None:
    study, _ = rows_of(tmp_path, [2, 5, 9, 14, 18])
    frozen = {}
    for row in study.rows[:2]:
        (trial,) = row.trials.values()
        frozen[row.name] = dataclasses.replace(trial, name=f"{trial.name} frozen")
        folder = write_trial(tmp_path, frozen[row.name], skill=0.1)
        keep(folder, "tabletop-pretraining", 2)
        keep(folder, "tabletop-vica", 18)
    more = tuple(
        StudyRow(name=f"{name} frozen", trials={"tabletop": trial}) for name, trial in frozen.items()
    )
    study = dataclasses.replace(study, rows=(*study.rows, *more))
    scores = score(study, tmp_path)
    _, correlations = reported.tables(reported.read(scores, tmp_path)[0], scores)
    assert {row[6] for row in correlations.rows} == {"5"}


def test_what_tuning_taught_stands_beside_what_it_cost(tmp_path: Path) -> None:
    tuning = TuneRecipe(backbone="tiny-qwen3-vl", tasks=(TaskRecipe(task="tabletop-vqa-mix"),))
    study, _ = rows_of(tmp_path, [16, 2, 9, 9], row_1=tuning)
    scores = score(study, tmp_path)
    _, tuned, _ = reported.tables(reported.read(scores, tmp_path)[0], scores)
    assert [row[:4] for row in tuned.rows] == [
        ("vlm, row 1", "tabletop-pretraining", "not tuned on it", "80 → 10"),
        ("vlm, row 1", "tabletop-vica", "tuned on it", "20 → 90"),  # which is mixed into VQA-Mix
    ]
    assert tuned.rows[0][4].startswith("-70 [") and tuned.rows[1][4].startswith("+70 [")
    assert all(row[5] == "p < 0.001" for row in tuned.rows)


def test_the_page_tells_it_and_what_is_damaged(tmp_path: Path) -> None:
    study, folders = rows_of(tmp_path, [2, 5, 9, 14])
    page = write_study_report(study, tmp_path, tmp_path / "report").read_text()
    assert '<section id="asked">' in page and 'href="#asked"' in page and "each counting once" in page
    assert "VLMs: what goes with success" in (tmp_path / "report" / "tables.md").read_text()
    path = keep(folders[0], "tabletop-vica", 3)
    whole = path.read_text()
    for damage in (
        "{",
        whole.replace("1.0", "1.5", 1),
        whole.replace("1.0", "NaN", 1),
        re.sub(r"\[[^]]*\]", "[]", whole),
    ):
        path.write_text(damage)
        page = write_study_report(study, tmp_path, tmp_path / "report").read_text()
        assert path.name in page and "--ask" in page
    page = write_study_report(study, tmp_path, tmp_path / "report").read_text()
    assert path.name in page and "--ask" in page
    assert "vlm, row 3" in page.partition('<section id="asked">')[2], "the others are still told"


def test_rows_whose_vlm_was_not_asked_the_same_are_left_out(tmp_path: Path) -> None:
    study, folders = rows_of(tmp_path, [2, 5])
    for path in (folders[1] / FOLDER).iterdir():
        path.unlink()
    found, problems = reported.read(score(study, tmp_path), tmp_path)
    assert [a.row for a in found] == ["vlm, row 0"]
    assert [row for row, problem in problems if "not asked" in problem] == ["vlm, row 1"]
    for path in (folders[0] / FOLDER).iterdir():
        path.unlink()
    page = write_study_report(study, tmp_path, tmp_path / "report").read_text()
    assert 'id="asked"' not in page


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("<area3><area4><loc0027><loc0036>", 1.0),
        ("<area3><area5><loc0025><loc0038>", 1.0),
        ("<area3><area4><loc0024><loc0036>", 0.0),
        ("<loc0027><loc0036>", 0.0),
        ("left", None),
    ],
)
def test_a_place_in_tokens_is_right_near_the_right_one(said: str, value: float | None) -> None:
    near = {"near": {"loc": 2, "area": 8}}
    exchange = Exchange("where", "<area3><area4><loc0027><loc0036>", "near", near)
    assert value_of(exchange, said) == value


def test_tiny_backbones_answer_what_they_were_pretrained_on() -> None:
    source = open_task("tabletop-pretraining", None, scenes="60", split="test")
    talks = [source[i] for i in range(60)]
    means = {}
    for weights in ("pretrained", "random"):
        vlm = AnsweringVLM.from_pretrained("tiny-qwen3-vl", prompt="short", weights=weights)  # type: ignore[arg-type]
        means[weights] = np.mean([answer.value for answer in answered(vlm, talks)])
    assert means["pretrained"] > 0.5 and means["random"] < 0.1


def test_a_study_without_questions_or_runs_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "table-4", "--ask", "--out", str(tmp_path)]) != 0
    assert "--ask TASK" in capsys.readouterr().err
    assert main(["study", "mini", "--ask", "--out", str(tmp_path)]) != 0
    assert "`--run` does them" in capsys.readouterr().err
    assert main(["study", "mini", "--ask", "tabletop-nothing", "--out", str(tmp_path)]) != 0


def test_the_finding_is_about_all_that_was_asked(tmp_path: Path) -> None:
    study, folders = rows_of(tmp_path, [2, 5, 9, 14, 18])
    for folder in folders:
        (folder / FOLDER / f"{fingerprint('tabletop-vica')}.json").unlink()
    scores = score(study, tmp_path)
    sentence = findings(scores, reported.read(scores, tmp_path)[0])[-1]
    start = "look A: over 5 VLMs, what they score (tabletop-pretraining) goes with success: r = +0.9"
    assert sentence.startswith(start) and "p = 0.0" in sentence
