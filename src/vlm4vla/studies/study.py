"""A study: rows of trials under one question, beside what was published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlm4vla.core.errors import unknown_name
from vlm4vla.core.recipes import Trial
from vlm4vla.studies.runs import RunStore, read_status

State = Literal["done", "running", "failed", "missing", "needs tuning", "published only"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What is scored of a row's trials."""

    name: str
    trial: str = ""
    """Which of a row's trials; empty: all of them, which then differ in their seed alone."""
    measure: Literal["success", "chain"] = "success"
    """Percent of episodes that succeeded, or goals completed in a row."""
    goals: int = 0
    """Success means this many goals in a row; 0: all of them."""
    share: bool = False
    """Success is published as a share of 1, not as percent."""
    look: str = ""
    """Only evaluations in this look."""
    task: str = ""
    """Only episodes whose task has this word in its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRow:
    """One row of a table."""

    name: str
    trials: Mapping[str, Trial] = field(default_factory=dict)
    """What is trained for it, by the benchmark or cell it fills; empty where only a published number exists."""
    published: Mapping[str, float] = field(default_factory=dict)
    """By column."""
    tuned_on: str = ""
    """What the VLM is tuned on before it becomes a policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A table or figure of the paper, or one's own."""

    name: str
    title: str
    question: str
    columns: tuple[Column, ...]
    rows: tuple[StudyRow, ...]
    about: tuple[str, ...] = ("policy.backbone",)
    """Fields of a trial in which its rows are meant to differ; every other difference is told."""
    notes: tuple[str, ...] = ()
    """Assumptions, and slips of what was published."""

    @property
    def column_names(self) -> tuple[str, ...]:
        """In their order."""
        return tuple(column.name for column in self.columns)

    @property
    def trials(self) -> list[Trial]:
        """Every trial once, in the rows' order."""
        return list(dict.fromkeys(trial for row in self.rows for trial in row.trials.values()))


Scale = Literal["paper", "tabletop"]
MakeStudy = Callable[[Scale], Study]


def state_of(trial: Trial, row: StudyRow, store: RunStore) -> State:
    """How far a trial of a row is."""
    if row.tuned_on and not Path(trial.policy.backbone).is_dir():
        return "needs tuning"
    status = read_status(store.folder(trial))
    return "missing" if status is None else status.state


def study_named(name: str, studies: Mapping[str, MakeStudy], scale: Scale) -> Study:
    """Raises: RecipeError with the nearest names."""
    if name not in studies:
        raise unknown_name("study", name, studies)
    return studies[name](scale)


def counts(study: Study, store: RunStore) -> dict[State, int]:
    """How many of the study's trials are in which state."""
    found: dict[State, int] = {}
    seen: set[Trial] = set()
    for row in study.rows:
        for trial in row.trials.values():
            if trial not in seen:
                seen.add(trial)
                state = state_of(trial, row, store)
                found[state] = found.get(state, 0) + 1
    return found


def runnable(study: Study) -> Sequence[Trial]:
    """The trials that need no tuned VLM that is not there."""
    return [
        trial
        for trial in study.trials
        if not any(
            row.tuned_on and trial in row.trials.values() and not Path(trial.policy.backbone).is_dir()
            for row in study.rows
        )
    ]
