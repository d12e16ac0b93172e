"""Frames of a video file at exact times, decoded when asked for."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

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
        try:
            return _read(self.path, time, 0.5 / self.fps)
        except (av.error.FFmpegError, EOFError) as error:
            _decoders.pop((os.getpid(), str(self.path)), None)
            raise DataError(
                f"{self.where}, frame {index}: no frame at {time:.3f} s in {self.path} ({error}). "
                "The video is damaged or shorter than its table says: copy or convert it again"
            ) from error


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
