"""What is wrong with a trial is found before any work is done."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tiny_trials import tiny_vlm

from vlm4vla.core.errors import RecipeError, RunError, SimulatorError
from vlm4vla.core.recipes import HEADS, Trial
from vlm4vla.policies import registry
from vlm4vla.studies.checks import Resources, check, facts_of
from vlm4vla.studies.execute import device_named, evaluate_again, run_trial
from vlm4vla.studies.presets import quickstart
from vlm4vla.studies.runs import RunStore


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    vlm = tiny_vlm(tmp_path_factory.mktemp("vlm") / "vlm")
    return quickstart([str(vlm)], demonstrations=8, steps=4, episodes=1)[0]


def changed(trial: Trial, section: str, **fields: object) -> Trial:
    part = dataclasses.replace(getattr(trial, section), **fields)  # type: ignore[arg-type]
    return dataclasses.replace(trial, **{section: part})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("section", "fields", "words"),
    [
        ("train", {"steps": 0}, "train.steps must be positive"),
        ("train", {"batch_size": 31}, "31 is not divisible by 2 processes"),
        ("policy", {"head": "mpl"}, "did you mean 'mlp'"),
        ("policy", {"image_size": 0}, "policy.image_size must be at least 1"),
        ("policy", {"head_body": (64, 0)}, "policy.head_body must be at least 1"),
        (
            "demonstrations",
            {"renderer": "opengl"},
            "set evaluation.renderer and demonstrations.renderer alike",
        ),
        ("demonstrations", {"image_size": 48}, "set evaluation.image_size"),
        ("demonstrations", {"looks": ("E",)}, "unknown look 'E'"),
    ],
)
def test_a_bad_recipe_costs_nothing(
    trial: Trial,
    section: str,
    fields: dict[str, object],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")  # as for a user of OpenGL; nothing is drawn here
    bad, store = changed(trial, section, **fields), RunStore(tmp_path / "out")
    with pytest.raises(RecipeError, match=words):
        run_trial(bad, store, resources=Resources(train_processes=2, progress=False))
    assert not store.root.exists()


def test_a_mirror_that_is_not_there_is_told_at_once(trial: Trial) -> None:
    with pytest.raises(RecipeError, match="did you mean 'wandb'"):
        check(trial, Resources(mirrors=("wandbb",)))
    with pytest.raises(RunError, match="pip install trackio"):
        check(trial, Resources(mirrors=("trackio",)))


def test_opengl_without_a_library_is_told_at_once(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    store = RunStore(tmp_path / "out")
    with pytest.raises(SimulatorError, match="needs MUJOCO_GL to be set"):
        run_trial(changed(trial, "demonstrations", renderer="opengl"), store)
    assert not store.root.exists()


def test_heads_have_their_classes() -> None:
    assert set(HEADS) == set(registry.HEADS)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu0"])
def test_an_unknown_device_is_answered_with_known_ones(name: str) -> None:
    with pytest.raises(RecipeError, match="Known: auto, cpu, cuda"):
        device_named(name)


def test_a_device_that_is_not_there() -> None:
    assert device_named("cpu") == "cpu"
    with pytest.raises(RecipeError, match="torch sees"):
        device_named("cuda:99")


def test_the_same_folder_with_other_weights_is_another_backbone(tmp_path: Path) -> None:
    vlm = tiny_vlm(tmp_path / "vlm")
    trial = quickstart([str(vlm)])[0]
    before, weights = facts_of(trial), vlm / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert facts_of(trial)["backbone"] != before["backbone"]


def test_a_training_that_is_not_finished_gives_no_results(trial: Trial, tmp_path: Path) -> None:
    """Else the episodes of an early checkpoint would be taken for the last one's."""
    from vlm4vla.demonstrations.packed import PackedSource
    from vlm4vla.studies.execute import make_demonstrations
    from vlm4vla.training.train import train

    store, resources = RunStore(tmp_path), Resources(progress=False, workers=0, demonstration_processes=1)
    with store.open(trial, facts=facts_of(trial)) as run:
        source = PackedSource(make_demonstrations(trial.demonstrations, store, resources))
        train(trial, source, run.folder, progress=False, stop_after=2)
    with pytest.raises(RunError, match=r"stopped at step-000002 of 4.*vlm4vla evaluate .*step-000002"):
        evaluate_again(run.folder, trial.evaluations[0], resources)
