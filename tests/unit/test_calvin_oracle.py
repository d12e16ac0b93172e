"""CALVIN's oracle on hand-made states against what calvin_env says of them. tests/golden/calvin/README.md."""

from __future__ import annotations

from pathlib import Path

import calvin_states
import numpy as np
import pytest

from vlm4vla.benchmarks.calvin.oracle import TASKS

GOLDEN = Path(__file__).parents[1] / "golden" / "calvin" / "verdicts.npz"


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_done_and_nearly_done(task: str) -> None:
    """Of the same beginning or end: one condition of the oracle short, and it is not done."""
    group, done, missed = calvin_states.cases()[task]
    states, world = calvin_states.groups()[group], calvin_states.world()
    assert TASKS[task](states[done[0]], states[done[1]], world)
    assert len(missed) >= 2
    for start, now in missed:
        assert not TASKS[task](states[start], states[now], world), (start, now)


def test_every_verdict_is_calvin_envs() -> None:
    """All 34 of every pair of states of a group."""
    world = calvin_states.world()
    found = [
        [TASKS[task](start, now, world) for task in TASKS]
        for states in calvin_states.groups().values()
        for start in states.values()
        for now in states.values()
    ]
    with np.load(GOLDEN, allow_pickle=False) as stored:
        assert stored["tasks"].tolist() == list(TASKS)
        expected = np.unpackbits(stored["done"].T, axis=1, count=len(TASKS)).astype(bool)
    assert expected.any(axis=0).all() and len(expected) > 2500
    np.testing.assert_array_equal(np.array(found), expected)


def test_every_task_has_a_case() -> None:
    assert set(calvin_states.cases()) == set(TASKS) and len(TASKS) == 34
