"""Camera frames of an episode, decoded when they are asked for."""

from __future__ import annotations

import io
import zlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import simplejpeg
from jaxtyping import Int64, UInt8
from PIL import Image, UnidentifiedImageError

from vlm4vla.core.errors import DataError

Codec = Literal["zlib", "jpeg", "png"]
"""`zlib`: height x width x 3 RGB bytes, deflated."""

Pixels = UInt8[np.ndarray, "height width 3"]


class LazyFrames(Sequence[Pixels]):
    """Slicing and bounds for what can give one frame."""

    where: str

    @abstractmethod
    def _frame(self, index: int) -> Pixels: ...

    @overload
    def __getitem__(self, index: int) -> Pixels: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pixels]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.where}: frame {index} of {len(self)}")
        return self._frame(index % len(self))


class StoredFrames(LazyFrames):
    """Frames that are bytes somewhere, of one kind and size: copied unchanged where they are stored anew."""

    codec: Codec
    size: tuple[int, int]
    """Height and width."""

    @abstractmethod
    def encoded(self, index: int) -> bytes | memoryview:
        """The bytes of one frame as stored."""

    @abstractmethod
    def select(self, steps: Int64[np.ndarray, " chosen"]) -> StoredFrames:
        """Some of the frames, in the order given, still encoded."""

    def _frame(self, index: int) -> Pixels:
        try:
            return decode(self.encoded(index), self.codec, self.size)
        except ValueError as error:
            raise DataError(
                f"{self.where}, frame {index}: cannot be decoded ({error}). The file is damaged: "
                "delete it and make, copy or convert the demonstrations again."
            ) from error


class EncodedFrames(StoredFrames):
    """Frames as bytes in one buffer. A source with encoded images hands them on with this, unchanged."""

    def __init__(
        self,
        data: bytes | memoryview,
        starts: Int64[np.ndarray, " frames"],
        stops: Int64[np.ndarray, " frames"],
        *,
        codec: Codec,
        size: tuple[int, int],
        where: str,
    ) -> None:
        """Frame i is `data[starts[i]:stops[i]]`; `size` is (height, width); `where` is named in errors."""
        self.data, self.starts, self.stops = memoryview(data).cast("B"), starts, stops
        self.codec, self.size, self.where = codec, size, where

    def __len__(self) -> int:
        return len(self.starts)

    def encoded(self, index: int) -> memoryview:
        """The bytes of one frame as stored."""
        return self.data[int(self.starts[index]) : int(self.stops[index])]

    def select(self, steps: Int64[np.ndarray, " chosen"]) -> EncodedFrames:
        """Some of the frames, in the order given, still encoded."""
        return EncodedFrames(
            self.data,
            self.starts[steps],
            self.stops[steps],
            codec=self.codec,
            size=self.size,
            where=self.where,
        )


class FileFrames(StoredFrames):
    """Frames of which each is a file."""

    def __init__(
        self, folder: Path, names: Sequence[str], *, codec: Codec, size: tuple[int, int], where: str
    ) -> None:
        self.folder, self.names = folder, names
        self.codec, self.size, self.where = codec, size, where

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, index: int) -> bytes:
        """The file's bytes. Raises: DataError when it cannot be read."""
        try:
            return (self.folder / self.names[index]).read_bytes()
        except OSError as error:
            raise DataError(f"{self.where}, frame {index}: {error}") from error

    def select(self, steps: Int64[np.ndarray, " chosen"]) -> FileFrames:
        """Some of the files, in the order given."""
        names = [self.names[step] for step in steps.tolist()]
        return FileFrames(self.folder, names, codec=self.codec, size=self.size, where=self.where)


class ChosenFrames(LazyFrames):
    """Frames of another sequence: some of them, each changed by `change` where one is given."""

    def __init__(
        self,
        frames: Sequence[Pixels],
        steps: Int64[np.ndarray, " chosen"],
        change: Callable[[Pixels], Pixels] | None = None,
    ) -> None:
        self.frames, self.steps, self.change = frames, steps, change
        self.where = str(getattr(frames, "where", "frames"))

    def __len__(self) -> int:
        return len(self.steps)

    def _frame(self, index: int) -> Pixels:
        frame = self.frames[int(self.steps[index])]
        return frame if self.change is None else self.change(frame)


def choose(frames: Sequence[Pixels], steps: Int64[np.ndarray, " chosen"]) -> Sequence[Pixels]:
    """Some frames, in the order given; encoded ones stay encoded."""
    return frames.select(steps) if isinstance(frames, StoredFrames) else ChosenFrames(frames, steps)


def decode(blob: bytes | memoryview, codec: Codec, size: tuple[int, int] | None = None) -> Pixels:
    """One frame as RGB uint8. Raises: ValueError for damaged bytes or, with `size`, another height or width."""
    if codec == "zlib":
        assert size is not None, "deflated pixels do not say their size"
        try:
            raw = zlib.decompress(blob, bufsize=size[0] * size[1] * 3)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        return np.frombuffer(raw, np.uint8).reshape(*size, 3)
    if codec == "jpeg":  # strict: PIL gives a picture for many damaged files
        image: Pixels = simplejpeg.decode_jpeg(blob, colorspace="RGB")
    else:
        try:
            with Image.open(io.BytesIO(blob)) as picture:
                image = np.asarray(picture.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(str(error)) from error
    if size is not None and image.shape[:2] != size:
        raise ValueError(f"{image.shape[0]} x {image.shape[1]} pixels instead of {size[0]} x {size[1]}")
    return image


def codec_of(blob: bytes | memoryview) -> Codec:
    """From the first bytes. Raises: ValueError when they are neither JPEG's nor PNG's."""
    start = bytes(blob[:8])
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if start == b"\x89PNG\r\n\x1a\n":
        return "png"
    raise ValueError(f"neither JPEG nor PNG: it begins with {start!r}")


def encoded_size(blob: bytes | memoryview) -> tuple[int, int]:
    """Height and width of a JPEG or PNG, from its header. Raises: ValueError when it is neither."""
    if codec_of(blob) == "jpeg":
        height, width, _, _ = simplejpeg.decode_jpeg_header(bytes(blob))
        return height, width
    try:
        with Image.open(io.BytesIO(blob)) as picture:
            return picture.height, picture.width
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(str(error)) from error
