"""The pictures that a row names or holds: files within a folder, bytes, base64 or moments of a video."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from vlm4vla.core.errors import DataError

Picture = bytes | UInt8[np.ndarray, "height width 3"]
_ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB\x60\x82"}
"""How a JPEG and a PNG begin and end."""


def picture(value: Any, root: Path, where: str) -> Picture:
    """One picture: a path below `root`, bytes, base64, or the Hub's `{bytes, path}`.

    JPEG and PNG come as they lie; other formats as pixels.

    Raises: DataError for a path that leaves `root`, a missing file, or one that is cut short or no picture.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        # No file name is this long, and base64 of a JPEG or PNG begins with one of these.
        held = len(value) > 255 and value.startswith(("/9j/", "iVBOR"))
        value = _decoded(value, where) if held else within(root, value, where).read_bytes()
    if not isinstance(value, bytes):
        raise DataError(
            f"{where}: {type(value).__name__} where a picture should be; a path or bytes are expected"
        )
    for begin, end in _ENDS.items():
        if value.startswith(begin) and end in value[-64:]:
            return value
    try:
        with Image.open(io.BytesIO(value)) as opened:
            pixels = np.asarray(opened.convert("RGB"))  # raises for a file that is cut short
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{where}: its image cannot be read ({error}); copy the file again or leave the row out"
        ) from error
    return value if value.startswith(tuple(_ENDS)) else pixels


def within(root: Path, name: str, where: str) -> Path:
    """The file of that name below `root`. Raises: DataError when it lies elsewhere or is missing."""
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise DataError(f"{where}: {name!r} leads out of {root}, where nothing is read; name paths below it")
    if not path.is_file():
        raise DataError(f"{where}: {name!r} is missing below {root}; copy or unpack it, or leave the row out")
    return path


def moments(path: Path, count: int, where: str) -> tuple[UInt8[np.ndarray, "height width 3"], ...]:
    """`count` frames of a video, in the middle of equally long parts of it.

    Raises: DataError for a damaged video or one without pictures.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            base = stream.time_base
            assert base is not None, "a video stream counts its time in something"
            length = stream.duration * base if stream.duration else (container.duration or 0) / 1e6
            first = (stream.start_time or 0) * base
            found = []
            for part in range(count):
                time = float(first + length * (2 * part + 1) / (2 * count))
                container.seek(int(time / base), stream=stream, backward=True)
                last = None
                for frame in container.decode(stream):
                    last = frame
                    if frame.time >= time:
                        break
                if last is None:
                    raise EOFError("no frame there")
                found.append(last.to_ndarray(format="rgb24"))
    except (av.error.FFmpegError, EOFError, IndexError) as error:
        raise DataError(f"{where}: {path.name} cannot be read ({error}); copy the video again") from error
    return tuple(found)


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: its image is no base64 ({error}); copy the file again") from error
