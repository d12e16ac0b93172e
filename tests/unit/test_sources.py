"""From a recipe to a source: several folders, weights, changed files, URLs; and a hundred million frames."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tiny_trials
from PIL import Image

from vlm4vla.cli import main
from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import ActionSpecMismatch, DataError, RecipeError
from vlm4vla.core.recipes import DemonstrationRecipe
from vlm4vla.demonstrations import remote, sources
from vlm4vla.demonstrations.chunks import ChunkDataset, ids_of
from vlm4vla.demonstrations.order import Order
from vlm4vla.demonstrations.packed import write_packed
from vlm4vla.demonstrations.sources import JoinedSource, open_demonstrations


def packed(folder: Path, count: int, *, gripper: str = "open_positive") -> Path:
    spec = replace(tiny_trials.SPEC, gripper=gripper)
    made = tiny_trials.demonstrations(count)
    return write_packed(
        made, folder, name=folder.name, action_spec=spec, fingerprint=f"{folder.name}-{count}"
    ).folder


def recipe(*paths: Path | str, **fields: object) -> DemonstrationRecipe:
    return DemonstrationRecipe(source="packed", path=tuple(map(str, paths)), episodes=0, **fields)


def test_several_folders_are_one_source(tmp_path: Path) -> None:
    both = recipe(packed(tmp_path / "a", 3), packed(tmp_path / "b", 5))
    made = open_demonstrations(sources.make(both, tmp_path / "made"))
    assert isinstance(made, JoinedSource)
    assert len(made) == 8 and ids_of(made) == [f"0/walk-0-{i}" for i in range(3)] + [
        f"1/walk-0-{i}" for i in range(5)
    ]
    assert made[3].id == "walk-0-0" and made[7].id == "walk-0-4"
    assert made.lengths.tolist() == [len(made[i].actions) for i in range(8)]
    dataset = ChunkDataset(made, [1, 4, 6], 3)
    assert dataset.counts == (len(dataset),)
    np.testing.assert_array_equal(dataset.all_actions(), np.concatenate([made[i].actions for i in (1, 4, 6)]))
    with pytest.raises(IndexError, match="episode 8 of 8"):
        made[8]


def test_a_mixture_draws_by_weight_and_counts_what_is_not_held_out(tmp_path: Path) -> None:
    both = recipe(packed(tmp_path / "a", 3), packed(tmp_path / "b", 5), weights=(3.0, 1.0))
    made = open_demonstrations(sources.make(both, tmp_path / "made"))
    dataset = ChunkDataset(made, [0, 2, 3, 4, 7], 3)
    lengths = [len(made[i].actions) for i in (0, 2, 3, 4, 7)]
    assert dataset.counts == (sum(lengths[:2]), sum(lengths[2:]))
    _, indices = Order(0, dataset.counts, dataset.weights).batch(step=0, batch_size=1000)
    assert (indices < dataset.counts[0]).sum() == 750
    with pytest.raises(DataError, match="part 1 of the mixture has no samples"):
        ChunkDataset(made, [0, 1], 3)


def test_what_a_recipe_gets_wrong_is_told(tmp_path: Path) -> None:
    first, second = packed(tmp_path / "a", 2), packed(tmp_path / "b", 2, gripper="close_positive")
    with pytest.raises(RecipeError, match="say where, --data FOLDER"):
        sources.check(recipe())
    with pytest.raises(RecipeError, match="1 numbers for 2 paths"):
        sources.check(recipe(first, second, weights=(1.0,)))
    with pytest.raises(ActionSpecMismatch, match="gripper: open_positive against close_positive"):
        sources.check(recipe(first, second))
    with pytest.raises(DataError, match="no packed demonstrations here"):
        sources.check(recipe(tmp_path / "nowhere"))
    with pytest.raises(RecipeError, match=r"'brigde'.*bridge"):
        sources.check(recipe(f"brigde={first}"))
    with pytest.raises(RecipeError, match="one camera; leave it empty"):
        sources.check(recipe(first, camera="wrist"))
    with pytest.raises(RecipeError, match="packd"):
        sources.check(recipe(first, format="packd"))


def test_a_damaged_list_of_parts_is_told(tmp_path: Path) -> None:
    made = sources.make(recipe(packed(tmp_path / "a", 2)), tmp_path / "made")
    for text in ("{", "{}", '{"parts": [], "weights": []}'):
        (made / "joined.json").write_text(text)
        with pytest.raises(DataError, match="is damaged"):
            open_demonstrations(made)


def test_the_fingerprint_is_of_the_content_not_the_place(tmp_path: Path) -> None:
    first = packed(tmp_path / "a", 2)
    moved = tmp_path / "elsewhere"
    before = sources.demonstrations_fingerprint(recipe(first))
    first.rename(moved)
    assert sources.demonstrations_fingerprint(recipe(moved)) == before
    assert sources.demonstrations_fingerprint(recipe(moved, tasks=("walk",))) != before
    assert sources.demonstrations_fingerprint(recipe(moved, moved)) != before


def test_a_url_is_downloaded_once_and_an_interrupted_download_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM4VLA_CACHE", str(tmp_path / "cache"))
    folder = packed(tmp_path / "a", 3)
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe(f"/walks/{path.name}", path.read_bytes())
    copied: list[str] = []
    original = remote._download

    def counting(system: fsspec.AbstractFileSystem, path: str, *rest: object) -> None:
        copied.append(path)
        if len(copied) == 3:
            raise KeyboardInterrupt
        original(system, path, *rest)

    monkeypatch.setattr(remote, "_download", counting)
    with pytest.raises(KeyboardInterrupt):
        remote.local("memory://walks")
    made = open_demonstrations(sources.make(recipe("memory://walks"), tmp_path / "made"))
    assert len(copied) == len(set(copied)) + 1 == len(list(folder.iterdir())) + 1
    np.testing.assert_array_equal(made[2].images[0], open_demonstrations(folder)[2].images[0])
    assert not list((tmp_path / "cache").rglob("*.partial*"))
    copied.clear()
    remote.local("memory://walks")
    assert copied == []


@pytest.mark.parametrize("url", ["memory://nothing-here", "nosuchprotocol://x"])
def test_a_url_that_leads_nowhere(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM4VLA_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=url):
        remote.local(url)


def test_a_remote_name_cannot_leave_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM4VLA_CACHE", str(tmp_path))
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(type(memory), "find", lambda self, root, detail: {"/data/../../../evil": {"size": 1}})
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda text: (memory, "/data"))
    with pytest.raises(DataError, match="outside"):
        remote.local("memory://data")


HUGE = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
import vlm4vla.demonstrations.chunks
from vlm4vla.demonstrations.chunks import ChunkDataset
from vlm4vla.demonstrations.order import Order
from vlm4vla.demonstrations.packed import PackedSource

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
source = PackedSource(sys.argv[1])
dataset = ChunkDataset(source, range(len(source)), 10)
order = Order(0, dataset.counts)
_, indices = order.batch(step=1000, batch_size=512)
valid = dataset.valid_steps(indices)
seconds = time.process_time() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([len(dataset), seconds, (peak - before) / 1024, valid]))
"""


def test_a_hundred_million_frames_open_at_once(tmp_path: Path) -> None:
    """Sparse files of the right size stand for the frames: under 2 s and 1 GB."""
    template = packed(tmp_path / "template", 2)
    folder = tmp_path / "huge"
    folder.mkdir()
    episodes, steps = 2_000_000, 50
    frames = episodes * steps
    np.save(folder / "episode_ends.npy", np.arange(1, episodes + 1, dtype="<i8") * steps)
    line = json.dumps({"id": "0", "task": "", "instruction": "", "facts": {}}).encode() + b"\n"
    np.save(folder / "lines.npy", np.arange(episodes + 1, dtype="<i8") * len(line))
    for name, dtype, shape in (("actions", "<f4", (frames, 7)), ("offsets", "<i8", (frames + 1,))):
        np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
    for name, size in (("frames.bin", 1 << 40), ("episodes.jsonl", episodes * len(line))):
        with (folder / name).open("wb") as file:
            file.truncate(size)
    manifest = json.loads((template / "manifest.json").read_text())
    manifest["counts"] = {"frames": frames, "episodes": episodes}
    manifest["files"] = {path.name: {"bytes": path.stat().st_size, "sha256": ""} for path in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = subprocess.run(
        [sys.executable, "-c", HUGE, str(folder)], capture_output=True, text=True, check=True
    )
    count, seconds, megabytes, valid = json.loads(done.stdout)
    assert count == frames and 0 < valid <= 5120
    assert seconds < 2, f"{seconds:.2f} s"
    assert megabytes < 1000, f"{megabytes:.0f} MB"


def test_sources_pickle_as_their_folder(tmp_path: Path) -> None:
    made = open_demonstrations(packed(tmp_path / "a", 2))
    text = pickle.dumps(made)
    assert len(text) < 500
    np.testing.assert_array_equal(pickle.loads(text)[1].images[0], made[1].images[0])  # noqa: S301


def test_data_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(packed(tmp_path / "a", 4))
    assert main(["data", "--json"]) == 0
    assert {"calvin", "bridge", "libero_10", "lerobot"} <= json.loads(capsys.readouterr().out).keys()
    assert main(["data", "stats", "packed", folder, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    actions = np.concatenate([d.actions for d in tiny_trials.demonstrations(4)])
    assert (told["episodes"], told["steps"]) == (4, len(actions))
    assert [column["q99"] for column in told["columns"]] == np.quantile(
        actions.astype(np.float64), 0.99, axis=0
    ).tolist()
    assert main(["data", "stats", "packed", folder]) == 0
    assert f"4 episodes, {len(actions)} steps" in capsys.readouterr().out

    picture = tmp_path / "seen.png"
    assert main(["data", "view", "packed", folder, "--out", str(picture), "--shown", "2"]) == 0
    with Image.open(picture) as image:
        pixels = np.asarray(image)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100

    lossy = tmp_path / "lossy"
    assert main(["data", "pack", "packed", folder, str(lossy), "--jpeg-quality", "95"]) == 0
    assert "--data" in capsys.readouterr().out
    first, second = open_demonstrations(folder)[1], open_demonstrations(lossy)[1]
    np.testing.assert_array_equal(first.actions, second.actions)
    error = np.abs(first.images[0].astype(float) - second.images[0]).mean()
    assert 0 < error < 5
    assert main(["data", "pack", "packed", folder, str(lossy)]) == 1
    assert "holds demonstrations with fingerprint" in capsys.readouterr().err
    assert main(["data", "stats", "packed", folder, "--transforms", "turn_image"]) == 1
    assert "turn_images" in capsys.readouterr().err


def test_transforms_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(packed(tmp_path / "a", 2))
    turned = tmp_path / "turned"
    assert (
        main(["data", "pack", "packed", folder, str(turned), "--transforms", "drop_first_step,turn_images"])
        == 0
    )
    before, after = open_demonstrations(folder)[0], open_demonstrations(turned)[0]
    np.testing.assert_array_equal(after.actions, before.actions[1:])
    np.testing.assert_array_equal(after.images[0], np.rot90(before.images[1], 2))


def test_unknown_conventions_need_a_name(tmp_path: Path) -> None:
    from vlm4vla.demonstrations.indexed import find

    folder = str(packed(tmp_path / "a", 2))
    assert find("packed", folder)[0].action_spec == tiny_trials.SPEC
    expected = ActionSpec(rotation="axis_angle", gripper="open_positive", unit="controller")
    assert find("packed", folder, actions="libero_10")[0].action_spec == expected


def test_faults_are_found_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged picture stops a conversion, unless its episode is to be left out; then it is told."""
    from PIL import Image as Pictures

    folder = tmp_path / "mine"
    for number in range(3):
        (folder / str(number)).mkdir(parents=True)
        for step in range(3):
            image = np.full((16, 16, 3), 40 * step + number, dtype=np.uint8)
            Pictures.fromarray(image).save(folder / str(number) / f"{step}.jpg")
        np.save(folder / str(number) / "actions.npy", np.random.default_rng(number).normal(size=(3, 7)))
    (folder / "episodes.csv").write_text("episode,instruction\n0,go\n1,go\n2,go\n")
    where = ["folder", str(folder), "--actions", "calvin"]
    assert main(["data", "check", *where, "--bound", "9"]) == 0
    assert "errors 0" in capsys.readouterr().out

    broken = folder / "1" / "2.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    assert main(["data", "check", *where, "--bound", "9", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["counts"]["undecodable"] == 1
    assert "--faulty drop" in captured.err

    assert main(["data", "convert", *where, str(tmp_path / "set"), "--fps", "5", "--video"]) == 1
    assert "frame 2: cannot be decoded" in capsys.readouterr().err and not (tmp_path / "set").exists()
    assert main(["data", "pack", *where, str(tmp_path / "packed"), "--faulty", "drop"]) == 0
    told = capsys.readouterr()
    assert "2 episodes" in told.out and "left out: " in told.err and "frame 2" in told.err
    assert open_demonstrations(tmp_path / "packed").ids() == ["0", "2"]
