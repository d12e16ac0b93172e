"""Scripted demonstrations are known by their files, in every format, and stay known when converted or joined."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_trials
from formats_calvin import write_calvin
from PIL import Image

from vlm4vla.benchmarks.calvin import demonstrate as calvin
from vlm4vla.benchmarks.libero import demonstrate as libero
from vlm4vla.benchmarks.libero.suites import SUITES
from vlm4vla.benchmarks.simpler import tfds as simpler
from vlm4vla.cli import main
from vlm4vla.core.errors import DataError
from vlm4vla.core.recipes import DemonstrationRecipe
from vlm4vla.demonstrations import sources
from vlm4vla.demonstrations.datasets import open_reader
from vlm4vla.demonstrations.packed import write_packed
from vlm4vla.demonstrations.scripted import SCRIPTED, labelled, note_of, together, told_of
from vlm4vla.demonstrations.sources import open_demonstrations

NOTE = "scripted expert, seed 7: not their own demonstrations"
STEPS = 4
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (STEPS, 7)).astype(np.float32)


def pictures(side: int) -> list[np.ndarray]:
    rng = np.random.default_rng(side)
    return [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(STEPS)]


def as_calvin(folder: Path, note: str) -> str:
    one = calvin.Scripted(
        task="turn_on_led",
        scene="D",
        images=pictures(200),
        actions=ACTIONS,
        targets=np.zeros((STEPS, 7)),
        robot_obs=np.zeros((STEPS, 15)),
        scene_obs=np.zeros((STEPS, 24)),
    )
    calvin.write(iter([one]), folder / "training", note=note)
    return "calvin"


def as_libero(folder: Path, note: str) -> str:
    one = libero.Scripted(
        task=SUITES["object"].tasks[0],
        actions=ACTIONS,
        states=np.zeros((STEPS, 3)),
        observed={"ee_states": np.zeros((STEPS, 6)), "gripper_states": np.zeros((STEPS, 2))},
        images={"agentview_rgb": pictures(32)},
    )
    libero.write(iter([one]), folder, note=note)
    return "libero"


def as_simpler(folder: Path, note: str) -> str:
    blobs = []
    for picture in pictures(256):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG")
        blobs.append(buffer.getvalue())
    one = simpler.BridgeEpisode(
        instruction="put carrot on plate",
        images=blobs,
        states=np.zeros((STEPS, 7), np.float32),
        actions=np.clip(ACTIONS, 0, 1),
    )
    simpler.write([one], 1, folder, note=note)
    return "bridge"


@pytest.mark.parametrize("write", [as_calvin, as_libero, as_simpler])
def test_the_mark_is_read_and_stays(write, tmp_path: Path) -> None:
    """By the reader, behind `data convert` and `data pack`, indexed where it lies."""
    name = write(tmp_path / "set", NOTE)
    assert open_reader(name, tmp_path / "set").scripted == NOTE
    for command, source in (("convert", "lerobot"), ("pack", "packed")):
        out = tmp_path / source
        assert main(["data", command, name, str(tmp_path / "set"), str(out), "--quiet"]) == 0
        assert open_reader(source, out).scripted == NOTE
    for source, folder in ((name, "set"), ("lerobot", "lerobot"), ("packed", "packed")):
        recipe = DemonstrationRecipe(source=source, path=(str(tmp_path / folder),), episodes=0, looks=())
        made = open_demonstrations(sources.make(recipe, tmp_path / f"made-{source}"))
        assert made.scripted == NOTE and len(made) == 1


def test_a_set_without_a_note_is_marked_all_the_same(tmp_path: Path) -> None:
    for write in (as_calvin, as_libero, as_simpler):
        name = write(tmp_path / write.__name__, "")
        assert open_reader(name, tmp_path / write.__name__).scripted == "scripted expert"


def test_people_do_not_look_scripted(tmp_path: Path) -> None:
    folder = write_calvin(tmp_path / "training").parent
    assert open_reader("calvin", folder).scripted == ""
    assert main(["data", "convert", "calvin", str(folder), str(tmp_path / "out"), "--quiet"]) == 0
    assert open_reader("lerobot", tmp_path / "out").scripted == ""
    assert told_of({}) == told_of({"scripted": ""}) == "" and labelled("a row", "") == "a row"


def test_a_mixture_says_which_part_was_scripted(tmp_path: Path) -> None:
    for name, note in (("a", NOTE), ("b", ""), ("c", NOTE), ("d", "another")):
        write_packed(
            tiny_trials.demonstrations(2),
            tmp_path / name,
            name=name,
            action_spec=tiny_trials.SPEC,
            fingerprint=name,
            scripted=note,
        )
    recipe = DemonstrationRecipe(
        source="packed", path=tuple(str(tmp_path / name) for name in "abcd"), episodes=0
    )
    assert open_demonstrations(sources.make(recipe, tmp_path / "made")).scripted == f"{NOTE}; another"
    assert together("x; y", "", "y", "z") == "x; y; z"
    assert labelled("a row", told_of({"scripted": NOTE})) == f"a row ({SCRIPTED})"


@pytest.mark.parametrize("content", ["{", "[]", '{"scripted": true}'])
def test_a_damaged_mark_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "scripted.json").write_text(content)
    with pytest.raises(DataError, match=r"scripted\.json: is damaged .*make the demonstrations again"):
        note_of(tmp_path)


def test_looking_at_them_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_calvin(tmp_path / "set", NOTE)
    assert main(["data", "stats", "calvin", str(tmp_path / "set")]) == 0
    assert f"; {NOTE}." in capsys.readouterr().out
    assert json.loads((tmp_path / "set" / "training" / "scripted.json").read_text())["note"] == NOTE
