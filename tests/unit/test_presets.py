"""Presets: what they vary, what they share, and that nothing impossible is in them."""

from __future__ import annotations

import dataclasses

import pytest

from vlm4vla.benchmarks.registry import make_benchmark
from vlm4vla.core.recipes import PolicyRecipe, TrainRecipe, Trial, fingerprint, from_json, to_json
from vlm4vla.studies.paper_presets import PAPER_PRESETS
from vlm4vla.studies.presets import PRESETS, RANDOM_POLICY, quickstart, short_name, tabletop


@pytest.fixture(params=["quickstart", *(name for name in PRESETS if name not in PAPER_PRESETS)])
def trials(request: pytest.FixtureRequest) -> tuple[Trial, ...]:
    return quickstart() if request.param == "quickstart" else (PRESETS[request.param](),)


def test_recipes_survive_their_file(trials: tuple[Trial, ...]) -> None:
    assert tuple(from_json(Trial, to_json(trial)) for trial in trials) == trials


def test_every_evaluation_is_possible(trials: tuple[Trial, ...]) -> None:
    for trial in trials:
        for recipe in trial.evaluations:
            assert 1 <= recipe.execute <= trial.policy.horizon
            listed = make_benchmark(recipe).episodes()
            assert len({goal.tier for episode in listed for goal in episode.goals}) >= 2


def test_demonstrations_and_scores_never_share_a_seed_or_the_last_look(trials: tuple[Trial, ...]) -> None:
    for trial in trials:
        assert "D" not in trial.demonstrations.looks
        assert all(recipe.seed != trial.demonstrations.seed for recipe in trial.evaluations)
        assert {recipe.look for recipe in trial.evaluations} == {"A", "D"}


def test_what_is_scored_was_shown(trials: tuple[Trial, ...]) -> None:
    for trial in trials:
        if trial.policy.backbone != RANDOM_POLICY:
            assert {recipe.tasks for recipe in trial.evaluations} == {trial.demonstrations.tasks}


def test_the_quickstart_compares_on_the_same_episodes() -> None:
    trials = quickstart()
    assert len({trial.evaluations for trial in trials}) == 1
    assert len({trial.demonstrations for trial in trials[:-1]}) == 1
    assert [trial.policy.backbone for trial in trials].count(RANDOM_POLICY) == 1
    assert trials[-1].policy.backbone == RANDOM_POLICY
    assert len(trials) == 3
    assert all(recipe.episodes_per_task >= 10 for recipe in trials[0].evaluations)


def test_every_backbone_is_trained_alike() -> None:
    """Identical hyperparameters for all VLMs (Paper 3.3)."""
    trained = quickstart(["tiny-qwen3-vl", "tiny-kosmos-2", "a/b"])[:-1]
    assert len({trial.train for trial in trained}) == 1
    assert len({dataclasses.replace(trial.policy, backbone="same") for trial in trained}) == 1


def test_defaults_are_the_papers_calvin_setting() -> None:
    """A.1 and A.2.1."""
    recipe, policy = TrainRecipe(), PolicyRecipe(backbone="any")
    assert (recipe.steps, recipe.batch_size, recipe.learning_rate) == (30_000, 128, 2e-5)
    assert (recipe.schedule, recipe.weight_decay, recipe.pose_weight, recipe.gripper_weight) == (
        "constant",
        0,
        1,
        1,
    )
    assert (policy.image_size, policy.horizon) == (224, 10)


def test_what_is_chosen_arrives() -> None:
    trials = quickstart(["a/b"], weights="random", demonstrations=7, steps=3, episodes=5, seed=2)
    first = trials[0]
    assert (first.policy.backbone, first.policy.weights) == ("a/b", "random")
    assert (first.demonstrations.episodes, first.demonstrations.seed) == (7, 2)
    assert (first.train.steps, first.train.seed) == (3, 2)
    assert [recipe.episodes_per_task for recipe in first.evaluations] == [5, 3]
    assert len(trials) == 2


def test_names_and_fingerprints_tell_trials_apart() -> None:
    trials = [*quickstart(), *quickstart(weights="random")[:2], tabletop(), tabletop(seed=1)]
    assert len({fingerprint(trial) for trial in trials}) == len(trials)
    assert len({trial.name for trial in quickstart()}) == 3


def test_short_names() -> None:
    assert short_name("tiny-qwen3-vl") == "tiny-qwen3-vl"
    assert short_name("organisation/model-7b") == "model-7b"
    assert short_name("/data/models/mine") == "mine"
