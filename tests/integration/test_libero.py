"""LIBERO for real, in the Python that has it. Skipped where `vlm4vla simulators install libero` was not run."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import libero_checks
import numpy as np
import pytest
from PIL import Image

from vlm4vla.benchmarks.libero.benchmark import RENDERERS, Libero
from vlm4vla.benchmarks.libero.suites import SUITES, instruction
from vlm4vla.benchmarks.records import kept_software
from vlm4vla.benchmarks.replay import replay
from vlm4vla.benchmarks.rollout import RandomPredictor, evaluate
from vlm4vla.benchmarks.simulators import interpreter
from vlm4vla.benchmarks.workers import SOURCE_ROOT
from vlm4vla.core.errors import SimulatorError
from vlm4vla.demonstrations.datasets import open_reader
from vlm4vla.tuning.examples import check
from vlm4vla.tuning.tasks import open_task

pytestmark = pytest.mark.timeout(900)
GOAL = SUITES["goal"].tasks[1]
"""Solved in about 75 steps."""


@pytest.fixture(scope="module")
def python() -> str:
    """The interpreter that has LIBERO."""
    try:
        found = interpreter("libero")
    except SimulatorError as error:
        pytest.skip(str(error))
    if found is None:
        pytest.skip("LIBERO is in this Python, beside another MuJoCo than its own")
    return found


@pytest.fixture(scope="module")
def renderer(python: str) -> str:
    """What this machine draws with; the pictures are the same."""
    told = []
    for name in RENDERERS:
        problem = run(python, libero_checks.__file__, "draws", name)["told"]
        if not problem:
            return name
        told.append(problem)
    pytest.skip("; ".join(told))


def run(python: str, *arguments: str) -> dict[str, Any]:
    """What a program prints last, as JSON."""
    boot = f"import sys; sys.path.append({SOURCE_ROOT!r}); import runpy; sys.argv = sys.argv[1:]; "
    boot += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([python, "-c", boot, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_the_suites_are_liberos(python: str) -> None:
    """Tasks, their order and sentences, and fifty states each."""
    found = run(python, libero_checks.__file__, "tasks")
    assert found == {"same": {suite.folder: True for suite in SUITES.values()}, "states": [50]}


def test_lazy_pictures_are_those_of_liberos_own_loop_to_the_bit(python: str, renderer: str) -> None:
    """After other episodes, with an open drawer and a stove that is turned on: states, both cameras, the generator."""
    found = run(python, libero_checks.__file__, "standard", renderer)
    assert found["differing"] == [] and found["drawn"] == 5
    assert found["kept"] and found["completed"] == 0
    assert found["shape"] == [256, 256, 3] and 60 < found["brightness"] < 200


def test_a_missing_display_is_told_before_any_episode(python: str, renderer: str) -> None:
    told = run(python, libero_checks.__file__, "no_display")["told"]
    assert "cannot draw with egl" in told and "`--renderer osmesa`" in told
    assert "99" in told or renderer != "egl"


@pytest.mark.simulators
def test_the_contract(python: str, renderer: str) -> None:
    assert run(python, libero_checks.__file__, "contract", renderer) == {"kept": True}


def test_rollouts_in_a_worker(python: str, renderer: str, tmp_path: Path) -> None:
    benchmark = Libero("goal", [GOAL], 2, image_size=128, renderer=renderer)
    specs = [replace(spec, max_steps_per_goal=12) for spec in benchmark.episodes()]
    results = evaluate(
        RandomPredictor(benchmark.action_spec, 10, seed=0),
        benchmark,
        execute=10,
        folder=tmp_path,
        episodes=specs,
        environments=1,
        workers=1,
        python=python,
        progress=False,
    )
    assert [(result.error, result.goals_completed, result.steps) for result in results] == [(None, 0, 12)] * 2
    assert results[0].actions != results[1].actions
    again = replay(benchmark, tmp_path, workers=1, environments=1, python=python)
    assert [(each.identical, each.difference) for each in again] == [(True, "")] * 2
    software = kept_software(tmp_path, results[0])
    assert {name: software[name] for name in benchmark.software} == benchmark.software


def test_pictures_have_boxes_where_things_are(python: str, renderer: str, tmp_path: Path) -> None:
    """Points asked for are on what the picture shows there, and depths agree with the simulator's places."""
    program = str(Path(SOURCE_ROOT) / "vlm4vla" / "benchmarks" / "libero" / "pictures.py")
    arguments = [str(tmp_path / "set"), "--tasks", GOAL, "--episodes", "1", "--side", "128"]
    found = run(python, program, *arguments, "--renderer", renderer)
    rows = json.loads((tmp_path / "set" / "boxes.json").read_text())
    assert 5 <= found["pictures"] == len(rows) <= 8
    things = [{thing["name"]: thing for thing in row["things"]} for row in rows]
    assert {"akita black bowl", "plate", "wine bottle", "cream cheese"} <= set(things[0])
    assert all(0.4 < thing["depth"] < 2.5 for row in things for thing in row.values())
    boxes = [row["akita black bowl"]["box"] for row in things if "akita black bowl" in row]
    assert boxes[0] != boxes[-1], "the expert takes it away"
    first, last = (
        np.asarray(Image.open(tmp_path / "set" / row["image"])).astype(float) for row in (rows[0], rows[-1])
    )
    left, top, right, bottom = boxes[0]
    changed = np.abs(first - last).mean(axis=2)
    assert changed[top:bottom, left:right].mean() > 3 * changed.mean(), "where it was, something else is seen"
    source = open_task("boxes", tmp_path / "set")
    assert len(source) == len(rows) and not any(check(source[index]) for index in range(len(rows)))


def test_scripted_demonstrations_solve_and_are_read_as_liberos(
    python: str, renderer: str, tmp_path: Path
) -> None:
    """Fresh resets, never the shipped states; the picture before every action; what a second run refuses."""
    program = str(Path(SOURCE_ROOT) / "vlm4vla" / "benchmarks" / "libero" / "demonstrate.py")
    arguments = [str(tmp_path / "set"), "--tasks", GOAL, "--episodes", "1", "--side", "64", "--no-wrist"]
    arguments += ["--renderer", renderer]
    found = run(python, program, *arguments)
    assert found["demonstrations"] == 1
    source = open_reader("libero", tmp_path / "set")
    recording = source[0]
    assert (recording.task, recording.instruction) == (GOAL, instruction(GOAL))
    steps = len(recording.actions)
    assert 40 < steps <= SUITES["goal"].max_steps and recording.images[steps - 1].shape == (64, 64, 3)
    assert set(np.unique(recording.actions[:, 6])) == {-1, 1} and np.abs(recording.actions).max() <= 1
    assert not np.array_equal(recording.images[0], recording.images[steps - 1])
    assert recording.state is not None and recording.state.shape == (steps, 8)
    moved = recording.state[1:, :3] - recording.state[:-1, :3]
    together = np.corrcoef(moved.ravel(), recording.actions[:-1, :3].ravel())[0, 1]
    assert together > 0.7  # the state is the one before the action, in the same axes
    with h5py.File(next((tmp_path / "set").glob("*.hdf5")), locking=False) as file:
        assert file["data"].attrs["scripted"] and "not LIBERO's own" in file["data"].attrs["note"]
        assert file["data/demo_0/dones"][()].tolist() == [0] * (steps - 1) + [1]
