"""episodes.jsonl: one line per finished episode, append-only; an interrupted evaluation continues from it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.core.recipes import from_json, to_json
from vlm4vla.core.types import EpisodeResult

_ATTEMPTS = 2
"""How often an episode that ends in an error is played, all resumed evaluations together."""


class EpisodeLog:
    """The results so far. Without a folder they are kept in memory only."""

    def __init__(self, folder: Path | None, known: Iterable[str]) -> None:
        """Reads what is there and repairs a half-written last line.

        Raises: RunError naming file and line for damage elsewhere, and for an episode that is not `known`.
        """
        self.results: dict[str, EpisodeResult] = {}
        """The last attempt of every episode."""
        self._errors: Counter[str] = Counter()
        self._path = None if folder is None else folder / "episodes.jsonl"
        self._file = None
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a line is in the file when add() returns, even if this process is killed next.
            self._file = self._path.open("ab", buffering=0)
            try:
                self._read(self._path, set(known))
            except RunError:
                self._file.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def to_play(self, episode: str) -> bool:
        """Whether the episode has no result yet, or only an error that deserves another attempt."""
        result = self.results.get(episode)
        return result is None or (result.error is not None and self._errors[episode] < _ATTEMPTS)

    def add(self, result: EpisodeResult) -> None:
        """Append a result. Raises: RunError when the disk does not take it."""
        self._keep(result)
        if self._file is None:
            return
        line = json.dumps(to_json(result), allow_nan=False).encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            raise self._disk_error(str(error)) from error
        if written != len(line):
            raise self._disk_error("the disk took only part of a line")

    def _disk_error(self, why: str) -> RunError:
        return RunError(
            f"{self._path}: {why}; free some space and run the same again, it continues from here"
        )

    def _keep(self, result: EpisodeResult) -> None:
        self.results[result.episode] = result
        self._errors[result.episode] += result.error is not None

    def _read(self, path: Path, known: set[str]) -> None:
        data = path.read_bytes()
        complete = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:complete].splitlines(), start=1):
            try:
                result = from_json(EpisodeResult, json.loads(line), where=f"{path}:{number}")
            except (ValueError, RecipeError, AttributeError, TypeError) as error:
                raise RunError(
                    f"{path}:{number}: damaged line ({error}); restore the file, or remove the line to play "
                    "its episode again"
                ) from error
            if result.episode not in known:
                raise RunError(
                    f"{path}:{number}: episode {result.episode!r} is not of this benchmark; the folder holds "
                    "another evaluation, choose a new one"
                )
            self._keep(result)
        if complete < len(data):
            with path.open("r+b") as file:
                file.truncate(complete)
