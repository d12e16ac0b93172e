"""The five suites: their tasks, what a policy is told, how long it may take. Needs no simulator."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

STATES = 50
"""Initial states that LIBERO ships for every task; what is evaluated begins there, demonstrations never do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """One suite; a task's name is that of its BDDL file."""

    folder: str
    """As LIBERO calls it."""
    max_steps: int
    """As LeRobot limits episodes of it."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """In LIBERO's order."""
        return _tasks()[self.folder]


SUITES: Mapping[str, Suite] = {
    "long": Suite(folder="libero_10", max_steps=520),
    "object": Suite(folder="libero_object", max_steps=280),
    "spatial": Suite(folder="libero_spatial", max_steps=280),
    "goal": Suite(folder="libero_goal", max_steps=300),
    "90": Suite(folder="libero_90", max_steps=400),
}
"""By the last part of the benchmark's name."""


def instruction(task: str) -> str:
    """What a policy is told: the task's name, as LIBERO's own benchmark has it. BDDL files put 29 tasks otherwise.

    >>> instruction("KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it")
    'turn on the stove and put the moka pot on it'
    """
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", task).replace("_", " ")


def suite_of(task: str) -> Suite:
    """Raises: KeyError for a task of no suite."""
    for suite in SUITES.values():
        if task in suite.tasks:
            return suite
    raise KeyError(task)


@cache
def _tasks() -> Mapping[str, tuple[str, ...]]:
    listed = json.loads(Path(__file__).with_name("tasks.json").read_text(encoding="utf-8"))
    return {suite: tuple(tasks) for suite, tasks in listed.items()}
