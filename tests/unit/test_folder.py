"""A user's own folder: read as it is written, and every fault told with file and line."""

from __future__ import annotations

import json
import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from PIL import Image

from vlm4vla.cli import main
from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import DataError, RecipeError
from vlm4vla.demonstrations.folder import FolderSource
from vlm4vla.demonstrations.frames import StoredFrames
from vlm4vla.demonstrations.indexed import find
from vlm4vla.demonstrations.recordings import Reader
from vlm4vla.demonstrations.video_frames import frame_rate

SPEC = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="metres_radians")


def pixels(episode: int, step: int) -> np.ndarray:
    return np.random.default_rng([episode, step]).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def actions(episode: int, steps: int) -> np.ndarray:
    return np.random.default_rng([9, episode]).normal(size=(steps, 7))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three episodes: PNGs with a table, JPEGs with an array, JPEGs with a table without a header."""
    root = tmp_path / "mine"
    root.mkdir()
    (root / "actions.json").write_text(json.dumps(SPEC.to_json()))
    (root / "episodes.csv").write_text(
        'episode,instruction,task\nfirst,"push, then wait",push\nsecond,lift it,lift\nthird,again,\n'
    )
    for number, name in enumerate(("first", "second", "third")):
        place, steps = root / name, 11 + number
        place.mkdir()
        for step in range(steps):
            image = pixels(number, step)
            if number == 0:
                Image.fromarray(image).save(place / f"{step}.png")
            else:
                (place / f"frame_{step:05d}.jpg").write_bytes(simplejpeg.encode_jpeg(image, quality=95))
        rows = [",".join(map(repr, row)) for row in actions(number, steps).tolist()]
        if number == 0:
            times = [f"{0.1 * step},{row}" for step, row in enumerate(rows)]
            (place / "actions.csv").write_text("timestamp,x,y,z,a,b,c,gripper\n" + "\n".join(times))
        elif number == 1:
            np.save(place / "actions.npy", actions(number, steps))
        else:
            (place / "actions.csv").write_text("\n".join(rows) + "\n")
    return root


def test_what_lies_there_is_read(folder: Path) -> None:
    source = FolderSource(folder)
    assert isinstance(source, Reader)
    assert (len(source), dict(source.missing), source.action_spec) == (3, {}, SPEC)
    assert [(r.id, r.instruction, r.task) for r in map(source.__getitem__, range(3))] == [
        ("first", "push, then wait", "push"),
        ("second", "lift it", "lift"),
        ("third", "again", ""),
    ]
    for number in range(3):
        recording = source[number]
        np.testing.assert_array_equal(recording.actions, actions(number, 11 + number))
        assert isinstance(recording.images, StoredFrames) and len(recording.images) == 11 + number
    np.testing.assert_array_equal(source[0].images[10], pixels(0, 10))  # 10 comes behind 9, not behind 1
    stored = (folder / "second" / "frame_00003.jpg").read_bytes()
    images = source[1].images
    assert isinstance(images, StoredFrames) and images.encoded(3) == stored
    assert pickle.loads(pickle.dumps(source)).fingerprint == source.fingerprint  # noqa: S301


def test_actions_may_be_a_parquet_table(folder: Path) -> None:
    place, expected = folder / "first", actions(0, 11)
    (place / "actions.csv").unlink()
    names = ["x", "y", "z", "a", "b", "c", "gripper"]
    table = {"timestamp": np.arange(11) / 10, **dict(zip(names, expected.T, strict=True))}
    pq.write_table(pa.table(table), place / "actions.parquet")
    np.testing.assert_array_equal(FolderSource(folder)[0].actions, expected)
    pq.write_table(pa.table({"action": expected.tolist()}), place / "actions.parquet")
    np.testing.assert_array_equal(FolderSource(folder)[0].actions, expected)
    for content, told in (
        ({**table, "timestamp": np.zeros(11)}, "row 1: its timestamp does not come after"),
        ({"action": expected[:, :6].tolist()}, "6 numbers an action; 7 are expected"),
        ({"action": ["push"] * 11}, "is no table of numbers"),
    ):
        pq.write_table(pa.table(content), place / "actions.parquet")
        with pytest.raises(DataError, match=told):
            FolderSource(folder)[0]
    (place / "actions.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is no table of numbers"):
        FolderSource(folder)[0]


def film(path: Path, steps: int, *, late: int | None = None) -> list[np.ndarray]:
    """A video with grey growing from frame to frame; frame `late` comes half a step after its time."""
    images = [np.full((48, 64, 3), 20 * step, np.uint8) for step in range(steps)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 100)
        for step, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = 10 * step + (5 if step == late else 0), Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return images


def test_frames_may_be_a_video(folder: Path) -> None:
    place = folder / "first"
    for path in place.glob("*.png"):
        path.unlink()
    images = film(place / "camera.mp4", 11)
    recording = FolderSource(folder)[0]
    assert len(recording.images) == 11
    for step in (10, 0, 5):
        assert np.abs(recording.images[step].astype(int) - images[step].astype(int)).max() < 6
    film(place / "camera.mp4", 10)
    frame_rate.cache_clear()
    with pytest.raises(DataError, match="10 frames and 11 actions"):
        FolderSource(folder)[0]
    film(place / "camera.mp4", 11, late=4)
    frame_rate.cache_clear()
    with pytest.raises(DataError, match=r"do not come at even times \(frame 4 "):
        FolderSource(folder)[0]
    film(place / "second.mkv", 11)
    with pytest.raises(DataError, match="2 videos and 0 pictures"):
        FolderSource(folder)[0]
    (place / "second.mkv").unlink()
    (place / "camera.mp4").write_bytes(b"no video")
    frame_rate.cache_clear()
    with pytest.raises(DataError, match="is not a video that can be read"):
        FolderSource(folder)[0]


def test_the_fingerprint_moves_with_the_content_and_not_with_the_place(folder: Path) -> None:
    before = FolderSource(folder).fingerprint
    moved = folder.rename(folder.with_name("elsewhere"))
    assert FolderSource(moved).fingerprint == before
    (moved / "third" / "actions.csv").write_text("1,2,3,4,5,6,7\n")
    assert FolderSource(moved).fingerprint != before


def test_folders_that_are_not_there_are_counted(folder: Path) -> None:
    (folder / "second").rename(folder / "kept aside")
    source = FolderSource(folder)
    assert len(source) == 2 and dict(source.missing) == {"episodes": 1}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("episodes.csv", None, "is missing; it lists the episodes"),
        ("episodes.csv", "", "no column 'episode'"),
        ("episodes.csv", "episode,instruction\n", "lists no episodes"),
        ("episodes.csv", "episode,words\nfirst,go\n", "no column 'instruction'"),
        ("episodes.csv", "episode,instruction\nfirst,push, then wait\n", "line 2: not 2 fields"),
        (
            "episodes.csv",
            "episode,instruction\nfirst,go\nfirst,go\n",
            "line 3: episode 'first' stands in line 2",
        ),
        ("episodes.csv", "episode,instruction\n../x,go\n", "line 2: '../x' cannot be the name"),
        ("episodes.csv", "episode,instruction\n..,go\n", "line 2: '..' cannot be the name"),
        ("actions.json", "{}", "actions.json.*rotation"),
        ("actions.json", "{", "actions.json"),
    ],
)
def test_faults_of_the_lists_are_told(folder: Path, name: str, text: str | None, told: str) -> None:
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with pytest.raises(DataError, match=told):
        FolderSource(folder)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("first/actions.csv", None, "neither actions.csv nor actions.npy nor actions.parquet"),
        ("first/actions.csv", b"", "is empty"),
        ("first/actions.csv", b"1,2,3\n" * 11, "3 numbers an action; 7 are expected"),
        ("first/actions.csv", b"x,y\n1,2,3\n", "line 2: '1,2,3' is not a row of numbers"),
        ("first/actions.csv", b"1,2,3,4,5,6,7\n1,2,3,4,five,6,7\n", "line 2: .*five.* is not a row"),
        ("first/actions.csv", b"1,2,3,4,5,6,7\n1,2,3\n", "different numbers of fields"),
        ("first/actions.csv", b"1,2,3,4,5,6,7\n", "11 pictures and 1 actions"),
        (
            "first/actions.csv",
            b"timestamp,a,b,c,d,e,f,g\n0,1,1,1,1,1,1,1\n1,1,1,1,1,1,1,1\n1,1,1,1,1,1,1,1\n",
            "line 4: its timestamp does not come after",
        ),
        ("first/5.png", None, "not numbered one after another behind 4.png"),
        ("first/0.png", b"GIF89a", "neither JPEG nor PNG"),
    ],
)
def test_faults_of_an_episode_are_told(folder: Path, name: str, content: bytes | None, told: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        FolderSource(folder)[0]


def test_faults_of_arrays_and_empty_folders_are_told(folder: Path) -> None:
    np.save(folder / "second" / "actions.npy", np.zeros((12, 6)))
    with pytest.raises(DataError, match=r"\[12, 6\]; floats \[steps, 7\] are expected"):
        FolderSource(folder)[1]
    (folder / "second" / "actions.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="cannot be read"):
        FolderSource(folder)[1]
    for path in (folder / "third").glob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match="no pictures"):
        FolderSource(folder)[2]


def test_without_a_convention_one_must_be_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "actions.json").unlink()
    with pytest.raises(RecipeError, match=r"do not say what its actions mean|do not say what"):
        find("folder", str(folder))
    assert find("folder", str(folder), actions="bridge")[0].action_spec == SPEC
    assert main(["data", "stats", "folder", str(folder), "--actions", "bridge"]) == 0
    assert "3 episodes, 36 steps" in capsys.readouterr().out
