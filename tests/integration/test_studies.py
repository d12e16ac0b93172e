"""A study as a user runs it: interrupted, failed, shared, reported."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from smoke_study import make

from vlm4vla.core.recipes import fingerprint
from vlm4vla.reports.scores import score

TESTS = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "vlm4vla.cli", "study", "smoke_study:make"]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "--out", str(out), *(arguments or ("--run", "--quiet"))]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )


def kill(out: Path, seconds: float, *, workers: bool) -> bool:
    """Whether it was still at work when it was killed, as a machine's end or the memory's would."""
    process = subprocess.Popen(
        [*COMMAND, "--out", str(out), "--run", "--quiet"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(seconds)
    alive = process.poll() is None
    if workers:  # else they go on for a while, and whoever comes next waits for them
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if str(out).encode() in entry.read_bytes() and int(entry.parent.name) != process.pid:
                    os.kill(int(entry.parent.name), signal.SIGKILL)
            except OSError:
                continue
    process.kill()
    process.wait()
    return alive


def written(out: Path) -> Any:
    return json.loads((out / "reports" / "smoke" / "scores.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that nobody interrupted."""
    out = tmp_path_factory.mktemp("whole")
    done = run(out)
    assert done.returncode == 0, done.stderr
    return out


def test_a_study_ends_with_a_report_and_is_not_done_twice(whole: Path) -> None:
    assert [cell["episodes"] for cell in written(whole)] == [2] * 4
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.jsonl")}
    again = run(whole)
    assert again.returncode == 0 and before == {p: p.stat().st_mtime_ns for p in whole.rglob("*.jsonl")}
    status = run(whole, "--status")
    assert "Trials: 2 done." in status.stdout
    page = (whole / "reports" / "smoke" / "index.html").read_text()
    assert page.count("<video") >= 2 and len(page) < 2_000_000, "rows are seen side by side"


def test_why_is_measured_once_beside_the_runs_and_told_in_the_report(whole: Path) -> None:
    def kept() -> dict[Path, tuple[int, bytes]]:
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in whole.glob("trials/*/why/*.json")}

    command = [sys.executable, "-m", "vlm4vla.cli", "why", str(whole), "--scenes", "8", "--quiet"]
    printed = subprocess.check_output(command, env=environment(), text=True, timeout=600)
    assert printed.count("look A, 8 scenes") == printed.count("look D, 8 scenes") == 2
    assert "the pretrained VLM" in printed and "its own initialisation" in printed
    first = kept()
    assert len(first) == 4
    assert subprocess.check_output(command, env=environment(), text=True, timeout=600) == printed
    assert kept() == first
    assert run(whole, "--report").returncode == 0
    assert 'id="why"' in (whole / "reports" / "smoke" / "index.html").read_text()
    assert "way to the goal at the query" in (whole / "reports" / "smoke" / "tables.md").read_text()


def test_a_study_that_is_killed_ends_with_the_same_report(whole: Path, tmp_path: Path) -> None:
    assert kill(tmp_path, 6, workers=True)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert written(tmp_path) == written(whole)


@pytest.mark.slow
def test_killed_five_times_at_random_moments(whole: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    killed = [kill(tmp_path, chance.uniform(2, 9), workers=chance.random() < 0.5) for _ in range(5)]
    assert any(killed)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert written(tmp_path) == written(whole)


def test_a_failed_trial_is_told_and_stops_no_other(whole: Path, tmp_path: Path) -> None:
    study = make("tabletop")
    first = next(iter(study.rows[0].trials.values()))
    folder = tmp_path / "trials" / fingerprint(first)
    (folder / "checkpoints").parent.mkdir(parents=True)
    (folder / "checkpoints").write_text("a file where a folder should be")
    done = run(tmp_path)
    assert done.returncode != 0 and first.name in done.stderr
    cells = {(cell["row"], cell["column"]): cell for cell in written(tmp_path)}
    assert [cell["episodes"] for cell in cells.values()] == [0, 0, 2, 2]
    problems = score(study, tmp_path).problems
    assert any("failed" in problem for _, problem in problems)
    assert "These results are incomplete" in (tmp_path / "reports" / "smoke" / "index.html").read_text()
