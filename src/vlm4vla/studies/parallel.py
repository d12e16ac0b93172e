"""Several trials side by side, each in a process of its own with one thread."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vlm4vla.benchmarks.machine import cores, memory
from vlm4vla.benchmarks.workers import ONE_THREAD
from vlm4vla.core.errors import RunError
from vlm4vla.core.recipes import Trial
from vlm4vla.studies.checks import Resources, check, facts_of, is_trained
from vlm4vla.studies.display import Display, TrialView, label
from vlm4vla.studies.execute import check_backbone, device_named, is_swept, last_words, make_demonstrations
from vlm4vla.studies.forecast import side_by_side
from vlm4vla.studies.runs import RunStore, read_status

_GOODBYE_SECONDS = 10.0
_LINES = 8


class Job(Protocol):
    """A trial that is being carried out somewhere."""

    def ended(self) -> bool:
        """Whether nothing works on it any more."""
        ...

    def failure(self) -> list[str]:
        """What to tell about it once it has ended; nothing when all went well."""
        ...

    def interrupt(self) -> None:
        """End it; it continues from its last checkpoint another time."""
        ...


class Executor(Protocol):
    """Where trials are carried out: on this machine, or on others that see the store's folder."""

    slots: int
    """How many at a time."""

    def start(self, trial: Trial) -> Job:
        """Begin with a trial whose folder and demonstrations are there; `studies.worker` does the whole of it."""
        ...


class LocalExecutor:
    """Child processes of this one."""

    def __init__(self, store: RunStore, resources: Resources, *, slots: int) -> None:
        """More than one slot: one thread, one process each, since the neighbours have the other cores."""
        self.slots, self._store = slots, store
        alone = resources if slots == 1 else dataclasses.replace(resources, workers=0, train_processes=1)
        self._resources = dataclasses.replace(alone, progress=False)

    def start(self, trial: Trial) -> Job:
        """In a process of its own."""
        return _LocalJob(trial, self._store, self._resources)


def run_trials(
    trials: Sequence[Trial],
    store: RunStore,
    *,
    processes: int = 2,
    resources: Resources | None = None,
    notes: Mapping[str, Any] | None = None,
    executor: Executor | None = None,
) -> None:
    """Do whatever of the trials is not done yet, `processes` of them at a time, or where `executor` says.

    Demonstrations are made before, once for all. One trial's failure does not stop the others. Raises: RecipeError
    before anything is done; in the end RunError naming the trials that failed and their folders.
    """
    resources = resources or Resources()
    trials = list(dict.fromkeys(trials))
    for trial in trials:
        check(trial, resources if processes == 1 else dataclasses.replace(resources, train_processes=1))
        check_backbone(trial)
    missing = [trial for trial in trials if not _prepared(trial, store, resources, notes)]
    executor = executor or _local(missing, store, resources, processes)
    alike = len({label(trial) for trial in trials}) < len(trials)
    views = [
        TrialView(trial, store.folder(trial), name=trial.name if alike else label(trial)) for trial in trials
    ]
    failed: list[str] = []
    pending, running = missing, list[tuple[Trial, Job]]()
    with Display(shown=resources.progress and bool(missing)) as display:
        try:
            while pending or running:
                while pending and len(running) < executor.slots:
                    trial = next_trial(pending, [trial for trial, _ in running], store)
                    pending.remove(trial)
                    running.append((trial, executor.start(trial)))
                for entry in [entry for entry in running if entry[1].ended()]:
                    running.remove(entry)
                    failed += entry[1].failure()
                _show(views, display, last=not (pending or running))
                display.wait()
        finally:
            for _, job in running:
                job.interrupt()
    if failed:
        raise RunError("\n".join(failed))


def _local(missing: Sequence[Trial], store: RunStore, resources: Resources, processes: int) -> LocalExecutor:
    """No more at a time than this machine's memory takes."""
    wanted = min(processes, len(missing))
    if wanted > 1 and device_named(resources.device) == "cpu":
        fitting, told = side_by_side(missing, wanted, cores=cores(), free=memory().free)
        if told:
            print(told, file=sys.stderr)
        if fitting < wanted:  # with one thread and one process each, as beside others
            processes = fitting
            resources = dataclasses.replace(resources, workers=0, train_processes=1)
    return LocalExecutor(store, resources, slots=processes)


@dataclass
class _LocalJob:
    """A trial in a child process."""

    trial: Trial
    store: RunStore
    resources: dataclasses.InitVar[Resources]

    def __post_init__(self, resources: Resources) -> None:
        self.folder = self.store.folder(self.trial)
        self._log = self.folder / "worker.log"
        command = [sys.executable, "-m", "vlm4vla.studies.worker", str(self.store.root), str(self.folder)]
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, json.dumps(dataclasses.asdict(resources))],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **ONE_THREAD, "TOKENIZERS_PARALLELISM": "false", "PYTHONSAFEPATH": "1"},
                start_new_session=True,  # Ctrl-C is ours to pass on
            )

    def ended(self) -> bool:
        """Whether the process has."""
        return self.process.poll() is not None

    def failure(self) -> list[str]:
        """What to tell about a process that has ended; nothing when all went well."""
        code = self.process.returncode
        if code == 0:
            return []
        if code < 0:
            how = f"its process was ended by signal {-code} ({signal.strsignal(-code)})"
            return [f"{self.trial.name}: {how} (in {self.folder}); run the same again to continue"]
        status = read_status(self.folder)
        told = status.error if status and status.state == "failed" else last_words(self._log)
        return [f"{self.trial.name}: {told} (in {self.folder})"]

    def interrupt(self) -> None:
        """End the process as Ctrl-C would; it continues from its last checkpoint another time."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=_GOODBYE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _prepared(trial: Trial, store: RunStore, resources: Resources, notes: Mapping[str, Any] | None) -> bool:
    """Whether a trial is done; if not, it has its folder and its demonstrations then."""
    with store.open(trial, facts=facts_of(trial), notes=notes) as run:
        if run.is_done(evaluated=True) and is_swept(trial, run.folder, resources):
            return True
        run.begin()
        if is_trained(trial):
            with run.phase("demonstrations"):
                make_demonstrations(trial.demonstrations, store, resources)
        return False


def next_trial(pending: Sequence[Trial], running: Sequence[Trial], store: RunStore) -> Trial:
    """The first that need not wait for a tuning which another trial is carrying out; the first where all must."""
    under_way = {
        trial.tuning for trial in running if trial.tuning is not None and not _is_tuned(trial, store)
    }
    return next((trial for trial in pending if trial.tuning not in under_way), pending[0])


def _is_tuned(trial: Trial, store: RunStore) -> bool:
    status = None if trial.tuning is None else read_status(store.folder(trial.tuning))
    return status is not None and status.state == "done"


def _show(views: Sequence[TrialView], display: Display, *, last: bool) -> None:
    """A line per trial; of many only those at work, and how many there are."""
    shown, head = list(views), list[str]()
    if len(views) > _LINES:
        states = [status.state if (status := view.status()) else "missing" for view in views]
        shown = [view for view, state in zip(views, states, strict=True) if state == "running"]
        told = [f"{states.count('done')} of {len(views)} trials done"]
        told += [f"{states.count('failed')} failed"] if "failed" in states else []
        head = [", ".join(told)]
        shown = [view for view in shown if not view.line().endswith("waiting")]
    width = max((len(view.name) for view in shown), default=0)
    display.show([*head, *(view.line(width=width) for view in shown)], last=last)
