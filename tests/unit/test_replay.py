"""Replays: recorded episodes again, to the bit, and what is told when they are not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace as changed
from pathlib import Path

import av
import numpy as np
import pytest
from point_world import PointWorld, Seeker

from vlm4vla.benchmarks.records import actions_path, kept_software, read_log
from vlm4vla.benchmarks.replay import Replay, replay
from vlm4vla.benchmarks.rollout import RandomPredictor, evaluate
from vlm4vla.benchmarks.software import differences, software_of, unpinned
from vlm4vla.benchmarks.tabletop.benchmark import ACTION_SPEC
from vlm4vla.cli import main
from vlm4vla.core.errors import RecipeError, RunError, SimulatorError
from vlm4vla.core.recipes import EvaluationRecipe, fingerprint
from vlm4vla.core.types import EpisodeResult
from vlm4vla.studies.checks import Resources
from vlm4vla.studies.execute import run_evaluation


def played(folder: Path, world: PointWorld | None = None, *, execute: int = 3) -> list[EpisodeResult]:
    return evaluate(
        Seeker(),
        world or PointWorld(),
        execute=execute,
        folder=folder,
        workers=0,
        progress=False,
        environments=3,
    )


def rewrite(folder: Path, name: str, **changes: object) -> None:
    """Tamper with a line of the record."""
    log = folder / "episodes.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(d | changes if d["episode"] == name else d) + "\n" for d in lines))


def only(found: list[Replay]) -> Replay:
    """The one that differs; all others are identical."""
    (other,) = [each for each in found if not each.identical]
    return other


@pytest.mark.parametrize("world", [PointWorld(), PointWorld(goals=3), PointWorld(goals=3, lazy=True)])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_episode_is_replayed_to_the_bit(world: PointWorld, workers: int, tmp_path: Path) -> None:
    results = played(tmp_path, world)
    found = replay(world, tmp_path, workers=workers)
    assert [(r.episode, r.goals_completed, r.steps) for r in found] == [
        (r.episode, r.goals_completed, r.steps) for r in results
    ]
    assert all(each.identical and not each.difference and not each.software for each in found)


def test_repeats_and_shards_are_replayed(tmp_path: Path) -> None:
    world = PointWorld(episodes_per_task=2)
    for number in range(2):
        policy = RandomPredictor(world.action_spec, 4)
        evaluate(
            policy, world, execute=2, folder=tmp_path, workers=0, progress=False, repeats=2, shard=(number, 2)
        )
    found = replay(world, tmp_path)
    assert len(found) == 12 and all(each.identical for each in found)


def test_named_episodes_and_a_video(tmp_path: Path) -> None:
    results = played(tmp_path)
    video = tmp_path / "seen.mp4"
    (found,) = replay(PointWorld(), tmp_path, episodes=["up/009"], video=video)
    assert found.identical and found.episode == "up/009"
    (result,) = [result for result in results if result.episode == "up/009"]
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == result.steps + 1
    with pytest.raises(RecipeError, match="did you mean 'up/009'"):
        replay(PointWorld(), tmp_path, episodes=["up/09"])
    with pytest.raises(RecipeError, match="a video shows one episode, not 12"):
        replay(PointWorld(), tmp_path, video=video)
    with pytest.raises(RunError, match="no episodes are recorded there"):
        replay(PointWorld(), tmp_path / "empty")


def test_a_world_that_changed_is_told_with_the_first_step(tmp_path: Path) -> None:
    """The leaky world carries something from episode to episode: the first one is as it was."""
    played(tmp_path, execute=2)
    found = replay(PointWorld(leaky=True), tmp_path, environments=1)
    assert found[0].identical
    assert {each.difference for each in found[1:]} == {"at step 0: the picture is another"}


def test_the_first_step_that_differs_is_told(tmp_path: Path) -> None:
    played(tmp_path, execute=2)
    path = actions_path(tmp_path, "left/001")
    with path.open("rb") as file:
        actions, looks = np.load(file), np.load(file)
    assert looks[:, 0].tolist()[:3] == [0, 2, 4]
    looks[2, 2] += np.uint64(1)
    with path.open("wb") as file:
        np.save(file, actions)
        np.save(file, looks)
    told = only(replay(PointWorld(), tmp_path))
    assert (told.episode, told.difference) == ("left/001", "at step 4, alike until 2: the picture is another")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"goals_completed": 0}, "1 of 1 goals are completed at the end, 0 in the record"),
        ({"last_image": "0" * 16}, "the last picture is another"),
        ({"steps": 2}, "not the actions of the record"),
        ({"actions": "0" * 16}, "not the actions of the record"),
        ({"task": "up"}, "the record says 1 goals of task 'up'"),
        ({"episode": "left/999"}, "point-world-v1 has no such episode"),
    ],
)
def test_a_record_that_was_changed_is_told(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    results = played(tmp_path)
    first = next(result for result in results if result.success)
    rewrite(tmp_path, first.episode, **changes)
    assert words in only(replay(PointWorld(), tmp_path)).difference


def test_actions_that_are_missing_cut_or_changed_are_told(tmp_path: Path) -> None:
    played(tmp_path)
    missing, cut, other = (actions_path(tmp_path, f"left/00{number}") for number in range(3))
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:200])
    other.write_bytes(actions_path(tmp_path, "up/008").read_bytes())
    found = replay(PointWorld(), tmp_path)
    assert [each.identical for each in found] == [False] * 3 + [True] * 9, [r.difference for r in found]
    assert "missing, so the episode cannot be replayed; an older version" in found[0].difference
    assert "damaged" in found[1].difference and "restore it from a copy" in found[1].difference
    assert "not the actions of the record" in found[2].difference


def test_a_record_without_looks_is_compared_at_its_end(tmp_path: Path) -> None:
    results = played(tmp_path, PointWorld(goals=3))
    for result in results:
        path = actions_path(tmp_path, result.episode)
        np.save(path, np.load(path))
    assert all(each.identical for each in replay(PointWorld(goals=3), tmp_path))
    rewrite(tmp_path, "left/000", last_image="f" * 16)
    assert only(replay(PointWorld(goals=3), tmp_path)).difference == "the last picture is another"


def test_errors_are_left_out_unless_named_and_a_broken_simulator_costs_one_replay(tmp_path: Path) -> None:
    played(tmp_path, PointWorld(faults={"1": "raise"}))
    assert len(replay(PointWorld(), tmp_path)) == 11
    (named,) = replay(PointWorld(), tmp_path, episodes=["left/001"])
    assert named.difference.startswith("it ended in an error, of which no actions are kept: ValueError")
    found = replay(PointWorld(faults={"4": "exit"}), tmp_path, workers=2, environments=4)
    broke = only(found)
    assert broke.episode == "right/004" and len(found) == 11
    assert broke.difference.startswith(
        "the simulator broke after step 0: the worker process ended with code 3"
    )


class Pinned(PointWorld):
    """A world whose numbers are known for a version of numpy that nobody has."""

    software = {"numpy": "1.0", "vlm4vla-nothing": ""}  # noqa: RUF012

    def recipe(self):  # type: ignore[no-untyped-def]
        return "test_replay:Pinned", self._arguments


def test_other_versions_are_told_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = Pinned()
    results = played(tmp_path, world)
    told = capsys.readouterr().err
    assert (
        told.count(f"point-world-v1 is played with numpy {np.__version__} instead of 1.0: its numbers may")
        == 1
    )
    software = kept_software(tmp_path, results[0])
    assert software == software_of(world)
    assert software["numpy"] == np.__version__ and software["vlm4vla-nothing"] == "none"
    assert unpinned(PointWorld(), software) == ""

    path = next((tmp_path / "software").iterdir())
    assert path.stem == results[0].software
    path.write_text(json.dumps(software | {"numpy": "1.26.4"}))
    found = replay(world, tmp_path)
    assert {each.software for each in found} == {(f"numpy 1.26.4 then, {np.__version__} now",)}
    assert all(each.identical for each in found)
    path.write_text("{")
    with pytest.raises(RunError, match=r"damaged .*restore it from a copy"):
        replay(world, tmp_path)
    assert differences({"a": "1"}, {"a": "1", "b": "2"}) == ["b unknown then, 2 now"]


def test_a_worker_says_the_same_versions(tmp_path: Path) -> None:
    """Of a process and of this one: results do not depend on it."""
    here = played(tmp_path / "here")
    there = evaluate(Seeker(), PointWorld(), execute=3, folder=tmp_path / "there", workers=1, progress=False)
    assert {result.software for result in here} == {result.software for result in there} != {""}
    assert [changed(r, seconds=0.0) for r in read_log(tmp_path / "here" / "episodes.jsonl")[0]] != []


def test_a_simulator_that_cannot_start_is_told(tmp_path: Path) -> None:
    played(tmp_path)
    with pytest.raises(SimulatorError, match="could be started"):
        replay(PointWorld(broken="no display"), tmp_path, workers=1)


TABLETOP = EvaluationRecipe(
    benchmark="tabletop-a", look="A", tasks=("press", "lift"), episodes_per_task=1, execute=5, image_size=32
)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tabletop evaluations as a trial keeps them: one goal, and a chain."""
    folder = tmp_path_factory.mktemp("trial")
    resources = Resources(workers=0, progress=False)
    for recipe in (TABLETOP, changed(TABLETOP, benchmark="tabletop-chain-a", tasks=())):
        run_evaluation(RandomPredictor(ACTION_SPEC, 5, seed=2), recipe, folder, resources)
    return folder


def test_the_command_replays_tabletop(
    trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(trial), "--quiet"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert sum("2 of 2 episodes as recorded, to the bit" in line for line in told) == 1
    assert sum("1 of 1 episodes as recorded, to the bit" in line for line in told) == 1

    video = tmp_path / "press.mp4"
    arguments = ["replay", str(trial), "--episode", "A/press/10000/0000", "--quiet", "--json"]
    assert main([*arguments, "--video", str(video), "--workers", "auto"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert [each["identical"] for each in entry["episodes"]] == [True] and video.stat().st_size > 1000
    assert entry["folder"].endswith(fingerprint(TABLETOP))


def test_the_command_tells_what_is_wrong(
    trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        assert main(["replay", *arguments, "--quiet"]) == 1
        return capsys.readouterr().err

    assert "holds no evaluation (evaluation.json)" in error(str(tmp_path))
    assert "unknown recorded episode 'A/press'" in error(str(trial), "--episode", "A/press")
    assert "--video shows one episode of one evaluation" in error(
        str(trial), "--video", str(tmp_path / "v.mp4")
    )
    with pytest.raises(SystemExit):
        main(["replay", str(trial), "--workers", "-1"])
    assert "-1 is negative" in capsys.readouterr().err

    copy = tmp_path / "evaluations" / fingerprint(TABLETOP)
    shutil.copytree(trial / "evaluations" / fingerprint(TABLETOP), copy)
    rewrite(copy, "A/lift/10000/0000", last_image="0" * 16)
    told = error(str(copy))
    assert "1 of 2 episodes are not as recorded; A/lift/10000/0000: the last picture is another" in told
    recipe = json.loads((copy / "evaluation.json").read_text())
    (copy / "evaluation.json").write_text(json.dumps(recipe | {"seed": 3}))
    assert "was changed by hand" in error(str(copy))
