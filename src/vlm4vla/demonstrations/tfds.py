"""What TFDS writes beside its records: which columns they have (features.json), and which files (dataset_info.json).

Source: feature.proto, dataset_info.proto and naming.py of tensorflow_datasets 4.9, which writes both as proto3 JSON (so
64-bit integers are strings).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm4vla.core.errors import DataError

FEATURES, INFO = "features.json", "dataset_info.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One leaf of features.json."""

    name: str
    """As in the records: `steps/observation/image_0`."""
    kind: str
    """TFDS's word: tensor, image, text, video, ..."""
    shape: tuple[int, ...]
    """Of one value (one step's); -1 where it varies."""
    dtype: str
    encoding: str
    """Of a tensor: `none`, or `bytes` or `zlib`."""
    nesting: int
    """In how many sequences it lies: 1 for what every step has, 0 for what an episode has."""

    @property
    def is_rgb(self) -> bool:
        """Encoded images of three 8-bit channels."""
        return self.kind == "image" and self.dtype == "uint8" and self.shape[2:] == (3,)

    @property
    def is_text(self) -> bool:
        """One string."""
        return self.dtype == "string" and self.shape == () and self.encoding == "none"

    @property
    def is_float(self) -> bool:
        """A plain tensor of floating-point numbers, of fixed shape."""
        plain = (
            self.kind == "tensor" and self.encoding == "none" and self.dtype.startswith(("float", "bfloat"))
        )
        return plain and all(size > 0 for size in self.shape)

    @property
    def width(self) -> int:
        """Numbers in one value."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Split:
    """The files of one split."""

    name: str
    """`bridge_orig/1.0.0/train`."""
    shards: tuple[tuple[Path, int], ...]
    """Those that are there, in order, and how many records each has."""
    missing: Mapping[str, int]
    """Shards that are absent, and the episodes in them; empty when all are there."""


def read_columns(folder: Path) -> dict[str, Column]:
    """All columns of a data set by name. Raises: DataError when features.json is missing or not understood."""
    root = _read(folder, FEATURES)
    columns = {column.name: column for column in _leaves(folder / FEATURES, root, "", 0)}
    if not any(name.startswith("steps/") and columns[name].nesting for name in columns):
        raise DataError(
            f"{folder / FEATURES}: no sequence called steps, so it is no RLDS data set; it has {', '.join(columns)}"
        )
    return columns


def read_split(folder: Path, split: str) -> Split:
    """The files of a split.

    Raises: DataError when dataset_info.json is missing or not understood, has no such split, or none of its files
    is there.
    """
    info = _read(folder, INFO)
    splits = {entry.get("name"): entry for entry in info.get("splits", [])}
    if split not in splits:
        raise DataError(
            f"{folder / INFO}: no split {split!r}; it has {', '.join(map(str, splits)) or 'none'}"
        )
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise DataError(
            f"{folder / INFO}: its files are {info['fileFormat']}, only tfrecord is read. "
            "Convert them with `tfds convert_format`."
        )
    try:
        counts = [int(count) for count in splits[split]["shardLengths"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / INFO}, split {split}: shardLengths is missing or holds no numbers ({error}); it must tell how "
            "many episodes each file has. Download it again, or have tfds.folder_dataset.write_metadata count them."
        ) from error
    names = _file_names(splits[split].get("filepathTemplate", ""), info.get("name", ""), split, len(counts))
    shards = [(folder / name, count) for name, count in zip(names, counts, strict=True)]
    there = tuple((path, count) for path, count in shards if path.is_file())
    if not there:
        raise DataError(
            f"{folder}: none of the {len(shards)} files of split {split} is here, {', '.join(names[:1])} and so on. "
            f"Files must be called as {INFO} says."
        )
    absent = {"shards": len(shards) - len(there), "episodes": sum(counts) - sum(count for _, count in there)}
    missing = absent if absent["shards"] else {}
    return Split(f"{info.get('name')}/{info.get('version')}/{split}", there, missing)


def _file_names(template: str, dataset: str, split: str, count: int) -> list[str]:
    template = template or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    digits = max(5, len(str(count)))
    names = []
    for index in range(count):
        words = {"DATASET": dataset, "SPLIT": split, "FILEFORMAT": "tfrecord"}
        words |= {"SHARD_INDEX": f"{index:0{digits}}", "NUM_SHARDS": f"{count:0{digits}}"}
        words["SHARD_X_OF_Y"] = f"{words['SHARD_INDEX']}-of-{words['NUM_SHARDS']}"
        name = template
        for word, value in words.items():
            name = name.replace(f"{{{word}}}", value)
        names.append(name)
    return names


def _leaves(path: Path, feature: Mapping[str, Any], name: str, nesting: int) -> Iterator[Column]:
    if "featuresDict" in feature:
        for key, child in feature["featuresDict"].get("features", {}).items():
            yield from _leaves(path, child, f"{name}/{key}" if name else key, nesting)
        return
    if "sequence" in feature:  # TFDS's Sequence and Dataset are stored alike
        yield from _leaves(path, feature["sequence"]["feature"], name, nesting + 1)
        return
    kinds = [key for key, value in feature.items() if isinstance(value, dict)]
    if len(kinds) != 1:
        raise DataError(
            f"{path}: {name or 'its root'} is of an unknown kind ({', '.join(feature) or 'nothing'}); {FEATURES} is "
            "read as TFDS 4.6 and later write it."
        )
    facts = feature[kinds[0]]
    yield Column(
        name=name,
        kind=kinds[0],
        shape=tuple(int(size) for size in facts.get("shape", {}).get("dimensions", ())),
        dtype="string" if kinds[0] == "text" else facts.get("dtype", ""),
        encoding=facts.get("encoding", "none").lower() or "none",
        nesting=nesting,
    )


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(str(found.parent) for found in folder.glob(f"*/{name}"))
        hint = f"Did you mean {near[0]}?" if near else f"A folder of TFDS has {FEATURES} and {INFO}."
        raise DataError(
            f"{folder}: {'there is no ' + name if folder.is_dir() else 'no such folder'}. {hint}"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}). Download it again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object. Download it again.")
    return content
