"""TFRecord files and the `tf.train.Example` in each record, without TensorFlow and without protobuf.

    record    uint64 length | masked crc32c of the length | payload | masked crc32c of the payload
    Example   { features: { feature: [{ key: "steps/action", value: Feature }, ...] } }
    Feature   one of { bytes_list | float_list | int64_list }, each { value: [...] }

Values are found, not copied: a file is mapped, an example is read as the places of its features, and of a feature only
what is asked for is looked at, so that the bytes of images stay on disk until one is decoded. All functions raise
ValueError for bytes that cannot be what they should be.

Sources: TFRecord's framing (tensorflow/core/lib/io/record_writer.h), example.proto and feature.proto, and the protobuf
encoding (protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, UInt8, UInt32

Span = tuple[int, int]
"""First byte and end of something in a file."""

_KINDS = {1: "bytes", 2: "float", 3: "int64"}
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def map_file(path: Path) -> memoryview:
    """A whole file, mapped read-only; unlike `mmap` it holds no file descriptor, so a thousand shards can stay open."""
    with pa.memory_map(os.fspath(path)) as file:
        return memoryview(file.read_buffer()).cast("B")


def record_spans(data: memoryview) -> list[Span]:
    """Where the payload of each record lies, found by skipping from length to length; no payload is read."""
    spans, at = list[Span](), 0
    while at < len(data):
        head = bytes(data[at : at + 12])
        if len(head) < 12:
            raise ValueError(f"record {len(spans)}, byte {at:,}: the file ends within its head")
        length, checksum = struct.unpack("<QI", head)
        if masked(crc32c(head[:8])) != checksum:
            raise ValueError(f"record {len(spans)}, byte {at:,}: the checksum of its length is wrong")
        stop = at + 12 + length
        if stop + 4 > len(data):
            raise ValueError(
                f"record {len(spans)}, byte {at:,}: of its {length:,} bytes the file lacks {stop + 4 - len(data):,}"
            )
        spans.append((at + 12, stop))
        at = stop + 4
    return spans


def verify(data: memoryview, span: Span) -> None:
    """Compare a record's payload with its checksum."""
    (checksum,) = struct.unpack("<I", data[span[1] : span[1] + 4])
    if masked(crc32c(data[span[0] : span[1]])) != checksum:
        raise ValueError("the checksum of its content is wrong")


def example_features(data: memoryview, span: Span) -> dict[str, Span]:
    """Where each feature of an Example lies, by name."""
    found: dict[str, Span] = {}
    for features in _messages(data, span, 1):
        for entry in _messages(data, features, 1):
            key, value = "", (entry[1], entry[1])
            for number, wire, start, stop in _fields(data, entry):
                if number == 1 and wire == _LENGTH:
                    key = str(data[start:stop], "utf-8")
                elif number == 2 and wire == _LENGTH:
                    value = start, stop
            found[key] = value
    return found


def floats(data: memoryview, feature: Span) -> Float32[np.ndarray, " values"]:
    """The values of a float list; packed (what every writer does) or one by one."""
    parts = [np.empty(0, "<f4")]
    for _, start, stop in _values(data, feature, 2, _FOUR_BYTES):
        if (stop - start) % 4:
            raise ValueError(f"byte {start:,}: {stop - start} bytes are no float list")
        parts.append(np.frombuffer(data, "<f4", (stop - start) // 4, start))
    return np.concatenate(parts)


def integers(data: memoryview, feature: Span) -> Int64[np.ndarray, " values"]:
    """The values of an int64 list; packed or one by one. Booleans are stored as these."""
    parts = [np.empty(0, np.int64)]
    for _, start, stop in _values(data, feature, 3, _VARINT):
        parts.append(_varints(np.frombuffer(data, np.uint8, stop - start, start)))
    return np.concatenate(parts)


def strings(data: memoryview, feature: Span) -> list[Span]:
    """Where each value of a bytes list lies."""
    return [(start, stop) for _, start, stop in _values(data, feature, 1, _LENGTH)]


def masked(crc: int) -> int:
    """What TFRecord stores in place of a crc32c."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes | memoryview) -> int:
    """CRC-32C (Castagnoli), about 150 MB/s for long data.

    Long data is cut into as many pieces as each has bytes (about), which numpy goes through side by side. The pieces'
    registers are then joined in pairs: crc(ab) is crc(a) moved on by the length of b, xor crc(b).
    """
    if len(data) < 64:
        register = 0xFFFFFFFF
        for byte in data:
            register = _BYTE_LIST[(register ^ byte) & 0xFF] ^ register >> 8
        return register ^ 0xFFFFFFFF
    size = 1 << (len(data).bit_length() + 1) // 2
    count = 1 << (-(-len(data) // size) - 1).bit_length()
    padded = np.zeros(count * size, np.uint8)  # zeros in front leave a register of zeros as it is
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    padded[-len(data) :][:4] ^= 0xFF  # the same as beginning with ones instead of zeros
    registers = np.zeros(count, np.uint32)
    for words in np.ascontiguousarray(padded.view("<u2").reshape(count, -1).T):
        registers = _WORD_TABLE[(registers ^ words) & 0xFFFF] ^ registers >> 16
    while len(registers) > 1:
        registers = _moved(registers[0::2], _zeros(size)) ^ registers[1::2]
        size *= 2
    return int(registers[0]) ^ 0xFFFFFFFF


def _messages(data: memoryview, span: Span, wanted: int) -> Iterator[Span]:
    for number, wire, start, stop in _fields(data, span):
        if number == wanted and wire == _LENGTH:
            yield start, stop


def _values(data: memoryview, feature: Span, kind: int, single: int) -> Iterator[tuple[int, int, int]]:
    """Wire type and place of the values, or packs of them, in a feature that should be of `kind`."""
    lists, stored = list[Span](), kind
    for number, wire, start, stop in _fields(data, feature):
        if number in _KINDS and wire == _LENGTH:
            lists = [*lists, (start, stop)] if number == stored else [(start, stop)]
            stored = number
    if stored != kind:
        raise ValueError(f"it is a list of {_KINDS[stored]}, not of {_KINDS[kind]}")
    for span in lists:
        for number, wire, start, stop in _fields(data, span):
            if number == 1:
                if wire not in (single, _LENGTH):
                    raise ValueError(f"byte {start:,}: wire type {wire} in a list of {_KINDS[kind]}")
                yield wire, start, stop


def _fields(data: memoryview, span: Span) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, first byte and end of each field of a message."""
    at, end = span
    while at < end:
        tag, at = _varint(data, at, end)
        wire = tag & 7
        if wire == _LENGTH:
            size, at = _varint(data, at, end)
            stop = at + size
        elif wire == _VARINT:
            stop = _varint(data, at, end)[1]
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            stop = at + (8 if wire == _EIGHT_BYTES else 4)
        else:
            raise ValueError(f"byte {at:,}: wire type {wire} does not occur in an Example")
        if stop > end:
            raise ValueError(f"byte {at:,}: a field runs {stop - end:,} bytes past its message")
        yield tag >> 3, wire, at, stop
        at = stop


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """An integer of 7 bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"byte {at:,}: an integer does not end")


def _varints(raw: UInt8[np.ndarray, " bytes"]) -> Int64[np.ndarray, " values"]:
    """Varints back to back; negative ones have ten bytes (two's complement)."""
    final = raw < 0x80
    if final.all():
        return raw.astype(np.int64)
    stops = np.flatnonzero(final) + 1
    starts = np.concatenate([[0], stops[:-1]])
    if not final[-1] or (stops - starts).max() > 10:
        raise ValueError("an integer does not end")
    place = np.arange(len(raw)) - np.repeat(starts, stops - starts)
    bits = (raw & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(bits, starts).view(np.int64)


def _byte_table() -> UInt32[np.ndarray, "256"]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1)
    return table


_BYTE_TABLE = _byte_table()
_BYTE_LIST: list[int] = _BYTE_TABLE.tolist()
_WORD_TABLE = _BYTE_TABLE[np.arange(65536) & 0xFF] ^ np.arange(65536, dtype=np.uint32) >> 8
_WORD_TABLE = _BYTE_TABLE[_WORD_TABLE & 0xFF] ^ _WORD_TABLE >> 8


@functools.cache
def _zeros(size: int) -> UInt32[np.ndarray, "32"]:
    """What `size` zero bytes (a power of two) make of a register with only bit 0, 1, ... 31 set."""
    if size == 1:
        bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
        return _BYTE_TABLE[bits & 0xFF] ^ bits >> 8
    return _moved(_zeros(size // 2), _zeros(size // 2))


def _moved(
    registers: UInt32[np.ndarray, " pieces"], step: UInt32[np.ndarray, "32"]
) -> UInt32[np.ndarray, " pieces"]:
    set_bits = registers[:, None] >> np.arange(32, dtype=np.uint32) & 1
    return np.bitwise_xor.reduce(np.where(set_bits, step, np.uint32(0)), axis=1)
