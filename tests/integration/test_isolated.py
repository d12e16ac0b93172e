"""Simulators that are played by a Python of their own, and never in the process that predicts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from isolated_world import IsolatedWorld
from point_world import Seeker

from vlm4vla import cli
from vlm4vla.benchmarks.records import kept_software, read_log
from vlm4vla.benchmarks.registry import make_benchmark
from vlm4vla.benchmarks.rollout import RandomPredictor, evaluate
from vlm4vla.core.errors import SimulatorError
from vlm4vla.core.interfaces import Benchmark, Isolated
from vlm4vla.core.recipes import EvaluationRecipe
from vlm4vla.core.types import EpisodeResult
from vlm4vla.studies.checks import Resources, check
from vlm4vla.studies.presets import random_policy

TESTS = Path(__file__).parents[1]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Python that has what this one has not."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (packages / "ours.pth").write_text(sysconfig.get_paths()["purelib"])
    (packages / "only_there.py").touch()
    (packages / "only_there-1.5.dist-info").mkdir()
    (packages / "only_there-1.5.dist-info" / "METADATA").write_text("Name: only-there\nVersion: 1.5\n")
    python = str(tmp_path / "venv" / "bin" / "python")
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("ONLY_THERE_PYTHON", python)
    return python


def timeless(results: list[EpisodeResult]) -> list[EpisodeResult]:
    return [replace(result, seconds=0.0, software="") for result in results]


def test_a_benchmark_of_ones_own_names_the_python_that_plays_it(
    elsewhere: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluated and replayed from the command line, in the predicting process or beside it as far as is asked for."""
    arguments = [
        "--policy",
        "point_world:Seeker",
        "--benchmark",
        "isolated_world:benchmark",
        "--execute",
        "3",
    ]
    arguments += ["--workers", "0", "--quiet", "--out", str(tmp_path / "out")]
    assert cli.main(["evaluate", *arguments]) == 0, capsys.readouterr().err
    (log,) = (tmp_path / "out").glob("trials/*/evaluations/*/episodes.jsonl")
    results = list(read_log(log)[0])
    assert len(results) == 12 and {result.error for result in results} == {None}
    assert kept_software(log.parent, results[0])["only-there"] == "1.5"
    assert "only_there" not in sys.modules
    capsys.readouterr()
    for workers in ("0", "2"):
        assert cli.main(["replay", str(tmp_path / "out"), "--workers", workers, "--quiet", "--json"]) == 0
        (replayed,) = json.loads(capsys.readouterr().out)
        assert [each["identical"] for each in replayed["episodes"]] == [True] * 12


def test_neither_workers_nor_environments_bring_it_into_this_process(elsewhere: str) -> None:
    played = [
        timeless(
            evaluate(
                Seeker(),
                IsolatedWorld(elsewhere),
                execute=3,
                folder=None,
                workers=workers,
                environments=8,
                progress=False,
            )
        )
        for workers in (0, 2)
    ]
    assert played[0] == played[1] and {result.error for result in played[0]} == {None}


def test_a_python_that_lacks_the_simulator_or_is_none_is_told(
    elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SimulatorError, match=r"(?s)could be started.*No module named 'only_there'"):
        evaluate(Seeker(), IsolatedWorld(None), execute=3, folder=None, workers=0, progress=False)
    monkeypatch.setenv("ONLY_THERE_PYTHON", f"{elsewhere}-2")
    trial = random_policy((EvaluationRecipe(benchmark="isolated_world:benchmark", look="", execute=1),))
    with pytest.raises(
        SimulatorError, match=r"isolated-world-v1 is played by .*python-2, which is no program"
    ):
        check(trial, Resources())


def test_the_example_of_the_documents_waits_for_its_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the simulator: its episodes here, and in a Python that lacks SimplerEnv the error that says so."""
    text = (TESTS.parent / "docs" / "adding.md").read_text()
    example = text.partition("### A simulator that lives")[2].partition("```python\n")[2].partition("```")[0]
    (tmp_path / "simpler_sapien2.py").write_text(example)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    benchmark = make_benchmark(EvaluationRecipe(benchmark="simpler_sapien2:benchmark", image_size=224))
    assert isinstance(benchmark, Benchmark) and isinstance(benchmark, Isolated)
    specs = benchmark.episodes()
    assert len({spec.id for spec in specs}) == 24 and {spec.max_steps_per_goal for spec in specs} == {60}
    with pytest.raises(SimulatorError, match=r"simpler-2/bin/python: .*No such file"):
        evaluate(RandomPredictor(benchmark.action_spec, 4), benchmark, execute=4, folder=None, progress=False)
    monkeypatch.setattr(type(benchmark), "python", sys.executable)
    with pytest.raises(SimulatorError, match=r"(?s)could be started.*No module named 'simpler_env'"):
        evaluate(RandomPredictor(benchmark.action_spec, 4), benchmark, execute=4, folder=None, progress=False)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="PyBullet has no wheel for this Python")
def test_calvin_is_never_played_in_the_process_that_predicts(tmp_path: Path) -> None:
    """Its OpenGL takes the context of whatever else draws there, and a driver that is broken ends the process."""
    with tarfile.open(TESTS / "assets" / "calvin.tar.xz") as archive:
        archive.extractall(tmp_path / "simulators" / "calvin", filter="data")
    program = f"""
import sys
from vlm4vla.benchmarks.calvin import benchmark
from vlm4vla.core.interfaces import Benchmark, Isolated
from vlm4vla.core.recipes import EvaluationRecipe
from vlm4vla.studies.checks import Resources
from vlm4vla.studies.execute import run_trial
from vlm4vla.studies.presets import random_policy
from vlm4vla.studies.runs import RunStore
benchmark.MAX_STEPS = 5
recipe = EvaluationRecipe(
    benchmark="calvin-d-tasks", look="", tasks=("turn_on_led",), episodes_per_task=1, execute=5, renderer="tiny"
)
status = run_trial(
    random_policy((recipe,)), RunStore({str(tmp_path / "out")!r}), resources=Resources(workers=0, progress=False)
)
print(status.state, "pybullet" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "VLM4VLA_SIMULATORS": str(tmp_path / "simulators")},
    )
    assert done.stdout.splitlines()[-1:] == ["done False"], done.stderr
    (log,) = (tmp_path / "out").glob("trials/*/evaluations/*/episodes.jsonl")
    assert [(result.error, result.steps) for result in read_log(log)[0]] == [(None, 5)]
