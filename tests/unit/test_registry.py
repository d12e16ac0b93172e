from __future__ import annotations

import subprocess
import sys

import pytest
from point_world import PointWorld

from vlm4vla.benchmarks.registry import BENCHMARKS, load, make_benchmark
from vlm4vla.core.errors import RecipeError
from vlm4vla.core.recipes import EvaluationRecipe


def point_world(recipe: EvaluationRecipe) -> PointWorld:
    return PointWorld(episodes_per_task=recipe.episodes_per_task)


@pytest.mark.parametrize("name", [name for name, entry in BENCHMARKS.items() if entry.simulator is None])
def test_every_name_makes_its_benchmark(name: str) -> None:
    look = "A" if name.endswith("-a") else "D"
    benchmark = make_benchmark(
        EvaluationRecipe(benchmark=name, look=look, episodes_per_task=1, image_size=32, seed=7)
    )
    assert benchmark.name == f"{name.removesuffix('-a').removesuffix('-d')}-{look.lower()}-v1"
    _, arguments = benchmark.recipe()
    assert (arguments["look"], arguments["image_size"], arguments["seed"]) == (look, 32, 7)
    assert len(benchmark.episodes()) == (1 if "chain" in name else 9)


def test_the_recipe_chooses_tasks() -> None:
    benchmark = make_benchmark(
        EvaluationRecipe(benchmark="tabletop-d", tasks=("press", "lift"), episodes_per_task=2)
    )
    assert [spec.goals[0].task for spec in benchmark.episodes()] == ["press", "press", "lift", "lift"]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (
            EvaluationRecipe(benchmark="tabeltop-a"),
            "unknown benchmark 'tabeltop-a': did you mean 'tabletop-a'",
        ),
        (
            EvaluationRecipe(benchmark="tabletop-a", look="D"),
            "has look 'A', but the recipe's field look says 'D'",
        ),
        (EvaluationRecipe(benchmark="tabletop-chain", tasks=("press",)), "no choice of tasks"),
        (EvaluationRecipe(benchmark="nowhere.at_all:make"), "there is no module 'nowhere'"),
        (EvaluationRecipe(benchmark="point_world:Missing"), "no attribute 'Missing'"),
        (EvaluationRecipe(benchmark="point_world:"), "no address of the form module:name"),
    ],
)
def test_what_cannot_be_made_is_one_clear_error(recipe: EvaluationRecipe, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make_benchmark(recipe)


def test_a_private_benchmark_needs_no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("point_world.made_from_recipe", point_world, raising=False)
    made = make_benchmark(EvaluationRecipe(benchmark="point_world:made_from_recipe", episodes_per_task=2))
    assert isinstance(made, PointWorld) and len(made.episodes()) == 6


def test_a_missing_dependency_is_not_mistaken_for_a_wrong_address(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "needs_more.py").write_text("import a_simulator_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_simulator_nobody_has"):
        load("needs_more:make")


def test_names_are_known_without_a_simulator_torch_or_scipy() -> None:
    code = (
        "import sys, vlm4vla.benchmarks.registry, vlm4vla.benchmarks.rollout; "
        "print([name for name in ('torch', 'transformers', 'mujoco', 'scipy', 'av') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
