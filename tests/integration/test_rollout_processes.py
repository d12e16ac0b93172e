"""Rollouts in real worker processes: equal results, and nothing lost or left over when something breaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from point_world import PointWorld, Seeker

from vlm4vla.benchmarks.rollout import evaluate
from vlm4vla.core.errors import SimulatorError
from vlm4vla.core.types import EpisodeResult

TESTS = Path(__file__).parents[1]


def play(
    benchmark: PointWorld,
    folder: Path | None = None,
    *,
    workers: int = 2,
    environments: int = 8,
    **options: float,
) -> list[EpisodeResult]:
    return evaluate(
        Seeker(),
        benchmark,
        execute=3,
        folder=folder,
        workers=workers,
        environments=environments,
        progress=False,
        **options,  # type: ignore[arg-type]
    )


def timeless(results: list[EpisodeResult]) -> list[EpisodeResult]:
    return [replace(result, seconds=0.0) for result in results]


@pytest.mark.parametrize("world", [PointWorld(episodes_per_task=8), PointWorld(goals=3, lazy=True)])
def test_results_do_not_depend_on_workers_or_environments(world: PointWorld) -> None:
    reference = timeless(play(world, workers=0, environments=1))
    for workers, environments in ((1, 1), (1, 8), (2, 8), (2, 3)):
        assert timeless(play(world, workers=workers, environments=environments)) == reference


def test_every_kind_of_break_costs_one_episode(tmp_path: Path) -> None:
    faults = {"1": "raise", "5": "exit", "8": "hang", "11": "torch"}
    results = play(PointWorld(faults=faults), tmp_path, time_limit=4.0)
    errors = {result.episode: result.error for result in results if result.error is not None}
    assert list(errors) == ["left/001", "right/005", "up/008", "up/011"]
    assert errors["left/001"].startswith("ValueError: the joint exploded (point_world.py:")
    assert errors["right/005"] == (
        "the worker process ended with code 3; its last lines:\n  last words of the simulator"
    )
    assert errors["up/008"] == "no answer within 4 s"
    assert errors["up/011"].startswith("ValueError: torch imported: False, threads: 1 ")
    clean = {result.episode: result for result in timeless(play(PointWorld(), workers=0))}
    for result in timeless(results):
        assert result.error is not None or result == clean[result.episode]
    assert len((tmp_path / "episodes.jsonl").read_text().splitlines()) == 12


def test_a_worker_killed_from_outside_is_replaced() -> None:
    class Assassin(Seeker):
        def predict_chunk(self, observations):  # type: ignore[no-untyped-def]
            if len(self.batches) == 2:
                os.kill(children_of(os.getpid())[0], signal.SIGKILL)
            return super().predict_chunk(observations)

    world = PointWorld()
    results = evaluate(Assassin(), world, execute=3, folder=None, workers=2, environments=4, progress=False)
    broken = [result for result in results if result.error is not None]
    assert len(broken) <= 1
    assert all("ended by signal 9 (Killed)" in str(result.error) for result in broken)
    clean = {result.episode: result for result in timeless(play(world, workers=0))}
    assert all(result == clean[result.episode] for result in timeless(results) if result.error is None)


def test_a_simulator_that_cannot_start_is_one_error_with_its_last_lines() -> None:
    with pytest.raises(SimulatorError, match="no worker of point-world-v1 could be started") as caught:
        play(PointWorld(broken="EGL needs a driver"))
    assert "no display found" in str(caught.value) and "RuntimeError: EGL needs a driver" in str(caught.value)


def test_a_recipe_that_leads_elsewhere_is_noticed() -> None:
    world = PointWorld()
    world.name = "point-world-v2"
    with pytest.raises(
        SimulatorError, match=r"recipe\(\) of point-world-v2 made point-world-v1 in the worker"
    ):
        play(world)


def test_an_interpreter_that_does_not_exist() -> None:
    with pytest.raises(SimulatorError, match="cannot start a worker with the interpreter /no/python"):
        evaluate(Seeker(), PointWorld(), execute=3, folder=None, python="/no/python", progress=False)


SCRIPT = """
import sys
from pathlib import Path
from point_world import PointWorld, Seeker
from vlm4vla.benchmarks.rollout import evaluate

world = PointWorld(setup={"delay": float(sys.argv[2])}, faults={"3": "hang"} if "hang" in sys.argv else {})
results = evaluate(Seeker(), world, execute=3, folder=Path(sys.argv[1]), environments=4)
print(len(results), sum(result.error is None for result in results))
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[list[str]]:
    """A script without a main guard, in a folder of its own."""
    path = tmp_path / "play.py"
    path.write_text(textwrap.dedent(SCRIPT))
    yield [sys.executable, str(path), str(tmp_path / "out")]


ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent / 'src'}"}


def test_a_script_needs_no_main_guard(script: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [*script, "0"], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "12 12\n"
    assert done.stderr.splitlines()[-1].startswith("point-world-v1  12/12 episodes, success ")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of a file")
def test_a_disk_that_fills_up_loses_no_recorded_episode_and_the_evaluation_continues(
    script: list[str], tmp_path: Path
) -> None:
    """The fault is real: the process may write no file of more than 900 bytes, which is in the middle of a line."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))\n{Path(script[1]).read_text()}"
    Path(script[1]).write_text(limited)
    done = subprocess.run([*script, "0"], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
    log = tmp_path / "out" / "episodes.jsonl"
    assert done.returncode == 1
    assert f"{log}: the disk took only part of a line; free some space" in done.stderr.splitlines()[-1]
    kept = log.read_bytes()
    whole = kept[: kept.rfind(b"\n") + 1]
    assert len(kept) == 900 and 0 < whole.count(b"\n") < 12
    assert timeless(play(PointWorld(), tmp_path / "out")) == timeless(play(PointWorld(), workers=0))
    assert log.read_bytes().startswith(whole) and log.read_bytes().count(b"\n") == 12


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for children in /proc")
@pytest.mark.parametrize("fault", ["", "hang"])
def test_nothing_survives_a_killed_evaluation_and_it_continues(
    script: list[str], tmp_path: Path, fault: str
) -> None:
    log = tmp_path / "out" / "episodes.jsonl"
    with subprocess.Popen([*script, "0.02", fault], env=ENVIRONMENT, stderr=subprocess.DEVNULL) as parent:
        wait_until(lambda: log.exists() and log.read_bytes().count(b"\n") >= 3)
        children = children_of(parent.pid)
        parent.kill()
    assert len(children) == 2
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    kept = log.read_bytes()
    world = PointWorld(setup={"delay": 0.02})
    assert 3 <= kept.count(b"\n") < 12
    assert timeless(play(world, tmp_path / "out")) == timeless(play(PointWorld(), workers=0))
    assert log.read_bytes().startswith(kept)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for children in /proc")
def test_an_evaluation_leaves_no_process_and_no_open_file() -> None:
    before = (children_of(os.getpid()), len(list(Path("/proc/self/fd").iterdir())))
    play(PointWorld(faults={"1": "raise", "5": "exit"}))
    assert (children_of(os.getpid()), len(list(Path("/proc/self/fd").iterdir()))) == before


def children_of(parent: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def wait_until(condition) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
