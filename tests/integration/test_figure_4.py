"""Figure 4 in very small: trainings that keep checkpoints, every one of them scored, one command, continued."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_trial
from smoke_study import checkpoints

from vlm4vla.cli import main
from vlm4vla.core.errors import RecipeError
from vlm4vla.reports.scores import score
from vlm4vla.studies.checks import Resources, check

TESTS = Path(__file__).parents[1]


def run(out: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "vlm4vla.cli", "study", "smoke_study:checkpoints", "--quiet"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        [*command, "--out", str(out), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(out: Path) -> Any:
    return json.loads((out / "reports" / "smoke-checkpoints" / "scores.json").read_text())["cells"]


def test_checkpoints_are_kept_scored_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = checkpoints("mini")
    assert study.checkpoints == (2, 4, 6) and len(study.trials) == 1
    run(tmp_path, "--run")
    cells = written(tmp_path)
    assert [sorted(cell["checkpoints"]) for cell in cells] == [["2", "4", "6"]]
    assert all(cell["checkpoints"]["6"] == cell["ours"] and not cell["problems"] for cell in cells)
    report = tmp_path / "reports" / "smoke-checkpoints"
    assert "spread over checkpoints" in (report / "figures" / "checkpoints-look-a.svg").read_text()
    assert "spread over checkpoints" in (report / "index.html").read_text()
    selected = [cell.selection.tries for cell in score(study, tmp_path).cells.values() if cell.selection]
    assert selected == [3]

    # An episode of one of them is lost: it alone is played again.
    plan = ["study", "smoke_study:checkpoints", "--plan", "--out", str(tmp_path)]
    assert main(plan) == 0 and "Checkpoints: 3 of 3 evaluations played." in capsys.readouterr().out
    (log,) = tmp_path.glob("trials/*/checkpoints/step-000004/evaluations/*/episodes.jsonl")
    first = log.read_text().splitlines(keepends=True)
    log.write_text(first[0])
    assert main(plan) == 0 and "Checkpoints: 2 of 3 evaluations played." in capsys.readouterr().out
    assert any(
        "step 4: 1 of 2 episodes of press" in problem for _, problem in score(study, tmp_path).problems
    )
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    run(tmp_path, "--run")
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert log.read_text().splitlines(keepends=True)[0] == first[0] and written(tmp_path) == cells


def test_a_checkpoint_that_was_not_evaluated_is_told(tmp_path: Path) -> None:
    study = checkpoints("mini")
    (trial,) = study.rows[0].trials.values()
    write_trial(tmp_path, trial, skill=0.5)
    problems = [problem for _, problem in score(study, tmp_path).problems]
    assert "the checkpoint of step 2 has not been evaluated" in problems
    assert not any(
        "not been evaluated" in p for _, p in score(replace(study, checkpoints=()), tmp_path).problems
    )


def test_checkpoints_that_no_training_keeps_are_refused_before_it_starts() -> None:
    (trial,) = checkpoints("mini").rows[0].trials.values()
    asked = Resources(checkpoints=(2, 6), progress=False)
    check(trial, asked)
    for changes in ({"keep_every": 0}, {"keep_every": 4}, {"checkpoint_every": 4}):
        other = replace(trial, train=replace(trial.train, **changes))
        with pytest.raises(
            RecipeError, match=r"checkpoints of step 2 are to be evaluated.*set train\.keep_every"
        ):
            check(other, asked)
