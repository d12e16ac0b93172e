"""The same episodes in every format: the same actions, the same pixels, and the same training to the last bit."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny_trials
from formats_calvin import write_calvin
from formats_rlds import bridge_episode, write_rlds
from PIL import Image

from vlm4vla.core.recipes import DemonstrationRecipe
from vlm4vla.core.types import Demonstration
from vlm4vla.demonstrations import sources
from vlm4vla.demonstrations.frames import EncodedFrames
from vlm4vla.demonstrations.lerobot_writer import write_lerobot
from vlm4vla.demonstrations.packed import write_packed
from vlm4vla.demonstrations.sources import open_demonstrations
from vlm4vla.training.train import train

COUNT = 5
WALKS = list(tiny_trials.demonstrations(COUNT))


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def stored(walk: Demonstration) -> Demonstration:
    """With its frames as PNGs, which every format keeps or decodes to the same pixels."""
    blobs = [png(image) for image in walk.images]
    stops = np.cumsum([len(blob) for blob in blobs])
    starts = stops - [len(blob) for blob in blobs]
    size = walk.images[0].shape[:2]
    return replace(
        walk, images=EncodedFrames(b"".join(blobs), starts, stops, codec="png", size=size, where=walk.id)
    )


def as_packed(folder: Path) -> DemonstrationRecipe:
    write_packed(map(stored, WALKS), folder, name="walks", action_spec=tiny_trials.SPEC, fingerprint="walks")
    return DemonstrationRecipe(source="packed")


def as_raw(folder: Path) -> DemonstrationRecipe:
    write_packed(WALKS, folder, name="walks", action_spec=tiny_trials.SPEC, fingerprint="walks")
    return DemonstrationRecipe(source="packed")


def as_lerobot(folder: Path) -> DemonstrationRecipe:
    write_lerobot(map(stored, WALKS), folder, name="walks", action_spec=tiny_trials.SPEC, fps=10)
    return DemonstrationRecipe(source="lerobot")


def as_video(folder: Path) -> DemonstrationRecipe:
    write_lerobot(WALKS, folder, name="walks", action_spec=tiny_trials.SPEC, fps=10, video=True)
    return DemonstrationRecipe(source="lerobot")


def as_folder(folder: Path) -> DemonstrationRecipe:
    folder.mkdir()
    (folder / "actions.json").write_text(json.dumps(tiny_trials.SPEC.to_json()))
    lines = ["episode,instruction"]
    for number, walk in enumerate(WALKS):
        place = folder / str(number)
        place.mkdir()
        for step, image in enumerate(walk.images):
            (place / f"{step}.png").write_bytes(png(image))
        np.save(place / "actions.npy", walk.actions)
        lines.append(f"{number},{walk.instruction}")
    (folder / "episodes.csv").write_text("\n".join(lines) + "\n")
    return DemonstrationRecipe(source="folder")


def as_calvin(folder: Path) -> DemonstrationRecipe:
    spans, changes, start = [], {}, 100
    for walk in WALKS:
        for step in range(len(walk.actions)):
            changes[start + step] = {
                "rel_actions": walk.actions[step].astype(np.float64),
                "rgb_static": walk.images[step],
            }
        spans.append((start, start + len(walk.actions), walk.instruction, "walk"))
        start += len(walk.actions) + 7
    write_calvin(folder / "training", spans, changes=changes, side=tiny_trials.SIDE)
    return DemonstrationRecipe(source="calvin")


def as_rlds(folder: Path) -> DemonstrationRecipe:
    episodes = [
        bridge_episode([png(image) for image in walk.images], walk.actions, walk.actions, walk.instruction)
        for walk in WALKS
    ]
    write_rlds(folder, [episodes[:2], episodes[2:]], size=(tiny_trials.SIDE, tiny_trials.SIDE))
    return DemonstrationRecipe(source="bridge", transforms=())


def as_libero(folder: Path) -> DemonstrationRecipe:
    folder.mkdir()
    for scene, walk in enumerate(WALKS):
        task = f"KITCHEN_SCENE{scene}_{walk.instruction.replace(' ', '_')}"
        with h5py.File(folder / f"{task}_demo.hdf5", "w") as file:
            demo = file.create_group("data/demo_0")
            demo["actions"] = walk.actions.astype(np.float64)
            demo["obs/agentview_rgb"] = np.stack(list(walk.images))
    return DemonstrationRecipe(source="libero", transforms=())


FORMATS: dict[str, Callable[[Path], DemonstrationRecipe]] = {
    "packed": as_packed,
    "raw": as_raw,
    "lerobot": as_lerobot,
    "folder": as_folder,
    "calvin": as_calvin,
    "rlds": as_rlds,
    "libero": as_libero,
}


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_trials.build_tiny(
        "qwen3-vl", tiny_trials.SIZE, tmp_path_factory.mktemp("vlm"), texts=tiny_trials.SAYINGS, seed=0
    )


def opened(name: str, folder: Path) -> sources.JoinedSource | sources.ColumnSource:
    recipe = {**FORMATS, "video": as_video}[name](folder / name)
    recipe = replace(recipe, path=(str(folder / name),), episodes=0, looks=())
    sources.check(recipe)
    return open_demonstrations(sources.make(recipe, folder / f"{name}-indexed"))


@pytest.mark.parametrize("name", FORMATS)
def test_actions_and_pixels_are_the_same(name: str, tmp_path: Path) -> None:
    source = opened(name, tmp_path)
    assert len(source) == COUNT
    for index, walk in enumerate(WALKS):
        assert source[index].instruction == walk.instruction
        np.testing.assert_array_equal(source[index].actions, walk.actions)
        np.testing.assert_array_equal(np.stack(list(source[index].images)), np.stack(list(walk.images)))


@pytest.mark.parametrize("name", [*FORMATS, "video"])
def test_training_is_the_same(
    name: str, vlm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Video is coded anew: its losses differ a little, which is printed."""
    losses = []
    for kind in ("packed", name):
        where = tmp_path / f"of-{kind}-{len(losses)}"
        where.mkdir()
        source = opened(kind, where)
        trial = tiny_trials.trial(vlm, steps=3)
        trial = replace(trial, demonstrations=replace(trial.demonstrations, held_out=0.0))
        train(trial, source, where / "run", progress=False)
        losses.append([row[0] for row in tiny_trials.metrics(where / "run", "loss")])
    if name == "video":
        with capsys.disabled():
            print(f"\nlosses from PNG {losses[0]}, from video {losses[1]}")
        assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.1)
    else:
        assert losses[0] == losses[1]
