"""CALVIN's frame files: one .npz a time step, of which single members are read; and columns of many, read once."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from vlm4vla.core.errors import DataError
from vlm4vla.demonstrations.pickled import read_array

_LARGEST = 64 * 2**20
"""Bytes of one member beyond which it is no frame but damage (a 200 x 200 picture has 0.12 MB)."""
_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_BLOCK = 5_000
_THREADS = 8

Progress = Callable[[int, int], None]
"""Called with how many frames were read, and of how many."""


@dataclass(frozen=True, slots=True)
class FrameFiles:
    """The files `<prefix><number with so many digits>.npz` of a folder."""

    folder: Path
    prefix: str
    digits: int
    numbers: Int64[np.ndarray, " frames"]
    """Of the frames that are there, ascending."""

    @classmethod
    def find(cls, folder: Path) -> FrameFiles:
        """List a folder once; a million names take a second or two and 8 bytes each.

        Raises: DataError when it has none, or files named in more than one way.
        """
        kinds: set[tuple[str, int]] = set()

        def numbers() -> Any:
            for entry in os.scandir(folder):
                if found := re.fullmatch(r"([^.\d]\D*)(\d+)\.npz", entry.name):
                    kinds.add((found[1], len(found[2])))
                    yield int(found[2])

        present = np.sort(np.fromiter(numbers(), np.int64))
        if len(kinds) != 1:
            examples = ", ".join(f"{prefix}{'0' * digits}.npz" for prefix, digits in sorted(kinds)[:3])
            reason = (
                f"frames are named in {len(kinds)} ways ({examples})" if kinds else "no episode_*.npz is here"
            )
            raise DataError(
                f"{folder}: {reason}. It should be `training` or `validation` of an unpacked CALVIN split, "
                "with nothing else in it"
            )
        return cls(folder, *kinds.pop(), present)

    def path(self, number: int) -> Path:
        """Of a frame, whether it is there or not."""
        return self.folder / f"{self.prefix}{number:0{self.digits}d}.npz"

    def keys(self, number: int) -> list[str]:
        """What a frame holds. Raises: DataError when it cannot be read."""
        try:
            with zipfile.ZipFile(self.path(number)) as archive:
                return [name.removesuffix(".npy") for name in archive.namelist()]
        except _DAMAGE as error:
            raise self.damaged(number, str(error)) from error

    def read(self, number: int, keys: Sequence[str]) -> list[Shaped[np.ndarray, "..."]]:
        """Some arrays of a frame, checked against their checksums; nothing else of the file is read.

        Raises: DataError when the file is absent or damaged, or lacks a key.
        """
        try:
            with zipfile.ZipFile(self.path(number)) as archive:
                return [_array(archive, key) for key in keys]
        except KeyError as error:
            raise self.damaged(number, str(error.args[0])) from error
        except _DAMAGE as error:
            raise self.damaged(number, str(error)) from error

    def damaged(self, number: int, reason: str) -> DataError:
        """The error for a frame that is not as it should be."""
        return DataError(
            f"{self.path(number)}: {reason}. Unpack this file again from CALVIN's archive, or delete it: spans that "
            "lack a frame are left out"
        )


def _array(archive: zipfile.ZipFile, key: str) -> Shaped[np.ndarray, "..."]:
    member = archive.getinfo(f"{key}.npy")
    if member.file_size > _LARGEST:
        raise ValueError(f"{key} has {member.file_size:,} bytes")
    try:
        return read_array(archive.read(member))
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def read_rows(
    files: FrameFiles, numbers: Int64[np.ndarray, " frames"], keys: Sequence[str]
) -> Shaped[np.ndarray, " frames"]:
    """One record a frame with a field for each key, in the precision of the files.

    Raises: DataError for a frame that cannot be read or whose arrays have another shape or dtype than the first's.
    """
    first = files.read(int(numbers[0]), keys)
    row = np.dtype([(key, array.dtype, array.shape) for key, array in zip(keys, first, strict=True)])
    rows = np.empty(len(numbers), row)
    for place, number in enumerate(numbers.tolist()):
        for key, array in zip(keys, files.read(number, keys) if place else first, strict=True):
            if np.dtype((array.dtype, array.shape)) != row[key]:
                raise files.damaged(
                    number,
                    f"{key} is {array.dtype} {array.shape}, in other frames {row[key].base} {row[key].shape}",
                )
            rows[key][place] = array
    return rows


def columns(
    files: FrameFiles,
    numbers: Int64[np.ndarray, " frames"],
    keys: Sequence[str],
    folder: Path,
    *,
    progress: Progress | None = None,
) -> Shaped[np.ndarray, " frames"]:
    """As `read_rows`, memory-mapped from `folder`, where it is written the first time.

    Blocks of frames are kept as they are read, so that a reading that was interrupted goes on; several threads read,
    because on network disks it is waiting that takes the time. Processes that do this at once only waste work.
    """
    complete = folder / "columns.npy"
    if not complete.exists():
        blocks = folder / "blocks"
        blocks.mkdir(parents=True, exist_ok=True)
        starts = range(0, len(numbers), _BLOCK)
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in starts:
                path, block = blocks / f"{start:09d}.npy", numbers[start : start + _BLOCK]
                if not path.exists():
                    parts = np.array_split(block, min(_THREADS, len(block)))
                    read = pool.map(lambda part: read_rows(files, part, keys), parts)
                    _save(path, _joined(files, numbers, list(read)))
                if progress:
                    progress(start + len(block), len(numbers))
        _save(complete, _joined(files, numbers, [np.load(blocks / f"{start:09d}.npy") for start in starts]))
        shutil.rmtree(blocks, ignore_errors=True)
    try:
        found = np.load(complete, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{complete}: cannot be read ({error}); delete {folder}, and it is made again"
        ) from error
    if len(found) != len(numbers) or found.dtype.names != tuple(keys):
        raise DataError(f"{complete}: holds other columns; delete {folder}, and it is made again")
    return found


def _joined(files: FrameFiles, numbers: Int64[np.ndarray, " frames"], parts: Sequence[Any]) -> Any:
    if len({part.dtype for part in parts}) != 1:
        kinds = " and ".join(sorted({str(part.dtype) for part in parts}))
        raise DataError(
            f"{files.folder}: frames {numbers[0]} to {numbers[-1]} are of several kinds, {kinds}; they are not of one "
            "data set"
        )
    return np.concatenate(parts)


def _save(path: Path, rows: Any) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with partial.open("wb") as file:
        np.save(file, rows)
    partial.rename(path)
