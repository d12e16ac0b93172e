"""Checkpoints times ways to execute, with a real tiny policy: one plan, the same numbers however it is interrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_trials

from vlm4vla.cli import main
from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.core.recipes import EvaluationRecipe, Trial, fingerprint, to_json
from vlm4vla.reports.records import collect
from vlm4vla.studies.checks import Resources
from vlm4vla.studies.execute import evaluate_again
from vlm4vla.studies.sweep import sweep
from vlm4vla.studies.tries import plan, recorded
from vlm4vla.training.checkpoints import latest_checkpoint
from vlm4vla.training.train import train

RECIPE = EvaluationRecipe(
    benchmark="tabletop-a",
    look="A",
    tasks=("press", "close"),
    episodes_per_task=3,
    execute=5,
    image_size=tiny_trials.SIDE,
)
QUIET = Resources(workers=0, progress=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trial]:
    """A trial of eight steps that kept the checkpoints of steps 2, 4, 6 and 8."""
    out = tmp_path_factory.mktemp("out")
    backbone = tiny_trials.tiny_vlm(out / "vlm")
    trial = tiny_trials.trial(backbone, checkpoint_every=1, keep_every=2)
    trial = replace(trial, evaluations=(RECIPE,))
    folder = out / "trials" / fingerprint(trial)
    train(trial, tiny_trials.packed(out / "walks"), folder, progress=False)
    (folder / "trial.json").write_text(json.dumps(to_json(trial)))
    (folder / "status.json").write_text('{"state": "done", "phase": "train"}')
    (folder / "provenance.json").write_text("{}")
    return folder, trial


def test_every_so_many_checkpoints_stay_without_what_continuing_needs(made: tuple[Path, Trial]) -> None:
    folder, _ = made
    kept = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    assert kept == [f"step-{step:06d}" for step in (2, 4, 6, 7, 8)]
    assert [(folder / "checkpoints" / name / "training_state").is_dir() for name in kept] == [
        *(False, False, False),
        *(True, True),
    ]
    assert latest_checkpoint(folder / "checkpoints") == folder / "checkpoints" / "step-000008"


def test_a_plan_names_tries_and_what_is_wrong(made: tuple[Path, Trial]) -> None:
    folder, _ = made
    ways = [RECIPE, replace(RECIPE, execute=1)]
    tries = plan(folder, ways, "all")
    assert [(each.step, each.recipe.execute) for each in tries] == [
        (step, execute) for step in (2, 4, 6, 7, 8) for execute in (5, 1)
    ]
    assert tries[-1].folder == folder and tries[0].folder == folder / "checkpoints" / "step-000002"
    assert [each.step for each in plan(folder, [RECIPE], "6,2")] == [2, 6]
    assert [each.step for each in plan(folder, [RECIPE])] == [8]
    one = folder / "checkpoints" / "step-000004"
    assert [each.folder for each in plan(one, ways)] == [one, one]
    with pytest.raises(RunError, match=r"no checkpoint of step 3, 5; there are those of 2, 4, 6, 7, 8"):
        plan(folder, ways, "3,5")
    with pytest.raises(RecipeError, match="write all, last or steps"):
        plan(folder, ways, "best")
    with pytest.raises(RecipeError, match="cannot execute 6 of them; choose 1 to 5"):
        plan(folder, [replace(RECIPE, execute=6)], "all")
    with pytest.raises(RecipeError, match="is one checkpoint"):
        plan(one, ways, "all")
    with pytest.raises(RunError, match="neither a trial's folder"):
        plan(folder.parent, ways, "all")


def test_a_sweep_is_the_same_as_its_evaluations_one_by_one(
    made: tuple[Path, Trial], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = made
    arguments = ["evaluate", str(folder), "--checkpoints", "2,8", "--execute", "5,2", "--workers", "0"]
    assert main([*arguments, "--plan", "--json"]) == 0
    assert [entry["played"] for entry in json.loads(capsys.readouterr().out)] == [0] * 4

    # One of them was played before, by itself.
    alone = evaluate_again(folder / "checkpoints" / "step-000002", RECIPE, QUIET)
    assert main([*arguments, "--plan", "--json"]) == 0
    assert [entry["played"] for entry in json.loads(capsys.readouterr().out)] == [6, 0, 0, 0]

    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "2 checkpoints x 2 ways to execute: 24 episodes, 6 of them played before" in captured.err
    assert captured.err.splitlines()[-1].startswith("step 8, 2 executed (4 of 4)  24/24 episodes, success ")
    assert captured.err.splitlines()[-1].endswith("0:00 left")
    title, head, _, *rows = [line.split() for line in captured.out.splitlines() if line]
    assert title[-4:] == ["of", "each", "chunk", "executed"] and head == ["step", "2", "5"]
    assert [row[0] for row in rows[:2]] == ["2", "8"] and all(row.count("%") == 2 for row in rows[:2])
    assert "Best of 4: step" in captured.out and "Chosen on one half of the episodes" in captured.out

    tries = plan(folder, [RECIPE, replace(RECIPE, execute=2)], "2,8")
    there = recorded(tries, (0, 1))
    assert [len(done) for _, done in there] == [6] * 4
    assert [there[0][1][name] for name in there[0][0]] == alone
    again = sweep(folder, tries, QUIET)  # loads no policy: nothing is missing
    assert again[0] == alone
    last = evaluate_again(folder, replace(RECIPE, execute=2), QUIET)
    assert again[3] == last

    assert main([*arguments, "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(t["step"], t["execute"], t["episodes"]) for t in found["tries"]] == [
        (2, 5, 6),
        (2, 2, 6),
        (8, 5, 6),
        (8, 2, 6),
    ]
    low, high = found["selection"]["honest"][1:]
    assert low <= found["selection"]["honest"][0] <= high <= 1
    assert found["selection"]["reported"] == max(t["success"][0] for t in found["tries"])

    # The report of the folder knows them too.
    (record,) = collect(folder.parents[1])
    assert sorted((step, e.recipe.execute) for step, e in record.earlier) == [(2, 2), (2, 5)]
    assert {e.recipe.execute for e in record.evaluations} == {2, 5}


def test_shards_of_a_sweep_are_the_sweep(made: tuple[Path, Trial]) -> None:
    folder, _ = made
    tries = plan(folder, [replace(RECIPE, seed=3)], "4,6")
    for number in (1, 0):
        sweep(folder, tries, replace(QUIET, shard=(number, 2)))
    assert [len(done) for _, done in recorded(tries, (0, 1))] == [6, 6]
    together = sweep(folder, tries, QUIET)
    assert [len(results) for results in together] == [6, 6]


def test_the_random_policy_has_ways_but_no_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = tiny_trials.trial(Path("random-policy"), steps=0)
    folder = tmp_path / "trials" / fingerprint(trial)
    folder.mkdir(parents=True)
    (folder / "trial.json").write_text(json.dumps(to_json(replace(trial, evaluations=(RECIPE,)))))
    with pytest.raises(RecipeError, match="has no checkpoints"):
        plan(folder, [RECIPE], "all")
    assert main(["evaluate", str(folder), "--execute", "1,5", "--workers", "0", "--quiet", "--json"]) == 0
    tries = json.loads(capsys.readouterr().out)["tries"]
    assert [(each["step"], each["execute"], each["episodes"]) for each in tries] == [
        (None, 1, 6),
        (None, 5, 6),
    ]
