"""Studies on the simulators beside Tabletop, with demonstrations that their scripted experts make: does the whole chain
from demonstrations to closed loop carry a policy well beyond chance?

`make simulator-study` makes the demonstrations and runs them. No score of theirs is a score of CALVIN's, LIBERO's or
SimplerEnv's: their data were not seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from vlm4vla.core.recipes import DemonstrationRecipe, EvaluationRecipe
from vlm4vla.studies.presets import quickstart, random_policy
from vlm4vla.studies.study import Column, MakeStudy, Scale, Study, StudyRow

BACKBONE = "tiny-qwen3-vl"
SOURCES: Mapping[str, str] = {"calvin": "calvin", "libero": "libero", "simpler": "bridge"}
"""By simulator, the source that its scripted demonstrations are read as."""
BOWL = "put_the_bowl_on_the_plate"
STEPS: Mapping[str, int] = {"calvin": 600, "libero": 2400, "simpler": 2400}
"""Of training: drawers and switches have fixed places, what is grasped has not."""
EVALUATIONS: Mapping[str, EvaluationRecipe] = {
    "calvin": EvaluationRecipe(
        benchmark="calvin-d-tasks",
        look="",
        tasks=("open_drawer", "turn_on_led"),
        episodes_per_task=30,
        execute=5,
        image_size=200,
        renderer="egl",
    ),
    "libero": EvaluationRecipe(
        benchmark="libero-goal",
        look="",
        tasks=(BOWL,),
        episodes_per_task=0,
        execute=5,
        image_size=256,
        renderer="egl",
    ),
    "simpler": EvaluationRecipe(
        benchmark="simpler-bridge",
        look="",
        tasks=("carrot", "cube"),
        episodes_per_task=0,
        execute=5,
        image_size=224,
        renderer="lavapipe",
    ),
}


def scripted(
    simulator: str,
    scale: Scale = "tabletop",
    *,
    steps: int = 0,
    image_size: int = 64,
    folder: str = "",
) -> Study:
    """A tiny VLM, trained as in the quickstart (for CALVIN a quarter as long), against the random policy.

    `steps`: of training; 0: as many as `STEPS` says. Chunks of 10 actions, of which half are executed: episodes here
    are several times as long as Tabletop's. `folder` holds the demonstrations, else `--data` says where. `scale`
    changes nothing.
    """
    evaluation = EVALUATIONS[simulator]
    base = quickstart((BACKBONE,), steps=steps or STEPS[simulator], image_size=image_size)[0]
    trial = replace(
        base,
        name=f"scripted {simulator} {BACKBONE}",
        policy=replace(base.policy, horizon=10),
        demonstrations=DemonstrationRecipe(
            source=SOURCES[simulator],
            path=(folder,) if folder else (),
            episodes=0,
            looks=(),
            image_size=image_size,
        ),
        evaluations=(evaluation,),
    )
    chance = replace(random_policy((evaluation,)), name=f"scripted {simulator} random policy")
    return Study(
        name=f"scripted-{simulator}",
        title=f"Scripted demonstrations of {simulator}",
        question="Does a policy trained on them beat chance in closed loop?",
        columns=tuple(Column(name=task, task=task) for task in evaluation.tasks),
        rows=(
            StudyRow(name=BACKBONE, trials={"seed 0": trial}),
            StudyRow(name="random policy", trials={"seed 0": chance}),
        ),
        about=("policy", "demonstrations", "train"),
        notes=(
            f"demonstrations are a scripted expert's, so this is no score of {evaluation.benchmark}",
            "one seed: the intervals are over episodes, and say nothing of another training",
        ),
    )


SCRIPTED_STUDIES: Mapping[str, MakeStudy] = {f"scripted-{name}": partial(scripted, name) for name in SOURCES}
