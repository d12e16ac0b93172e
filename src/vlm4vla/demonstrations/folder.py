"""Your own demonstrations as a folder of pictures and tables.

episodes.csv                 header `episode,instruction`, optionally `task`; one line per episode
EPISODE/0.jpg, 1.jpg, ...    one JPEG or PNG per step, in the order of the numbers in their names;
                             or one video (.mp4, .mkv, .mov, .avi, .webm) with a frame per step
EPISODE/actions.csv          one line per step, seven numbers; a header may name them, and a column `timestamp`
                             (seconds) beside them; or actions.parquet with such columns, or with one of lists
                             of seven; or actions.npy [steps, 7]
actions.json                 what the seven numbers mean: the fields of `ActionSpec`
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from vlm4vla.core.actions import ACTION_SIZE, ActionSpec
from vlm4vla.core.errors import DataError
from vlm4vla.core.recipes import fingerprint
from vlm4vla.demonstrations.frames import FileFrames, codec_of, encoded_size
from vlm4vla.demonstrations.recordings import Recording
from vlm4vla.demonstrations.scripted import note_of
from vlm4vla.demonstrations.video_frames import VideoFrames, frame_rate

_VIDEOS = (".mp4", ".mkv", ".mov", ".avi", ".webm")
_PICTURE = re.compile(r"(?:.*?)(\d+)\.(jpg|jpeg|png)", re.IGNORECASE)
_TIME = "timestamp"


class FolderSource:
    """Such a folder as a `Reader`. It pickles as its path.

    Raises: DataError when there is no list of episodes, or it names what a folder cannot be called.
    """

    missing: Mapping[str, int]

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.name = self.folder.name
        rows = _episodes(self.folder / "episodes.csv")
        self._rows = [row for row in rows if (self.folder / row["episode"]).is_dir()]
        lost = len(rows) - len(self._rows)
        self.missing = MappingProxyType({"episodes": lost} if lost else {})
        self.action_spec = _action_spec(self.folder / "actions.json")
        self.scripted = note_of(self.folder)

    @property
    def fingerprint(self) -> str:
        """Of the list of episodes, and names and sizes of all files."""
        files = [
            [path.name, path.stat().st_size]
            for row in self._rows
            for path in sorted((self.folder / row["episode"]).iterdir())
        ]
        return fingerprint(
            self._rows, files, None if self.action_spec is None else self.action_spec.to_json()
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Recording:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: episode {index} of {len(self)}")
        row = self._rows[index]
        folder = self.folder / row["episode"]
        numbered = sorted(
            (int(match[1]), path.name)
            for path in folder.iterdir()
            if (match := _PICTURE.fullmatch(path.name))
        )
        videos = sorted(path for path in folder.iterdir() if path.suffix.lower() in _VIDEOS)
        if videos and (numbered or len(videos) > 1):
            raise DataError(
                f"{folder}: {len(videos)} videos and {len(numbered)} pictures; one video or pictures are expected"
            )
        if not numbered and not videos:
            raise DataError(
                f"{folder}: no pictures; one JPEG or PNG per step, named by its number, or one video is expected"
            )
        images, count = self._video(videos[0]) if videos else self._pictures(folder, numbered)
        actions = _actions(folder)
        if len(actions) != count:
            raise DataError(
                f"{folder}: {count} {'frames' if videos else 'pictures'} and {len(actions)} actions; "
                "a step has one of each"
            )
        return Recording(
            id=row["episode"],
            instruction=row["instruction"],
            task=row.get("task") or "",
            images=images,
            actions=actions,
        )

    def _video(self, path: Path) -> tuple[VideoFrames, int]:
        start, fps, count = frame_rate(path)
        return VideoFrames(path, start=start, fps=fps, count=count, where=str(path)), count

    def _pictures(self, folder: Path, numbered: list[tuple[int, str]]) -> tuple[FileFrames, int]:
        numbers = [number for number, _ in numbered]
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            at = next(i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1)
            raise DataError(
                f"{folder}: pictures are not numbered one after another behind {numbered[at - 1][1]}"
            )
        first = (folder / numbered[0][1]).read_bytes()
        try:
            codec, size = codec_of(first), encoded_size(first)
        except ValueError as error:
            raise DataError(f"{folder / numbered[0][1]}: {error}") from error
        names = [name for _, name in numbered]
        return FileFrames(folder, names, codec=codec, size=size, where=str(folder)), len(names)

    def __reduce__(self) -> tuple[type[FolderSource], tuple[Path]]:
        return FolderSource, (self.folder,)


def _episodes(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"{path}: is missing; it lists the episodes under the header `episode,instruction`")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        for column in ("episode", "instruction"):
            if column not in columns:
                raise DataError(
                    f"{path}: no column {column!r} in its first line, which has {', '.join(columns)}"
                )
        rows = list(reader)
    if not rows:
        raise DataError(f"{path}: lists no episodes")
    seen: dict[str, int] = {}
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DataError(
                f"{path}, line {line}: not {len(columns)} fields; text with a comma stands in double quotes"
            )
        name = row["episode"]
        if not name or Path(name).name != name or name == "..":
            raise DataError(f"{path}, line {line}: {name!r} cannot be the name of a folder beside this file")
        if name in seen:
            raise DataError(f"{path}, line {line}: episode {name!r} stands in line {seen[name]} already")
        seen[name] = line
    return rows


def _action_spec(path: Path) -> ActionSpec | None:
    if not path.is_file():
        return None
    try:
        return ActionSpec(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{path}: {error}; its fields are rotation, gripper, unit and frame, as docs/conventions.md tells"
        ) from error


def _actions(folder: Path) -> Float[np.ndarray, "steps 7"]:
    array, table, columns = (folder / f"actions.{kind}" for kind in ("npy", "csv", "parquet"))
    if array.is_file():
        try:
            actions = np.load(array, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(f"{array}: cannot be read ({error})") from error
        if actions.ndim != 2 or actions.shape[1] != ACTION_SIZE or actions.dtype.kind != "f":
            raise DataError(f"{array}: {actions.dtype} {list(actions.shape)}; floats [steps, 7] are expected")
        return actions
    if columns.is_file():
        header, grid = _parquet(columns)
        lines = f"{columns}, row "
        first = 0
    elif table.is_file():
        header, grid = _csv(table)
        lines = f"{table}, line "
        first = 2
    else:
        raise DataError(f"{folder}: neither actions.csv nor actions.npy nor actions.parquet")
    if _TIME in header:
        back = np.flatnonzero(np.diff(grid[:, header.index(_TIME)]) <= 0)
        if len(back):
            raise DataError(
                f"{lines}{int(back[0]) + 1 + first}: its timestamp does not come after the one before"
            )
        grid = np.delete(grid, header.index(_TIME), axis=1)
    if grid.shape[1] != ACTION_SIZE:
        raise DataError(f"{folder}: {grid.shape[1]} numbers an action; {ACTION_SIZE} are expected")
    return grid


def _csv(path: Path) -> tuple[list[str], Float[np.ndarray, "steps width"]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if line]
    if not lines:
        raise DataError(f"{path}: is empty")
    header = [] if _numbers(lines[0]) is not None else [cell.strip() for cell in lines.pop(0)]
    rows = []
    for number, line in enumerate(lines, start=2 if header else 1):
        values = _numbers(line)
        if values is None or (header and len(values) != len(header)):
            raise DataError(f"{path}, line {number}: {','.join(line)!r} is not a row of numbers")
        rows.append(values)
    width = len(header) or (len(rows[0]) if rows else 0)
    if any(len(row) != width for row in rows):
        raise DataError(f"{path}: its lines have different numbers of fields")
    return header, np.array(rows, dtype=np.float64).reshape(len(rows), width)


def _parquet(path: Path) -> tuple[list[str], Float[np.ndarray, "steps width"]]:
    """Numbers in columns of their own, or one column of lists."""
    try:
        table = pq.read_table(path, use_threads=False)
        columns = []
        for column in table.columns:
            rows = column.combine_chunks()
            if pa.types.is_list(rows.type) or pa.types.is_fixed_size_list(rows.type):
                rows = pa.array(rows.to_pylist(), pa.list_(pa.float64())).to_pylist()
                columns.append(np.array(rows, dtype=np.float64).reshape(len(table), -1))
            else:
                columns.append(rows.cast(pa.float64()).to_numpy(zero_copy_only=False)[:, None])
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: is no table of numbers ({error})") from error
    header = [
        name for name, grid in zip(table.column_names, columns, strict=True) for _ in range(grid.shape[1])
    ]
    return header, np.concatenate(columns, axis=1) if columns else np.empty((0, 0))


def _numbers(cells: Sequence[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return None
