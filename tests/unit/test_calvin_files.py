import io
import multiprocessing
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import formats_calvin as calvin
import numpy as np
import pytest

from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import DataError
from vlm4vla.demonstrations.calvin import CalvinSource
from vlm4vla.demonstrations.indexed import find, write_indexed
from vlm4vla.demonstrations.pickled import plain, read_array, read_pickled
from vlm4vla.demonstrations.recordings import FrameReader, Reader, Recording

FEW = calvin.SPANS


@pytest.fixture
def training(tmp_path: Path) -> Path:
    return calvin.write_calvin(tmp_path / "task_ABC_D" / "training")


def same(one: Recording, other: Recording) -> bool:
    assert one.state is not None
    assert other.state is not None
    return (
        (one.id, one.instruction, one.task, one.facts)
        == (other.id, other.instruction, other.task, other.facts)
        and np.array_equal(one.actions, other.actions)
        and np.array_equal(one.state, other.state)
        and all(np.array_equal(a, b) for a, b in zip(one.images, other.images, strict=True))
    )


@pytest.mark.parametrize("compressed", [True, False])
def test_spans_are_recordings_and_their_end_is_exclusive(tmp_path: Path, compressed: bool) -> None:
    source = CalvinSource(calvin.write_calvin(tmp_path / "training", compressed=compressed))
    assert isinstance(source, Reader)
    assert isinstance(source, FrameReader)
    assert (source.name, len(source), dict(source.missing)) == ("calvin/training", 2, {})
    for index, (start, end, sentence, task) in enumerate(FEW):
        found = source[index]
        assert (found.instruction, found.task) == (sentence, task)
        assert found.facts == {"start": start, "end": end}
        assert found.actions.dtype == np.float64
        expected = [calvin.frame(number) for number in range(start, end)]
        np.testing.assert_array_equal(found.actions, [frame["rel_actions"] for frame in expected])
        np.testing.assert_array_equal(found.state, [frame["robot_obs"] for frame in expected])
        assert len(found.images) == end - start
        for step in (0, 5, -1):
            np.testing.assert_array_equal(found.images[step], expected[step]["rgb_static"])
    np.testing.assert_array_equal(source[0].images[8], source[1].images[0])
    with pytest.raises(IndexError, match="span 2 of 2"):
        source[2]


def test_the_split_may_be_named_and_another_camera_chosen(training: Path) -> None:
    source = CalvinSource(training.parent, split="training", camera="rgb_gripper")
    np.testing.assert_array_equal(source[0].images[3], calvin.frame(103)["rgb_gripper"])
    assert source.fingerprint != CalvinSource(training).fingerprint
    assert CalvinSource(training.parent).fingerprint == CalvinSource(training).fingerprint
    with pytest.raises(DataError, match="no such folder"):
        CalvinSource(training.parent, split="validation")
    with pytest.raises(
        DataError, match=r"no camera 'rgb_front'; cameras here: rgb_static, rgb_gripper, rgb_tactile"
    ):
        CalvinSource(training, camera="rgb_front")
    with pytest.raises(DataError, match=r"rgb_tactile is uint8 \(160, 120, 6\), no RGB picture"):
        CalvinSource(training, camera="rgb_tactile")[0].images[0]


def test_a_span_that_lacks_a_frame_is_left_out_and_counted(tmp_path: Path) -> None:
    frames = [number for number in range(100, 120) if number not in (101, 115)]
    spans = [*FEW, (102, 108, "lift", "lift_block"), (500, 520, "far away", "none")]
    source = CalvinSource(calvin.write_calvin(tmp_path / "training", spans, frames=frames))
    assert [source[i].id for i in range(len(source))] == ["0000102-0000108"]
    assert dict(source.missing) == {"episodes": 3, "frames": 22}
    (tmp_path / "training" / "episode_0000105.npz").unlink()
    with pytest.raises(DataError, match="none of 4 annotated spans has all its frames here"):
        CalvinSource(tmp_path / "training")


def test_names_are_found_by_listing(tmp_path: Path) -> None:
    folder = calvin.write_calvin(tmp_path / "training", digits=5)
    assert CalvinSource(folder)[1].facts["start"] == 108
    (folder / "._episode_00100.npz").write_bytes(b"what another system leaves behind")
    assert len(CalvinSource(folder)) == 2
    (folder / "episode_0000100.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"named in 2 ways \(episode_00000.npz, episode_0000000.npz\)"):
        CalvinSource(folder)


def test_ids_stay_when_files_go_and_equal_spans_keep_apart(tmp_path: Path) -> None:
    spans = [
        (100, 104, "one", "a"),
        (100, 104, "two", "b"),
        (104, 108, "three", "c"),
        (100, 104, "four", "d"),
    ]
    folder = calvin.write_calvin(tmp_path / "training", spans)
    source = CalvinSource(folder)
    ids = [source[i].id for i in range(len(source))]
    assert ids == ["0000100-0000104", "0000100-0000104-2", "0000104-0000108", "0000100-0000104-3"]
    (folder / "episode_0000105.npz").unlink()
    fewer = CalvinSource(folder)
    assert [fewer[i].id for i in range(len(fewer))] == [ids[0], ids[1], ids[3]]


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(training: Path, tmp_path: Path) -> None:
    first = CalvinSource(training).fingerprint
    training.parent.rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "training"
    assert CalvinSource(moved).fingerprint == first
    calvin.write_annotations(moved, [(*FEW[0][:2], "push it left", FEW[0][3]), FEW[1]])
    changed = CalvinSource(moved).fingerprint
    (moved / "episode_0000119.npz").unlink()
    assert len({first, changed, CalvinSource(moved).fingerprint}) == 3


def test_scenes_are_told_where_the_file_can_be_right(tmp_path: Path) -> None:
    spans = [(100, 104, "one", "a"), (103, 107, "across", "b"), (106, 110, "two", "c")]
    scenes = {"calvin_scene_B": [0, 104], "calvin_scene_C": [105, 200]}
    folder = calvin.write_calvin(tmp_path / "training", spans, scenes=scenes)
    np.save(folder / "ep_start_end_ids.npy", np.array([[100, 104], [105, 109]]))
    source = CalvinSource(folder)
    assert [source[i].facts.get("scene") for i in range(3)] == ["calvin_scene_B", None, "calvin_scene_C"]
    np.save(folder / "ep_start_end_ids.npy", np.array([[100, 109]]))
    assert "scene" not in CalvinSource(folder)[0].facts
    np.save(folder / "ep_start_end_ids.npy", np.array([[100, 104]]))
    np.save(folder / "scene_info.npy", {"calvin_scene_B": [0, 104], "calvin_scene_C": [90, 200]})
    assert "scene" not in CalvinSource(folder)[0].facts
    (folder / "scene_info.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"scene_info.npy .*delete scene_info.npy: scenes are then unknown"):
        CalvinSource(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rel_actions": None}, "There is no item named 'rel_actions.npy'"),
        ({"rel_actions": np.zeros(6)}, r"rel_actions is float64 \(6,\), in other frames float64 \(7,\)"),
        ({"rel_actions": np.zeros(7, np.float32)}, r"rel_actions is float32 \(7,\), in other frames float64"),
        ({"robot_obs": np.array([{}], dtype=object)}, "robot_obs: it holds Python objects"),
    ],
)
def test_a_frame_unlike_the_others_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = calvin.write_calvin(tmp_path / "training", changes={110: change})
    source = CalvinSource(folder)
    with pytest.raises(DataError, match=rf"episode_0000110.npz: {message}.*Unpack this file again"):
        source[0]


def test_the_first_frame_must_have_rows_of_numbers(tmp_path: Path) -> None:
    for change, message in (
        ({"rel_actions": np.zeros((2, 7))}, r"rel_actions is float64 \(2, 7\), no row of numbers"),
        ({"robot_obs": np.zeros(15, np.int64)}, r"robot_obs is int64 \(15,\), no row of numbers"),
        ({"rel_actions": None}, "has no rel_actions, only actions, robot_obs"),
    ):
        folder = calvin.write_calvin(tmp_path / "training", changes={100: change})
        with pytest.raises(DataError, match=rf"episode_0000100.npz: {message}"):
            CalvinSource(folder)


def test_damaged_frames_are_named(training: Path) -> None:
    path = training / "episode_0000110.npz"
    whole = path.read_bytes()
    source = CalvinSource(training)
    flipped = bytearray(whole)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        flipped[archive.getinfo("rgb_static.npy").header_offset + 200] ^= 255
    for damaged in (whole[: len(whole) // 2], b"", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"episode_0000110.npz: .*Unpack this file again"):
            source[0].images[10]


def test_without_robot_obs_there_is_no_state(tmp_path: Path) -> None:
    changes = {number: {"robot_obs": None} for number in range(100, 120)}
    assert CalvinSource(calvin.write_calvin(tmp_path / "training", changes=changes))[0].state is None


def test_columns_are_read_once_and_a_reading_goes_on(
    training: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("vlm4vla.demonstrations.calvin_files._BLOCK", 6)
    cache, plainly, calls = tmp_path / "cache", CalvinSource(training), list[tuple[int, int]]()

    def stop(done: int, of: int) -> None:
        calls.append((done, of))
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CalvinSource(training, cache=cache, progress=stop)
    (training / "episode_0000101.npz").rename(tmp_path / "aside")
    (training / "episode_0000101.npz").write_bytes(bytes((tmp_path / "aside").stat().st_size))
    cached = CalvinSource(training, cache=cache, progress=lambda done, of: calls.append((done, of)))
    assert calls == [(6, 20), (12, 20), (6, 20), (12, 20), (18, 20), (20, 20)]
    (tmp_path / "aside").rename(training / "episode_0000101.npz")
    assert all(same(cached[i], plainly[i]) for i in range(2))
    assert cached.fingerprint == plainly.fingerprint
    assert [path.name for path in next(cache.iterdir()).iterdir()] == ["columns.npy"]
    again = CalvinSource(
        training, camera="rgb_gripper", cache=cache, progress=lambda *_: pytest.fail("read again")
    )
    np.testing.assert_array_equal(again[1].actions, plainly[1].actions)
    next(cache.glob("*/columns.npy")).write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"cannot be read .*it is made again"):
        CalvinSource(training, cache=cache)


def test_it_pickles_as_its_folder(training: Path, tmp_path: Path) -> None:
    source = CalvinSource(training, cache=tmp_path / "cache")
    assert len(pickle.dumps(source)) < 500
    reopen, arguments = source.__reduce__()
    assert same(reopen(*arguments)[1], source[1])


def read_in_child(source: CalvinSource, results: Any) -> None:
    found = [source[i % 2].images[(i * 5) % 12].sum(dtype=np.int64) for i in range(120)]
    results.put([int(total) for total in found])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_children_read_the_same(training: Path) -> None:
    source = CalvinSource(training)
    expected = [int(source[i % 2].images[(i * 5) % 12].sum(dtype=np.int64)) for i in range(120)]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=read_in_child, args=(source, results)) for _ in range(2)]
    for child in children:
        child.start()
    assert [results.get(timeout=60) for _ in children] == [expected, expected]
    for child in children:
        child.join(timeout=60)
        assert child.exitcode == 0


def test_training_reads_frames_without_reading_actions_again(training: Path, tmp_path: Path) -> None:
    place, reader = find("calvin", str(training))
    source = write_indexed(place, reader, tmp_path / "indexed", fingerprint="f")
    assert source.action_spec == ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="controller")
    other = training / "episode_0000109.npz"
    other.write_bytes(bytes(other.stat().st_size))
    np.testing.assert_array_equal(source[1].images[3], calvin.frame(111)["rgb_static"])


def npy(pickled: bytes) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
    return stream.getvalue() + pickled


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
def test_what_numpy_pickles_is_read_without_unpickling(tmp_path: Path, protocol: int, core: bytes) -> None:
    content = {
        "text": ["é", "a" * 300, "", "同"],
        "numbers": [0, -1, 255, 65536, 2**40, -(2**70), True, False, None, 1.5],
        "pairs": [(np.int64(7), 8), [np.int32(-1), np.float32(0.5)], (1, 2, 3, 4), ()],
        "matrix": np.arange(12, dtype=np.int64).reshape(3, 4).T,
        "big": np.arange(3, dtype=">f4"),
        "objects": np.array(["x", None, 3], dtype=object),
        "bytes": np.arange(256, dtype=np.uint8),
        "nested": {"again": {"same": ["x"] * 1500}},
    }
    array = np.empty((), object)
    array[()] = content
    pickled = pickle.dumps(array, protocol)
    if protocol < 4:  # later ones carry lengths
        pickled = pickled.replace(b"numpy._core", core)
    path = tmp_path / "content.npy"
    path.write_bytes(npy(pickled))
    found = read_pickled(path)
    for name in ("text", "numbers", "nested"):
        assert found[name] == content[name]
    assert [[plain(number) for number in pair] for pair in found["pairs"]] == [
        [7, 8],
        [-1, 0.5],
        [1, 2, 3, 4],
        [],
    ]
    assert plain(found["objects"]) == ["x", None, 3]
    for name in ("matrix", "big", "bytes"):
        read, expected = plain(found[name]), content[name]
        assert isinstance(expected, np.ndarray)
        assert read.dtype == expected.dtype
        np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("dtype", [np.float64, ">f4", np.uint8, np.bool_])
def test_arrays_are_read_as_numpy_reads_them(dtype: Any) -> None:
    values = np.random.default_rng(0).integers(0, 2, (3, 4, 5)).astype(dtype)
    for array in (values, values.T, values[0, 0], values[0, 0, 0], values[:0]):
        stream = io.BytesIO()
        np.save(stream, array)
        read = read_array(stream.getvalue())
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    "change", [(b"}", b")"), (b"<f8", b"<f9"), (b"(2, 3)", b"(2, 4)"), (b"NUMPY", b"numpy")]
)
def test_arrays_with_a_damaged_header_are_refused(change: tuple[bytes, bytes]) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros((2, 3)))
    damaged = stream.getvalue().replace(*change)
    for data in (damaged, stream.getvalue()[:-1], stream.getvalue()[:20]):
        with pytest.raises(ValueError, match=r"header|reshape|no array|understood|multiple"):
            read_array(data)


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def attacks(marker: Path) -> dict[str, bytes]:
    touch = f"touch {marker}"
    deep = b"\x80\x02" + b"(" * 3 + b"]" + b"\x85" * 100_000 + b"."
    return {
        "os.system": pickle.dumps(Calls(os.system, touch)),
        "os.system, protocol 0": pickle.dumps(Calls(os.system, touch), 0),
        "eval": pickle.dumps({"a": Calls(eval, f"open({str(marker)!r}, 'w')")}),
        "getattr chain": pickle.dumps(Calls(getattr, Calls(__import__, "os"), "system")),
        "numpy.load": pickle.dumps(Calls(np.load, str(marker), None, True)),
        "a class of numpy": pickle.dumps(np.random.default_rng(0)),
        "memo": b"\x80\x02cos\nsystem\nq\x00h\x00X"
        + struct.pack("<I", len(touch))
        + touch.encode()
        + b"\x85R.",
        "names from the stack": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x8c\x04true\x85R.",
        "a name through an allowed one": b"\x80\x02cnumpy\nndarray\n\x85cnumpy\ndtype\n\x85\x85R.",
        "object made by class": b"\x80\x02cnumpy\nndarray\n)\x81.",
        "instance": b"(inumpy\nndarray\n.",
        "persistent id": b"Pfile\n.",
        "extension": b"\x80\x02\x82\x01.",
        "state of an allowed name": b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.",
        "a terabyte of bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
        "a terabyte of text": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
        "a terabyte of array": pickle.dumps(
            Calls(np.empty(0).__reduce__()[0], np.ndarray, (2**40,), b"d")  # type: ignore[arg-type]
        ),
        "a high memo": b"\x80\x02}r\xff\xff\xff\xffj\xfe\xff\xff\xff.",
        "a nothing from the stack": b"\x80\x020.",
        "marks that are not there": b"\x80\x02t.",
        "no end": b"\x80\x02}",
        "empty": b"",
        "no pickle": b"\xff" * 40,
        "keys of numbers": pickle.dumps({1: 2}),
        "a list": pickle.dumps([1]),
        "depth": deep,
        "depth as a key": b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.",
        "itself": b"\x80\x02]q\x00h\x00a.",
    }


@pytest.mark.parametrize("name", list(attacks(Path("marker"))))
def test_pickles_that_do_something_are_refused_and_do_nothing(tmp_path: Path, name: str) -> None:
    marker, folder = tmp_path / "marker", tmp_path / "training"
    (folder / "lang_annotations").mkdir(parents=True)
    path = folder / "lang_annotations" / "auto_lang_ann.npy"
    path.write_bytes(npy(attacks(marker)[name]))
    with pytest.raises(
        DataError, match=r"auto_lang_ann.npy: not a dictionary saved by numpy .*Nothing of it was run"
    ):
        CalvinSource(folder)
    assert not marker.exists()


def test_an_array_that_claims_more_than_it_has_is_refused(training: Path) -> None:
    content = {"language": {"ann": ["a"], "task": ["b"]}, "info": {"indx": np.zeros((1, 2), np.int64)}}
    path = training / "lang_annotations" / "auto_lang_ann.npy"
    np.save(path, content)  # type: ignore[arg-type]
    honest = path.read_bytes()
    assert honest.count(b"K\x01K\x02\x86") == 1
    path.write_bytes(honest.replace(b"K\x01K\x02\x86", b"K\xffK\xff\x86"))
    with pytest.raises(DataError, match=r"not CALVIN's annotations \(ValueError: cannot reshape"):
        CalvinSource(training)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "KeyError: 'language'"),
        (
            {"language": {"ann": ["a"], "task": []}, "info": {"indx": [(0, 1)]}},
            "1 sentences, 0 tasks and 1 spans",
        ),
        (
            {"language": {"ann": [1], "task": ["b"]}, "info": {"indx": [(0, 1)]}},
            "a sentence or a task is no text",
        ),
        ({"language": {"ann": ["a"], "task": ["b"]}, "info": {"indx": [(0, 1, 2)]}}, "cannot reshape"),
        ({"language": {"ann": ["a"], "task": ["b"]}, "info": {"indx": [(5, 5)]}}, "span 0 goes from frame 5"),
        ({"language": {"ann": ["a"], "task": ["b"]}, "info": {"indx": [(0, 2**70)]}}, "OverflowError"),
    ],
)
def test_annotations_that_disagree_are_refused(training: Path, content: Any, message: str) -> None:
    np.save(training / "lang_annotations" / "auto_lang_ann.npy", content)
    with pytest.raises(DataError, match=message):
        CalvinSource(training)


def test_what_lacks_annotations_or_frames_is_no_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"auto_lang_ann.npy: is missing"):
        CalvinSource(tmp_path)
    calvin.write_annotations(tmp_path)
    with pytest.raises(DataError, match=r"no episode_\*.npz is here"):
        CalvinSource(tmp_path)
    np.save(tmp_path / "lang_annotations" / "auto_lang_ann.npy", np.zeros(3))
    with pytest.raises(DataError, match="not one pickled object"):
        CalvinSource(tmp_path)
