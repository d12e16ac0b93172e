"""RLDS against what TFDS itself wrote and read, and every fault told with file and record."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import formats_rlds as rlds
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from vlm4vla.core.errors import DataError
from vlm4vla.demonstrations.frames import EncodedFrames
from vlm4vla.demonstrations.recordings import Reader
from vlm4vla.demonstrations.rlds import RldsSource
from vlm4vla.demonstrations.sources import open_demonstrations
from vlm4vla.demonstrations.tfrecords import crc32c, masked

GOLDEN = Path(__file__).parents[1] / "golden" / "rlds"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


@pytest.mark.parametrize("camera", ["image_0", "image_1"])
def test_what_tfds_wrote_is_read_as_tfds_reads_it(camera: str) -> None:
    """Bridge's layout: `tests/golden/rlds/make.py` wrote it with TensorFlow Datasets."""
    source = RldsSource(GOLDEN / "bridge_orig", camera=camera, checksums=True)
    assert isinstance(source, Reader)
    assert (len(source), source.name, dict(source.missing)) == (2, "bridge_orig/1.0.0/train", {})
    for index, expected in enumerate(EXPECTED["bridge_orig"]):
        found, steps = source[index], expected["steps"]
        assert found.instruction == steps["language_instruction"][0]
        np.testing.assert_array_equal(found.actions, np.float32(steps["action"]))
        assert found.state is not None
        np.testing.assert_array_equal(found.state, np.float32(steps["observation"]["state"]))
        images = found.images
        assert isinstance(images, EncodedFrames)
        digests = [hashlib.sha256(images.encoded(i)).hexdigest() for i in range(len(images))]
        assert digests == steps["observation"][camera]
        assert images[0].shape == (16, 16, 3)
        facts = expected["episode_metadata"]
        assert found.facts == {f"episode_metadata/{key}": value for key, value in facts.items()}


def test_fractals_layout_is_read_too() -> None:
    """Actions in parts, the instruction among the observations, PNGs of any size, a `Sequence` of steps."""
    source = RldsSource(GOLDEN / "fractal20220817_data" / "0.1.0")
    for index, expected in enumerate(EXPECTED["fractal20220817_data"]):
        found, action = source[index], expected["steps"]["action"]
        parts = [
            np.float32(action[name])
            for name in ("world_vector", "rotation_delta", "gripper_closedness_action")
        ]
        np.testing.assert_array_equal(found.actions, np.concatenate(parts, axis=1))
        assert found.instruction == "pick coke can"
        assert found.images[0].shape == (16, 20, 3)
        assert found.facts == {"aspects/has_aspects": index == 1}


def test_the_data_sets_transforms_on_what_tfds_wrote(tmp_path: Path) -> None:
    from vlm4vla.core.recipes import DemonstrationRecipe
    from vlm4vla.demonstrations import sources

    recipe = DemonstrationRecipe(source="bridge", path=(str(GOLDEN / "bridge_orig"),), episodes=0)
    source = open_demonstrations(sources.make(recipe, tmp_path / "made"))
    assert len(source) == 1  # the other has no instruction
    steps = EXPECTED["bridge_orig"][1]["steps"]
    state = np.float32(steps["observation"]["state"])
    assert source[0].instruction == "öffne die Schublade"
    np.testing.assert_array_equal(source[0].actions[:, :6], np.diff(state[1:, :6], axis=0))
    images = source[0].images
    assert isinstance(images, EncodedFrames) and len(images) == len(steps["action"]) - 2
    assert hashlib.sha256(images.encoded(0)).hexdigest() == steps["observation"]["image_0"][1]
    fractal = DemonstrationRecipe(source="fractal", path=(str(GOLDEN / "fractal20220817_data"),), episodes=0)
    made = open_demonstrations(sources.make(fractal, tmp_path / "fractal"))
    assert len(made) == 2 and set(made[0].actions[:, 6].tolist()) <= {-1.0, 1.0}


def test_checksums_are_castagnolis() -> None:
    """RFC 3720, B.4; and long data is the same as byte by byte."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283
    data = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ 0x82F63B78 * (register & 1)
    assert crc32c(data) == register ^ 0xFFFFFFFF
    assert masked(0) == 0xA282EAD8


def jpeg(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    return simplejpeg.encode_jpeg(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8), quality=90)


def episode(seed: int, steps: int = 3, instruction: str = "go") -> dict[str, rlds.Value]:
    rng = np.random.default_rng(seed)
    images = [jpeg(1000 * seed + step) for step in range(steps)]
    return rlds.bridge_episode(images, rng.normal(size=(steps, 7)), rng.normal(size=(steps, 7)), instruction)


def written(folder: Path, **options: Any) -> Path:
    shards = options.pop("shards", [[episode(0), episode(1, 5)], [episode(2)], [episode(3), episode(4)]])
    return rlds.write_rlds(folder, shards, **options)


@pytest.mark.parametrize("kind", ["dataset", "sequence"])
@pytest.mark.parametrize("packed", [True, False])
def test_lists_may_be_packed_or_not(tmp_path: Path, kind: str, packed: bool) -> None:
    source = RldsSource(written(tmp_path / "set", kind=kind, packed=packed), checksums=True)
    assert len(source) == 5
    for index in range(5):
        expected = episode(index, 5 if index == 1 else 3)
        np.testing.assert_array_equal(source[index].actions.reshape(-1), np.float32(expected["steps/action"]))
        images = source[index].images
        assert isinstance(images, EncodedFrames)
        assert [bytes(images.encoded(i)) for i in range(len(images))] == expected["steps/observation/image_0"]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_integers_of_any_size(values: list[int]) -> None:
    from vlm4vla.demonstrations.tfrecords import integers

    for packed in (True, False):
        data = memoryview(rlds.feature(values, packed=packed)) if values else memoryview(b"\x1a\x00")
        assert integers(data, (0, len(data))).tolist() == values


def test_an_empty_instruction_is_one() -> None:
    assert RldsSource(GOLDEN / "bridge_orig", camera="image_0")[0].instruction == ""


def test_shards_that_are_not_there_are_counted(tmp_path: Path) -> None:
    folder = written(tmp_path / "set")
    (folder / "bridge_orig-train.tfrecord-00001-of-00003").unlink()
    source = RldsSource(folder)
    assert len(source) == 4 and dict(source.missing) == {"shards": 1, "episodes": 1}
    assert source[2].id == "bridge_orig-train.tfrecord-00002-of-00003:0"


def edit(path: Path, change: Callable[[bytearray], Any]) -> None:
    content = bytearray(path.read_bytes())
    replaced = change(content)
    path.write_bytes(bytes(content) if replaced is None else replaced)


SHARD = "bridge_orig-train.tfrecord-00000-of-00003"


def flip(at: int) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content[at] ^= 1

    return change


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda f: edit(f / SHARD, lambda c: bytes(c[:-9])), "record 1, byte .* the file lacks 9"),
    "head cut": (lambda f: edit(f / SHARD, lambda c: bytes(c[:5])), "record 0, byte 0: the file ends within"),
    "length": (lambda f: edit(f / SHARD, flip(0)), "record 0, byte 0: the checksum of its length is wrong"),
    "content": (lambda f: edit(f / SHARD, flip(40)), "record 0: "),
    "no features": (lambda f: (f / "features.json").unlink(), "features.json"),
    "broken features": (lambda f: (f / "features.json").write_text("{"), "features.json"),
    "no info": (lambda f: (f / "dataset_info.json").unlink(), "dataset_info.json"),
    "counts": (
        lambda f: edit(f / "dataset_info.json", lambda c: c.replace(b'"2"', b'"7"', 1)),
        "2 records, dataset_info.json says 7",
    ),
    "none there": (
        lambda f: [p.unlink() for p in f.glob("*tfrecord*")],
        "none of the 3 files of split train",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told_with_file_and_record(tmp_path: Path, fault: str) -> None:
    folder = written(tmp_path / "set")
    break_it, told = FAULTS[fault]
    break_it(folder)
    with pytest.raises(DataError, match=told) as caught:
        RldsSource(folder, checksums=True)[0]
    assert str(folder) in str(caught.value)


def test_columns_that_do_not_fit_are_told(tmp_path: Path) -> None:
    wrong = episode(0)
    wrong["steps/action"] = list(wrong["steps/action"])[:-1]  # type: ignore[assignment]
    with pytest.raises(DataError, match=r"record 0: steps/action has 20 values instead of 7 a step"):
        RldsSource(written(tmp_path / "a", shards=[[wrong]]))[0]
    wrong = episode(0)
    wrong["steps/observation/image_0"] = list(wrong["steps/observation/image_0"])[:2]  # type: ignore[assignment]
    with pytest.raises(DataError, match="image_0 has 2 values instead of"):
        RldsSource(written(tmp_path / "b", shards=[[wrong]]))[0].images[0]
    wrong = episode(0)
    wrong["steps/language_instruction"] = [b"go", b"stop", b"go"]
    with pytest.raises(DataError, match="2 different instructions"):
        RldsSource(written(tmp_path / "c", shards=[[wrong]]))[0]
    wrong = {**episode(0), "steps/action": [b"x"] * 3}
    with pytest.raises(DataError, match="it is a list of bytes, not of float"):
        RldsSource(written(tmp_path / "d", shards=[[wrong]]))[0]
    damaged = episode(0)
    damaged["steps/observation/image_0"] = [jpeg(0), jpeg(1)[:50], jpeg(2)]
    with pytest.raises(DataError, match="record 0, frame 1: cannot be decoded"):
        RldsSource(written(tmp_path / "e", shards=[[damaged]]))[0].images[1]


@pytest.mark.parametrize(
    ("name", "column", "told"),
    [
        ("action", rlds.tensor(7, encoding="zlib"), "cannot be read as `actions`"),
        ("action", rlds.tensor(7, dtype="int32"), "cannot be read as `actions`"),
        ("action", rlds.steps({"x": rlds.tensor(7)}), "no 'action' below steps"),
        (
            "observation",
            rlds.group({"other": rlds.tensor(3)}),
            "no 'observation/image_0' below steps|0 cameras",
        ),
    ],
)
def test_kinds_that_are_not_read_are_refused(
    tmp_path: Path, name: str, column: dict[str, Any], told: str
) -> None:
    folder = written(tmp_path / "set", layout={**rlds.BRIDGE, name: column})
    with pytest.raises(DataError, match=told):
        RldsSource(folder, camera="image_0")


def test_options_that_name_nothing_are_told(tmp_path: Path) -> None:
    folder = written(tmp_path / "set")
    with pytest.raises(DataError, match="no 'observation/wrist' below steps"):
        RldsSource(folder, camera="wrist")
    with pytest.raises(DataError, match="no split 'test'; it has train"):
        RldsSource(folder, split="test")
    with pytest.raises(DataError, match=r"2 cameras \(observation/image_0, observation/image_1\); name one"):
        RldsSource(GOLDEN / "bridge_orig")


def _sums(source: RldsSource, order: list[tuple[int, int]], result: Any) -> None:
    result.put([int(source[e].images[s].astype(int).sum()) for e, s in order])


def test_two_forks_of_a_reader_in_use_read_the_same(tmp_path: Path) -> None:
    source = RldsSource(written(tmp_path / "set"))
    rng = np.random.default_rng(0)
    order = [(int(e), int(rng.integers(3))) for e in rng.integers(0, 5, 150)]
    expected = [int(source[e].images[s].astype(int).sum()) for e, s in order]
    context = multiprocessing.get_context("fork")
    results = [context.Queue() for _ in range(2)]
    children = [context.Process(target=_sums, args=(source, order, result)) for result in results]
    for child in children:
        child.start()
    assert [result.get(timeout=60) for result in results] == [expected, expected]
    for child in children:
        child.join(60)


def test_it_pickles_as_its_path_and_moves(tmp_path: Path) -> None:
    source = RldsSource(written(tmp_path / "set"), camera="image_0")
    again = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert again.fingerprint == source.fingerprint
    np.testing.assert_array_equal(again[1].images[2], source[1].images[2])
    moved = shutil.copytree(tmp_path / "set", tmp_path / "copy")
    assert RldsSource(moved, camera="image_0").fingerprint == source.fingerprint
    (moved / SHARD).unlink()
    assert RldsSource(moved, camera="image_0").fingerprint != source.fingerprint
