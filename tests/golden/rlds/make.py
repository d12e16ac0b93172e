"""Made this folder: `python make.py FOLDER`, in an environment of tensorflow-datasets 4.9.10 and tensorflow-cpu 2.21.0.

Two small data sets as TFDS writes them, laid out like Bridge and like Fractal, and expected.json: what TFDS reads.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
import tree

F = tfds.features


def image(rng, height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 9 + rng.integers(90), y * 9, (x + y) * 5], -1).astype(np.uint8)


def rows(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


class Base(tfds.core.GeneratorBasedBuilder):
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(self.layout))

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(2):
            yield index, self.episode(np.random.default_rng(index), index, 3 + index)


class BridgeOrig(Base):
    name, VERSION = "bridge_orig", tfds.core.Version("1.0.0")
    layout = {  # noqa: RUF012
        "steps": F.Dataset(
            {
                "observation": {
                    "image_0": F.Image(shape=(16, 16, 3), encoding_format="jpeg"),
                    "image_1": F.Image(shape=(16, 16, 3), encoding_format="jpeg"),
                    "state": F.Tensor(shape=(7,), dtype=np.float32),
                },
                "action": F.Tensor(shape=(7,), dtype=np.float32),
                "is_last": F.Scalar(dtype=np.bool_),
                "reward": F.Scalar(dtype=np.float32),
                "language_instruction": F.Text(),
            }
        ),
        "episode_metadata": {
            "file_path": F.Text(),
            "has_image_1": F.Scalar(dtype=np.bool_),
            "episode_id": F.Scalar(dtype=np.int32),
        },
    }

    def episode(self, rng, index, steps):
        def step(t):
            images = {"image_0": image(rng, 16, 16), "image_1": image(rng, 16, 16)}
            return {
                "observation": {**images, "state": rows(rng, 7)},
                "action": rows(rng, 7),
                "is_last": t == steps - 1,
                "reward": 1.0,
                "language_instruction": ["", "öffne die Schublade"][index],
            }

        facts = {"file_path": f"raw/{index}", "has_image_1": index == 0, "episode_id": -300 + index}
        return {"steps": [step(t) for t in range(steps)], "episode_metadata": facts}


class Fractal(Base):
    name, VERSION = "fractal20220817_data", tfds.core.Version("0.1.0")
    layout = {  # noqa: RUF012
        "aspects": {"has_aspects": np.bool_},
        "steps": F.Sequence(
            {
                "observation": {
                    "image": F.Image(shape=(None, None, 3), encoding_format="png"),
                    "natural_language_instruction": np.str_,
                    "base_pose_tool_reached": F.Tensor(shape=(7,), dtype=np.float64),
                },
                "action": {
                    "rotation_delta": F.Tensor(shape=(3,), dtype=np.float32),
                    "terminate_episode": F.Tensor(shape=(3,), dtype=np.int32),
                    "gripper_closedness_action": F.Tensor(shape=(1,), dtype=np.float32),
                    "world_vector": F.Tensor(shape=(3,), dtype=np.float32),
                },
                "depth": F.Tensor(shape=(2, 2), dtype=np.float32, encoding="zlib"),
                "ragged": F.Sequence(np.int32),
            }
        ),
    }

    def episode(self, rng, index, steps):
        def step(t):
            return {
                "observation": {
                    "image": image(rng, 16, 20),
                    "natural_language_instruction": "pick coke can",
                    "base_pose_tool_reached": rng.normal(size=7),
                },
                "action": {
                    "rotation_delta": rows(rng, 3),
                    "terminate_episode": [0, -1, 1],
                    "gripper_closedness_action": rows(rng, 1),
                    "world_vector": rows(rng, 3),
                },
                "depth": rows(rng, 2, 2),
                "ragged": list(range(t)),
            }

        return {"steps": [step(t) for t in range(steps)], "aspects": {"has_aspects": index == 1}}


def plain(value):
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, bytes):
        image = value.startswith((b"\xff\xd8", b"\x89PNG"))
        return hashlib.sha256(value).hexdigest() if image else value.decode()
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return plain(value.tolist()) if hasattr(value, "tolist") else value


def columns(steps):
    """A list of values for each leaf: TFDS gives a Sequence so, but a Dataset step by step."""
    if isinstance(steps, dict):
        return steps
    steps = list(steps)
    return tree.map_structure(lambda *values: list(values), *steps)


def main(folder):
    expected = {}
    for builder in (BridgeOrig(data_dir=folder), Fractal(data_dir=folder)):
        builder.download_and_prepare()
        images = [name for name in builder.info.features["steps"]["observation"] if "image" in name]
        skip = {"steps": {"observation": {name: tfds.decode.SkipDecoding() for name in images}}}
        episodes = builder.as_dataset(split="train", decoders=skip)
        ragged = {"ragged", "depth"}
        expected[builder.name] = [
            {
                **plain({key: value for key, value in episode.items() if key != "steps"}),
                "steps": {k: plain(v) for k, v in columns(episode["steps"]).items() if k not in ragged},
            }
            for episode in tfds.as_numpy(episodes)
        ]
    (Path(folder) / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
