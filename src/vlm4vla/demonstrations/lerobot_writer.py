"""Demonstrations written as a LeRobotDataset v3.0, which LeRobot's own reader opens."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from jaxtyping import Float32, UInt8

from vlm4vla.core.actions import ACTION_SIZE, ActionSpec
from vlm4vla.core.errors import DataError
from vlm4vla.core.types import Demonstration
from vlm4vla.demonstrations.frames import StoredFrames

CAMERA = "observation.images.image"
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_EPISODES = "meta/episodes/chunk-000/file-000.parquet"
_DATA_BYTES, _VIDEO_BYTES = 100 << 20, 200 << 20
_FILES_A_CHUNK = 1000
_JPEG_QUALITY = 95
_KEYFRAMES = 2
"""A keyframe every second frame: random access costs one frame more, the file a quarter more."""
_SCALARS = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64"}
_SCALARS |= {"task_index": "int64"}
_QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
_STATED_FRAMES = 100
"""Of all frames so many, evenly spread, give the statistics of pixels."""


def write_lerobot(
    demonstrations: Iterable[Demonstration],
    folder: Path,
    *,
    name: str,
    action_spec: ActionSpec,
    fps: int,
    video: bool = False,
    robot: str = "unknown",
    scripted: str = "",
) -> Path:
    """Write demonstrations as they come, whole or not at all; a folder that exists is never overwritten.

    Frames become an image column, where JPEG and PNG bytes stay as they are and raw pixels become JPEGs of quality 95;
    with `video` they become H.264, a tenth of the size, which loses a little more. `scripted` is their reader's.

    Raises: DataError for a folder that exists, no demonstrations, or frames of different sizes.
    """
    if folder.exists():
        raise DataError(f"{folder}: exists already; delete it or choose another folder")
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    try:
        told = {"source": name, "action_spec": action_spec.to_json()}
        told |= {"scripted": scripted} if scripted else {}
        _Writer(partial, fps=fps, video=video).write(demonstrations, told, robot)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


class _Writer:
    def __init__(self, folder: Path, *, fps: int, video: bool) -> None:
        self.folder, self.fps, self.video = folder, fps, video
        self.tasks: dict[str, int] = {}
        self.episodes: list[dict[str, Any]] = []
        self.size: tuple[int, int] | None = None
        self.frames = 0
        self._data = _Shards(folder, _DATA)
        self._films = _Shards(folder, _VIDEO.replace("{video_key}", CAMERA))
        self._table: pq.ParquetWriter | None = None
        self._film: _Film | None = None
        self._columns: dict[str, list[np.ndarray]] = {name: [] for name in ("action", *_SCALARS)}
        self._pixels = _Pixels()

    def write(self, demonstrations: Iterable[Demonstration], told: Mapping[str, Any], robot: str) -> None:
        try:
            for demonstration in demonstrations:
                self._add(demonstration)
        finally:
            self._close_table()
            self._close_film()
        if self.size is None:
            raise DataError(f"{told['source']}: no demonstrations; check the task and episode filters")
        self._write_meta(told, robot)

    def _add(self, demonstration: Demonstration) -> None:
        length = len(demonstration.actions)
        columns: dict[str, np.ndarray] = {
            "action": np.asarray(demonstration.actions, dtype=np.float32),
            "timestamp": (np.arange(length) / self.fps).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, len(self.episodes)),
            "index": self.frames + np.arange(length),
            "task_index": np.full(length, self.tasks.setdefault(demonstration.instruction, len(self.tasks))),
        }
        arrays: dict[str, pa.Array] = {}
        episode: dict[str, Any] = {}
        if self.video:
            episode |= self._filmed(demonstration)
        else:
            blobs = [self._blob(demonstration, step) for step in range(length)]
            arrays[CAMERA] = pa.StructArray.from_arrays(
                [pa.array(blobs, pa.binary()), pa.nulls(length, pa.string())], names=["bytes", "path"]
            )
        actions = pa.array(columns["action"].reshape(-1), pa.float32())
        arrays["action"] = pa.FixedSizeListArray.from_arrays(actions, ACTION_SIZE)
        arrays |= {name: pa.array(columns[name], getattr(pa, kind)()) for name, kind in _SCALARS.items()}
        if self._table is None or self._data.full(self._table_bytes(), _DATA_BYTES):
            self._close_table()
            path = self._data.next()
            self._table = pq.ParquetWriter(path, _schema(self.video), compression="snappy")
        self._table.write_table(pa.table(arrays, schema=_schema(self.video)), row_group_size=length)
        self.episodes.append(
            {
                "episode_index": len(self.episodes),
                "tasks": [demonstration.instruction],
                "length": length,
                "data/chunk_index": self._data.chunk,
                "data/file_index": self._data.file,
                "dataset_from_index": self.frames,
                "dataset_to_index": self.frames + length,
                **episode,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        )
        self.frames += length
        for key, values in columns.items():
            self._columns[key].append(values)

    def _blob(self, demonstration: Demonstration, step: int) -> bytes:
        images = demonstration.images
        if isinstance(images, StoredFrames) and images.codec != "zlib":
            self._require_size(demonstration, step, images.size)
            self._pixels.add(self.frames + step, lambda: images[step])
            return bytes(images.encoded(step))
        image = images[step]
        self._require_size(demonstration, step, (image.shape[0], image.shape[1]))
        self._pixels.add(self.frames + step, lambda: image)
        return simplejpeg.encode_jpeg(
            np.ascontiguousarray(image), quality=_JPEG_QUALITY, colorsubsampling="420"
        )

    def _filmed(self, demonstration: Demonstration) -> dict[str, Any]:
        start = 0.0
        for step, image in enumerate(demonstration.images):
            height, width = image.shape[:2]
            self._require_size(demonstration, step, (height, width))
            if height % 2 or width % 2:
                raise DataError(
                    f"frames of {height} x {width} pixels cannot be H.264: both must be even; write images"
                )
            self._pixels.add(self.frames + step, lambda image=image: image)
            if self._film is None or (step == 0 and self._films.full(self._film.bytes(), _VIDEO_BYTES)):
                self._close_film()
                self._film = _Film(self._films.next(), width, height, self.fps)
            if step == 0:
                start = self._film.frames / self.fps
            self._film.add(image)
        key = f"videos/{CAMERA}"
        return {
            f"{key}/chunk_index": self._films.chunk,
            f"{key}/file_index": self._films.file,
            f"{key}/from_timestamp": start,
            f"{key}/to_timestamp": start + len(demonstration.actions) / self.fps,
        }

    def _require_size(self, demonstration: Demonstration, step: int, size: tuple[int, int]) -> None:
        self.size = self.size or size
        if size != self.size:
            raise DataError(
                f"demonstration {demonstration.id}, frame {step}: {size[0]} x {size[1]} pixels after "
                f"{self.size[0]} x {self.size[1]}; a LeRobotDataset has one size"
            )

    def _table_bytes(self) -> int:
        return self._data.path.stat().st_size if self._data.path else 0

    def _close_table(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None

    def _close_film(self) -> None:
        if self._film is not None:
            self._film.close()
            self._film = None

    def _write_meta(self, told: Mapping[str, Any], robot: str) -> None:
        assert self.size is not None
        info = {
            "codebase_version": "v3.0",
            "robot_type": robot,
            "total_episodes": len(self.episodes),
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": _FILES_A_CHUNK,
            "data_files_size_in_mb": _DATA_BYTES >> 20,
            "video_files_size_in_mb": _VIDEO_BYTES >> 20,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self.episodes)}"},
            "data_path": _DATA,
            "video_path": _VIDEO if self.video else None,
            "features": _features(self.size, self.fps, self.video),
            "vlm4vla": told,
        }
        meta = self.folder / "meta"
        (meta / "info.json").write_text(json.dumps(info, indent=4), encoding="utf-8")
        stats = {key: _statistics(np.concatenate(values)) for key, values in self._columns.items()}
        stats[CAMERA] = self._pixels.statistics()
        (meta / "stats.json").write_text(json.dumps(stats, indent=4), encoding="utf-8")
        pq.write_table(_tasks(self.tasks), meta / "tasks.parquet")
        pq.write_table(pa.Table.from_pylist(self.episodes), self.folder / _EPISODES)


class _Shards:
    """Files of limited size, a thousand a chunk."""

    def __init__(self, folder: Path, template: str) -> None:
        self._folder, self._template, self._count = folder, template, 0
        self.path: Path | None = None

    @property
    def chunk(self) -> int:
        return (self._count - 1) // _FILES_A_CHUNK

    @property
    def file(self) -> int:
        return (self._count - 1) % _FILES_A_CHUNK

    def full(self, size: int, most: int) -> bool:
        return size >= most

    def next(self) -> Path:
        self._count += 1
        name = self._template.format(chunk_index=self.chunk, file_index=self.file)
        self.path = self._folder / name
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.path


class _Film:
    """One encoder, kept open over episodes."""

    def __init__(self, path: Path, width: int, height: int, fps: int) -> None:
        self._path, self.frames = path, 0
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream(
            "libx264", rate=fps, options={"g": str(_KEYFRAMES), "crf": "23", "bf": "0"}
        )
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, fps)
        self._stream.codec_context.thread_count = 1

    def add(self, image: UInt8[np.ndarray, "height width 3"]) -> None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts = self.frames
        self.frames += 1
        self._container.mux(self._stream.encode(frame))

    def bytes(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


class _Pixels:
    """Statistics of a few frames: every n-th, n doubling as more come."""

    def __init__(self) -> None:
        self._every, self._kept = 1, dict[int, UInt8[np.ndarray, "height width 3"]]()

    def add(self, index: int, frame: Any) -> None:
        if index % self._every:
            return
        self._kept[index] = frame()
        if len(self._kept) > _STATED_FRAMES:
            self._every *= 2
            self._kept = {key: value for key, value in self._kept.items() if key % self._every == 0}

    def statistics(self) -> dict[str, Any]:
        pixels = np.stack(list(self._kept.values())).reshape(-1, 3).astype(np.float32) / 255
        found = _statistics(pixels)
        shaped = {k: np.reshape(v, (3, 1, 1)).tolist() for k, v in found.items() if k != "count"}
        return {**shaped, "count": [len(self._kept)]}


def _statistics(values: Float32[np.ndarray, "..."]) -> dict[str, Any]:
    rows = values.reshape(len(values), -1).astype(np.float64)
    quantiles = np.quantile(rows, _QUANTILES, axis=0)
    found: dict[str, Any] = {
        "min": rows.min(0).tolist(),
        "max": rows.max(0).tolist(),
        "mean": rows.mean(0).tolist(),
        "std": rows.std(0).tolist(),
        "count": [len(rows)],
    }
    return found | {
        f"q{round(100 * q):02d}": row.tolist() for q, row in zip(_QUANTILES, quantiles, strict=True)
    }


def _features(size: tuple[int, int], fps: int, video: bool) -> dict[str, Any]:
    camera: dict[str, Any] = {
        "dtype": "video" if video else "image",
        "shape": [*size, 3],
        "names": ["height", "width", "channels"],
    }
    if video:
        camera["info"] = {
            "video.height": size[0],
            "video.width": size[1],
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": False,
        }
    names = ["x", "y", "z", "rotation_1", "rotation_2", "rotation_3", "gripper"]
    action = {"dtype": "float32", "shape": [ACTION_SIZE], "names": names}
    scalars = {key: {"dtype": kind, "shape": [1], "names": None} for key, kind in _SCALARS.items()}
    return {CAMERA: camera, "action": action, **scalars}


def _schema(video: bool) -> pa.Schema:
    fields = [] if video else [pa.field(CAMERA, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    fields.append(pa.field("action", pa.list_(pa.float32(), ACTION_SIZE)))
    fields += [pa.field(name, getattr(pa, kind)()) for name, kind in _SCALARS.items()]
    described: dict[str, Any] = {} if video else {CAMERA: {"_type": "Image"}}
    described["action"] = {
        "feature": {"dtype": "float32", "_type": "Value"},
        "length": ACTION_SIZE,
        "_type": "List",
    }
    described |= {name: {"dtype": kind, "_type": "Value"} for name, kind in _SCALARS.items()}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": described}})})


def _tasks(tasks: Mapping[str, int]) -> pa.Table:
    """As pandas writes a frame whose index is the sentence: LeRobot reads it with pandas."""
    table = pa.table(
        {"task_index": pa.array(tasks.values(), pa.int64()), "task": pa.array(tasks, pa.string())}
    )

    def column(name: str, kind: str, numpy: str) -> dict[str, Any]:
        facts = {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy}
        return {**facts, "metadata": None}

    pandas = {
        "index_columns": ["task"],
        "column_indexes": [{**column("", "unicode", "object"), "name": None, "field_name": None}],
        "columns": [column("task_index", "int64", "int64"), column("task", "unicode", "object")],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
