"""Demonstrations written as Bridge V2 lies in RLDS: TFRecords of `tf.train.Example`, and what TFDS writes beside them.

Sources: TFRecord's framing (tensorflow/core/lib/io/record_writer.h), example.proto, the protobuf encoding, and
dataset_info.proto of tensorflow_datasets 4.9.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from vlm4vla.benchmarks.pieces import whole

NAME = "simpler_bridge_scripted"
SIDE = 256
"""Pixels of a frame, as in `bridge_orig`."""
_A_FILE = 50
"""Episodes in one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeEpisode:
    """Steps as Bridge has them: the first action is all zero, and the last step is the state that was reached."""

    instruction: str
    images: Sequence[bytes]
    """JPEG."""
    states: Float32[np.ndarray, "steps 7"]
    """Place in metres, angles in radians, how far the gripper is open."""
    actions: Float32[np.ndarray, "steps 7"]
    """Movement commanded, and the gripper: 1 opens, 0 closes."""


def write(episodes: Iterable[BridgeEpisode], count: int, folder: Path, *, note: str) -> int:
    """Write `count` episodes, whole or not at all; returns how many.

    Raises: SimulatorError for a folder that exists.
    """
    left, files = iter(episodes), -(-count // _A_FILE)
    lengths = []
    with whole(folder) as unfinished:
        for number in range(files):
            path = unfinished / f"{NAME}-train.tfrecord-{number:05d}-of-{files:05d}"
            with path.open("wb") as file:
                lengths.append(sum(1 for e in islice(left, _A_FILE) if file.write(_record(_example(e)))))
        info = {"name": NAME, "version": "1.0.0", "fileFormat": "tfrecord", "description": note}
        split = {"name": "train", "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
        info["splits"] = [split | {"shardLengths": [str(length) for length in lengths]}]  # type: ignore[assignment]
        for name, content in (("features", _FEATURES), ("dataset_info", info), ("scripted", {"note": note})):
            (unfinished / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return sum(lengths)


def _tensor(*shape: int) -> dict[str, Any]:
    tensor = {"shape": {"dimensions": [str(size) for size in shape]}, "dtype": "float32", "encoding": "none"}
    return {"pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor", "tensor": tensor}


def _group(features: dict[str, Any]) -> dict[str, Any]:
    name = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    return {"pythonClassName": name, "featuresDict": {"features": features}}


_IMAGE = {
    "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
    "image": {
        "shape": {"dimensions": [str(SIDE), str(SIDE), "3"]},
        "dtype": "uint8",
        "encodingFormat": "jpeg",
    },
}
_TEXT = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}
_STEP = _group(
    {
        "observation": _group({"image_0": _IMAGE, "state": _tensor(7)}),
        "action": _tensor(7),
        "language_instruction": _TEXT,
    }
)
_STEPS = {
    "pythonClassName": "tensorflow_datasets.core.features.dataset_feature.Dataset",
    "sequence": {"feature": _STEP, "length": "-1"},
}
_FEATURES = _group({"steps": _STEPS})


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _texts(values: Sequence[bytes]) -> bytes:
    return _field(1, b"".join(_field(1, value) for value in values))


def _floats(values: Float32[np.ndarray, "steps 7"]) -> bytes:
    return _field(2, _field(1, values.astype("<f4").tobytes()))


def _example(episode: BridgeEpisode) -> bytes:
    columns = {
        "steps/observation/image_0": _texts(episode.images),
        "steps/observation/state": _floats(episode.states),
        "steps/action": _floats(episode.actions),
        "steps/language_instruction": _texts([episode.instruction.encode()] * len(episode.images)),
    }
    entries = (_field(1, _field(1, key.encode()) + _field(2, value)) for key, value in columns.items())
    return _field(1, b"".join(entries))


def _record(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return length + _checksum(length) + payload + _checksum(payload)


def _row(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_TABLE = [_row(byte) for byte in range(256)]


def _checksum(data: bytes) -> bytes:
    """CRC-32C, turned and moved as TFRecord has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
