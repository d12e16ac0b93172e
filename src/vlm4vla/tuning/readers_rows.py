"""Rows of annotation files, found by their place in the file: JSON lists, JSON lines and parquet.

A file is never held in memory. JSON is walked through once, which gives where each row begins and ends; parquet is read
a row group at a time. Nothing stays open across a fork, and nothing is unpickled.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from vlm4vla.core.errors import DataError

_WINDOW = 1 << 22
_LARGEST_ROW = 1 << 28
"""Bytes of one row beyond which a file counts as damaged."""
Spans = Int64[np.ndarray, "rows 2"]


class JsonRows:
    """The objects of a JSON list (`[{...}, ...]`) or of JSON lines."""

    def __init__(self, path: Path) -> None:
        """Raises: DataError when the file is no list of objects, or ends within one."""
        self.path = path
        size, changed = _stat(path)
        self._spans, self.digest = _walk(path, size, changed)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        start, stop = (int(edge) for edge in self._spans[index])
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                row = json.loads(file.read(stop - start))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path}, row {index}: cannot be read ({error}); copy the file again"
            ) from error
        return row


class ParquetRows:
    """The rows of a parquet file, without its columns of no use."""

    def __init__(self, path: Path, columns: tuple[str, ...] = ()) -> None:
        """`columns`: those that are wanted, where the file has them; empty: all.

        Raises: DataError when the file is no parquet file.
        """
        self.path, self._columns = path, columns
        try:
            with pq.ParquetFile(path) as file:
                meta, names = file.metadata, file.schema_arrow.names
                groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
                self._ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
                self.digest = hashlib.sha256(
                    repr([names, [[g.num_rows, g.total_byte_size] for g in groups]]).encode() + _edges(path)
                ).hexdigest()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: cannot be read as parquet ({error}); copy the file again") from error
        self._wanted = [name for name in names if name in columns] if columns else names

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        group = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[group - 1]) if group else 0
        try:
            table = _group(os.getpid(), self.path, group, tuple(self._wanted), *_stat(self.path))
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{self.path}, row {index}: cannot be read ({error}); copy the file again"
            ) from error
        row: Mapping[str, Any] = table.slice(index - first, 1).to_pylist()[0]
        return row


def rows_of(path: Path, columns: tuple[str, ...] = ()) -> JsonRows | ParquetRows:
    """By the name's end. Raises: DataError for another kind of file or a damaged one."""
    if path.suffix in (".json", ".jsonl"):
        return JsonRows(path)
    if path.suffix == ".parquet":
        return ParquetRows(path, columns)
    raise DataError(f"{path}: neither .json, .jsonl nor .parquet")


@functools.lru_cache(maxsize=2)
def _group(pid: int, path: Path, group: int, columns: tuple[str, ...], size: int, changed: int) -> pa.Table:
    """A row group in memory: the last two stay there, in each process its own."""
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=list(columns), use_threads=False)


@functools.lru_cache(maxsize=64)
def _walk(path: Path, size: int, changed: int) -> tuple[Spans, str]:
    """Where the rows are, and a digest of the file."""
    digest = hashlib.sha256()
    decoder = json.JSONDecoder()
    spans: list[int] = []
    with path.open("rb") as file:
        # One character a byte: places in the text are places in the file, and UTF-8 only stands within strings.
        window, base, at, ended, opened = "", 0, 0, False, False
        while True:
            at = _skip(window, at)
            if at < len(window) and window[at] == "{":
                try:
                    _, stop = decoder.raw_decode(window, at)
                except json.JSONDecodeError as error:
                    if ended or len(window) - at > _LARGEST_ROW:
                        raise DataError(
                            f"{path}, row {len(spans) // 2}: is no whole JSON object ({error.msg}); copy the file again"
                        ) from error
                else:
                    spans += (base + at, base + stop)
                    at = stop
                    continue
            elif at < len(window):
                if window[at] == "[" and not spans and not opened:
                    opened, at = True, at + 1
                    continue
                if window[at] == "]" and opened:
                    opened, at = False, at + 1
                    continue
                raise DataError(
                    f"{path}, byte {base + at}: {window[at]!r} where a row should begin; a list of objects, or "
                    "one object a line, is expected"
                )
            elif ended:
                break
            more = file.read(max(_WINDOW, len(window) - at))
            digest.update(more)
            ended = not more
            window, base, at = window[at:] + more.decode("latin-1"), base + at, 0
    if opened:
        raise DataError(f"{path}: the list is not closed, so rows are missing; copy the file again")
    return np.array(spans, dtype=np.int64).reshape(-1, 2), digest.hexdigest()


def _skip(window: str, at: int) -> int:
    while at < len(window) and window[at] in " \t\r\n,\xef\xbb\xbf":
        at += 1
    return at


def _stat(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); copy the file again") from error
    return found.st_size, found.st_mtime_ns


def _edges(path: Path) -> bytes:
    """The last 64 kB: parquet's own account of every column in every group, statistics included."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        return file.read()
