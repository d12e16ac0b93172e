from __future__ import annotations

import pytest

from vlm4vla.benchmarks.calvin.expert import PLANS
from vlm4vla.benchmarks.libero.expert import TASKS
from vlm4vla.benchmarks.registry import BENCHMARKS, make_benchmark
from vlm4vla.studies.checks import check_recipe
from vlm4vla.studies.scripted import EVALUATIONS, SCRIPTED_STUDIES, SOURCES, scripted
from vlm4vla.studies.study import with_data


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
