"""msgpack with numpy arrays, as openpi and vla-eval write them: an array is a map that says so.

Nothing is unpickled and nothing that arrives can run: arrays hold booleans, integers and floats only, their size is
what their bytes are, and a message is bounded before it is read.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgpack
import numpy as np

Dialect = Literal["openpi", "vla-eval"]
"""openpi writes the keys of an array's map as bytes, vla-eval as text; both are read."""
LARGEST = 64 << 20
"""Bytes of a message; a chunk of actions has some hundreds."""
_KINDS = "biuf"


def pack(value: Any, dialect: Dialect) -> bytes:
    """Maps, lists, text, numbers and arrays as a message. Raises: TypeError for anything else."""

    def encode(item: Any) -> Any:
        if isinstance(item, np.generic):
            item = np.asarray(item)
            if dialect == "vla-eval":
                return item.item()
        if not isinstance(item, np.ndarray) or item.dtype.kind not in _KINDS:
            raise TypeError(f"{type(item).__name__} cannot be sent")
        array: dict[str, Any] = {"__ndarray__": True, "data": item.tobytes(), "dtype": item.dtype.str}
        array["shape"] = item.shape
        return array if dialect == "vla-eval" else {key.encode(): part for key, part in array.items()}

    packed: bytes = msgpack.packb(value, default=encode, use_bin_type=True)
    return packed


def unpack(message: bytes) -> Any:
    """The inverse, of either dialect; arrays are read-only.

    Raises: ValueError saying what is wrong: no msgpack, an array of another type or size than its bytes, too large.
    """
    if len(message) > LARGEST:
        raise ValueError(f"{len(message):,} bytes, more than {LARGEST:,}")
    try:
        return msgpack.unpackb(message, object_hook=_decode, ext_hook=_refuse, raw=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(f"it is no message in msgpack ({error})") from error


def plain(value: Any) -> Any:
    """What was unpacked as JSON can hold it: arrays as lists, bytes as text."""
    if isinstance(value, dict):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    known = value is None or isinstance(value, bool | int | str) or math.isfinite(value)
    return value if known else str(value)


def _decode(found: dict[Any, Any]) -> Any:
    for name in ("__ndarray__", "__npgeneric__"):
        for written in (name, name.encode()):
            if written in found:
                return _array(found, type(written), scalar=name == "__npgeneric__")
    return found


def _array(found: dict[Any, Any], key: type, *, scalar: bool) -> Any:
    data, dtype, shape = (
        found.get(name if key is str else name.encode()) for name in ("data", "dtype", "shape")
    )
    dtype = dtype.decode() if isinstance(dtype, bytes) else dtype
    if not isinstance(dtype, str) or len(dtype) > 8 or np.dtype(dtype).kind not in _KINDS:
        raise ValueError(f"an array of the type {dtype!r}; booleans, integers and floats are read")
    kind = np.dtype(dtype)
    if scalar:
        return kind.type(data)
    if (
        not isinstance(data, bytes)
        or not isinstance(shape, list)
        or not all(type(side) is int and side >= 0 for side in shape)
        or math.prod(shape) * kind.itemsize != len(data)
    ):
        raise ValueError(f"an array of shape {shape} and type {dtype} whose bytes are of another size")
    return np.frombuffer(data, kind).reshape(shape)


def _refuse(code: int, data: bytes) -> Any:
    raise ValueError(f"an extension of type {code}")
