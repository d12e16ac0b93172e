"""What a training tells while it runs: metrics.jsonl and the progress line; and the numbers it needs for that."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from vlm4vla.core.errors import RunError
from vlm4vla.core.recipes import TrainRecipe
from vlm4vla.training.mirrors import open_mirrors
from vlm4vla.training.optimization import REMEMBERED

TERMS = ("loss", "pose", "gripper")
PLAIN_SECONDS = 15.0
"""Between progress lines where they cannot be rewritten."""
REWRITE_SECONDS = 0.2


@dataclass
class RunState:
    """How far a training is; saved with every checkpoint, so that the metrics after a resume are the unbroken run's."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Time spent training, validating and saving, over all resumes."""
    recent: list[float] = field(default_factory=list)
    """The last losses, newest last."""
    first: float = math.inf
    """The loss of the first step."""
    sums: dict[str, float] = field(default_factory=dict)
    """Since the last metrics line: sums over steps."""
    count: int = 0
    """Since the last metrics line: steps."""
    step_seconds: float = 0.0
    """Since the last metrics line: time spent in steps alone."""

    def add(self, terms: Mapping[str, float], *, seconds: float) -> None:
        """One more step is done, with these losses (and the gradient's norm), in this time."""
        if self.step == 0:
            self.first = terms["loss"]
        self.step += 1
        self.recent = [*self.recent[1 - REMEMBERED :], terms["loss"]]
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in terms.items()}
        self.count += 1
        self.seconds += seconds
        self.step_seconds += seconds

    def take(self) -> tuple[dict[str, float], float]:
        """Means over the steps since the last call, and the seconds that one of them took."""
        means = {name: value / self.count for name, value in self.sums.items()}
        seconds = self.step_seconds / self.count
        self.sums, self.count, self.step_seconds = {}, 0, 0.0
        return means, seconds


class MetricsLog:
    """metrics.jsonl: append-only, but for a resume, which drops what the interrupted run wrote after its checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resume(self, step: int) -> None:
        """Keep the lines up to and including `step`; a last line cut short goes.

        Raises: RunError for another damaged line.
        """
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = []
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
            except ValueError as error:
                if number == len(lines) and not line.endswith("\n"):
                    break
                raise RunError(
                    f"{self.path}, line {number}: not JSON ({error}); delete the line to continue"
                ) from error
            if entry["step"] <= step:
                kept.append(line if line.endswith("\n") else line + "\n")
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(self.path)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one line; a number that is none becomes null."""
        plain = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in entry.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")


class ProgressLine:
    """One line rewritten on a terminal, a line now and then elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._rewrites = self._stream.isatty()
        self._shown = -math.inf

    def due(self) -> bool:
        """Whether it is time for the next one."""
        wait = REWRITE_SECONDS if self._rewrites else PLAIN_SECONDS
        return time.monotonic() - self._shown >= wait

    def show(self, text: str) -> None:
        """Write it."""
        self._shown = time.monotonic()
        if self._rewrites:
            columns = os.get_terminal_size(self._stream.fileno()).columns or 80
            self._stream.write(f"\r\033[K{text[: columns - 1]}")
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """End a line that was rewritten."""
        if self._rewrites and self._shown > -math.inf:
            self._stream.write("\n")


class TrainingLog:
    """Everything a training tells: metrics.jsonl, its mirrors, the progress line."""

    def __init__(
        self,
        recipe: TrainRecipe,
        folder: Path,
        state: RunState,
        *,
        name: str,
        config: Mapping[str, Any],
        enabled: bool,
        progress: bool,
        mirrors: Sequence[str] = (),
    ) -> None:
        """`enabled`: false in all processes but the main one, whose metrics continue from `state`.

        `name` and `config`: what mirrors are told.
        """
        self._steps, self._batch_size = recipe.steps, recipe.batch_size
        self._metrics = MetricsLog(folder / "metrics.jsonl") if enabled else None
        self._line = ProgressLine() if enabled and progress else None
        names = mirrors if enabled else ()
        self._mirrors = open_mirrors(names, folder, name=name, config=config)
        self._held_out: float | None = None
        self._started, self._start = state.step, time.monotonic()
        if self._metrics:
            folder.mkdir(parents=True, exist_ok=True)
            self._metrics.resume(state.step)

    def train(self, state: RunState, *, learning_rate: float) -> None:
        """The steps since the last such line."""
        means, seconds = state.take()
        speed = round(self._batch_size / max(seconds, 1e-9), 2)
        values = {**means, "learning_rate": learning_rate, "samples_per_second": speed}
        self._write(state, "train", values)

    def held_out(self, state: RunState, terms: Mapping[str, float]) -> None:
        """The losses on held-out samples."""
        self._held_out = terms["loss"]
        self._write(state, "held_out", terms)

    def show(self, state: RunState, loss: float) -> None:
        """The progress line, if it is due: step, losses, speed, time left."""
        if self._line is None or not (self._line.due() or state.step == self._steps):
            return
        rate = (time.monotonic() - self._start) / (state.step - self._started)
        parts = [f"step {state.step}/{self._steps}", f"loss {loss:.4f}"]
        parts += [f"held-out {self._held_out:.4f}"] if self._held_out is not None else []
        parts += [
            f"{self._batch_size / rate:.0f} samples/s",
            f"{clock(rate * (self._steps - state.step))} left",
        ]
        self._line.show("  ".join(parts))

    def close(self) -> None:
        """End the progress line and the mirrors."""
        if self._line:
            self._line.close()
        for mirror in self._mirrors:
            mirror.close()

    def _write(self, state: RunState, split: str, values: Mapping[str, float]) -> None:
        if self._metrics:
            self._metrics.write(
                {"step": state.step, "split": split, **values, "seconds": round(state.seconds, 3)}
            )
        for mirror in self._mirrors:
            mirror.write(state.step, {f"{split}/{name}": value for name, value in values.items()})


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`.

    >>> clock(3723), clock(123)
    ('1:02:03', '2:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
