"""A study: rows of trials under one question, beside what was published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal

from vlm4vla.benchmarks.registry import BENCHMARKS, make_benchmark
from vlm4vla.core.errors import RecipeError, unknown_name
from vlm4vla.core.recipes import DemonstrationRecipe, EvaluationRecipe, TaskRecipe, Trial, fingerprint
from vlm4vla.studies.runs import RunStore, read_status
from vlm4vla.studies.tries import at_steps, complete

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
class Questions:
    """What the VLMs of a study are asked before they become policies, all of them the same."""

    tasks: tuple[TaskRecipe, ...]
    prompt: Literal["chat", "short"] = "chat"
    count: int = 500
    """Of every task, at most."""


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
    asked: Questions | None = None
    """What goes with success, perhaps; None where nobody has such questions at hand."""
    checkpoints: tuple[int, ...] = ()
    """Steps after which every training is evaluated, beside its last: those that `train.keep_every` keeps."""

    @property
    def column_names(self) -> tuple[str, ...]:
        """In their order."""
        return tuple(column.name for column in self.columns)

    @property
    def trials(self) -> list[Trial]:
        """Every trial once, in the rows' order."""
        return list(dict.fromkeys(trial for row in self.rows for trial in row.trials.values()))

    @property
    def row_of(self) -> dict[str, str]:
        """The name of the row that a trial fills, the first if several, by fingerprint, in the rows' order."""
        found: dict[str, str] = {}
        for row in self.rows:
            for trial in row.trials.values():
                found.setdefault(fingerprint(trial), row.name)
        return found


Scale = Literal["paper", "tabletop", "mini"]
"""Of the paper's studies: as printed; on Tabletop with tiny VLMs; the same with the quickstart's short trainings."""
MakeStudy = Callable[[Scale], Study]


def state_of(trial: Trial, row: StudyRow, store: RunStore) -> State:
    """How far a trial of a row is."""
    if _waits(trial, row):
        return "needs tuning"
    status = read_status(store.folder(trial))
    return "missing" if status is None else status.state


def _waits(trial: Trial, row: StudyRow) -> bool:
    """Whether a VLM must be tuned first by hand: no recipe tells how, or the folder of a task's files is not named."""
    if not row.tuned_on or Path(trial.policy.backbone).is_dir():
        return False
    return trial.tuning is None or any(is_nowhere(task) for task in trial.tuning.tasks)


def is_nowhere(task: TaskRecipe) -> bool:
    """A task whose files are read from a folder that is not named. Tabletop's are made."""
    return not (task.path or task.demonstrations or task.task.startswith("tabletop-"))


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


def sources_of(study: Study) -> set[str]:
    """Names of what its trials read: data sets of demonstrations, and files of tasks."""
    found = {trial.demonstrations.source for trial in study.trials}
    for trial in study.trials:
        for task in trial.tuning.tasks if trial.tuning else ():
            if task.demonstrations is not None:
                found.add(task.demonstrations.source)
            elif not task.task.startswith("tabletop-"):
                found.add(task.task)
    return found


def with_data(study: Study, folders: Mapping[str, str]) -> Study:
    """The study on demonstrations that lie in these folders, by source, and files of tasks by task.

    Raises: RecipeError for a name that none of its trials reads.
    """
    sources = sources_of(study)
    for source in folders:
        if source not in sources:
            raise unknown_name(f"source of study {study.name}", source, sorted(sources))

    def moved(trial: Trial) -> Trial:
        tuning = trial.tuning
        if tuning is not None:
            tuning = replace(tuning, tasks=tuple(map(asked, tuning.tasks)))
        return replace(trial, demonstrations=lying(trial.demonstrations), tuning=tuning)

    def lying(recipe: DemonstrationRecipe) -> DemonstrationRecipe:
        folder = folders.get(recipe.source)
        return recipe if folder is None else replace(recipe, path=(folder,))

    def asked(task: TaskRecipe) -> TaskRecipe:
        if task.demonstrations is not None:
            return replace(task, demonstrations=lying(task.demonstrations))
        return replace(task, path=folders.get(task.task, task.path))

    rows = tuple(
        replace(row, trials={name: moved(trial) for name, trial in row.trials.items()}) for row in study.rows
    )
    return replace(study, rows=rows)


def tries_played(study: Study, store: RunStore) -> tuple[int, int]:
    """How many evaluations its checkpoints have, and how many of these were played whole."""
    tries = [
        each
        for trial in study.trials
        for each in at_steps(store.folder(trial), trial, trial.evaluations, study.checkpoints)
    ]
    begun = [each for each in tries if each.folder.is_dir()]
    return sum(complete(begun)), len(tries)


def with_renderer(study: Study, renderer: str) -> Study:
    """The study with those simulators that have this renderer drawn with it; its name and its notes say so.

    Raises: RecipeError when none has it.
    """
    problems = [f"study {study.name!r} plays no simulator whose renderer can be chosen"]

    @cache
    def drawn(recipe: EvaluationRecipe) -> EvaluationRecipe | None:
        entry = BENCHMARKS.get(recipe.benchmark)
        if entry is None or entry.simulator is None:
            return None
        try:
            make_benchmark(replace(recipe, renderer=renderer))
        except RecipeError as error:
            problems.append(str(error))
            return None
        return replace(recipe, renderer=renderer)

    if not any(drawn(recipe) for trial in study.trials for recipe in trial.evaluations):
        raise RecipeError(problems[-1])
    rows = tuple(
        replace(
            row,
            trials={
                name: replace(
                    trial, evaluations=tuple(drawn(recipe) or recipe for recipe in trial.evaluations)
                )
                for name, trial in row.trials.items()
            },
        )
        for row in study.rows
    )
    if rows == study.rows:
        return study
    notes = (
        *study.notes,
        f"drawn with {renderer} where a simulator has it: pictures are others than those of {study.name}",
    )
    return replace(study, name=f"{study.name}-{renderer}", rows=rows, notes=notes)


def seconds_left(study: Study, store: RunStore) -> float | None:
    """How long its missing trainings take one after the other, judged by those that are done: samples a second.

    None while no training of the same backbone and image size is done for one of them.
    """
    speeds: dict[tuple[str, int], list[float]] = {}
    missing = []
    for trial in study.trials:
        status, samples = read_status(store.folder(trial)), trial.train.steps * trial.train.batch_size
        key = (trial.policy.backbone, trial.policy.image_size)
        if status is None or status.state != "done":
            missing.append((key, samples))
        elif status.seconds.train > 0:
            speeds.setdefault(key, []).append(samples / (status.seconds.train + status.seconds.evaluate))
    if not all(key in speeds for key, _ in missing):
        return None
    return sum(samples / (sum(speeds[key]) / len(speeds[key])) for key, samples in missing)


def runnable(study: Study) -> Sequence[Trial]:
    """The trials that need no tuned VLM that is not there."""
    return [
        trial
        for trial in study.trials
        if not any(_waits(trial, row) for row in study.rows if trial in row.trials.values())
    ]


def with_checkpoints(study: Study) -> Study:
    """The same study with a score at every sixth of its trainings, from the second sixth on, as Figure 4 of the paper.

    Sixths are rounded to checkpoints. Trainings keep them then, which makes them others than those that do not. Raises:
    RecipeError unless all of its trainings have the same length.
    """
    lengths = {(t.train.steps, t.train.checkpoint_every) for t in study.trials if t.train.steps}
    if len(lengths) != 1:
        raise RecipeError(f"study {study.name!r}: its trainings have no common length: {sorted(lengths)}")
    ((steps, interval),) = lengths
    every = interval * max(1, round(steps / 6 / interval))

    def keeping(trial: Trial) -> Trial:
        return replace(trial, train=replace(trial.train, keep_every=every)) if trial.train.steps else trial

    rows = tuple(
        replace(row, trials={name: keeping(trial) for name, trial in row.trials.items()})
        for row in study.rows
    )
    told = tuple(step for step in range(every, steps + 1, every) if 3 * step >= steps)
    told = tuple(dict.fromkeys((*told, steps)))
    note = f"checkpoints of {', '.join(f'{step:,}' for step in told)} steps are evaluated"
    return replace(study, rows=rows, checkpoints=told, notes=(*study.notes, note))
