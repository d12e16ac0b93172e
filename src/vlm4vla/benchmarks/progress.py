"""How far an evaluation is: one rewritten line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

from vlm4vla.core.types import EpisodeResult

_TERMINAL_SECONDS = 0.2
_PLAIN_SECONDS = 30.0


class Progress:
    """Counts results and prints to stderr. Results of an earlier, interrupted run count but do not speed it up.

    It may be of several evaluations, one after the other: then rates are of the one under way, counts and time of all.
    """

    def __init__(self, name: str, total: int, done: Iterable[EpisodeResult], *, shown: bool) -> None:
        self._name = name
        self._total = total
        self._part, self._rest = total, 0
        self._results = list(done)
        self._played = 0
        self._shown = shown
        self._terminal = sys.stderr.isatty()
        self._start = self._printed = time.monotonic()
        self._width = 0
        if shown and self._results:
            print(f"{name}: {len(self._results)} of {total} episodes were played before", file=sys.stderr)

    def part(self, name: str, total: int, *, rest: int) -> None:
        """The next of several evaluations, of so many episodes; `rest` are to be played in those after it."""
        self._name, self._part, self._rest = name, total, rest
        self._results = []

    def begin(self, done: Iterable[EpisodeResult]) -> None:
        """What the evaluation under way starts from."""
        self._results = list(done)

    def add(self, result: EpisodeResult) -> None:
        """Count a result; print when it is time."""
        self._results.append(result)
        self._played += 1
        now = time.monotonic()
        if now - self._printed >= (_TERMINAL_SECONDS if self._terminal else _PLAIN_SECONDS):
            self._print(now)

    def say(self, text: str) -> None:
        """A line for good, shown or not; nothing for an empty one."""
        if text:
            print(f"\r{text}" if self._terminal else text, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Print the last line."""
        self._print(time.monotonic())
        if self._shown and self._terminal:
            print(file=sys.stderr)

    def line(self, seconds: float) -> str:
        """The line after so many seconds of this run."""
        scored = [result for result in self._results if result.error is None]
        open_ = self._rest + self._part - len(self._results)
        parts = [f"{self._name}  {self._total - open_}/{self._total} episodes"]
        if scored:
            parts.append(f"success {sum(result.success for result in scored) / len(scored):.1%}")
            if max(result.goals for result in scored) > 1:
                mean = sum(result.goals_completed for result in scored) / len(scored)
                parts.append(f"chain length {mean:.2f}")
        if errors := len(self._results) - len(scored):
            parts.append(f"{errors} error{'s' if errors > 1 else ''}")
        if self._played and seconds > 0:
            rate = self._played / seconds
            left = round(open_ / rate)
            parts += [f"{rate:.2f} episodes/s", f"{left // 60}:{left % 60:02d} left"]
        return ", ".join(parts)

    def _print(self, now: float) -> None:
        if not self._shown:
            return
        self._printed = now
        line = self.line(now - self._start)
        if self._terminal:
            print(f"\r{line:<{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(line)
        else:
            print(line, file=sys.stderr, flush=True)
