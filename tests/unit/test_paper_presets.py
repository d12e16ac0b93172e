"""The paper's trainings: every number against the paper and the released configurations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from vlm4vla.benchmarks.registry import make_benchmark
from vlm4vla.benchmarks.rollout import task_and_tier
from vlm4vla.cli import main
from vlm4vla.core.errors import RecipeError
from vlm4vla.core.recipes import EvaluationRecipe, Trial, check_policy, check_train, override, to_json
from vlm4vla.studies.paper import STUDIES
from vlm4vla.studies.paper_presets import PAPER_PRESETS, bridge, calvin, libero
from vlm4vla.studies.paper_settings import settings_of
from vlm4vla.studies.study import StudyRow

NINE = (
    "qwen2.5-vl-3b",
    "qwen2.5-vl-7b",
    "qwen3-vl-2b",
    "qwen3-vl-4b",
    "qwen3-vl-8b",
    "qwen3-vl-30b-a3b",
    "paligemma-1-3b",
    "paligemma-2-3b",
    "kosmos-2",
)


@pytest.mark.parametrize("name", PAPER_PRESETS)
def test_the_papers_numbers(name: str) -> None:
    """A.2.1: batch, learning rate, steps, chunk; Eq. 1: both terms of the loss weigh 1."""
    trial = PAPER_PRESETS[name]("qwen3-vl-4b")
    batch, rate, steps, chunk = {
        "calvin": (128, 2e-5, 30_000, 10),
        "bridge": (512, 5e-5, 50_000, 4),
        "libero": (512, 5e-5, 50_000, 4),
    }[name]
    train = trial.train
    assert (train.batch_size, train.learning_rate, train.steps, trial.policy.horizon) == (
        batch,
        rate,
        steps,
        chunk,
    )
    assert (train.pose_weight, train.gripper_weight, train.huber_delta) == (1, 1, 1)
    assert (train.schedule, train.weight_decay) == ("constant", 0)
    assert [recipe.execute for recipe in trial.evaluations] == [chunk, chunk // 2, 1]
    assert (trial.policy.image_size, trial.policy.prompt, trial.policy.freeze) == (224, "long", ())


def test_heads_that_draw_noise_play_every_episode_as_often_as_the_paper() -> None:
    """A.3: 3 runs of CALVIN, 240 plays of a task of SimplerEnv's, 250 of LIBERO's; others act alike each time."""
    plays = {}
    for name, preset in PAPER_PRESETS.items():
        assert {e.repeats for e in preset("qwen3-vl-4b").evaluations} == {1}
        noisy = preset("paligemma-1-3b", head="flow")
        (repeats,) = {e.repeats for e in noisy.evaluations}
        episodes = make_benchmark(noisy.evaluations[0]).episodes()
        plays[name] = repeats * len(episodes) // len({task_and_tier(e) for e in episodes})
        told = {s.name: (s.here, s.paper) for s in settings_of(name, noisy)}["plays of each episode"]
        assert told[0] == str(repeats) and str({"calvin": 3}.get(name, plays[name])) in told[1]
    assert plays == {"calvin": 3 * 1000, "bridge": 240, "libero": 250}
    rows = {row.name: row for study in ("table-1", "table-2") for row in STUDIES[study]("paper").rows}
    repeats = {e.repeats for row in rows.values() if row.name != "pi0" for e in evaluations_of(row)}
    assert repeats == {1} and {e.repeats for e in evaluations_of(rows["pi0"])} == {10, 5}
    (pi0,) = (row for row in STUDIES["table-1"]("paper").rows if row.name == "pi0")
    assert {e.repeats for e in evaluations_of(pi0)} == {3}


def evaluations_of(row: StudyRow) -> list[EvaluationRecipe]:
    return [evaluation for trial in row.trials.values() for evaluation in trial.evaluations]


@pytest.mark.parametrize("name", PAPER_PRESETS)
def test_every_backbone_has_the_same_recipe_in_the_papers_variant(name: str) -> None:
    trials = [PAPER_PRESETS[name](backbone) for backbone in NINE]
    assert len({json.dumps(to_json(trial.train)) for trial in trials}) == 1


def test_the_released_numbers() -> None:
    """They differ per backbone, which the paper's do not."""
    on_calvin = calvin("kosmos-2", variant="released")
    assert (on_calvin.train.steps, on_calvin.train.checkpoint_every, on_calvin.train.learning_rate) == (
        41_165,
        8_233,
        2e-5,
    )
    assert [recipe.execute for recipe in on_calvin.evaluations] == [10]
    configured = [name for name in NINE if name not in ("qwen3-vl-30b-a3b", "paligemma-2-3b")]
    rates = {name: bridge(name, variant="released").train.learning_rate for name in configured}
    assert {name for name, rate in rates.items() if rate == 5e-5} == {"paligemma-1-3b", "kosmos-2"}
    assert set(rates.values()) == {2e-5, 5e-5}
    intervals = [bridge(name, variant="released").train.checkpoint_every for name in configured]
    assert intervals == [5_000, 1_250, 10_000, 10_000, 10_000, 2_500, 2_500]
    assert [recipe.execute for recipe in libero(variant="released").evaluations] == [4, 2]
    for make in PAPER_PRESETS.values():
        trial = make(variant="released")
        assert (trial.train.gripper_weight, trial.train.clip_norm, trial.policy.query_init) == (
            0.01,
            0,
            "zeros",
        )
    chains = {name: make(variant="released").policy.normalization for name, make in PAPER_PRESETS.items()}
    assert chains == {
        "calvin": ("clip=0.65",),
        "bridge": ("quantiles", "clip=0.65"),
        "libero": ("quantiles", "clip=0.65"),
    }


@pytest.mark.parametrize("backbone", ["paligemma-2-3b", "qwen3-vl-30b-a3b", "openvla-7b", "tiny-kosmos-2"])
@pytest.mark.parametrize("make", [bridge, libero])
def test_there_is_no_released_variant_where_nothing_was_released(
    make: Callable[..., Trial], backbone: str
) -> None:
    with pytest.raises(
        RecipeError, match=f"no configuration of .* for '{backbone}'; it has them for qwen2.5"
    ):
        make(backbone, variant="released")
    shown = {s.name: s.released for s in settings_of(make.__name__, make(backbone))}
    assert shown["learning rate"].startswith("no configuration for this backbone")


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("name", PAPER_PRESETS)
def test_recipes_are_possible_and_every_setting_has_a_source(name: str, variant: str) -> None:
    trial = PAPER_PRESETS[name]("paligemma-1-3b", variant=variant)
    check_policy(trial.policy)
    check_train(trial.train, processes=8)
    settings = {setting.name: setting for setting in settings_of(name, trial)}
    assert all(s.here and s.paper and s.released and s.source for s in settings.values())
    if variant == "paper":
        for setting in ("batch size", "learning rate", "steps", "gripper's weight in the loss"):
            assert settings[setting].here == settings[setting].paper
        assert settings["chunk"].here == f"{settings['chunk'].paper} actions"
    else:
        for setting in ("normalisation", "query's start", "checkpoints", "warm-up"):
            assert settings[setting].released.startswith(settings[setting].here.removesuffix(" steps"))
        assert settings["precision"].here == "bf16 (there is no fp16 here)"
        assert settings["gradient clipping"].here == "off"
        assert (
            settings["gripper's weight in the loss"].here == settings["gripper's weight in the loss"].released
        )


def test_what_is_overridden_shows() -> None:
    trial = calvin()
    changed = override(trial.train, {"batch_size": "64"})
    changed = override(changed, {"part_rates": "vision=0.1", "augmentation": "none"})
    frozen = override(trial.policy, {"freeze": "vision,projector", "normalization": "quantiles"})
    shown = {s.name: s.here for s in settings_of("calvin", replace(trial, train=changed, policy=frozen))}
    assert shown["batch size"] == "64"
    assert shown["of the parts"] == "vision=0.1"
    assert shown["trained"] == "all but vision, projector"
    assert (shown["augmentation"], shown["normalisation"]) == ("none", "quantiles")


def test_what_the_released_code_does_to_colours_is_told_for_qwen_alone() -> None:
    told = {
        (preset, name): {s.name: s.released for s in settings_of(preset, PAPER_PRESETS[preset](name))}
        for preset in PAPER_PRESETS
        for name in NINE
    }
    negated = {key for key, rows in told.items() if rows["colours in training"].startswith("negated")}
    dense = [name for name in NINE if name.startswith("qwen") and "30b" not in name]  # 30B: no configuration
    assert negated == {(preset, name) for preset in ("bridge", "libero") for name in dense}


@pytest.mark.parametrize("preset", ["tabletop", "calvin"])
@pytest.mark.parametrize(
    "wrong",
    ["train.part_rates=eyes=1", "train.batch_size=0", "policy.horizon=0", "policy.normalization=mean"],
)
def test_a_plan_refuses_what_cannot_be_trained(
    preset: str, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", preset, "--plan", "--set", wrong]) == 1
    captured = capsys.readouterr()
    assert wrong.split("=")[0] in captured.err and not captured.out


def test_a_plan_of_tabletop_is_a_table_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tabletop", "--plan"]) == 0
    table = capsys.readouterr().out
    assert "nothing was started" in table and "batch_size" in table and "{" not in table


def test_the_plan_is_printed_and_nothing_started(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "bridge", "--backbone", "qwen2.5-vl-7b", "--variant", "released", "--plan"]) == 0
    table = capsys.readouterr().out
    assert "every 1,250 for this backbone: 40" in table
    assert "released code" in table
    assert main(["train", "bridge", "--backbone", "qwen2.5-vl-7b", "--no-evaluate"]) == 1
    assert "demonstrations of 'bridge' lie on disk: say where, --data FOLDER" in capsys.readouterr().err
