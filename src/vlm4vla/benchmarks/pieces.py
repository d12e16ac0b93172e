"""Demonstrations that take minutes each to make, kept one by one: made side by side, interrupted, gone on with.

A piece is an `.npz` file of a dataclass's fields. Once all are there they are written as one data set.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np

from vlm4vla.core.errors import SimulatorError

T = TypeVar("T")
Planned = Iterator[tuple[str, Callable[[], T]]]
"""By name, every demonstration that is wanted, in order, and how it is made."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `made` and `make_share` are told on the command line of a simulator's program."""
    parser.add_argument("--pieces", type=Path, help="folder where each demonstration is kept once it is made")
    parser.add_argument("--share", default="", metavar="I/N", help="make the I-th of N shares, write no set")


def make_share(planned: Planned[T], kind: type[T], folder: Path, share: str) -> int:
    """Make every N-th demonstration from number I on that is not there yet; returns how many there are of them."""
    number, _, shares = share.partition("/")
    mine = list(planned)[int(number) :: int(shares)]
    for name, make in mine:
        if _load(kind, folder / f"{name}.npz") is None:
            _save(make(), folder / f"{name}.npz")
    return len(mine)


def made(planned: Planned[T], kind: type[T], folder: Path | None) -> Iterator[T]:
    """All of them, in order; those in `folder` are read instead of made."""
    for name, make in planned:
        kept = None if folder is None else _load(kind, folder / f"{name}.npz")
        yield make() if kept is None else kept


def count(folder: Path) -> int:
    """How many are kept."""
    return sum(1 for path in folder.glob("[!.]*.npz"))


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` once all was written, and else leaves nothing behind.

    Raises: SimulatorError for a folder that exists.
    """
    if folder.exists():
        raise SimulatorError(f"{folder}: exists already; delete it or choose another folder")
    unfinished = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _save(piece: Any, path: Path) -> None:
    arrays: dict[str, Any] = {}
    for field in fields(piece):
        value = getattr(piece, field.name)
        if isinstance(value, Mapping):
            arrays |= {f"{field.name}/{key}": np.asarray(part) for key, part in value.items()}
        elif isinstance(value, Sequence) and value and isinstance(value[0], bytes):
            arrays[f"{field.name}.bytes"] = np.frombuffer(b"".join(value), np.uint8)
            arrays[f"{field.name}.ends"] = np.cumsum([len(part) for part in value])
        else:
            arrays[field.name] = np.asarray(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise SimulatorError(f"{path}: cannot be written ({error}); the ones before it are kept") from error


def _load(kind: type[T], path: Path) -> T | None:
    """None where it is not, is damaged or lacks a field (of another version), so that it is made again."""
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (FileNotFoundError, BadZipFile, ValueError, EOFError):
        return None
    values = _values(kind, arrays)
    return None if values is None else kind(**values)


def _values(kind: Any, arrays: Mapping[str, Any]) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    for field in fields(kind):
        name = field.name
        if f"{name}.bytes" in arrays:
            ends = arrays[f"{name}.ends"].tolist()
            data = arrays[f"{name}.bytes"].tobytes()
            found[name] = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        elif name in arrays:
            value = arrays[name]
            found[name] = value.item() if value.dtype.kind == "U" else value
        else:
            found[name] = {key[len(name) + 1 :]: v for key, v in arrays.items() if key.startswith(f"{name}/")}
            if not found[name]:
                return None
    return found
