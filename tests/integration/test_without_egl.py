"""A machine without EGL: what fails says what to type, and what is typed then works. No vendor's library is found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from vlm4vla.benchmarks.osmesa import egl_works
from vlm4vla.cli import main

TESTS = Path(__file__).parents[1]
NOWHERE = "/no/vendor/of/egl.json"
POLICY = "import numpy as np\n\ndef policy(observations):\n    return np.zeros((len(observations), 10, 7))\n"
REMEDY = "`--renderer tiny`"


@pytest.fixture(autouse=True)
def no_egl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And CALVIN's models, alone in a folder of simulators."""
    if sys.version_info >= (3, 12):
        pytest.skip("PyBullet has no wheel for this Python")
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", NOWHERE)
    if egl_works():
        pytest.skip("this machine's EGL is not glvnd's, so that it cannot be hidden")
    with tarfile.open(TESTS / "assets" / "calvin.tar.xz") as archive:
        archive.extractall(tmp_path / "simulators" / "calvin", filter="data")
    monkeypatch.setenv("VLM4VLA_SIMULATORS", str(tmp_path / "simulators"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)]))


pytestmark = pytest.mark.needs("calvin")
DEMONSTRATE = ["simulators", "demonstrate", "calvin", "--scenes", "D", "--tasks", "turn_on_led", "--quiet"]


def test_check_and_demonstrate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    check = ["simulators", "check", "calvin", "--json"]
    demonstrate = [*DEMONSTRATE, str(tmp_path / "set"), "--episodes", "1", "--processes", "1"]
    printed = []
    for command in (check, demonstrate):
        assert main(command) == 1
        assert REMEDY in capsys.readouterr().err
        assert main([*command, "--renderer", "ray"]) == 1
        assert "drawn with egl or tiny" in capsys.readouterr().err
        assert main([*command, "--renderer", "tiny"]) == 0
        printed.append(capsys.readouterr().out)
    assert json.loads(printed[0])["works"]
    assert "--set evaluation.renderer=tiny" in printed[1], (
        "whoever trains on them is shown such pictures again"
    )
    assert "drawn with tiny" in (tmp_path / "set" / "training" / "scripted.json").read_text()


def test_evaluate(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm4vla.benchmarks.calvin.benchmark.MAX_STEPS", 10)
    (tmp_path / "still.py").write_text(POLICY)
    command = [
        "evaluate",
        "--policy",
        f"{tmp_path / 'still.py'}:policy",
        "--benchmark",
        "calvin-d-tasks",
        "--quiet",
    ]
    command += ["--tasks", "turn_on_led", "--episodes", "1", "--execute", "10", "--workers", "0"]
    command += ["--out", str(tmp_path / "out")]
    assert main(command) == 1, "not this process either, which PyBullet's plugin would have ended"
    told = capsys.readouterr().err
    assert REMEDY in told and "no worker of calvin-d-tasks-v2 could be started" in told
    same = (["--renderer", "tiny"], ["--set", "renderer=tiny"], ["--set", "evaluation.renderer=tiny"])
    for choice in same:
        assert main([*command, *choice]) == 0, capsys.readouterr().err
    recipes = [
        json.loads(p.read_text()) for p in (tmp_path / "out").glob("trials/*/evaluations/*/evaluation.json")
    ]
    assert sorted(recipe["renderer"] for recipe in recipes) == ["egl", "tiny"]
    logs = [path.read_text() for path in (tmp_path / "out").glob("trials/*/evaluations/*/episodes.jsonl")]
    (played,) = [log for log in logs if log]
    assert played.count("\n") == 1 and "calvin-d-tasks-tiny-v2" in played, "three ways to say the same"


def test_a_scripted_study(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORT_STUDY", str(tmp_path / "set"))
    assert main([*DEMONSTRATE, str(tmp_path / "set"), "--episodes", "2", "--renderer", "tiny"]) == 0
    command = [
        "study",
        "short_studies:calvin",
        "--run",
        "--processes",
        "1",
        "--workers",
        "1",
        "--device",
        "cpu",
    ]
    command += ["--quiet", "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert REMEDY in capsys.readouterr().err
    assert main([*command, "--renderer", "tiny"]) == 0, capsys.readouterr().err
    page = (tmp_path / "out" / "reports" / "scripted-calvin-tiny" / "index.html").read_text()
    assert "drawn with tiny" in page


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("hidden", [True, False])
def test_make_simulator_study_says_and_names_what_draws(
    hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hidden:
        monkeypatch.delenv("__EGL_VENDOR_LIBRARY_FILENAMES")
        if not egl_works():
            pytest.skip("EGL does not work on this machine")
    command = [
        "make",
        "--dry-run",
        "simulator-study",
        f"BIN={Path(sys.executable).parent}",
        "SIMULATORS=calvin",
    ]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if "calvin" in line and " install " not in line]
    assert ("simulator-study: calvin is drawn with tiny" in lines[0]) == hidden
    made, run = lines[-2:]
    folder = "runs/studies/scripted/calvin" + "-tiny" * hidden
    assert f"demonstrate calvin {folder} " in made and f"--data calvin={folder}" in run
    assert made.endswith("--renderer tiny") == run.endswith("--renderer tiny") == hidden


def test_tests_of_egl_that_are_required_fail_instead_of_being_skipped() -> None:
    """Both kinds: named by their file, and marked."""
    names = ["test_calvin.py", "test_simulator_faults.py"]
    # Without the short summary, which tells messages once more, but whole only where CI is set.
    command = [sys.executable, "-m", "pytest", "-q", "-rN", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command += ["-k", "dataset_renderer or (lost and calvin)"]
    done = subprocess.run(
        [*command, *(str(Path(__file__).with_name(name)) for name in names)],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "VLM4VLA_REQUIRE": "calvin"},
    )
    assert "3 failed" in done.stdout.splitlines()[-1], done.stdout
    assert (
        done.stdout.count("VLM4VLA_REQUIRE names calvin, and this was not run: Skipped: EGL does not work")
        == 3
    )
