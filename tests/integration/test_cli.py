"""The command line as its users run it: a real but very small quickstart, again, killed, and with bad input."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vlm4vla import cli
from vlm4vla.backbones.tiny import TinySize, build_tiny

SIZE = TinySize(hidden=32, layers=2, mlp=64, vision_hidden=32, vision_layers=2, vision_mlp=64)
FEW = ["--demonstrations", "18", "--steps", "6", "--episodes", "1", "--videos", "1"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm") / "tiny-test"
    return build_tiny("qwen3-vl", SIZE, folder, texts=["lift the red block"], seed=0)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vlm4vla.cli", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=280, check=False)


def results(out: Path) -> list[dict[str, Any]]:
    """Rows without their times."""
    rows = json.loads((out / "results.json").read_text())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def quickstart(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "quickstart"
    done = run("quickstart", "--out", out, "--backbone", backbone, *FEW, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((out / "results.json").read_text())
    assert "demonstrations" in done.stderr
    return out


def test_quickstart_writes_what_it_promises(quickstart: Path) -> None:
    rows = json.loads((quickstart / "results.json").read_text())
    wanted = {
        "backbone",
        "weights",
        "tier",
        "task",
        "successes",
        "episodes",
        "errors",
        "low",
        "high",
        "seconds",
    }
    assert all(wanted <= row.keys() for row in rows)
    assert {row["tier"] for row in rows} == {"all", "fixed-target", "single-block"}
    chance = [row for row in rows if row["backbone"] == "random-policy" and row["look"] == "A"]
    assert {row["task"] for row in chance if row["task"] != "all"} == {"press", "open", "close", "reach"}
    assert all(row["errors"] == 0 and row["episodes"] >= 1 for row in rows)
    page = (quickstart / "report.html").read_text()
    assert "<video" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_again_finds_everything_done_and_changes_nothing(quickstart: Path, backbone: Path) -> None:
    kept = [p for p in quickstart.rglob("*") if p.is_file() and p.name not in ("report.html", ".lock")]
    before = {path: path.read_bytes() for path in kept}
    start = time.monotonic()
    assert run("quickstart", "--out", quickstart, "--backbone", backbone, *FEW).returncode == 0
    assert time.monotonic() - start < 60
    assert {path: path.read_bytes() for path in kept} == before


def test_killed_twice_it_ends_with_the_same_results(quickstart: Path, backbone: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    arguments = command("quickstart", "--out", out, "--backbone", backbone, *FEW)
    for sign in ("trials/*/metrics.jsonl", "trials/*/evaluations/*/episodes.jsonl"):
        with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 120
            while not list(out.glob(sign)) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.5)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert results(out) == results(quickstart)


def test_evaluate_again_in_another_way(quickstart: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = next(p.parent for p in quickstart.glob("trials/*/checkpoints"))
    before = len(list((trained / "evaluations").iterdir()))
    arguments = [
        "evaluate",
        str(trained),
        "--execute",
        "1",
        "--tasks",
        "press",
        "--episodes",
        "2",
        "--workers",
        "0",
    ]
    assert cli.main([*arguments, "--json", "--quiet"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(list((trained / "evaluations").iterdir())) == before + 1
    found = [row for row in rows if row["execute"] == 1 and row["task"] == "press"]
    assert len(found) == 1
    assert found[0]["episodes"] == 2
    checkpoint = next(trained.glob("checkpoints/step-*"))
    copy = quickstart.parent / "copy"
    shutil.copytree(checkpoint, copy)
    alone = [
        "evaluate",
        str(copy),
        "--look",
        "D",
        "--tasks",
        "press",
        "--episodes",
        "1",
        "--workers",
        "0",
        "--json",
    ]
    assert cli.main([*alone, "--quiet"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["task"], row["episodes"], row["errors"]) == ("press", 1, 0)


def test_train_with_changed_fields(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [
        "--set",
        "policy.freeze=vision",
        "--set",
        "train.batch_size=4",
        "--set",
        "evaluation.tasks=press",
    ]
    arguments = [
        "train",
        "tabletop",
        "--backbone",
        str(backbone),
        "--out",
        str(tmp_path),
        "--weights",
        "random",
    ]
    sizes = ["--demonstrations", "9", "--steps", "3", "--episodes", "1", "--processes", "1", "--workers", "0"]
    assert cli.main([*arguments, *sizes, *changes, "--json", "--quiet"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["weights"], row["train_steps"]) for row in rows} == {("random", 3)}
    (trial,) = [json.loads(path.read_text()) for path in tmp_path.glob("trials/*/trial.json")]
    assert trial["policy"]["freeze"] == ["vision"]
    assert trial["train"]["batch_size"] == 4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "tabeltop"], "did you mean 'tabletop'"),
        (["train", "tabletop", "--backbone", "tiny-qwen3"], "did you mean 'tiny-qwen3-vl'"),
        (["train", "tabletop", "--set", "train.step=3"], "unknown field 'step': did you mean 'steps'"),
        (["train", "tabletop", "--set", "steps=3"], "SECTION.FIELD=VALUE"),
        (["train", "tabletop", "--set", "train.steps=many"], "expected int"),
        (["train", "tabletop", "--set", "demonstrations.tasks=lfit"], "lift"),
        (["train", "nowhere:trial"], "there is no module 'nowhere'"),
        (["evaluate", "nowhere"], "neither a trial's folder"),
        (["report", "nowhere"], "nowhere"),
        (["models", "build-tiny", "tiny-qwen9"], "tiny-qwen3-vl"),
    ],
)
def test_bad_input_is_told_in_one_line(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    backbone: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "train" and "--backbone" not in arguments and ":" not in arguments[1]:
        arguments = [*arguments, "--backbone", str(backbone)]
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert "Traceback" not in captured.err
    assert not list(tmp_path.rglob("*.json"))


def test_another_action_convention_is_refused(quickstart: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = next(quickstart.glob("trials/*/checkpoints/step-*"))
    copy = quickstart.parent / "metres"
    shutil.copytree(checkpoint, copy)
    manifest = json.loads((copy / "policy.json").read_text())
    manifest["action_spec"]["gripper"] = "open_negative"
    (copy / "policy.json").write_text(json.dumps(manifest))
    assert cli.main(["evaluate", str(copy), "--episodes", "1", "--quiet"]) == 1
    assert "gripper" in capsys.readouterr().err
    assert not (copy / "evaluations").exists()


def test_the_folder_above_trials_names_them(quickstart: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(quickstart), "--quiet"]) == 1
    told = capsys.readouterr().err
    assert all(path.parent.name in told for path in quickstart.glob("trials/*/trial.json"))


def test_cut_demonstrations_are_refused(quickstart: Path, backbone: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    shutil.copytree(quickstart / "demonstrations", out / "demonstrations")
    largest = max(
        (p for p in (out / "demonstrations").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[:-1000])
    done = run("quickstart", "--out", out, "--backbone", backbone, *FEW)
    assert done.returncode == 1
    assert largest.name in done.stderr
    assert "Traceback" not in done.stderr


def cpu_seconds(*arguments: str) -> float:
    """Of one command, its children included: what another process does at the same time hardly counts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run(*arguments).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_models_and_help_are_quick() -> None:
    listed = run("models", "--json")
    assert {"tiny-qwen3-vl", "qwen2.5-vl-7b", "kosmos-2"} <= {
        entry["name"] for entry in json.loads(listed.stdout)
    }
    assert "quickstart" in run("--help").stdout
    assert min(cpu_seconds("--help") for _ in range(3)) < 0.5
    assert min(cpu_seconds("models") for _ in range(3)) < 1.5
