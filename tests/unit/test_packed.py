import io
import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import DataError
from vlm4vla.core.interfaces import DemonstrationSource
from vlm4vla.core.types import Demonstration
from vlm4vla.demonstrations.frames import EncodedFrames
from vlm4vla.demonstrations.packed import PackedSource, write_packed

SPEC = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="controller")


def demonstration(index: int, steps: int = 3, side: int = 8) -> Demonstration:
    rng = np.random.default_rng(index)
    return Demonstration(
        id=f"episode-{index}",
        instruction=f"push the block {index}",
        task="push",
        images=[rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(steps)],
        actions=rng.normal(size=(steps, 7)).astype(np.float32),
        facts={"look": "A", "seed": index},
    )


def pack(folder: Path, count: int = 4) -> PackedSource:
    made = (demonstration(i, steps=2 + i) for i in range(count))
    return write_packed(made, folder, name="toy", action_spec=SPEC, fingerprint="abc")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    source = pack(tmp_path / "packed")
    assert isinstance(source, DemonstrationSource)
    assert (source.name, source.action_spec, source.fingerprint, len(source)) == ("toy", SPEC, "abc", 4)
    for index in (3, 0, 2, 1):
        expected, found = demonstration(index, steps=2 + index), source[index]
        assert (found.id, found.instruction, found.task) == (expected.id, expected.instruction, expected.task)
        assert found.facts == expected.facts
        np.testing.assert_array_equal(found.actions, expected.actions)
        np.testing.assert_array_equal(np.stack(found.images[:]), np.stack(expected.images))
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_out_of_range_is_an_index_error(tmp_path: Path) -> None:
    source = pack(tmp_path / "packed")
    with pytest.raises(IndexError, match="episode 4 of 4"):
        source[4]
    with pytest.raises(IndexError, match="frame 2 of 2"):
        source[0].images[2]
    np.testing.assert_array_equal(source[0].images[-1], source[0].images[1])


def test_jpeg_bytes_are_kept(tmp_path: Path) -> None:
    blobs = []
    for image in demonstration(0).images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=95)
        blobs.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, blobs)])
    frames = EncodedFrames(
        b"".join(blobs), offsets[:-1], offsets[1:], codec="jpeg", size=(8, 8), where="test"
    )
    made = Demonstration(id="e", instruction="i", task="t", images=frames, actions=demonstration(0).actions)
    source = write_packed([made], tmp_path / "packed", name="toy", action_spec=SPEC, fingerprint="abc")
    images = source[0].images
    assert isinstance(images, EncodedFrames)
    assert [bytes(images.encoded(i)) for i in range(3)] == blobs
    np.testing.assert_array_equal(images[1], np.asarray(Image.open(io.BytesIO(blobs[1]))))


def test_an_existing_folder_is_reused_without_making_anything(tmp_path: Path) -> None:
    pack(tmp_path / "packed")

    def never() -> Iterator[Demonstration]:
        raise AssertionError("made demonstrations although they exist")
        yield

    source = write_packed(never(), tmp_path / "packed", name="toy", action_spec=SPEC, fingerprint="abc")
    assert len(source) == 4


def test_another_fingerprint_is_refused(tmp_path: Path) -> None:
    pack(tmp_path / "packed")
    with pytest.raises(DataError, match=r"fingerprint abc, not other.*Delete the folder"):
        write_packed([], tmp_path / "packed", name="toy", action_spec=SPEC, fingerprint="other")


@pytest.mark.parametrize("name", ["frames.bin", "actions.npy", "offsets.npy", "episodes.jsonl"])
def test_a_file_cut_short_is_named(tmp_path: Path, name: str) -> None:
    pack(tmp_path / "packed")
    path = tmp_path / "packed" / name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=rf"{name} has .* bytes, .* were written. Delete the folder"):
        PackedSource(tmp_path / "packed")
    path.unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        PackedSource(tmp_path / "packed")


def test_a_changed_byte_is_found_by_hashes_and_by_decoding(tmp_path: Path) -> None:
    pack(tmp_path / "packed")
    path = tmp_path / "packed" / "frames.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"frames.bin has changed .*sha256"):
        PackedSource(tmp_path / "packed", hashes=True)
    with pytest.raises(DataError, match="episode episode-0, frame 0: cannot be decoded"):
        PackedSource(tmp_path / "packed")[0].images[0]


def test_manifests_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest.json is missing"):
        PackedSource(tmp_path)
    path = pack(tmp_path / "packed").folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(DataError, match="format version 99"):
        PackedSource(tmp_path / "packed")
    path.write_text(json.dumps({**manifest, "counts": {"frames": 1, "episodes": 1}}))
    with pytest.raises(DataError, match="do not agree"):
        PackedSource(tmp_path / "packed")
    path.write_text("{}")
    with pytest.raises(DataError, match="not a manifest"):
        PackedSource(tmp_path / "packed")
    path.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        PackedSource(tmp_path / "packed")


def bad(**changes: object) -> Demonstration:
    good = demonstration(9)
    fields = {
        name: getattr(good, name) for name in ("id", "instruction", "task", "images", "actions", "facts")
    }
    return Demonstration(**{**fields, **changes})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (bad(actions=np.zeros((2, 7), np.float32)), "3 frames and actions of shape"),
        (bad(actions=np.full((3, 7), np.nan, np.float32)), "step 0: the action is not finite"),
        (bad(images=demonstration(9, side=9).images), "zlib of 9 x 9 pixels after zlib of 8 x 8"),
        (bad(images=[np.zeros((8, 8, 4), np.uint8)] * 3), "expected RGB uint8"),
        (bad(id="episode-0"), "its id appears twice"),
    ],
)
def test_a_malformed_demonstration_leaves_nothing(tmp_path: Path, wrong: Demonstration, message: str) -> None:
    made = [demonstration(0), wrong]
    with pytest.raises(DataError, match=message):
        write_packed(made, tmp_path / "packed", name="toy", action_spec=SPEC, fingerprint="abc")
    assert list(tmp_path.iterdir()) == []


def test_no_demonstrations_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no demonstrations"):
        pack(tmp_path / "packed", count=0)
    assert list(tmp_path.iterdir()) == []


def test_other_processes_open_it_for_themselves(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map_async(len, [pack(tmp_path / "packed")]).get(timeout=60) == [4]
