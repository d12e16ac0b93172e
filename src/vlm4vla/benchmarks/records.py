"""What an evaluation leaves: results, append-only, from which an interrupted one continues, and the actions taken.

episodes.jsonl               a line per finished episode
episodes-2-of-8.jsonl        likewise, of the third of eight shards; all of them together are the evaluation
actions/ID.npy               two arrays, one after the other, for `replay`: float32 [steps, 7], what was carried out,
                             and uint64 [looks, 3], after which step the policy looked, goals then, digest of the image
software/NAME.json           versions that played the episodes whose result names them
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from jaxtyping import Float32

from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.core.recipes import fingerprint, from_json, to_json
from vlm4vla.core.types import EpisodeResult

REPEAT = "~repeat-"
"""Between an episode's id and which play of it a result is."""
_ATTEMPTS = 2
"""How often an episode that ends in an error is played, all resumed evaluations together."""


class EpisodeLog:
    """The results so far. Without a folder they are kept in memory only."""

    def __init__(self, folder: Path | None, known: Iterable[str], *, shard: tuple[int, int] = (0, 1)) -> None:
        """Reads what is there, other shards' results included, and repairs a half-written last line of its own.

        Raises: RunError naming file and line for damage elsewhere, and for an episode that is not `known`.
        """
        self.results: dict[str, EpisodeResult] = {}
        """The last attempt of every episode."""
        self._errors: Counter[str] = Counter()
        name = "episodes.jsonl" if shard[1] == 1 else f"episodes-{shard[0]}-of-{shard[1]}.jsonl"
        self._path = None if folder is None else folder / name
        self._file = None
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a line is in the file when add() returns, even if this process is killed next.
            self._file = self._path.open("ab", buffering=0)
            try:
                names = set(known)
                for other in logs(self._path.parent):
                    if other != self._path:
                        self._read(other, names, repair=False)
                self._read(self._path, names, repair=True)
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

    def _read(self, path: Path, known: set[str], *, repair: bool) -> None:
        results, complete = read_log(path)
        for number, result in enumerate(results, start=1):
            if result.episode not in known:
                raise RunError(
                    f"{path}:{number}: episode {result.episode!r} is not of this benchmark; the folder holds "
                    "another evaluation, choose a new one"
                )
            self._keep(result)
        if repair and complete < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(complete)


def logs(folder: Path) -> list[Path]:
    """Every file of results of an evaluation."""
    return sorted(folder.glob("episodes*.jsonl"))


def read_log(path: Path) -> tuple[list[EpisodeResult], int]:
    """The results of a file, and how many bytes its whole lines have. Raises: RunError naming a damaged line."""
    data = path.read_bytes()
    complete = data.rfind(b"\n") + 1
    results = []
    for number, line in enumerate(data[:complete].splitlines(), start=1):
        try:
            results.append(from_json(EpisodeResult, json.loads(line), where=f"{path}:{number}"))
        except (ValueError, RecipeError, AttributeError, TypeError) as error:
            raise RunError(
                f"{path}:{number}: damaged line ({error}); restore the file, or remove the line to play "
                "its episode again"
            ) from error
    return results, complete


def digest_of(*arrays: np.ndarray) -> str:
    """Of the bytes, one array after the other."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def actions_path(folder: Path, episode: str) -> Path:
    """Where the actions of a play lie."""
    return folder / "actions" / f"{safe_name(episode)}.npy"


def keep_actions(
    folder: Path,
    episode: str,
    actions: Sequence[Float32[np.ndarray, "steps 7"]],
    looks: Sequence[tuple[int, int, str]],
) -> None:
    """Write the actions of a play whole, and its looks: steps so far, goals completed, digest of the image.

    Raises: RunError when the disk does not take them.
    """
    path = actions_path(folder, episode)
    partial = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.save(file, np.concatenate([np.empty((0, 7), np.float32), *actions]))
            np.save(file, np.array([(step, goals, int(seen, 16)) for step, goals, seen in looks], np.uint64))
        partial.replace(path)
    except OSError as error:
        raise RunError(
            f"{path}: {error}; free some space and run the same again, it continues from here"
        ) from error


def kept_actions(
    folder: Path, result: EpisodeResult
) -> tuple[Float32[np.ndarray, "steps 7"], list[tuple[int, int, str]]]:
    """What `keep_actions` kept, checked against the result; older records have no looks.

    Raises: RunError when it is missing, damaged or not what the result says.
    """
    path = actions_path(folder, result.episode)
    try:
        with path.open("rb") as file:
            actions = np.load(file, allow_pickle=False)
            try:
                looks = np.load(file, allow_pickle=False)
            except EOFError:
                looks = np.empty((0, 3), np.uint64)
    except FileNotFoundError as error:
        raise RunError(
            f"{path}: missing, so the episode cannot be replayed; an older version of this package "
            "kept none. Evaluate again, into another folder, to have them"
        ) from error
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{path}: damaged ({error}); restore it from a copy") from error
    fits = actions.dtype == np.float32 and actions.shape == (result.steps, 7) and looks.dtype == np.uint64
    if not fits or looks.shape[1:] != (3,) or digest_of(actions) != result.actions:
        raise RunError(
            f"{path}: not the actions of the record ({result.steps} steps, digest {result.actions}): one of the two "
            "was changed afterwards; restore both from a copy"
        )
    return actions, [(int(step), int(goals), f"{int(seen):016x}") for step, goals, seen in looks]


def keep_software(folder: Path, software: Mapping[str, str]) -> str:
    """Write versions down; what results name them by. Raises: RunError when the disk does not take them."""
    name = fingerprint(dict(software))
    path = folder / "software" / f"{name}.json"
    if not path.exists():
        partial = path.with_name(f".{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(dict(software), indent=1) + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise RunError(
                f"{path}: {error}; free some space and run the same again, it continues from here"
            ) from error
    return name


def kept_software(folder: Path, result: EpisodeResult) -> dict[str, str]:
    """The versions that played an episode; none where the record is older or says nothing."""
    path = folder / "software" / f"{result.software}.json"
    if not result.software or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); restore it from a copy, or delete it") from error
    return {str(name): str(version) for name, version in dict(found).items()}


def safe_name(episode: str) -> str:
    """An episode's id, or a safe form of it that no other id has."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", episode).lstrip(".")[:100]
    return safe if safe == episode else f"{safe}-{hashlib.sha256(episode.encode()).hexdigest()[:8]}"
