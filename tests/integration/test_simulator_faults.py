"""Simulators that break for real: told clearly, nothing recorded is lost, the same final numbers after going on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faulty_simulators import LosesContext

from vlm4vla.benchmarks.calvin.benchmark import Calvin
from vlm4vla.benchmarks.records import kept_software
from vlm4vla.benchmarks.rollout import RandomPredictor, evaluate
from vlm4vla.benchmarks.simulators import interpreter, pins
from vlm4vla.core.errors import SimulatorError
from vlm4vla.core.interfaces import Benchmark
from vlm4vla.core.types import EpisodeResult

TESTS = Path(__file__).parents[1]
ARCHIVE = TESTS / "assets" / "calvin.tar.xz"
TABLETOP: dict[str, Any] = {
    "look": "A",
    "tasks": ["press", "lift"],
    "episodes_per_task": 1,
    "image_size": 64,
    "renderer": "opengl",
}
WORLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tabletop": ("vlm4vla.benchmarks.tabletop.benchmark:Tabletop", TABLETOP),
    "calvin": ("vlm4vla.benchmarks.calvin.benchmark:Calvin", {"episodes": 2}),
    "libero": ("vlm4vla.benchmarks.libero.benchmark:Libero", {"suite": "goal", "episodes_per_task": 1}),
}


def play(benchmark: Benchmark, folder: Path | None, **options: Any) -> list[EpisodeResult]:
    """Two episodes of ten random steps, one after the other in one worker."""
    few = [replace(spec, max_steps_per_goal=10) for spec in list(benchmark.episodes())[:2]]
    settings = {"workers": 1, "environments": 1, "progress": False, "execute": 5, "episodes": few, **options}
    policy = RandomPredictor(benchmark.action_spec, 5, seed=1)
    return evaluate(policy, benchmark, folder=folder, **settings)


def timeless(results: list[EpisodeResult]) -> list[EpisodeResult]:
    return [replace(result, seconds=0.0) for result in results]


def draws(environment: Mapping[str, str]) -> bool:
    """Whether EGL works here, which CALVIN's plugin and MuJoCo need."""
    program = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8).render()"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, check=False
    )
    return done.returncode == 0


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CALVIN's models, alone in a folder of simulators."""
    if sys.version_info >= (3, 12):
        pytest.skip("PyBullet has no wheel for this Python")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "simulators" / "calvin", filter="data")
    monkeypatch.setenv("VLM4VLA_SIMULATORS", str(tmp_path / "simulators"))
    return tmp_path / "simulators" / "calvin" / "data"


@pytest.mark.parametrize(
    "name",
    [
        "tabletop",
        pytest.param("calvin", marks=pytest.mark.needs("calvin")),
        pytest.param(
            "libero", marks=[pytest.mark.needs("libero"), pytest.mark.simulators, pytest.mark.timeout(900)]
        ),
    ],
)
def test_a_lost_opengl_context_is_an_error_and_costs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Unnoticed, the policy would be shown the last picture for ever (PyBullet) or something else (LIBERO)."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    python = None
    if not draws({"MUJOCO_GL": "egl"}):
        pytest.skip("EGL does not work on this machine")
    if name == "libero":
        try:
            python = interpreter("libero")
        except SimulatorError as error:
            pytest.skip(str(error))
    if name == "calvin":
        request.getfixturevalue("models")
    factory, arguments = WORLDS[name]
    broken = LosesContext(factory, arguments, str(tmp_path / "broken"))
    first = play(broken, tmp_path / "out", python=python)
    assert first[0].error is not None and first[1].error is None, "a new worker played the second episode"
    assert "context" in first[0].error.lower()
    lines = (tmp_path / "out" / "episodes.jsonl").read_text().splitlines()
    again = timeless(play(broken, tmp_path / "out", python=python))
    assert (tmp_path / "out" / "episodes.jsonl").read_text().splitlines()[:2] == lines
    assert [result.error for result in again] == [None, None]
    assert again == timeless(play(broken, None, python=python)), "as if nothing had broken"


@pytest.mark.needs("calvin")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for children in /proc")
def test_models_that_vanish_stop_the_evaluation_which_goes_on_when_they_are_back(
    models: Path, tmp_path: Path
) -> None:
    """PyBullet keeps models in memory, so that a worker goes on without them; one that dies cannot be replaced."""
    benchmark = Calvin(3, renderer="tiny")
    few = [replace(spec, max_steps_per_goal=5) for spec in benchmark.episodes()]
    clean = timeless(play(benchmark, None, episodes=few))

    class Vanishing(RandomPredictor):
        def predict_chunk(self, observations):  # type: ignore[no-untyped-def]
            if models.exists() and (tmp_path / "out" / "episodes.jsonl").read_bytes():
                shutil.move(models, tmp_path / "away")
                os.kill(worker(), signal.SIGKILL)
            return super().predict_chunk(observations)

    with pytest.raises(SimulatorError, match="could be started") as caught:
        evaluate(
            Vanishing(benchmark.action_spec, 5, seed=1),
            benchmark,
            execute=5,
            folder=tmp_path / "out",
            episodes=few,
            environments=1,
            workers=1,
            progress=False,
        )
    assert "CALVIN's models are not there. `vlm4vla simulators install calvin`" in str(caught.value)
    kept = (tmp_path / "out" / "episodes.jsonl").read_bytes()
    shutil.move(tmp_path / "away", models)
    assert timeless(play(benchmark, tmp_path / "out", episodes=few)) == clean
    assert (tmp_path / "out" / "episodes.jsonl").read_bytes().startswith(kept)


@pytest.mark.needs("calvin")
def test_another_version_of_a_simulator_is_told_and_recorded(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Metadata of another PyBullet lies before the true one's, as in an environment that was changed by hand."""
    other = tmp_path / "site" / "pybullet-3.2.5.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: pybullet\nVersion: 3.2.5\n")
    benchmark = Calvin(1, renderer="tiny")
    before = play(benchmark, tmp_path / "out", episodes=short(benchmark))
    assert "is played with" not in capsys.readouterr().err
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    after = play(benchmark, tmp_path / "other", episodes=short(benchmark))
    told = capsys.readouterr().err
    assert "calvin-abc-d-tiny-v2 is played with pybullet 3.2.5 instead of 3.2.7" in told
    assert "vlm4vla simulators install" in told
    assert kept_software(tmp_path / "out", before[0])["pybullet"] == pins("calvin")["pybullet"] == "3.2.7"
    assert kept_software(tmp_path / "other", after[0])["pybullet"] == "3.2.5"
    assert before[0].last_image == after[0].last_image and before[0].software != after[0].software


def short(benchmark: Benchmark) -> list[Any]:
    return [replace(benchmark.episodes()[0], max_steps_per_goal=5)]


def worker() -> int:
    """The one child of this process that plays episodes; other tests leave children of other kinds."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    (found,) = [pid for pid in children if b"benchmarks.workers" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return int(found)
