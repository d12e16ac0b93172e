"""Frames of a video file at exact times, decoded when asked for.

PyAV decodes, or torchcodec where it is installed and finds an FFmpeg: the same pixels in about half the time.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8

from vlm4vla.core.errors import DataError
from vlm4vla.demonstrations.frames import LazyFrames

_OPEN_FILES = 16
"""Decoders kept open in a process; each holds a file and a few frames."""


@dataclass(slots=True)
class _Decoder:
    container: av.container.InputContainer
    stream: av.VideoStream
    upcoming: float = -1.0
    """Time of the frame that decoding would give next; negative: unknown."""


# By process as well: a decoder that a fork shares reads from the other's place in the file.
_decoders: OrderedDict[tuple[int, str], _Decoder] = OrderedDict()


class VideoFrames(LazyFrames):
    """`count` frames of a video, the first at `start` seconds, `fps` a second."""

    def __init__(self, path: Path, *, start: float, fps: float, count: int, where: str) -> None:
        self.path, self.start, self.fps, self.frames, self.where = path, start, fps, count, where

    def __len__(self) -> int:
        return self.frames

    def _frame(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        """Raises: DataError when the file cannot be opened, is damaged, or ends before."""
        time = self.start + index / self.fps
        quick = _read_quickly(self.path, time, 0.5 / self.fps)
        if quick is not None:
            return quick
        try:
            return _read(self.path, time, 0.5 / self.fps)
        except (av.error.FFmpegError, EOFError) as error:
            _decoders.pop((os.getpid(), str(self.path)), None)
            raise DataError(
                f"{self.where}, frame {index}: no frame at {time:.3f} s in {self.path} ({error}). "
                "The video is damaged or shorter than its table says: copy or convert it again"
            ) from error


@functools.lru_cache(4096)
def frame_rate(path: Path) -> tuple[float, float, int]:
    """First frame's time in seconds, frames a second, and how many there are: read without decoding.

    Raises: DataError for a file without video, and for frames that do not come at even times.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: has no video in it")
            stream = container.streams.video[0]
            times = np.sort(
                [float(p.pts * p.time_base) for p in container.demux(stream) if p.pts is not None]
            )
    except (av.error.FFmpegError, EOFError) as error:
        raise DataError(f"{path}: is not a video that can be read ({error})") from error
    if len(times) < 2:
        return (float(times[0]) if len(times) else 0.0), 1.0, len(times)
    step = float(times[-1] - times[0]) / (len(times) - 1)
    late = np.abs(times - times[0] - step * np.arange(len(times)))
    if step <= 0 or late.max() > 0.4 * step:
        raise DataError(
            f"{path}: its frames do not come at even times (frame {int(late.argmax())} is {late.max():.3f} s off); "
            "write it again with a constant frame rate, or as pictures"
        )
    return float(times[0]), 1 / step, len(times)


@functools.cache
def torchcodec() -> Callable[..., Any] | None:
    """Its `VideoDecoder`; None where it is not installed, or finds no FFmpeg that it knows."""
    if importlib.util.find_spec("torchcodec") is None:
        return None
    with contextlib.suppress(ImportError, OSError, RuntimeError):
        made: Callable[..., Any] = importlib.import_module("torchcodec.decoders").VideoDecoder
        return made
    return None


@functools.lru_cache(_OPEN_FILES)
def _quick_decoder(process: int, path: str) -> Any:
    """By process as above. None: without torchcodec, or where it cannot open the file."""
    make = torchcodec()
    with contextlib.suppress(RuntimeError, ValueError):
        if make is not None:
            return make(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate")
    return None


def _read_quickly(path: Path, time: float, tolerance: float) -> UInt8[np.ndarray, "height width 3"] | None:
    """None where torchcodec does not find the frame: PyAV then finds it, or tells what is wrong."""
    decoder = _quick_decoder(os.getpid(), str(path))
    with contextlib.suppress(RuntimeError, ValueError, IndexError):
        frame = None if decoder is None else decoder.get_frame_played_at(time + tolerance)
        if frame is not None and abs(frame.pts_seconds - time) <= tolerance:
            pixels: UInt8[np.ndarray, "height width 3"] = frame.data.numpy()
            return pixels
    return None


def _read(path: Path, time: float, tolerance: float) -> UInt8[np.ndarray, "height width 3"]:
    decoder = _opened(path)
    # Decoding on costs less than a seek for the frames right behind the last one.
    if not 0 <= time - decoder.upcoming < 4 * tolerance or decoder.upcoming < 0:
        base = decoder.stream.time_base
        assert base is not None, "a video stream counts its time in something"
        decoder.container.seek(
            max(0, int((time - tolerance / 2) / base)), stream=decoder.stream, backward=True
        )
    for frame in decoder.container.decode(decoder.stream):
        if frame.time < time - tolerance:
            continue
        if frame.time > time + tolerance:
            decoder.upcoming = -1.0
            raise EOFError(f"the next frame is at {frame.time:.3f} s")
        decoder.upcoming = frame.time + 2 * tolerance
        return frame.to_ndarray(format="rgb24")
    decoder.upcoming = -1.0
    raise EOFError("it ends before")


def _opened(path: Path) -> _Decoder:
    key = (os.getpid(), str(path))
    decoder = _decoders.pop(key, None)
    if decoder is None:
        container = av.open(str(path))
        if not container.streams.video:
            container.close()
            raise EOFError("it has no video")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        decoder = _Decoder(container, stream)
    _decoders[key] = decoder
    while len(_decoders) > _OPEN_FILES:
        _, oldest = _decoders.popitem(last=False)
        oldest.container.close()
    return decoder
