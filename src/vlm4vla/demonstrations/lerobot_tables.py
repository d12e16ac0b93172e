"""Which episodes a LeRobotDataset has, and where their rows and videos are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int64

from vlm4vla.core.errors import DataError
from vlm4vla.core.recipes import fingerprint

_VERSIONS = ("v2.1", "v3.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One episode's places."""

    index: int
    length: int
    instruction: str
    data: Path
    row: int
    """Of its first step in the data file."""
    video: Path | None
    video_start: float
    """Seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """All of them, as columns."""

    folder: Path
    indices: Int64[np.ndarray, " episodes"]
    lengths: Int64[np.ndarray, " episodes"]
    instructions: Sequence[str]
    rows: Int64[np.ndarray, " episodes"]
    data: Int64[np.ndarray, " episodes"]
    """Into `files`."""
    videos: Int64[np.ndarray, " episodes"]
    """Into `files`; -1 where frames are images."""
    starts: Float[np.ndarray, " episodes"]
    files: Sequence[str]
    """Relative to the folder."""

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Episode:
        video = int(self.videos[index])
        return Episode(
            index=int(self.indices[index]),
            length=int(self.lengths[index]),
            instruction=self.instructions[index],
            data=self.folder / self.files[int(self.data[index])],
            row=int(self.rows[index]),
            video=None if video < 0 else self.folder / self.files[video],
            video_start=float(self.starts[index]),
        )

    def there(self) -> Bool[np.ndarray, " episodes"]:
        """Which episodes have their files."""
        found = np.array([(self.folder / name).is_file() for name in self.files] + [True])
        return found[self.data] & found[self.videos]

    def select(self, chosen: Int64[np.ndarray, " chosen"]) -> Episodes:
        """Some of them."""
        return Episodes(
            folder=self.folder,
            indices=self.indices[chosen],
            lengths=self.lengths[chosen],
            instructions=[self.instructions[index] for index in chosen.tolist()],
            rows=self.rows[chosen],
            data=self.data[chosen],
            videos=self.videos[chosen],
            starts=self.starts[chosen],
            files=self.files,
        )

    def digest(self) -> str:
        """Of all columns, and the sizes of the files that are used."""
        used = sorted({self.files[i] for i in (*self.data.tolist(), *self.videos.tolist()) if i >= 0})
        sizes = [[name, (self.folder / name).stat().st_size] for name in used]
        columns = [column.tolist() for column in (self.indices, self.lengths, self.rows, self.starts)]
        return fingerprint(columns, list(self.instructions), sizes)


def read_info(folder: Path) -> dict[str, Any]:
    """meta/info.json. Raises: DataError when it is missing, damaged, or of a version that is not read."""
    path = folder / "meta" / "info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version, features = info["codebase_version"], info["features"]
        _ = (info["fps"] + 0, info["data_path"], [facts["dtype"] for facts in features.values()])
    except FileNotFoundError:
        raise DataError(f"{folder}: no LeRobotDataset (meta/info.json is missing)") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is damaged ({type(error).__name__}: {error}); copy it again") from error
    if version not in _VERSIONS:
        raise DataError(
            f"{path}: codebase_version {version!r}; {' and '.join(_VERSIONS)} are read. LeRobot's own converters bring "
            "older ones there"
        )
    made: dict[str, Any] = info
    return made


def read_v3(folder: Path, info: dict[str, Any], video: str | None) -> Episodes:
    """From meta/episodes/**.parquet and meta/tasks.parquet; `video`: the camera's key when it is filmed."""
    _tasks_v3(folder)
    names = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    names += ["dataset_from_index", "dataset_to_index"]
    if video is not None:
        names += [f"videos/{video}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")]
    paths = sorted((folder / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not paths:
        raise DataError(f"{folder}: meta/episodes has no tables; copy it again")
    try:
        table = pa.concat_tables([pq.read_table(path, columns=names) for path in paths])
        columns = {name: table[name].to_pylist() for name in names}
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{folder}/meta/episodes: cannot be read ({error}); copy it again") from error
    indices = np.array(columns["episode_index"], dtype=np.int64)
    lengths = np.array(columns["length"], dtype=np.int64)
    first = np.array(columns["dataset_from_index"], dtype=np.int64)
    wrong = np.flatnonzero(np.array(columns["dataset_to_index"]) - first != lengths)
    if len(wrong):
        raise DataError(
            f"{folder}/meta/episodes: episode {indices[wrong[0]]} has length {lengths[wrong[0]]}, but its rows are "
            f"{first[wrong[0]]} to {columns['dataset_to_index'][wrong[0]]}"
        )
    _require_counts(folder, info, indices, lengths)
    places = list(zip(columns["data/chunk_index"], columns["data/file_index"], strict=True))
    data_files = [info["data_path"].format(chunk_index=c, file_index=f) for c, f in places]
    starts_of: dict[str, int] = {}
    for name, start in zip(data_files, first.tolist(), strict=True):
        starts_of[name] = min(start, starts_of.get(name, start))
    rows = first - np.array([starts_of[name] for name in data_files], dtype=np.int64)
    video_files: list[str] = []
    starts = np.zeros(len(indices))
    if video is not None:
        keys = (f"videos/{video}/chunk_index", f"videos/{video}/file_index")
        video_files = [
            info["video_path"].format(video_key=video, chunk_index=c, file_index=f)
            for c, f in zip(*(columns[key] for key in keys), strict=True)
        ]
        starts = np.array(columns[f"videos/{video}/from_timestamp"], dtype=np.float64)
    return _episodes(
        folder,
        indices,
        lengths,
        [_first(tasks) for tasks in columns["tasks"]],
        rows,
        data_files,
        video_files,
        starts,
    )


def read_v2(folder: Path, info: dict[str, Any], video: str | None) -> Episodes:
    """From meta/episodes.jsonl: a data file and a video an episode."""
    path = folder / "meta" / "episodes.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        indices = np.array([line["episode_index"] for line in lines], dtype=np.int64)
        lengths = np.array([line["length"] for line in lines], dtype=np.int64)
        tasks = [_first(line["tasks"]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__}: {error}); copy it again") from error
    _require_counts(folder, info, indices, lengths)
    size = int(info.get("chunks_size") or 1000)

    def file(template: str, index: int, **more: str) -> str:
        return template.format(episode_chunk=index // size, episode_index=index, **more)

    data = [file(info["data_path"], index) for index in indices.tolist()]
    videos = [file(info["video_path"], index, video_key=video) for index in indices.tolist()] if video else []
    zeros = np.zeros(len(indices), dtype=np.int64)
    return _episodes(folder, indices, lengths, tasks, zeros, data, videos, zeros.astype(np.float64))


def _episodes(
    folder: Path,
    indices: Int64[np.ndarray, " episodes"],
    lengths: Int64[np.ndarray, " episodes"],
    instructions: Sequence[str],
    rows: Int64[np.ndarray, " episodes"],
    data: Sequence[str],
    videos: Sequence[str],
    starts: Float[np.ndarray, " episodes"],
) -> Episodes:
    files = list(dict.fromkeys([*data, *videos]))
    for name in files:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{folder}: its description names the file {name!r} outside the folder")
    number = {name: index for index, name in enumerate(files)}
    return Episodes(
        folder=folder,
        indices=indices,
        lengths=lengths,
        instructions=instructions,
        rows=rows,
        data=np.array([number[name] for name in data], dtype=np.int64),
        videos=np.array([number[name] for name in videos] or [-1] * len(indices), dtype=np.int64),
        starts=starts,
        files=files,
    )


def _require_counts(
    folder: Path,
    info: dict[str, Any],
    indices: Int64[np.ndarray, " episodes"],
    lengths: Int64[np.ndarray, " episodes"],
) -> None:
    for name, found in (("total_episodes", len(indices)), ("total_frames", int(lengths.sum()))):
        if info.get(name, found) != found:
            raise DataError(
                f"{folder}: meta/info.json says {name} {info[name]:,}, its table of episodes {found:,}; copy meta again"
            )
    if len(np.unique(indices)) != len(indices) or not len(indices) or lengths.min() < 1:
        raise DataError(
            f"{folder}: its table of episodes is empty, or names an episode twice or without steps"
        )


def _tasks_v3(folder: Path) -> None:
    """LeRobot looks sentences up by row: rows in another order would be read as other sentences there."""
    path = folder / "meta" / "tasks.parquet"
    try:
        numbers = pq.read_table(path, columns=["task_index"])["task_index"].to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy it again") from error
    if numbers != list(range(len(numbers))):
        raise DataError(f"{path}: its rows are not in the order of task_index, as LeRobot expects them")


def _first(tasks: Any) -> str:
    return str(tasks[0]) if isinstance(tasks, list) and tasks else ""
