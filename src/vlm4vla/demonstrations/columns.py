"""A folder of demonstrations' columns, memory-mapped: whatever the number of frames, opening it reads a few bytes.

    actions.npy        float32 [frames, 7]
    episode_ends.npy   int64 [episodes]: episode e is frames episode_ends[e - 1]:episode_ends[e]
    episodes.jsonl     id, task, instruction, facts; one line per episode
    lines.npy          int64 [episodes + 1]: episode e is bytes lines[e]:lines[e + 1] of episodes.jsonl
    manifest.json      what it is, and the size and sha256 of every file

Where the frames are is what kinds of folders differ in: `packed` holds them, `indexed` refers to the original files.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar, cast

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from vlm4vla.core.actions import ACTION_SIZE, ActionSpec
from vlm4vla.core.errors import DataError
from vlm4vla.core.types import Demonstration

VERSION = 2
_FILES = ("actions.npy", "episode_ends.npy", "episodes.jsonl", "lines.npy")


class ColumnSource(ABC):
    """Such a folder as a `DemonstrationSource`; a subclass says where the frames are. It pickles as its path.

    Raises: DataError when the folder is incomplete, cut short, of another format version, or (with `hashes`) when any
    byte differs from what was written.
    """

    FORMAT: str

    def __init__(self, folder: str | Path, *, hashes: bool = False) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder, self.FORMAT)
        _check_files(self.folder, self.manifest, hashes=hashes)
        self.name: str = self.manifest["name"]
        self.action_spec = ActionSpec(**self.manifest["action_spec"])
        self.fingerprint: str = self.manifest["fingerprint"]
        self.scripted: str = self.manifest.get("scripted", "")
        self.actions: Float32[np.ndarray, "frames 7"] = self.column("actions.npy")
        self.ends: Int64[np.ndarray, " episodes"] = self.column("episode_ends.npy")
        self._lines: Int64[np.ndarray, " episodes_and_one"] = self.column("lines.npy")
        self._text = self.mapped("episodes.jsonl")
        counts = {"frames": len(self.actions), "episodes": len(self.ends)}
        ends_agree = len(self._lines) == counts["episodes"] + 1 and self.ends[-1] == counts["frames"]
        if self.manifest["counts"] != counts or not ends_agree or self._lines[-1] != len(self._text):
            raise damaged(self.folder, f"its files do not agree on the counts {self.manifest['counts']}")

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Demonstration:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: episode {index} of {len(self)}")
        start, stop = int(self.ends[index - 1]) if index else 0, int(self.ends[index])
        episode = self.episode(index)
        return Demonstration(
            id=episode["id"],
            instruction=episode["instruction"],
            task=episode["task"],
            images=self.images(index, start, stop, episode["id"]),
            actions=self.actions[start:stop],
            facts=episode["facts"],
        )

    @abstractmethod
    def images(
        self, index: int, start: int, stop: int, name: str
    ) -> Sequence[UInt8[np.ndarray, "height width 3"]]:
        """The frames of an episode, which are `start` to `stop` of all."""

    def episode(self, index: int) -> dict[str, Any]:
        """id, task, instruction and facts."""
        try:
            return cast(
                dict[str, Any], json.loads(bytes(self._text[self._lines[index] : self._lines[index + 1]]))
            )
        except ValueError as error:
            raise damaged(self.folder, f"episodes.jsonl, line {index + 1}, is not JSON: {error}") from error

    def ids(self) -> list[str]:
        """Of all episodes, in order."""
        return [self.episode(index)["id"] for index in range(len(self))]

    @property
    def lengths(self) -> Int64[np.ndarray, " episodes"]:
        """Steps of every episode."""
        return np.diff(self.ends, prepend=0)

    def column(self, name: str) -> Any:
        """An array of this folder, memory-mapped."""
        try:
            return np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise damaged(self.folder, f"{name} cannot be read: {error}") from error

    def mapped(self, name: str) -> memoryview:
        """A file of this folder, memory-mapped."""
        with (self.folder / name).open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.folder,)


class Column:
    """A .npy file that grows by rows: the header reserves room for the final count and is rewritten at the end."""

    def __init__(self, path: Path, dtype: str, row: tuple[int, ...] = ()) -> None:
        self.rows, self._dtype, self._row = 0, np.dtype(dtype), row
        self._file: BinaryIO = path.open("wb")
        self._header()

    def append(self, values: Any) -> None:
        """Add rows."""
        block = np.ascontiguousarray(values, dtype=self._dtype).reshape(-1, *self._row)
        self._file.write(block.tobytes())
        self.rows += len(block)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.seek(0)
        self._header()
        self._file.close()

    def _header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.rows, *self._row)}
        np.lib.format.write_array_header_1_0(self._file, header)


class ColumnWriter(ExitStack):
    """Writes the columns of demonstrations as they come; leaving it completes the files."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self._ids, self._position = folder, set[bytes](), 0
        self._episodes = self.enter_context((folder / "episodes.jsonl").open("wb"))
        self._lines = self.enter_context(Column(folder / "lines.npy", "<i8"))
        self._actions = self.enter_context(Column(folder / "actions.npy", "<f4", (ACTION_SIZE,)))
        self._ends = self.enter_context(Column(folder / "episode_ends.npy", "<i8"))
        self._lines.append([0])

    @property
    def counts(self) -> dict[str, int]:
        """Frames and episodes so far."""
        return {"frames": self._actions.rows, "episodes": self._ends.rows}

    def add(self, demonstration: Demonstration) -> None:
        """One more. Raises: DataError for an id seen before, a wrong shape or a number that is not finite."""
        _check(demonstration, self._ids)
        self._actions.append(demonstration.actions)
        self._ends.append([self._actions.rows])
        episode = {
            "id": demonstration.id,
            "task": demonstration.task,
            "instruction": demonstration.instruction,
        }
        line = (json.dumps({**episode, "facts": dict(demonstration.facts)}) + "\n").encode()
        self._position += self._episodes.write(line)
        self._lines.append([self._position])


def write_manifest(folder: Path, files: Iterable[str], facts: Mapping[str, Any]) -> None:
    """Close a folder: from now on it is complete."""
    names = [*_FILES, *files]
    hashed = {n: {"bytes": (folder / n).stat().st_size, "sha256": _sha256(folder / n)} for n in names}
    (folder / "manifest.json").write_text(
        json.dumps({"version": VERSION, **facts, "files": hashed}, indent=1)
    )


Source = TypeVar("Source", bound=ColumnSource)


def written_whole(
    folder: Path, fingerprint: str, reopen: Callable[[Path], Source], write: Callable[[Path], None]
) -> Source:
    """The folder with this fingerprint, written unless it is there.

    A folder that exists is never overwritten; nothing is left behind when writing ends in an error.

    Raises: DataError when the folder is damaged or holds another fingerprint.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            write(partial)
            try:
                partial.rename(folder)
            except OSError:
                if not folder.exists():
                    raise
                # Another process was faster; what it wrote must pass for ours.
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    source = reopen(folder)
    if source.fingerprint != fingerprint:
        raise DataError(
            f"{folder}: holds demonstrations with fingerprint {source.fingerprint}, not {fingerprint}, so the recipe "
            "or the source has changed since. Delete the folder or choose another one."
        )
    return source


def read_manifest(folder: Path, *formats: str) -> dict[str, Any]:
    """Raises: DataError when there is none, or of another format or version."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{folder}: no packed demonstrations here (manifest.json is missing)") from None
    except ValueError as error:
        raise damaged(folder, f"manifest.json is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") not in formats:
        raise DataError(f"{path}: not a manifest of packed demonstrations")
    if manifest["version"] != VERSION:
        raise DataError(
            f"{path}: format version {manifest['version']}, this program reads {VERSION}. "
            "Delete the folder and make the demonstrations again."
        )
    return manifest


def damaged(folder: Path, reason: str) -> DataError:
    """The error for a folder that is not what was written."""
    return DataError(f"{folder}: {reason}. Delete the folder and make or convert the demonstrations again.")


def _check(demonstration: Demonstration, ids: set[bytes]) -> None:
    actions = demonstration.actions
    name = hashlib.blake2b(demonstration.id.encode(), digest_size=12).digest()
    if name in ids:
        raise DataError(
            f"demonstration {demonstration.id}: its id appears twice; ids must be unique in a source"
        )
    ids.add(name)
    if (
        actions.ndim != 2
        or actions.shape[1] != ACTION_SIZE
        or not 0 < len(actions) == len(demonstration.images)
    ):
        raise DataError(
            f"demonstration {demonstration.id}: {len(demonstration.images)} frames and actions of shape "
            f"{list(actions.shape)}; expected one frame per action, at least one, and {ACTION_SIZE} numbers each"
        )
    if not np.isfinite(actions).all():
        step = int(np.argmin(np.isfinite(actions).all(axis=1)))
        raise DataError(f"demonstration {demonstration.id}, step {step}: the action is not finite")


def _check_files(folder: Path, manifest: Mapping[str, Any], *, hashes: bool) -> None:
    for name, facts in manifest["files"].items():
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        if size is None:
            raise damaged(folder, f"{name} is missing")
        if size != facts["bytes"]:
            raise damaged(folder, f"{name} has {size:,} bytes, {facts['bytes']:,} were written")
        if hashes and _sha256(path) != facts["sha256"]:
            raise damaged(folder, f"the content of {name} has changed since it was written (sha256 differs)")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
