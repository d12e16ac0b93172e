"""What a person sees while trials are at work: a line per trial, rewritten on a terminal, else a line now and then."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from vlm4vla.benchmarks.records import logs
from vlm4vla.core.recipes import TrainRecipe, Trial, fingerprint
from vlm4vla.studies.presets import RANDOM_POLICY, short_name
from vlm4vla.studies.runs import RunStore, Status, read_status

REWRITE_SECONDS = 0.5
PLAIN_SECONDS = 15.0
_TAIL_BYTES = 1 << 16


class Display:
    """A block of lines on stderr."""

    def __init__(self, *, shown: bool, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._shown = shown
        self._rewrites = self._stream.isatty()
        self._lines = 0
        self._start = self._last = time.monotonic()
        self._text = ""

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._start

    def show(self, lines: Sequence[str], *, last: bool = False) -> None:
        """Replace what was shown, if it is time; `last` always is."""
        wait = REWRITE_SECONDS if self._rewrites else PLAIN_SECONDS
        if not self._shown or (time.monotonic() - self._last < wait and not last):
            return
        self._last = time.monotonic()
        if not self._rewrites:
            self.say("; ".join(" ".join(line.split()) for line in lines))
            return
        columns = shutil.get_terminal_size().columns
        up = f"\033[{self._lines}F" if self._lines else ""
        self._stream.write(up + "".join(f"\033[K{line[: columns - 1]}\n" for line in lines))
        self._stream.flush()
        self._lines = len(lines)

    def say(self, text: str) -> None:
        """One line for good; a line equal to the one before is not repeated."""
        if self._shown and text != self._text:
            print(text, file=self._stream, flush=True)
            self._text, self._lines = text, 0

    def wait(self) -> None:
        """Until there may be something new."""
        time.sleep(REWRITE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()


class TrialView:
    """Reads from a trial's folder how far it is; whoever works on it need not know."""

    def __init__(self, trial: Trial, folder: Path, *, name: str = "") -> None:
        self.name = name or label(trial)
        self._trial, self._folder = trial, folder
        self._first_count: tuple[float, int] | None = None

    def status(self) -> Status | None:
        """As last written."""
        return read_status(self._folder)

    def line(self, *, width: int = 0) -> str:
        """The name, padded to `width`, and what is being done."""
        return f"{self.name:<{width}}   {self._doing(self.status())}"

    def _doing(self, status: Status | None) -> str:
        if status is None:
            return "waiting"
        if status.state == "failed":
            return "failed"
        if status.state == "done":
            spent = status.seconds
            return f"done in {clock(spent.demonstrations + spent.train + spent.evaluate)}"
        match status.phase:
            case "train":
                return _training(self._folder, self._trial.train)
            case "evaluate":
                return self._evaluating(status.episodes)
        tuning = self._trial.tuning
        if tuning is not None:
            folder = RunStore(self._folder.parents[1]).folder(tuning)
            known = read_status(folder)
            if known is not None and known.state == "running":
                return _training(folder, tuning.train, word="tuning")
        return "waiting"

    def _evaluating(self, total: int) -> str:
        places = (self._folder, *self._folder.glob("checkpoints/step-*"))
        names = [fingerprint(recipe) for recipe in self._trial.evaluations]
        folders = [place / "evaluations" / name for place in places for name in names]
        count = min(total, sum(log.read_bytes().count(b"\n") for folder in folders for log in logs(folder)))
        if not total:
            return "rollouts   starting"
        start, before = self._first_count = self._first_count or (time.monotonic(), count)
        return f"rollouts   {count:>5} of {total}{time_left(time.monotonic() - start, count - before, total - before)}"


def _training(folder: Path, recipe: TrainRecipe, *, word: str = "training") -> str:
    """How far a training is, or a tuning before it."""
    path, steps = folder / "metrics.jsonl", recipe.steps
    entries = _last_entries(path)
    trained = [entry for entry in entries if entry["split"] == "train"]
    if not trained:
        return f"{word:<8}   {0:>5} of {steps}"
    now = trained[-1]
    held_out = [f"{entry['loss']:.3f}" for entry in entries if entry["split"] == "held_out" and entry["loss"]]
    seconds = (steps - now["step"]) * recipe.batch_size / max(now["samples_per_second"], 1e-9)
    since = time.time() - path.stat().st_mtime
    return "   ".join(
        [
            f"{word:<8}   {now['step']:>5} of {steps}",
            f"loss {_loss(now)}" + (f", held out {held_out[-1]}" if held_out else ""),
            f"{clock(max(0.0, seconds - since))} left",
        ]
    )


def _loss(entry: Mapping[str, Any]) -> str:
    """JSON has no NaN: metrics.jsonl says null."""
    return "not finite" if entry["loss"] is None else f"{entry['loss']:.3f}"


def label(trial: Trial) -> str:
    """What a trial is called among others."""
    if trial.policy.backbone == RANDOM_POLICY:
        return "random policy"
    name = short_name(trial.policy.backbone)
    return name if trial.policy.weights == "pretrained" else f"{name}, random weights"


def time_left(seconds: float, done: int, total: int) -> str:
    """`   1:23 left`, or nothing while it cannot be told."""
    if done <= 0 or seconds < 1 or done >= total:
        return ""
    return f"   {clock(seconds / done * (total - done))} left"


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`.

    >>> clock(3723), clock(123)
    ('1:02:03', '2:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _last_entries(path: Path) -> list[dict[str, Any]]:
    """The whole lines near the end of a metrics file."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        skipped = max(0, path.stat().st_size - _TAIL_BYTES)
        file.seek(skipped)
        lines = file.read().split(b"\n")
    # The last line may be half-written; the first one is cut where something was skipped.
    return [json.loads(line) for line in lines[bool(skipped) : -1]]
