"""What an evaluation leaves: results, append-only, from which an interrupted one continues, and the actions taken.

episodes.jsonl               a line per finished episode: its result, whose it is (`Origin`), a digest (`misfits`)
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
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from jaxtyping import Float32

from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.core.recipes import fingerprint, from_json, to_json
from vlm4vla.core.types import EpisodeResult

REPEAT = "~repeat-"
"""Between an episode's id and which play of it a result is."""
_ATTEMPTS = 2
"""How often an episode that ends in an error is played, all resumed evaluations together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Of which evaluation a line is: files of several can be put together, and lines of another one be found."""

    trial: str
    """Fingerprint of its recipe; empty where the policy does not say."""
    checkpoint: int | None
    """Step of its training; None for a policy that was not trained here."""
    evaluation: str
    """Fingerprint of its recipe."""
    execute: int
    """Actions of a chunk that were carried out."""


class EpisodeLog:
    """The results so far. Without a folder they are kept in memory only."""

    def __init__(
        self,
        folder: Path | None,
        known: Iterable[str],
        *,
        shard: tuple[int, int] = (0, 1),
        origin: Origin | None = None,
    ) -> None:
        """Reads what is there, other shards' results included, and repairs a half-written last line of its own.

        Raises: RunError naming file and line for damage elsewhere, for a line that is not as it was written, and for
        one of an episode that is not `known` or of another `origin`.
        """
        self.results: dict[str, EpisodeResult] = {}
        """The last attempt of every episode."""
        self._origin = {} if origin is None else to_json(origin)
        self._digest = ""
        """Of the last line of its own file."""
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
        entry = to_json(result) | self._origin
        digest = digest_of_line(entry, self._digest)
        line = json.dumps(entry | {"digest": digest}, allow_nan=False).encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            raise self._disk_error(str(error)) from error
        if written != len(line):
            raise self._disk_error("the disk took only part of a line")
        self._digest = digest

    def _disk_error(self, why: str) -> RunError:
        return RunError(
            f"{self._path}: {why}; free some space and run the same again, it continues from here"
        )

    def _keep(self, result: EpisodeResult) -> None:
        self.results[result.episode] = result
        self._errors[result.episode] += result.error is not None

    def _read(self, path: Path, known: set[str], *, repair: bool) -> None:
        lines, complete = _lines(path)
        for number in misfits([entry for entry, _ in lines]):
            raise RunError(
                f"{path}:{number}: not as it was written: this line was changed, or one before it changed or removed; "
                "restore the file, or remove this line and all behind it to play their episodes again"
            )
        for number, (entry, result) in enumerate(lines, start=1):
            if result.episode not in known or self._origin != {
                n: entry.get(n, v) for n, v in self._origin.items()
            }:
                raise RunError(
                    f"{path}:{number}: episode {result.episode!r} is not of this benchmark, or of another evaluation; "
                    "the folder holds another evaluation, choose a new one"
                )
            self._keep(result)
        if repair:
            self._digest = str(lines[-1][0].get("digest", "")) if lines else ""
            if complete < path.stat().st_size:
                with path.open("r+b") as file:
                    file.truncate(complete)


def logs(folder: Path) -> list[Path]:
    """Every file of results of an evaluation."""
    return sorted(folder.glob("episodes*.jsonl"))


def read_log(path: Path) -> tuple[list[EpisodeResult], int]:
    """The results of a file, and how many bytes its whole lines have. Raises: RunError naming a damaged line."""
    lines, complete = _lines(path)
    return [result for _, result in lines], complete


def _lines(path: Path) -> tuple[list[tuple[dict[str, Any], EpisodeResult]], int]:
    data = path.read_bytes()
    complete = data.rfind(b"\n") + 1
    lines = []
    for number, line in enumerate(data[:complete].splitlines(), start=1):
        try:
            entry = json.loads(line)
            lines.append((entry, result_of(entry, where=f"{path}:{number}")))
        except (ValueError, RecipeError, AttributeError, TypeError) as error:
            raise RunError(
                f"{path}:{number}: damaged line ({error}); restore the file, or remove this line and all behind it "
                "to play their episodes again"
            ) from error
    return lines, complete


def result_of(entry: Mapping[str, Any], *, where: str) -> EpisodeResult:
    """The result in a line. Raises: RecipeError for fields that are missing, unknown or of a wrong type."""
    beside = {"digest", *(field.name for field in fields(Origin))}
    return from_json(EpisodeResult, {k: v for k, v in entry.items() if k not in beside}, where=where)


def digest_of_line(entry: Mapping[str, Any], previous: str) -> str:
    """Of everything else in a line, and of the digest of the line before; the first line has an empty one before it."""
    text = json.dumps({k: v for k, v in entry.items() if k != "digest"}, sort_keys=True)
    return hashlib.sha256(f"{previous}{text}".encode()).hexdigest()[:16]


def misfits(entries: Iterable[Mapping[str, Any] | None]) -> list[int]:
    """Numbers, from 1, of a file's lines that are not as they were written, or follow on one that is gone.

    None is a damaged line: of the one that follows it nothing can be told. Any line may begin a file, since files can
    be put together; in files of older versions none has a digest. It shows an edit, not a forger who computes digests.
    """
    found = []
    previous: str | None = ""
    for number, entry in enumerate(entries, start=1):
        if entry is None:
            previous = None
            continue
        digest = entry.get("digest")
        if digest is None:
            if previous or "evaluation" in entry:
                found.append(number)
                previous = None
            continue
        if previous is not None and digest not in (digest_of_line(entry, p) for p in (previous, "")):
            found.append(number)
        previous = str(digest)
    return found


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
