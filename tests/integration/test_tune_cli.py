"""`vlm4vla tune` and `vlm4vla score` as their users run them: to the end, again, killed, and with bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_questions
import tiny_trials

from vlm4vla import cli
from vlm4vla.backbones.tiny import build_tiny
from vlm4vla.core.recipes import TaskRecipe, to_json
from vlm4vla.training.worker import launch_command
from vlm4vla.tuning.loop import tune

FAST = ("--set", "train.batch_size=4", "--set", "held_out=0.2", "--set", "train.warmup_steps=2")


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm") / "tiny"
    return build_tiny("qwen3-vl", tiny_trials.SIZE, folder, texts=tiny_questions.TEXTS, seed=0)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_questions.write(tmp_path_factory.mktemp("questions") / "colours", 20)


def arguments(vlm: Path, questions: Path, out: Path, *more: str) -> list[str]:
    task = ["--task", "llava", str(questions), "radius=0.1"]
    return ["tune", "--backbone", str(vlm), *task, *FAST, "--device", "cpu", "--out", str(out), *more]


def test_tune_ends_with_a_vlm_and_scores_before_and_after(
    vlm: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    also = ("--also-score", "tabletop-general", "scenes=4", "split=test", "image_size=32")
    chosen = arguments(
        vlm, questions, tmp_path / "runs", "--steps", "6", "--freeze", "vision", *also, "--json"
    )
    assert cli.main([*chosen, "--quiet"]) == 0
    first = json.loads(capsys.readouterr().out)
    result = Path(first["folder"])
    assert (result / "config.json").exists() and result.parents[1] == tmp_path / "runs" / "tunings"
    assert {(row["vlm"], row["task"]) for row in first["scores"]} == {
        (vlm, task) for vlm in ("before", "after") for task in ("llava", "tabletop-general")
    }
    recipe = json.loads((result.parent / "tuning.json").read_text())
    assert recipe["freeze"] == ["vision"] and recipe["tasks"][0]["options"] == ["radius=0.1"]
    stamp = (result / "model.safetensors").stat().st_mtime_ns
    assert cli.main([*chosen, "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert (result / "model.safetensors").stat().st_mtime_ns == stamp

    asked = [
        "score",
        str(vlm),
        str(result),
        "--task",
        "llava",
        str(questions),
        "--questions",
        "5",
        "--device",
        "cpu",
    ]
    assert cli.main([*asked, "--quiet"]) == 0
    table = capsys.readouterr().out
    assert "llava: exact" in table and " 6" in table


def test_a_killed_tuning_goes_on_to_the_same_weights(vlm: Path, questions: Path, tmp_path: Path) -> None:
    more = ("--steps", "30", "--set", "train.checkpoint_every=3", "--questions", "2", "--quiet")
    assert cli.main(arguments(vlm, questions, tmp_path / "whole", *more)) == 0
    chosen = arguments(vlm, questions, tmp_path / "killed", *more)
    process = subprocess.Popen([sys.executable, "-m", "vlm4vla.cli", *chosen])
    deadline = time.monotonic() + 200
    while not list((tmp_path / "killed").glob("tunings/*/checkpoints/latest")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "killed").glob("tunings/*/vlm"))
    assert cli.main(chosen) == 0
    weights = [
        next((tmp_path / name).glob("tunings/*/vlm/model.safetensors")).read_bytes()
        for name in ("whole", "killed")
    ]
    assert weights[0] == weights[1]


def test_answers_that_nothing_can_measure_are_trained_on_all_the_same(
    vlm: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(questions, tmp_path / "long"))
    rows = json.loads((folder / "questions.json").read_text())
    for row in rows:
        row["conversations"] = row["conversations"][:2]
        row["conversations"][1]["value"] = (
            "it is of one colour from edge to edge, as far as anybody can see at all"
        )
    (folder / "questions.json").write_text(json.dumps(rows))
    assert cli.main(arguments(vlm, folder, tmp_path / "runs", "--steps", "2", "--json", "--quiet")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["scores"] == [] and (Path(told["folder"]) / "config.json").exists()


@pytest.mark.parametrize("sharding, drawn", [("none", False), ("full", False), ("auto", True)])
def test_two_processes_give_the_losses_of_one(
    sharding: str, drawn: bool, vlm: Path, questions: Path, tmp_path: Path
) -> None:
    """Although one has more answer tokens, more drawings, and more micro-batches, than the other."""
    recipe = tiny_questions.tuning(vlm, questions, steps=4, validate_every=2, micro_batch_size=1)
    if drawn:
        drawings = TaskRecipe(task="tabletop-drawings", options=("scenes=12", "image_size=32"))
        small = {"generation_size": 16, "generation_width": 32, "generation_layers": 1}
        recipe = replace(recipe, tasks=(*recipe.tasks, drawings), **small)  # type: ignore[arg-type]
    tune(recipe, tmp_path / "one", progress=False)
    (tmp_path / "tuning.json").write_text(json.dumps(to_json(recipe)))
    arguments = [str(tmp_path / "tuning.json"), str(tmp_path / "two"), "--quiet", "--sharding", sharding]
    command = launch_command(2, arguments, program="vlm4vla.tuning.worker")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for split, names in (("train", ("loss", "right", "gradient_norm")), ("held_out", ("loss", "right"))):
        one, two = (tiny_trials.metrics(tmp_path / name, *names, split=split) for name in ("one", "two"))
        assert len(one) == len(two) > 0
        assert all(first == pytest.approx(second, rel=2e-4) for first, second in zip(one, two, strict=True))


@pytest.mark.parametrize(
    "change, said",
    [
        (["--task", "tabeltop-vica"], "did you mean 'tabletop-vica'"),
        (["--task", "llava", "a", "b"], "one folder, not a and b"),
        (["--task", "llava", "weight=much"], "weight=much is no number"),
        (["--task", "llava", "/nowhere"], "/nowhere"),
        (
            ["--task", "tabletop-vica", "scenes=5", "--set", "train.huber_delta=2"],
            "answers have no such thing",
        ),
        (["--task", "tabletop-vica", "scenes=5", "--set", "steps"], "write FIELD=VALUE"),
        ([], "name what to tune on"),
    ],
)
def test_mistakes_are_told_in_one_line(
    change: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tune", *change, "--out", str(tmp_path / "runs"), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
