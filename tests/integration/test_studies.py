"""A study as a user runs it: interrupted, failed, shared, reported."""

from __future__ import annotations

import contextlib
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
from smoke_study import interrupted, make

from vlm4vla.core.recipes import fingerprint
from vlm4vla.reports.scores import score

TESTS = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "vlm4vla.cli", "study"]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}


def run(out: Path, *arguments: str, study: str = "make") -> subprocess.CompletedProcess[str]:
    command = [
        *COMMAND,
        f"smoke_study:{study}",
        "--out",
        str(out),
        *(arguments or ("--run", "--quiet")),
    ]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=1200, check=False
    )


def touched(out: Path, since: float) -> bool:
    """Whether anything was written there."""
    for path in out.rglob("*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime > since:
                return True
    return False


def kill(out: Path, seconds: float, *, workers: bool, study: str = "make") -> bool:
    """As a machine's end would, or the memory's: whether it was at work then, having begun `seconds` before."""
    start = time.time()
    process = subprocess.Popen(
        [*COMMAND, f"smoke_study:{study}", "--out", str(out), "--run", "--quiet"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not touched(out, start):
        time.sleep(0.05)
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
    assert [cell["episodes"] for cell in written(whole)["cells"]] == [2] * 4
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.jsonl")}
    again = run(whole)
    assert again.returncode == 0 and before == {p: p.stat().st_mtime_ns for p in whole.rglob("*.jsonl")}
    status = run(whole, "--status")
    assert "Trials: 2 done." in status.stdout


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
    assert kill(tmp_path, 1, workers=True)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert written(tmp_path) == written(whole)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_five_times_at_random_moments(tmp_path: Path) -> None:
    """A VLM is tuned, policies are trained and scored; all five kills hit a process at work, in one folder."""
    start = time.monotonic()
    assert run(tmp_path / "whole", study="interrupted").returncode == 0
    longest = (time.monotonic() - start) / 4
    seed = random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    for attempt in range(5):  # one that ends before it was killed five times is begun anew
        out = tmp_path / f"killed-{attempt}"
        kills = (
            kill(
                out,
                chance.uniform(0, longest),
                workers=chance.random() < 0.5,
                study="interrupted",
            )
            for _ in range(5)
        )
        if all(kills):
            break
        longest /= 2
    else:
        pytest.fail(f"seed {seed}: it always ended before five kills")
    done = run(out, study="interrupted")
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    for name in ("scores.json", "tables.md", "tables.tex"):
        first, second = (where / "reports" / "interrupted" / name for where in (tmp_path / "whole", out))
        assert first.read_text() == second.read_text(), f"seed {seed}: {name}"
    assert "tuned" in second.read_text()
    assert score(interrupted("tabletop"), out).problems == [], f"seed {seed}"


def test_a_failed_trial_is_told_and_stops_no_other(whole: Path, tmp_path: Path) -> None:
    study = make("tabletop")
    first = next(iter(study.rows[0].trials.values()))
    folder = tmp_path / "trials" / fingerprint(first)
    (folder / "checkpoints").parent.mkdir(parents=True)
    (folder / "checkpoints").write_text("a file where a folder should be")
    done = run(tmp_path)
    assert done.returncode != 0 and first.name in done.stderr
    cells = {(cell["row"], cell["column"]): cell for cell in written(tmp_path)["cells"]}
    assert [cell["episodes"] for cell in cells.values()] == [0, 0, 2, 2]
    problems = score(study, tmp_path).problems
    assert any("failed" in problem for _, problem in problems)
    assert "These results are incomplete" in (tmp_path / "reports" / "smoke" / "index.html").read_text()
