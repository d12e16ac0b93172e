"""TFDS folders written without TensorFlow: TFRecords of tf.train.Example, features.json, dataset_info.json."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm4vla.demonstrations.tfrecords import crc32c, masked

Value = Sequence[bytes] | Sequence[float] | Sequence[int]


def varint(value: int) -> bytes:
    """Seven bits a byte; negative numbers as sixty-four bits."""
    value %= 1 << 64
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def feature(value: Value, *, packed: bool = True) -> bytes:
    """A bytes, float or int64 list."""
    first = value[0] if len(value) else b""
    if isinstance(first, bytes):
        return field(1, b"".join(field(1, part) for part in value))  # type: ignore[arg-type]
    if isinstance(first, float):
        if packed:
            return field(2, field(1, np.asarray(value, "<f4").tobytes()))
        return field(2, b"".join(varint(1 << 3 | 5) + struct.pack("<f", part) for part in value))
    if packed:
        return field(3, field(1, b"".join(varint(int(part)) for part in value)))
    return field(3, b"".join(varint(1 << 3) + varint(int(part)) for part in value))


def example(values: Mapping[str, Value], *, packed: bool = True) -> bytes:
    entries = (
        field(1, field(1, key.encode()) + field(2, feature(value, packed=packed)))
        for key, value in values.items()
    )
    return field(1, b"".join(entries))


def record(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return (
        length
        + struct.pack("<I", masked(crc32c(length)))
        + payload
        + struct.pack("<I", masked(crc32c(payload)))
    )


def tensor(*shape: int, dtype: str = "float32", encoding: str = "none") -> dict[str, Any]:
    return {
        "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
        "tensor": {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype, "encoding": encoding},
    }


def image(height: int, width: int, form: str = "jpeg") -> dict[str, Any]:
    return {
        "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
        "image": {
            "shape": {"dimensions": [str(height), str(width), "3"]},
            "dtype": "uint8",
            "encodingFormat": form,
        },
    }


def text() -> dict[str, Any]:
    return {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}


def group(features: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": dict(features)},
    }


def steps(features: Mapping[str, Any], *, kind: str = "dataset") -> dict[str, Any]:
    name = {"dataset": "dataset_feature.Dataset", "sequence": "sequence_feature.Sequence"}[kind]
    inner = {"feature": group(features), "length": "-1"}
    return {"pythonClassName": f"tensorflow_datasets.core.features.{name}", "sequence": inner}


BRIDGE = {
    "observation": group({"image_0": image(0, 0), "state": tensor(7)}),
    "action": tensor(7),
    "language_instruction": text(),
}


def bridge_episode(
    images: Sequence[bytes], actions: np.ndarray, state: np.ndarray, instruction: str
) -> dict[str, Value]:
    return {
        "steps/observation/image_0": list(images),
        "steps/observation/state": [float(x) for x in state.reshape(-1)],
        "steps/action": [float(x) for x in actions.reshape(-1)],
        "steps/language_instruction": [instruction.encode()] * len(actions),
    }


def write_rlds(
    folder: Path,
    shards: Sequence[Sequence[Mapping[str, Value]]],
    *,
    layout: Mapping[str, Any] = BRIDGE,
    kind: str = "dataset",
    name: str = "bridge_orig",
    packed: bool = True,
    size: tuple[int, int] | None = None,
) -> Path:
    """`shards` of episodes, each a map from flat names to values; `size`: of the camera image_0."""
    folder.mkdir(parents=True, exist_ok=True)
    if size is not None:
        layout = {**layout, "observation": group({"image_0": image(*size), "state": tensor(7)})}
    features = group({"steps": steps(layout, kind=kind)})
    (folder / "features.json").write_text(json.dumps(features))
    info = {
        "name": name,
        "version": "1.0.0",
        "fileFormat": "tfrecord",
        "splits": [
            {
                "name": "train",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(len(shard)) for shard in shards],
            }
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for number, shard in enumerate(shards):
        path = folder / f"{name}-train.tfrecord-{number:05d}-of-{len(shards):05d}"
        path.write_bytes(b"".join(record(example(values, packed=packed)) for values in shard))
    return folder
