from __future__ import annotations

import pytest

from vlm4vla.benchmarks.calvin.expert import PLANS
from vlm4vla.benchmarks.libero.expert import TASKS
from vlm4vla.benchmarks.registry import BENCHMARKS, make_benchmark
from vlm4vla.cli import build_parser
from vlm4vla.core.errors import RecipeError
from vlm4vla.core.recipes import EvaluationRecipe
from vlm4vla.studies.checks import check_recipe
from vlm4vla.studies.choices import chosen_evaluation
from vlm4vla.studies.paper import STUDIES
from vlm4vla.studies.scripted import EVALUATIONS, SCRIPTED_STUDIES, SOURCES, scripted
from vlm4vla.studies.study import with_data, with_renderer


@pytest.mark.parametrize("simulator", SOURCES)
def test_both_rows_play_the_same_episodes(simulator: str) -> None:
    study = SCRIPTED_STUDIES[f"scripted-{simulator}"]("paper")
    ours, chance = study.trials
    assert ours.evaluations == chance.evaluations == (EVALUATIONS[simulator],)
    check_recipe(ours)
    (recipe,) = ours.evaluations
    entry = BENCHMARKS[recipe.benchmark]
    assert entry.simulator == simulator and recipe.image_size == entry.defaults["image_size"]
    tasks = {spec.goals[0].task for spec in make_benchmark(recipe).episodes()}
    assert tasks == set(study.column_names) == set(recipe.tasks)
    assert (
        simulator == "simpler" or set(recipe.tasks) <= {"calvin": set(PLANS), "libero": set(TASKS)}[simulator]
    )


def test_demonstrations_lie_where_data_says() -> None:
    study = with_data(scripted("calvin"), {"calvin": "/data/scripted"})
    assert study.trials[0] == scripted("calvin", folder="/data/scripted").trials[0]
    assert study.trials[0].demonstrations.path == ("/data/scripted",)


def test_another_renderer_makes_another_study() -> None:
    """Of several simulators those change that have it; the name says so, and nothing is drawn otherwise unasked."""
    study = with_renderer(scripted("libero"), "osmesa")
    assert study.name == "scripted-libero-osmesa" and "drawn with osmesa" in study.notes[-1]
    assert {recipe.renderer for trial in study.trials for recipe in trial.evaluations} == {"osmesa"}
    assert with_renderer(scripted("calvin"), "egl") == scripted("calvin")
    paper = with_renderer(STUDIES["table-3"]("paper"), "tiny")
    drawn = {(r.benchmark.partition("-")[0], r.renderer) for trial in paper.trials for r in trial.evaluations}
    assert ("calvin", "tiny") in drawn and {renderer for name, renderer in drawn if name != "calvin"} <= {
        "egl",
        "lavapipe",
    }
    with pytest.raises(RecipeError, match="egl or tiny, not with 'osmesa'"):
        with_renderer(scripted("calvin"), "osmesa")
    with pytest.raises(RecipeError, match="no simulator whose renderer can be chosen"):
        with_renderer(STUDIES["table-3"]("tabletop"), "opengl")


def test_evaluate_sets_any_field_of_an_evaluation() -> None:
    def chosen(*words: str) -> EvaluationRecipe:
        return chosen_evaluation(
            build_parser().parse_args(["evaluate", "run", *words]), [EVALUATIONS["calvin"]]
        )

    assert chosen() == EVALUATIONS["calvin"]
    tiny = chosen("--renderer", "tiny")
    assert tiny.renderer == "tiny" and tiny == chosen("--set", "renderer=tiny")
    assert tiny == chosen("--set", "evaluation.renderer=tiny")
    both = chosen("--set", "execute=1", "--set", "shows=wrist_image,state", "--set", "image_size=64")
    assert (both.execute, both.shows, both.image_size) == (1, ("wrist_image", "state"), 64)
    for wrong, told in (
        ("train.steps=1", "write FIELD=VALUE with a field of the evaluation"),
        ("tiny", "write FIELD=VALUE"),
        ("rendrer=tiny", "renderer"),
        ("image_size=big", "image_size"),
    ):
        with pytest.raises(RecipeError, match=told):
            chosen("--set", wrong)
