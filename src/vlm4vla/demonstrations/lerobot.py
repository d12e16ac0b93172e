"""LeRobotDataset v2.1 and v3.0, read where they lie: parquet tables with frames as images or as video.

The layout is LeRobot's (`codebase_version` in meta/info.json). Its statistics are not used: the quantiles are means of
quantiles per episode, which are wrong.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import DataError, unknown_name
from vlm4vla.core.recipes import fingerprint
from vlm4vla.demonstrations.frames import EncodedFrames, codec_of, encoded_size
from vlm4vla.demonstrations.lerobot_tables import Episodes, read_info, read_v2, read_v3
from vlm4vla.demonstrations.recordings import Recording
from vlm4vla.demonstrations.video_frames import VideoFrames

_TIME_TOLERANCE = 1e-3
"""Seconds by which a timestamp may miss its frame."""


class LeRobotSource:
    """Such a data set as a `Reader`. It pickles as its path and options.

    Raises: DataError when the folder is no such data set, of another version, or its tables disagree.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        camera: str = "",
        action: str = "action",
        state: str = "observation.state",
    ) -> None:
        """`camera` may leave out `observation.images.`; empty: the only one."""
        self.folder, self._options = Path(folder), (camera, action, state)
        self.info = read_info(self.folder)
        features = self.info["features"]
        self.camera = _camera(features, camera, self.folder)
        self._is_video = features[self.camera]["dtype"] == "video"
        if action not in features:
            raise unknown_name("column", action, features)
        self._action, self._state = action, state if state in features else None
        self.name = str(self.info.get("vlm4vla", {}).get("source") or self.folder.name)
        self.scripted = str(self.info.get("vlm4vla", {}).get("scripted", ""))
        read = read_v3 if self.info["codebase_version"].startswith("v3") else read_v2
        everything = read(self.folder, self.info, self.camera if self._is_video else None)
        there = everything.there()
        lost = int(np.count_nonzero(~there))
        self.missing: Mapping[str, int] = MappingProxyType({"episodes": lost} if lost else {})
        self._episodes: Episodes = everything.select(np.flatnonzero(there))
        declared = self.info.get("vlm4vla", {}).get("action_spec")
        self.action_spec = None if declared is None else ActionSpec(**declared)

    @property
    def fingerprint(self) -> str:
        """Of the description, the table of episodes, and the sizes of the files that hold them."""
        kept = {k: v for k, v in self.info.items() if k != "tools"}
        return fingerprint(kept, self._episodes.digest(), list(self._options))

    def __len__(self) -> int:
        return len(self._episodes)

    def __getitem__(self, index: int) -> Recording:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: episode {index} of {len(self)}")
        episode = self._episodes[index]
        where = f"{episode.data}, episode {episode.index}"
        table = _columns(
            str(episode.data), tuple(filter(None, (self._action, self._state, "timestamp", "episode_index")))
        )
        rows = slice(episode.row, episode.row + episode.length)
        if len(table["episode_index"]) < rows.stop:
            raise DataError(
                f"{where}: {len(table['episode_index'])} rows in its file, {rows.stop} are needed; copy it again"
            )
        if (table["episode_index"][rows] != episode.index).any():
            raise DataError(f"{where}: rows {rows.start} to {rows.stop - 1} belong to another episode")
        times = table["timestamp"][rows]
        late = np.abs(times - np.arange(episode.length) / self.info["fps"])
        if late.max() > _TIME_TOLERANCE:
            raise DataError(
                f"{where}: the timestamp of frame {int(late.argmax())} is {times[late.argmax()]:g} s, "
                f"not {late.argmax() / self.info['fps']:g}"
            )
        images: VideoFrames | EncodedFrames
        if episode.video is not None:
            images = VideoFrames(
                episode.video,
                start=episode.video_start,
                fps=self.info["fps"],
                count=episode.length,
                where=where,
            )
        else:
            images = self._encoded(episode.data, rows, where)
        return Recording(
            id=f"episode_{episode.index:06d}",
            instruction=episode.instruction,
            images=images,
            actions=table[self._action][rows],
            state=table[self._state][rows] if self._state else None,
        )

    def _encoded(self, path: Path, rows: slice, where: str) -> EncodedFrames:
        file = _opened(str(path))
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)])
        first = int(np.searchsorted(ends, rows.start, side="right"))
        last = int(np.searchsorted(ends, rows.stop - 1, side="right"))
        try:
            column = file.read_row_groups(
                list(range(first, last + 1)), columns=[self.camera], use_threads=False
            )[self.camera]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{where}: its images cannot be read ({error}); copy {path} again") from error
        start = rows.start - (int(ends[first - 1]) if first else 0)
        chosen = column.slice(start, rows.stop - rows.start).combine_chunks()
        blobs = chosen.field("bytes") if pa.types.is_struct(chosen.type) else chosen
        if blobs.null_count:
            raise DataError(f"{where}: {blobs.null_count} images are not in the file; only their paths are")
        blobs = blobs.cast(pa.large_binary())
        _, offsets, data = blobs.buffers()
        places = np.frombuffer(offsets, dtype=np.int64)[blobs.offset : blobs.offset + len(blobs) + 1]
        bytes_of = memoryview(data)
        try:
            one = bytes_of[int(places[0]) : int(places[1])]
            codec, size = codec_of(one), encoded_size(one)
        except ValueError as error:
            raise DataError(f"{where}, frame 0: {error}") from error
        return EncodedFrames(bytes_of, places[:-1], places[1:], codec=codec, size=size, where=where)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        camera, action, state = self._options
        return functools.partial(LeRobotSource, camera=camera, action=action, state=state), (self.folder,)


def _camera(features: Mapping[str, Any], camera: str, folder: Path) -> str:
    cameras = [name for name, facts in features.items() if facts["dtype"] in ("image", "video")]
    if not cameras:
        raise DataError(f"{folder}: has no images; a policy that sees nothing cannot be trained on it")
    if not camera:
        if len(cameras) > 1:
            raise DataError(f"{folder}: has {len(cameras)} cameras; name one: {', '.join(cameras)}")
        return cameras[0]
    for name in (camera, f"observation.images.{camera}", f"observation.{camera}"):
        if name in cameras:
            return name
    raise unknown_name("camera", camera, cameras)


def _opened(path: str) -> pq.ParquetFile:
    return _opened_here(path, os.getpid())


@functools.lru_cache(maxsize=32)
def _opened_here(path: str, process: int) -> pq.ParquetFile:
    """A file that a fork shares would be read from the other's place."""
    return pq.ParquetFile(path, memory_map=True)


@functools.lru_cache(maxsize=64)
def _columns(path: str, names: tuple[str, ...]) -> dict[str, Float[np.ndarray, "..."]]:
    """Columns of one file without its images. Raises: DataError when it cannot be read."""
    try:
        table = _opened(path).read(columns=list(names), use_threads=False)
        return {name: _array(table[name]) for name in names}
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy it again") from error


def _array(column: pa.ChunkedArray) -> np.ndarray:
    """Numbers as they are, lists as rows."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = pa.concat_arrays(whole.chunks)
    if pa.types.is_fixed_size_list(whole.type) or pa.types.is_list(whole.type):
        flat = whole.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(whole), -1)
    return whole.to_numpy(zero_copy_only=False)
