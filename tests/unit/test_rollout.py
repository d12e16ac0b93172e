from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from point_world import SPEC, PointWorld, Seeker

from vlm4vla.benchmarks.records import actions_path, digest_of
from vlm4vla.benchmarks.rollout import RandomPredictor, evaluate
from vlm4vla.core.errors import ActionSpecMismatch, RecipeError, RunError, SimulatorError
from vlm4vla.core.types import EpisodeResult, Observation
from vlm4vla.testing import check_policy


def play(
    benchmark: PointWorld, folder: Path | None = None, *, execute: int = 3, **options: object
) -> list[EpisodeResult]:
    """In this process, quietly."""
    settings = {"workers": 0, "progress": False, **options}
    policy = settings.pop("policy", None) or Seeker()
    return evaluate(policy, benchmark, execute=execute, folder=folder, **settings)  # type: ignore[arg-type]


def timeless(results: Sequence[EpisodeResult]) -> list[EpisodeResult]:
    return [replace(result, seconds=0.0) for result in results]


def test_results_do_not_depend_on_how_many_play_at_once() -> None:
    for world in (PointWorld(), PointWorld(goals=3, max_steps=6)):
        alone, together = (timeless(play(world, environments=count)) for count in (1, 8))
        assert alone == together
        assert [result.episode for result in alone] == [spec.id for spec in world.episodes()]
        assert 0 < sum(result.goals_completed for result in alone) < sum(result.goals for result in alone), (
            "the test world should be neither 0 nor 1"
        )
        assert len({result.actions for result in alone}) == len(alone)


def test_any_part_and_order_of_the_episodes_gives_the_same_results() -> None:
    world = PointWorld()
    everything = {result.episode: result for result in timeless(play(world))}
    part = list(world.episodes())[7:2:-1]
    assert timeless(play(world, episodes=part)) == [everything[spec.id] for spec in part]


def test_a_lazy_environment_gives_the_same_results() -> None:
    assert timeless(play(PointWorld(goals=2))) == timeless(play(PointWorld(goals=2, lazy=True)))


def test_how_much_of_a_chunk_is_executed_changes_the_rollout() -> None:
    digests = [[result.actions for result in play(PointWorld(), execute=k)] for k in (1, 5)]
    assert digests[0] != digests[1]


def test_every_goal_has_its_own_steps_and_the_chain_ends_at_the_first_not_reached() -> None:
    class Recorder(Seeker):
        seen: list[str] = []  # noqa: RUF012

        def predict_chunk(self, observations: Sequence[Observation]) -> np.ndarray:
            self.seen += [observation.instruction for observation in observations]
            return super().predict_chunk(observations)

    world = PointWorld(goals=3, episodes_per_task=2, max_steps=11)
    for result in play(world, policy=Recorder(noise=0.0), environments=1, execute=5):
        assert result.success and result.goals_completed == 3
        assert 11 < result.steps <= 33, "more steps than one goal may take, fewer than three"
        assert (result.task, result.tier) == ("chain", "chain")
    assert Recorder.seen[0] == "go left" and "go right" in Recorder.seen and "go up" in Recorder.seen

    for result in play(world, policy=RandomPredictor(SPEC, 5, seed=3), execute=5):
        assert not result.success
        assert result.steps <= 11 * (result.goals_completed + 1)


def test_a_completed_goal_drops_the_rest_of_the_chunk() -> None:
    world = PointWorld(episodes_per_task=1, goals=2, max_steps=30)
    policy = Seeker(noise=0.0)
    per_chunk = [play(world, policy=policy, execute=5, environments=1)[0].steps for _ in range(2)]
    stepwise = play(world, policy=policy, execute=1, environments=1)[0].steps
    # Without noise every chunk points straight at the target, so only a chunk kept too long would cost steps.
    assert per_chunk[0] == per_chunk[1] == stepwise


def test_steps_never_exceed_the_limit_even_when_the_last_chunk_would() -> None:
    world = PointWorld(episodes_per_task=1, max_steps=7)
    results = play(world, policy=RandomPredictor(SPEC, 5), execute=5)
    assert [result.steps for result in results if not result.success] == [7, 7, 7]


def test_a_predictor_with_a_memory_hears_whose_observation_it_is_and_when_an_episode_ends() -> None:
    class Memory(Seeker):
        draws_noise = True

        def __init__(self) -> None:
            super().__init__()
            self.open: set[str] = set()
            self.ended: list[tuple[str, bool]] = []

        def predict_chunk(self, observations: Sequence[Observation]) -> np.ndarray:
            self.open |= {observation.episode for observation in observations}
            return super().predict_chunk(observations)

        def end_episode(self, episode: str, result: EpisodeResult | None) -> None:
            self.open.remove(episode)
            self.ended.append((episode, result is not None and result.success))

    policy = Memory()
    results = play(PointWorld(), policy=policy, environments=5, repeats=2)
    assert not policy.open
    assert sorted(policy.ended) == sorted((result.episode, result.success) for result in results)


def test_predictions_are_batched() -> None:
    policy = Seeker()
    play(PointWorld(), policy=policy, environments=12)
    assert max(policy.batches) >= 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"execute": 0}, "choose 1 to 5"),
        ({"execute": 6}, "choose 1 to 5"),
        ({"environments": 0}, "at least 1 environment"),
        ({"workers": -1}, "0 workers"),
        ({"videos": 1}, "without a folder"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        play(PointWorld(), **options)  # type: ignore[arg-type]


def test_another_action_convention_is_refused_before_a_step() -> None:
    policy = RandomPredictor(replace(SPEC, gripper="close_positive"), 5)
    with pytest.raises(ActionSpecMismatch, match="gripper: close_positive against open_positive"):
        play(PointWorld(broken="an environment was made"), policy=policy)


def test_repeated_ids_are_refused() -> None:
    world = PointWorld()
    with pytest.raises(SimulatorError, match="several episodes with the id 'left/000'"):
        play(world, episodes=[world.episodes()[0]] * 2)


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "not finite, at step 0"), (None, r"shape \(8, 4, 7\)")]
)
def test_a_policy_that_predicts_nonsense_stops_the_evaluation(value: float | None, words: str) -> None:
    class Nonsense(Seeker):
        def predict_chunk(self, observations: Sequence[Observation]) -> np.ndarray:
            if value is None:
                return np.zeros((len(observations), 4, 7), np.float32)
            return np.full((len(observations), 5, 7), value, np.float32)

    with pytest.raises(RunError, match=words):
        play(PointWorld(), policy=Nonsense())


def test_what_the_environment_raises_is_an_error_of_its_episode_alone() -> None:
    clean, faulty = play(PointWorld()), play(PointWorld(faults={"2": "raise", "9": "raise"}))
    for number, (a, b) in enumerate(zip(timeless(clean), timeless(faulty), strict=True)):
        if number in (2, 9):
            assert b.error is not None and b.error.startswith(
                "ValueError: the joint exploded (point_world.py:"
            )
            assert not b.success
        else:
            assert a == b


def test_an_interrupted_evaluation_continues_and_equals_an_unbroken_one(tmp_path: Path) -> None:
    class Interrupted(Seeker):
        def predict_chunk(self, observations: Sequence[Observation]) -> np.ndarray:
            if len(self.batches) == 5:
                raise KeyboardInterrupt
            return super().predict_chunk(observations)

    world, log = PointWorld(), tmp_path / "episodes.jsonl"
    with pytest.raises(KeyboardInterrupt):
        play(world, tmp_path, policy=Interrupted())
    kept = log.read_bytes()
    assert 0 < len(kept.splitlines()) < 12
    log.write_bytes(kept + kept[:37])  # the line under way when the power went
    assert timeless(play(world, tmp_path)) == timeless(play(world))
    assert log.read_bytes().startswith(kept)
    assert len(log.read_bytes().splitlines()) == 12
    before = log.read_bytes()
    assert len(play(world, tmp_path)) == 12
    assert log.read_bytes() == before, "nothing is left to play"


def test_an_error_is_tried_once_more_and_no_oftener(tmp_path: Path) -> None:
    hiccup = PointWorld(faults={"1": "once"}, setup={"file": str(tmp_path / "hiccup")})
    assert play(hiccup, tmp_path / "a")[1].error is not None
    assert play(hiccup, tmp_path / "a")[1].error is None

    broken = PointWorld(faults={"1": "raise"})
    lines = []
    for _ in range(4):
        assert play(broken, tmp_path / "b")[1].error is not None
        lines.append(len((tmp_path / "b" / "episodes.jsonl").read_text().splitlines()))
    assert lines == [12, 13, 13, 13]


def test_videos_of_the_first_episodes_of_each_task(tmp_path: Path) -> None:
    world = PointWorld(faults={"4": "raise"})
    recorded = play(world, tmp_path, videos=2)
    assert timeless(recorded) == timeless(play(world)), "recording changes nothing"
    lazy = PointWorld(faults={"4": "raise"}, lazy=True)
    assert timeless(play(lazy, tmp_path / "lazy", videos=2)) == timeless(play(lazy)), (
        "nor where it looks oftener"
    )
    rows = json.loads((tmp_path / "videos" / "videos.json").read_text())
    # right/004 broke and has none.
    assert [row["episode"] for row in rows] == ["left/000", "left/001", "right/005", "up/008", "up/009"]
    for row in rows:
        (result,) = [result for result in recorded if result.episode == row["episode"]]
        assert (row["task"], row["success"]) == (result.task, result.success)
        assert row["instruction"] == f"go {row['task']}"
        assert frames_of(tmp_path / "videos" / row["file"]) == result.steps + 1


def frames_of(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_the_random_policy_keeps_the_policy_contract() -> None:
    world = PointWorld()
    environment = world.make_environment()
    observations = [environment.reset(spec) for spec in world.episodes()]
    policy = RandomPredictor(SPEC, 10, seed=1)
    check_policy(policy, observations)
    chunks = policy.predict_chunk(observations)
    assert set(np.unique(chunks[..., 6])) == {-1.0, 1.0}
    assert -1 <= chunks.min() < -0.9 and 0.9 < chunks.max() <= 1
    assert abs(chunks[..., :6].mean()) < 0.1
    assert not np.array_equal(chunks, RandomPredictor(SPEC, 10, seed=2).predict_chunk(observations))


def test_repeats_are_other_plays_of_the_same_episodes(tmp_path: Path) -> None:
    world = PointWorld(episodes_per_task=3)
    policy = RandomPredictor(world.action_spec, horizon=4)
    results = evaluate(policy, world, execute=2, folder=tmp_path, workers=0, progress=False, repeats=3)
    count = len(world.episodes())
    assert [r.episode for r in results[:count]] == [spec.id for spec in world.episodes()]
    assert results[count].episode == f"{world.episodes()[0].id}~repeat-1"
    assert len({result.actions for result in results[::count]}) == 3  # other noise in each play
    first = evaluate(policy, world, execute=2, folder=None, workers=0, progress=False)
    assert [r.actions for r in first] == [r.actions for r in results[:count]]
    with pytest.raises(RecipeError, match="draws no noise"):
        evaluate(Seeker(), world, execute=1, folder=None, workers=0, progress=False, repeats=2)


def test_shards_together_are_the_evaluation(tmp_path: Path) -> None:
    world = PointWorld(episodes_per_task=3)
    for number in (2, 0, 1):
        evaluate(Seeker(), world, execute=1, folder=tmp_path, workers=0, progress=False, shard=(number, 3))
    assert sorted(p.name for p in tmp_path.glob("*.jsonl")) == [f"episodes-{i}-of-3.jsonl" for i in range(3)]
    whole = evaluate(Seeker(), world, execute=1, folder=tmp_path, workers=0, progress=False)
    alone = evaluate(Seeker(), world, execute=1, folder=None, workers=0, progress=False)
    assert [replace(r, seconds=0.0) for r in whole] == [replace(r, seconds=0.0) for r in alone]
    assert not (tmp_path / "episodes.jsonl").read_bytes()  # nothing was played twice
    with pytest.raises(RecipeError, match="shards count from 0"):
        evaluate(Seeker(), world, execute=1, folder=None, workers=0, progress=False, shard=(3, 3))


def test_the_actions_of_every_play_are_kept(tmp_path: Path) -> None:
    world = PointWorld()
    results = evaluate(Seeker(), world, execute=1, folder=tmp_path, workers=0, progress=False)
    for result in results:
        actions = np.load(actions_path(tmp_path, result.episode), allow_pickle=False)
        assert actions.shape == (result.steps, 7) and digest_of(actions) == result.actions
        assert len(result.last_image) == 16
