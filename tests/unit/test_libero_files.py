"""LIBERO's HDF5 files: read as they are written; every fault told with file and demonstration."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from vlm4vla.core.errors import DataError
from vlm4vla.core.recipes import DemonstrationRecipe
from vlm4vla.demonstrations import sources
from vlm4vla.demonstrations.libero import LiberoSource
from vlm4vla.demonstrations.recordings import Reader
from vlm4vla.demonstrations.sources import open_demonstrations

TASKS = {"KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5": 12, "LIVING_ROOM_SCENE2_put_the_soup_in_demo.hdf5": 2}


def content(seed: int, steps: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (steps, 7))
    actions[:, 6] = np.where(np.arange(steps) < steps // 2, -1, 1)
    return {
        "actions": actions,
        "obs/agentview_rgb": rng.integers(0, 256, (steps, 16, 16, 3), dtype=np.uint8),
        "obs/eye_in_hand_rgb": rng.integers(0, 256, (steps, 16, 16, 3), dtype=np.uint8),
        "obs/ee_states": rng.normal(size=(steps, 6)),
        "obs/gripper_states": rng.normal(size=(steps, 2)),
    }


def write(path: Path, count: int, *, attributes: bool = True) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        words = path.stem.removesuffix("_demo").rpartition("SCENE")[2][2:].replace("_", " ")
        if attributes:
            data.attrs["problem_info"] = json.dumps({"language_instruction": words})
            data.attrs["num_demos"] = count
        for number in range(count):
            demo = data.create_group(f"demo_{number}")
            arrays = content(number, 4 + number % 3)
            if attributes:
                demo.attrs["num_samples"] = len(arrays["actions"])
            for name, array in arrays.items():
                demo.create_dataset(name, data=array)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "libero_10").mkdir()
    for name, count in TASKS.items():
        write(tmp_path / "libero_10" / name, count)
    return tmp_path / "libero_10"


def test_what_is_written_is_read(folder: Path) -> None:
    source = LiberoSource(folder)
    assert isinstance(source, Reader)
    assert len(source) == 14 and not source.missing
    # demo_10 comes behind demo_9, not behind demo_1
    assert [source[i].id.rpartition("_")[2] for i in range(12)] == [str(i) for i in range(12)]
    for index in (0, 10, 13):
        number = index if index < 12 else index - 12
        expected, found = content(number, 4 + number % 3), source[index]
        np.testing.assert_array_equal(found.actions, expected["actions"])
        np.testing.assert_array_equal(np.stack(list(found.images)), expected["obs/agentview_rgb"])
        state = np.concatenate([expected["obs/ee_states"], expected["obs/gripper_states"]], axis=1)
        np.testing.assert_array_equal(found.state, state)
    assert source[0].instruction == "turn on the stove" and source[13].instruction == "put the soup in"
    wrist = LiberoSource(folder, camera="eye_in_hand_rgb")
    np.testing.assert_array_equal(wrist[0].images[1], content(0, 4)["obs/eye_in_hand_rgb"][1])
    assert wrist.fingerprint != source.fingerprint


def test_files_without_attributes_have_their_words_in_their_name(tmp_path: Path) -> None:
    path = tmp_path / "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5"
    write(path, 2, attributes=False)
    assert LiberoSource(path)[1].instruction == "turn on the stove"


def test_as_a_data_set_pictures_are_upright_and_the_gripper_opens_upwards(
    folder: Path, tmp_path: Path
) -> None:
    recipe = DemonstrationRecipe(source="libero", path=(str(folder),), episodes=0)
    source = open_demonstrations(sources.make(recipe, tmp_path / "made"))
    raw = content(0, 4)
    np.testing.assert_array_equal(source[0].images[0], np.rot90(raw["obs/agentview_rgb"][0], 2))
    np.testing.assert_array_equal(source[0].actions[:, 6], -raw["actions"][:, 6])
    assert source.action_spec.gripper == "open_positive"


def damage(path: Path, change: Callable[[h5py.File], Any]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


FIRST = next(iter(TASKS))


def shorten(file: h5py.File) -> None:
    del file["data/demo_0/obs/agentview_rgb"]
    file["data/demo_0/obs/agentview_rgb"] = np.zeros((3, 16, 16, 3), np.uint8)


def without_words(file: h5py.File) -> None:
    file["data"].attrs["problem_info"] = "{}"


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda f: (f / FIRST).write_bytes((f / FIRST).read_bytes()[:3000]), "cannot be opened"),
    "no group": (
        lambda f: damage(f / FIRST, lambda file: file.move("data", "other")),
        "no group called data",
    ),
    "counts": (
        lambda f: damage(f / FIRST, shorten),
        r"demo_0: 4 actions, num_samples 4, .* \[3, 16, 16, 3\]",
    ),
    "fewer": (
        lambda f: damage(f / FIRST, lambda file: file["data"].attrs.modify("num_demos", 99)),
        "num_demos is 99, but 12 are there",
    ),
    "no actions": (
        lambda f: damage(f / FIRST, lambda file: file.pop("data/demo_0/actions")),
        "demo_0: no actions",
    ),
    "names": (
        lambda f: damage(f / FIRST, lambda file: file.move("data/demo_3", "data/three")),
        "data should hold demo_0, demo_1",
    ),
    "words": (lambda f: damage(f / FIRST, without_words), "problem_info has no language_instruction"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told(folder: Path, fault: str) -> None:
    break_it, told = FAULTS[fault]
    break_it(folder)
    with pytest.raises(DataError, match=told) as caught:
        LiberoSource(folder)[0]
    assert FIRST in str(caught.value)


def test_places_that_hold_nothing_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such path"):
        LiberoSource(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no \.hdf5 files here.*Did you mean .*libero_10"):
        LiberoSource(tmp_path)
    with pytest.raises(DataError, match="there are agentview_rgb, ee_states"):
        LiberoSource(folder, camera="frontview_rgb")[0]


def _sums(source: LiberoSource, order: list[tuple[int, int]], result: Any) -> None:
    result.put([int(source[e].images[s].astype(int).sum()) for e, s in order])


def test_two_forks_of_a_reader_in_use_read_the_same(folder: Path) -> None:
    source = LiberoSource(folder)
    rng = np.random.default_rng(0)
    order = [(int(e), int(rng.integers(4))) for e in rng.integers(0, 14, 150)]
    expected = [int(source[e].images[s].astype(int).sum()) for e, s in order]
    context = multiprocessing.get_context("fork")
    results = [context.Queue() for _ in range(2)]
    children = [context.Process(target=_sums, args=(source, order, result)) for result in results]
    for child in children:
        child.start()
    assert [result.get(timeout=60) for result in results] == [expected, expected]
    for child in children:
        child.join(60)
    again = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert again.fingerprint == source.fingerprint
