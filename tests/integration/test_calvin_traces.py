"""Our CALVIN against traces of calvin_env: the same actions from the same states. tests/golden/calvin/README.md."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from vlm4vla.benchmarks.calvin.benchmark import CalvinEnvironment
from vlm4vla.benchmarks.calvin.oracle import TASKS

TESTS = Path(__file__).parents[1]
TOLERANCE = 2e-6
"""Metres and radians. Traces are stored to the micrometre; they were equal to the last bit where they were made."""

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 12), reason="PyBullet has no wheel for this Python")


@pytest.mark.parametrize("scene", "ABCD")
def test_states_and_verdicts_are_calvin_envs(
    scene: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every action: arm and desk within the tolerance, all 34 verdicts equal."""
    with tarfile.open(TESTS / "assets" / "calvin.tar.xz") as archive:
        archive.extractall(tmp_path / "calvin", filter="data")
    monkeypatch.setenv("VLM4VLA_SIMULATORS", str(tmp_path))
    with np.load(TESTS / "golden" / "calvin" / "traces.npz", allow_pickle=False) as stored:
        traces = {name: stored[name] for name in stored.files}
    assert traces["tasks"].tolist() == list(TASKS)
    ends = traces["rows"].cumsum()
    environment, solved = CalvinEnvironment(scene, "tiny"), 0
    world = environment.world
    for clip in np.flatnonzero(traces["scenes"] == scene):
        rows = slice(ends[clip] - traces["rows"][clip], ends[clip])
        states = traces["states"][:, rows].T.cumsum(axis=0) / 1e6
        done = np.unpackbits(traces["done"][:, rows].T, axis=1, count=len(TASKS)).astype(bool)
        goals = str(traces["goals"][clip]).split()
        world.build(traces["robot_obs"][clip], traces["scene_obs"][clip], seed=int(traces["seeds"][clip]))
        start = world.state()
        for step, action in enumerate(traces["actions"][rows].astype(np.float32) / 64):
            if step:
                world.act(action)
            now, seen = world.state(), np.concatenate([world.robot_obs(), world.scene_obs()])
            # Angles of half a turn may be stored with the other sign.
            apart = np.remainder(seen - states[step] + np.pi, 2 * np.pi) - np.pi
            assert np.abs(apart).max() < TOLERANCE, (goals, step, seen - states[step])
            verdicts = [task for task, says in TASKS.items() if says(start, now, world)]
            assert verdicts == [task for task, says in zip(TASKS, done[step], strict=True) if says]
            if goals and goals[0] in verdicts:
                goals, start, solved = goals[1:], now, solved + 1
        assert not goals
    assert solved >= 8
    environment.close()


def test_the_traces_show_every_task_done_and_a_step_before_not() -> None:
    with np.load(TESTS / "golden" / "calvin" / "traces.npz", allow_pickle=False) as stored:
        done = np.unpackbits(stored["done"].T, axis=1, count=len(TASKS)).astype(bool)
        begins = stored["rows"].cumsum() - stored["rows"]
    for task, column in zip(TASKS, done.T, strict=True):
        fired = np.flatnonzero(column[1:] & ~column[:-1]) + 1
        assert len(set(fired) - set(begins)) >= 1, task
