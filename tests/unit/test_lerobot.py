"""LeRobotDataset v3.0 written and read, v2.1 read; every fault told with file and episode."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import DataError, RecipeError
from vlm4vla.core.types import Demonstration
from vlm4vla.demonstrations.frames import EncodedFrames
from vlm4vla.demonstrations.lerobot import LeRobotSource
from vlm4vla.demonstrations.lerobot_writer import CAMERA, write_lerobot
from vlm4vla.demonstrations.recordings import Reader

SPEC = ActionSpec(rotation="axis_angle", gripper="open_positive", unit="metres_radians")
FPS = 10


def picture(episode: int, step: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Smooth, so that coding loses little; a square that tells the step."""
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([rows * 4, columns * 3, rows + columns + 40 * episode], axis=2).astype(np.uint8)
    image[4:12, 3 * step % 40 : 3 * step % 40 + 8] = (250, 250 - 20 * episode, 10)
    return image


def demonstrations(count: int = 3, *, encoded: bool = False) -> Iterator[Demonstration]:
    for episode in range(count):
        steps = 5 + 3 * episode
        images: Sequence[np.ndarray] = [picture(episode, step) for step in range(steps)]
        if encoded:
            blobs = [simplejpeg.encode_jpeg(image, quality=90) for image in images]
            stops = np.cumsum([len(blob) for blob in blobs])
            starts = stops - [len(blob) for blob in blobs]
            images = EncodedFrames(
                b"".join(blobs), starts, stops, codec="jpeg", size=(32, 48), where="made here"
            )
        rng = np.random.default_rng(episode)
        yield Demonstration(
            id=f"made-{episode}",
            instruction=("push it", "lift it")[episode % 2],
            task="",
            images=images,
            actions=rng.normal(size=(steps, 7)).astype(np.float32),
        )


def written(folder: Path, **options: Any) -> Path:
    encoded = options.pop("encoded", False)
    made = demonstrations(options.pop("count", 3), encoded=encoded)
    return write_lerobot(made, folder, name="made", action_spec=SPEC, fps=FPS, **options)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    source = LeRobotSource(written(tmp_path / "set", encoded=True))
    assert isinstance(source, Reader)
    assert (len(source), source.name, source.action_spec, dict(source.missing)) == (3, "made", SPEC, {})
    for index, expected in enumerate(demonstrations(encoded=True)):
        found = source[index]
        assert (found.id, found.instruction) == (f"episode_{index:06d}", expected.instruction)
        assert found.actions.dtype == np.float32
        np.testing.assert_array_equal(found.actions, expected.actions)
        assert isinstance(found.images, EncodedFrames) and isinstance(expected.images, EncodedFrames)
        assert [bytes(found.images.encoded(i)) for i in range(len(found.images))] == [
            bytes(expected.images.encoded(i)) for i in range(len(expected.images))
        ]


@pytest.mark.parametrize(("video", "most"), [(False, 4.0), (True, 6.0)])
def test_raw_frames_come_back_almost(tmp_path: Path, video: bool, most: float) -> None:
    """JPEG of quality 95 and H.264; every frame is the right one: the next differs by more."""
    source = LeRobotSource(written(tmp_path / "set", video=video))
    for index, expected in enumerate(demonstrations()):
        images = source[index].images
        assert len(images) == len(expected.images)
        for step in reversed(range(len(images))):
            error = np.abs(images[step].astype(float) - expected.images[step]).mean()
            other = np.abs(images[step].astype(float) - picture(index, step + 1)).mean()
            assert error < most < other


def test_the_files_are_lerobots(tmp_path: Path) -> None:
    """What LeRobot's reader relies on: names, dtypes, pandas' index, a row group an episode."""
    folder = written(tmp_path / "set")
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_frames"]) == ("v3.0", 3, 24)
    file = pq.ParquetFile(folder / "data/chunk-000/file-000.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(3)] == [5, 8, 11]
    assert file.schema_arrow.field("action").type == pa.list_(pa.float32(), 7)
    described = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert described.keys() == set(file.schema_arrow.names) == set(info["features"])
    assert file.read(columns=["index"])["index"].to_pylist() == list(range(24))
    tasks = pq.read_table(folder / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    assert tasks["task"].to_pylist() == ["push it", "lift it"]
    stats = json.loads((folder / "meta/stats.json").read_text())
    actions = np.concatenate([d.actions for d in demonstrations()]).astype(np.float64)
    np.testing.assert_allclose(stats["action"]["q01"], np.quantile(actions, 0.01, axis=0))
    assert np.shape(stats[CAMERA]["mean"]) == (3, 1, 1) and 0 < stats[CAMERA]["mean"][0][0][0] < 1


def test_nothing_is_left_of_a_set_that_could_not_be_written(tmp_path: Path) -> None:
    def broken() -> Iterator[Demonstration]:
        yield from demonstrations(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_lerobot(broken(), tmp_path / "set", name="x", action_spec=SPEC, fps=FPS, video=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="no demonstrations"):
        write_lerobot([], tmp_path / "set", name="x", action_spec=SPEC, fps=FPS)
    written(tmp_path / "set")
    with pytest.raises(DataError, match="exists already"):
        written(tmp_path / "set")


def test_frames_of_two_sizes_and_odd_videos_are_refused(tmp_path: Path) -> None:
    first, second = demonstrations(2)
    other = [picture(1, step, 16, 16) for step in range(8)]
    mixed = [
        first,
        Demonstration(id="b", instruction="x", task="", images=other, actions=second.actions),
    ]
    with pytest.raises(DataError, match="demonstration b, frame 0: 16 x 16 pixels after 32 x 48"):
        write_lerobot(mixed, tmp_path / "a", name="x", action_spec=SPEC, fps=FPS)
    odd = Demonstration(
        id="c", instruction="x", task="", images=[picture(0, 0, 31, 48)], actions=first.actions[:1]
    )
    with pytest.raises(DataError, match="both must be even"):
        write_lerobot([odd], tmp_path / "b", name="x", action_spec=SPEC, fps=FPS, video=True)


def as_v2(folder: Path, target: Path) -> Path:
    """The same set as LeRobot 0.3 laid it out: a file an episode, JSON lines."""
    source = LeRobotSource(folder)
    info = json.loads((folder / "meta/info.json").read_text())
    info |= {"codebase_version": "v2.1", "chunks_size": 2}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    del info["vlm4vla"]
    table = pq.read_table(folder / "data/chunk-000/file-000.parquet")
    (target / "meta").mkdir(parents=True)
    (target / "meta/info.json").write_text(json.dumps(info))
    lines, start = [], 0
    for index in range(len(source)):
        length = len(source[index].actions)
        path = target / f"data/chunk-{index // 2:03d}/episode_{index:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(start, length), path)
        start += length
        lines.append(
            json.dumps({"episode_index": index, "tasks": [source[index].instruction], "length": length})
        )
    (target / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    return target


def test_version_2_1_gives_the_same(tmp_path: Path) -> None:
    new = LeRobotSource(written(tmp_path / "new"))
    old = LeRobotSource(as_v2(tmp_path / "new", tmp_path / "old"))
    assert len(old) == 3 and old.action_spec is None
    for index in range(3):
        np.testing.assert_array_equal(old[index].actions, new[index].actions)
        np.testing.assert_array_equal(old[index].images[2], new[index].images[2])
        assert old[index].instruction == new[index].instruction


def test_episodes_whose_files_are_not_there_are_counted(tmp_path: Path) -> None:
    written(tmp_path / "new")
    old = as_v2(tmp_path / "new", tmp_path / "old")
    (old / "data/chunk-000/episode_000001.parquet").unlink()
    source = LeRobotSource(old)
    assert [source[i].id for i in range(len(source))] == ["episode_000000", "episode_000002"]
    assert dict(source.missing) == {"episodes": 1}


def change_info(folder: Path, **changes: Any) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_table(path: Path, **columns: Any) -> None:
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table[name].type))
    pq.write_table(table, path)


OPENING: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no info": (lambda f: (f / "meta/info.json").unlink(), "no LeRobotDataset"),
    "broken info": (lambda f: (f / "meta/info.json").write_text("{"), "info.json: is damaged"),
    "version": (lambda f: change_info(f, codebase_version="v1.6"), "codebase_version 'v1.6'"),
    "no fps": (lambda f: change_info(f, fps=None), "info.json: is damaged"),
    "counts": (lambda f: change_info(f, total_frames=99), "total_frames 99, its table of episodes 24"),
    "outside": (lambda f: change_info(f, data_path="../../etc/x"), "outside the folder"),
    "tasks": (
        lambda f: change_table(f / "meta/tasks.parquet", task_index=[1, 0]),
        "not in the order of task_index",
    ),
    "no episodes": (lambda f: shutil.rmtree(f / "meta/episodes"), "meta/episodes has no tables"),
    "lengths": (
        lambda f: change_table(f / "meta/episodes/chunk-000/file-000.parquet", length=[5, 9, 10]),
        "episode 1 has length 9, but its rows are 5 to 13",
    ),
    "cut table": (
        lambda f: (f / "meta/episodes/chunk-000/file-000.parquet").write_bytes(b"PAR1"),
        "meta/episodes: cannot be read",
    ),
}


@pytest.mark.parametrize("fault", OPENING)
def test_faults_found_at_opening(tmp_path: Path, fault: str) -> None:
    folder = written(tmp_path / "set")
    break_it, told = OPENING[fault]
    break_it(folder)
    with pytest.raises(DataError, match=told):
        LeRobotSource(folder)


DATA = "data/chunk-000/file-000.parquet"
TIMES = [0.1 * i + (0.05 if row == 16 else 0) for row, i in enumerate((*range(5), *range(8), *range(11)))]
READING: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut data": (lambda f: (f / DATA).write_bytes((f / DATA).read_bytes()[:-200]), "cannot be read"),
    "rows": (
        lambda f: pq.write_table(pq.read_table(f / DATA).slice(0, 20), f / DATA),
        "20 rows in its file, 24",
    ),
    "times": (lambda f: change_table(f / DATA, timestamp=TIMES), "timestamp of frame 3 is 0.35 s, not 0.3"),
    "order": (lambda f: change_table(f / DATA, episode_index=[0] * 24), "belong to another episode"),
    "damaged image": (
        lambda f: change_table(f / DATA, **{CAMERA: [{"bytes": b"\xff\xd8\xff nothing", "path": None}] * 24}),
        "frame 0",
    ),
    "only paths": (
        lambda f: change_table(f / DATA, **{CAMERA: [{"bytes": None, "path": "x.png"}] * 24}),
        "11 images are not in the file",
    ),
}


@pytest.mark.parametrize("fault", READING)
def test_faults_found_at_reading(tmp_path: Path, fault: str) -> None:
    folder = written(tmp_path / "set")
    break_it, told = READING[fault]
    break_it(folder)
    with pytest.raises(DataError, match=told) as caught:
        LeRobotSource(folder)[2]
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9])
def test_a_video_that_is_cut_short_is_told(tmp_path: Path, keep: float) -> None:
    folder = written(tmp_path / "set", video=True)
    (path,) = folder.rglob("*.mp4")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match=r"episode 2, frame 10: no frame at 2\.300 s"):
        LeRobotSource(folder)[2].images[10]


def test_a_video_with_too_few_frames_is_told(tmp_path: Path) -> None:
    long, short = written(tmp_path / "long", video=True), written(tmp_path / "short", video=True, count=2)
    (target,), (source) = long.rglob("*.mp4"), next(short.rglob("*.mp4"))
    shutil.copy(source, target)
    source_of = LeRobotSource(long)
    assert source_of[1].images[7].shape == (32, 48, 3)
    with pytest.raises(DataError, match=r"episode 2, frame 0: no frame at 1\.300 s"):
        source_of[2].images[0]


def test_a_camera_must_be_named_when_there_are_several(tmp_path: Path) -> None:
    folder = written(tmp_path / "set")
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["observation.images.wrist"] = info["features"][CAMERA]
    (folder / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=f"has 2 cameras; name one: {CAMERA}, observation.images.wrist"):
        LeRobotSource(folder)
    assert LeRobotSource(folder, camera="image")[0].images[0].shape == (32, 48, 3)
    with pytest.raises(RecipeError, match="wrst"):
        LeRobotSource(folder, camera="wrst")
    with pytest.raises(RecipeError, match="actoin"):
        LeRobotSource(folder, camera="image", action="actoin")


def _sums(source: LeRobotSource, order: list[tuple[int, int]], result: Any) -> None:
    result.put([int(source[e].images[s].astype(int).sum()) for e, s in order])


@pytest.mark.parametrize("video", [False, True])
def test_two_forks_of_a_reader_in_use_read_the_same(tmp_path: Path, video: bool) -> None:
    """A decoder shared over a fork reads from the other's place."""
    source = LeRobotSource(written(tmp_path / "set", video=video))
    rng = np.random.default_rng(0)
    order = [(e, int(rng.integers(5 + 3 * e))) for e in rng.integers(0, 3, 150).tolist()]
    expected = [int(source[e].images[s].astype(int).sum()) for e, s in order]
    context = multiprocessing.get_context("fork")
    results = [context.Queue() for _ in range(2)]
    children = [context.Process(target=_sums, args=(source, order, result)) for result in results]
    for child in children:
        child.start()
    found = [result.get(timeout=60) for result in results]
    for child in children:
        child.join(60)
    assert found == [expected, expected]


def test_it_pickles_as_its_path(tmp_path: Path) -> None:
    source = LeRobotSource(written(tmp_path / "set"), camera="image")
    text = pickle.dumps(source)
    again = pickle.loads(text)  # noqa: S301
    assert len(text) < 600 and again.fingerprint == source.fingerprint
    moved = shutil.copytree(tmp_path / "set", tmp_path / "copy")
    assert LeRobotSource(moved, camera="image").fingerprint == source.fingerprint


GOLDEN = Path(__file__).parents[1] / "golden" / "lerobot-0.6.1"


def test_a_set_that_lerobot_wrote_is_read() -> None:
    """Written by lerobot 0.6.1: PNGs in a column, and a video as AV1. Its values are made again here."""
    front, film = (LeRobotSource(GOLDEN, camera=name) for name in ("front", "film"))
    assert len(front) == len(film) == 2
    for episode, task in enumerate(("push it", "lift it")):
        rng = np.random.default_rng(episode)
        steps = 5 + 3 * episode
        assert front[episode].instruction == task and len(front[episode].images) == steps
        for step in range(steps):
            image = (rng.integers(0, 6, (24, 32, 3)) * 40).astype(np.uint8)
            state, action = (rng.normal(size=size).astype(np.float32) for size in (8, 7))
            np.testing.assert_array_equal(front[episode].images[step], image)
            np.testing.assert_array_equal(front[episode].actions[step], action)
            found = front[episode].state
            assert found is not None
            np.testing.assert_array_equal(found[step], state)
            rows, columns = np.mgrid[0:48, 0:64]
            filmed = np.stack([rows * 5, columns * 3, np.full_like(rows, 30 * step)], 2).astype(np.uint8)
            error = np.abs(film[episode].images[step].astype(float) - filmed)
            assert error.mean() < 8, (episode, step, error.mean())


@pytest.mark.slow
@pytest.mark.skipif("VLM4VLA_LEROBOT_PYTHON" not in os.environ, reason="see tests/oracles/lerobot_reader.py")
def test_lerobots_own_reader_opens_what_is_written(tmp_path: Path) -> None:
    folders = [written(tmp_path / "images", encoded=True), written(tmp_path / "video", video=True)]
    script = Path(__file__).parents[1] / "oracles" / "lerobot_reader.py"
    done = subprocess.run(
        [os.environ["VLM4VLA_LEROBOT_PYTHON"], str(script), *map(str, folders)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )
    for folder, found in zip(folders, json.loads(done.stdout), strict=True):
        source = LeRobotSource(folder)
        assert found["episodes"] == 3
        row = 0
        for episode in range(3):
            recording = source[episode]
            steps = len(recording.actions)
            for step in range(steps):
                assert found["tasks"][row] == recording.instruction
                chosen = np.minimum(step + np.arange(3), steps - 1)
                np.testing.assert_array_equal(np.float32(found["actions"][row]), recording.actions[chosen])
                assert found["padded"][row] == (step + np.arange(3) >= steps).tolist()
                theirs = np.array(found["pixels"][row]).transpose(1, 2, 0)
                assert np.abs(theirs - recording.images[step]).mean() < 1.5
                row += 1
