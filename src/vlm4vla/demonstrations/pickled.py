"""What numpy wrote into .npy files, read without numpy's loader and without unpickling.

A dictionary in such a file is pickled, and unpickling runs what the file says. This walks the opcodes that
`pickletools` lists and does nothing but put values on a stack: no name is looked up, nothing is imported or called, so
there is nothing that a list of forbidden names could forget. What numpy writes as a call (an array, a dtype, a scalar)
is kept as data and computed here when it is asked for. Every opcode costs constant time and memory, so a file cannot
blow up beyond its own size.
"""

from __future__ import annotations

import io
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from vlm4vla.core.errors import DataError

_PUSHED = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINSTRING", "SHORT_BINSTRING"),
}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_RECONSTRUCT, _SCALAR, _FROMBUFFER = "multiarray _reconstruct", "multiarray scalar", "numeric _frombuffer"
_NAMES = {  # numpy 1 says numpy.core, numpy 2 numpy._core
    f"numpy.{core}.{name}": name
    for core in ("core", "_core")
    for name in (_RECONSTRUCT, _SCALAR, _FROMBUFFER)
} | {name: name for name in ("numpy ndarray", "numpy dtype", "_codecs encode")}


@dataclass(slots=True)
class _Name:
    text: str


@dataclass(slots=True)
class _Call:
    """What unpickling would have called, with what it would have set afterwards."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


_HEADER = re.compile(
    rb"\{'descr': '([<>|=][biufO]\d*)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), ?\}\s*"
)


def read_pickled(path: Path) -> dict[str, Any]:
    """The dictionary that `np.save(path, {...})` wrote; `plain` makes values of what is in it.

    Raises: DataError when the file is no such .npy file or has anything in it that numpy would not have written.
    """
    stream = io.BytesIO(path.read_bytes())
    try:
        shape, _, dtype = _read_header(stream)
        if not dtype.hasobject or shape != ():
            raise ValueError(f"it holds {dtype} of shape {shape}, not one pickled object")
        content = plain(_walk(stream))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not a dictionary")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not a dictionary saved by numpy ({error}). Nothing of it was run. Get the file again from where "
            "the data set is published; do not load it with allow_pickle=True."
        ) from error
    return content


def plain(value: Any) -> Any:
    """An array or scalar as numpy would have made it (arrays of objects as flat lists); anything else as it is.

    Raises: ValueError when sizes or dtype do not fit.
    """
    if not isinstance(value, _Call):
        return value
    try:
        if value.name == _SCALAR:
            dtype, data = value.arguments
            return np.frombuffer(_bytes(data), _dtype(dtype)).reshape(()).item()
        if value.name == _FROMBUFFER:
            data, dtype, shape, order = value.arguments
        elif value.name == _RECONSTRUCT:
            _, shape, dtype, fortran, data = value.state
            order = "F" if fortran else "C"
            if isinstance(data, list):
                return data[0] if shape == () else data
        else:
            raise ValueError(f"{value.name} where a value was expected")
        return np.frombuffer(_bytes(data), _dtype(dtype)).reshape(shape, order=order)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"a malformed {value.name}: {error}") from error


def read_array(data: bytes) -> Shaped[np.ndarray, "..."]:
    """The array in an .npy file's bytes. Raises: ValueError for anything else, arrays of objects included."""
    stream = io.BytesIO(data)
    shape, order, dtype = _read_header(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return np.frombuffer(stream.getbuffer()[stream.tell() :], dtype).reshape(shape, order=order)


def _read_header(stream: io.BytesIO) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]:
    """Shape, order and dtype of a plain array in .npy; the stream is then at its content.

    Several times faster than numpy's own, which parses it as Python and can raise almost anything.

    Raises: ValueError for anything else.
    """
    magic, version, length = stream.read(6), stream.read(1), stream.read(3)
    if magic != b"\x93NUMPY" or version not in (b"\x01", b"\x02"):
        raise ValueError("it is no array of numpy's")
    if version == b"\x02":
        length += stream.read(2)
    text = stream.read(int.from_bytes(length[1:], "little"))
    found = _HEADER.fullmatch(text)
    if not found:
        raise ValueError(f"its header is {text[:80]!r}")
    shape = tuple(int(size) for size in found[3].replace(b" ", b"").split(b",") if size)
    try:
        dtype = np.dtype(found[1].decode())
    except TypeError as error:
        raise ValueError(str(error)) from error
    return shape, "F" if found[2] == b"True" else "C", dtype


def _dtype(call: _Call) -> np.dtype[Any]:
    text: str = call.state[1] + call.arguments[0]
    if call.name != "numpy dtype" or not re.fullmatch(r"[<>|=][biuf][1248]", text):
        raise ValueError(f"unexpected dtype {text!r}")
    return np.dtype(text)


def _bytes(data: Any) -> bytes | bytearray:
    if isinstance(data, _Call) and data.name == "_codecs encode":  # how protocol 2 writes bytes
        data = data.arguments[0]
    return data.encode("latin1") if isinstance(data, str) else data


def _walk(stream: io.BytesIO) -> Any:
    """The value of a pickle, with `_Call` where something would have been called."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def marked() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, argument, position in pickletools.genops(stream):
        name: str = opcode.name
        if name in _PUSHED:
            stack.append(argument)
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name == "TUPLE":
            stack.append(tuple(marked()))
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            text = argument or " ".join(reversed([stack.pop(), stack.pop()]))
            if text not in _NAMES:
                raise ValueError(f"byte {position}: it names {text!r}, which numpy does not need")
            stack.append(_Name(_NAMES[text]))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if not isinstance(function, _Name) or not isinstance(arguments, tuple):
                raise ValueError(f"byte {position}: it calls something that is no name")
            stack.append(_Call(function.text, arguments))
        elif name == "BUILD":
            state, call = stack.pop(), stack[-1]
            if not isinstance(call, _Call) or not isinstance(state, tuple):
                raise ValueError(f"byte {position}: it changes something that is no array")
            call.state = state
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else marked()
            stack[-1].extend(items)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else marked()
            if not all(isinstance(key, str) for key in items[::2]):
                raise ValueError(f"byte {position}: a dictionary has keys that are no text")
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"byte {position}: it uses {name}, which numpy does not need")
    raise ValueError("it ends in the middle")
