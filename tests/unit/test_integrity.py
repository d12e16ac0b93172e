"""Records that were changed, moved or cut afterwards are found, named and kept out of the rates."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from run_folders import make_trial, small_study, write_json, write_trial

from vlm4vla.benchmarks.records import EpisodeLog, Origin, keep_software, misfits, read_log
from vlm4vla.benchmarks.registry import BENCHMARKS, make_benchmark, outline
from vlm4vla.cli import main
from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.core.recipes import EvaluationRecipe, TaskRecipe, TuneRecipe, fingerprint, to_json
from vlm4vla.core.types import EpisodeResult
from vlm4vla.reports.episodes import write_episodes
from vlm4vla.reports.records import collect, read_trial
from vlm4vla.reports.scores import score

RECIPE = EvaluationRecipe(look="A", tasks=("lift", "press"), episodes_per_task=4, execute=3)
TRIAL = make_trial("tiny-qwen3-vl", evaluations=(RECIPE,))
NAMES = [spec.id for spec in outline(RECIPE) or ()]
Lines = list[dict[str, Any]]


def write_log(folder: Path, names: list[str], *, trial: str, shard: tuple[int, int] = (0, 1)) -> Path:
    """As an evaluation does; every second episode fails."""
    origin = Origin(trial=trial, checkpoint=3000, evaluation=fingerprint(RECIPE), execute=3)
    with EpisodeLog(folder, NAMES, shard=shard, origin=origin) as log:
        for name in names:
            task, number = name.split("/")[1], NAMES.index(name)
            tier = {"lift": "single-block", "press": "fixed-target"}[task]
            log.add(
                EpisodeResult(
                    episode=name,
                    task=task,
                    tier=tier,
                    goals=1,
                    goals_completed=number % 2,
                    steps=20,
                    seconds=0.1,
                )
            )
        assert log._path is not None
        return log._path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole evaluation of a whole trial; its folder is the second parent of the log's."""
    made = write_trial(tmp_path, TRIAL, skill=0.5)
    log = next(made.glob("evaluations/*/episodes.jsonl"))
    log.unlink()
    write_log(log.parent, NAMES, trial=made.name)
    assert told(made) == []
    return made


def log_of(folder: Path) -> Path:
    return next(folder.glob("evaluations/*/episodes.jsonl"))


def told(folder: Path) -> list[str]:
    record = read_trial(folder)
    return [*record.problems, *(problem for e in record.evaluations for problem in e.problems_and_errors)]


def edit(folder: Path, change: Callable[[Lines], object]) -> None:
    log = log_of(folder)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    change(lines)
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))


def invent(lines: Lines) -> None:
    lines.append({**lines[-1], "episode": "A/lift/10000/0099"})


CHANGES: dict[str, tuple[Callable[[Lines], object], str]] = {
    "a failure made a success": (lambda n: n[2].update(goals_completed=1), "line 3 is not as written"),
    "several": (
        lambda n: [line.update(goals_completed=1) for line in n],
        "lines 1, 3, 5, 7 are not as written",
    ),
    "an error cleared": (lambda n: n[4].update(error=""), "line 5 is not as written"),
    "a line taken out": (lambda n: n.pop(3), "line 4 is not as written"),
    "the first line taken out": (lambda n: n.pop(0), "line 1 is not as written"),
    "lines exchanged": (lambda n: n.insert(1, n.pop(2)), "lines 2, 3, 4 are not as written"),
    "a digest removed": (lambda n: n[5].pop("digest"), "line 6 is not as written"),
    "all digests removed": (
        lambda n: [line.pop("digest") for line in n],
        "lines 1, 2, 3, 4, 5 and 3 more are not as written",
    ),
    "an episode invented": (
        invent,
        "1 result is not of this benchmark, and left out: 'A/lift/10000/0099'",
    ),
    "a second play": (
        lambda n: n.append({**n[0], "goals_completed": 1}),
        f"1 result is played again though nothing broke, and left out: {NAMES[0]!r}",
    ),
    "a repeat that the recipe has not": (
        lambda n: n.append({**n[0], "episode": f"{NAMES[0]}~repeat-1"}),
        "1 result is played more often than 1 times",
    ),
    "more goals than there are": (
        lambda n: n[1].update(goals_completed=2),
        "1 result is impossible, in goals or steps, and left out",
    ),
    "another number of goals": (lambda n: n[1].update(goals=5), "impossible, in goals or steps"),
    "too many steps": (lambda n: n[1].update(steps=41), "impossible, in goals or steps"),
    "the end cut": (lambda n: n.pop(), "3 of 4 episodes of"),
    "of another evaluation": (
        lambda n: n[0].update(evaluation="0123456789ab"),
        "line 1 is of another evaluation (evaluation 0123456789ab",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_log_is_named_and_makes_the_study_incomplete(name: str, folder: Path) -> None:
    change, words = CHANGES[name]
    edit(folder, change)
    assert any(words in problem for problem in told(folder)), told(folder)
    study = small_study(("one", {"tabletop": TRIAL}))
    assert any(words in problem for _, problem in score(study, folder.parents[1]).problems)


def test_what_cannot_be_is_in_no_rate(folder: Path) -> None:
    for name in ("an episode invented", "a second play", "more goals than there are"):
        edit(folder, CHANGES[name][0])
    (evaluation,) = read_trial(folder).evaluations
    assert {e.episode: e.goals_completed for e in evaluation.episodes} == {
        name: number % 2 for number, name in enumerate(NAMES) if number != 1
    }


def test_a_log_of_another_trial_is_named(folder: Path, tmp_path: Path) -> None:
    """Whole, with digests that fit: a better policy's results under another one's name."""
    other = write_trial(tmp_path, make_trial("tiny-paligemma-2", evaluations=(RECIPE,)), skill=0.1)
    log_of(other).write_bytes(log_of(folder).read_bytes())
    (found,) = told(other)
    assert (
        f"lines 1, 2, 3, 4, 5 and 3 more are of another evaluation (evaluation {fingerprint(RECIPE)}" in found
    )
    assert f"trial {folder.name}, checkpoint 3000" in found


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("trial.json", lambda data: data["policy"].update(freeze=["vision"])),
        ("trial.json", lambda data: data["train"].update(steps=30_000)),
        ("evaluation.json", lambda data: data.update(execute=1)),
        ("evaluation.json", lambda data: data.update(episodes_per_task=10**12)),
        ("evaluation.json", lambda data: data.update(look="D")),
    ],
)
def test_a_changed_recipe_is_named(name: str, change: Callable[[Any], None], folder: Path) -> None:
    (path,) = folder.rglob(name)
    data = json.loads(path.read_text())
    change(data)
    write_json(path, data)
    assert any(
        f"{name}: is not what its folder is named by (the folder is {path.parent.name}, the recipe" in problem
        for problem in told(folder)
    )
    assert sum(len(e.episodes) for e in read_trial(folder).evaluations) == 8, "results are still shown"


def test_a_changed_tuning_is_named(tmp_path: Path) -> None:
    tuning = TuneRecipe(backbone="tiny-qwen3-vl", tasks=(TaskRecipe(task="tabletop-general"),))
    trial = replace(TRIAL, tuning=tuning)
    folder = write_trial(tmp_path, trial, skill=0.5)
    path = tmp_path / "tunings" / fingerprint(tuning) / "tuning.json"
    path.parent.mkdir(parents=True)
    write_json(path, to_json(tuning))
    assert not any("tuning.json" in problem for problem in read_trial(folder).problems)
    write_json(path, to_json(replace(tuning, held_out=0.5)))
    assert any("tuning.json: is not what its folder" in problem for problem in read_trial(folder).problems)


def test_an_older_versions_folder_is_no_tampering(tmp_path: Path) -> None:
    """Its recipes had fewer fields, which its folders are named by, and its lines no digests."""
    older = to_json(TRIAL)
    del older["policy"]["lora_rank"], older["train"]["part_rates"], older["tuning"]
    recipe = older["evaluations"][0]
    del recipe["shows"]
    made = write_trial(tmp_path, TRIAL, skill=0.5)
    folder = made.rename(made.with_name(fingerprint(older)))
    write_json(folder / "trial.json", older)
    log = log_of(folder)
    write_json(log.parent / "evaluation.json", recipe)
    log.parent.rename(log.parent.with_name(fingerprint(recipe)))
    edit(folder, lambda lines: lines.__setitem__(slice(None), [n for n in lines if n["episode"] in NAMES]))
    assert told(folder) == []
    (record,) = collect(tmp_path)
    assert len(record.evaluations[0].episodes) == 8
    folder.rename(made)  # so that studies of this version find it
    log_of(made).parent.rename(log_of(made).parents[1] / fingerprint(RECIPE))
    assert told(made) == []
    write_json(made / "trial.json", {**older, "name": "another"})
    assert any("trial.json: is not what its folder is named by" in problem for problem in told(made))


def test_logs_that_are_put_together_are_whole(folder: Path) -> None:
    log = log_of(folder)
    log.unlink()
    for number in (2, 0, 1):
        write_log(log.parent, NAMES[number::3], trial=folder.name, shard=(number, 3))
    assert told(folder) == []
    parts = sorted(log.parent.glob("episodes-*.jsonl"))
    log.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert told(folder) == [], "beside its shards"
    for part in parts:
        part.unlink()
    assert told(folder) == [], "alone"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-1]) + lines[-1][:50])  # killed while the last line was written
    written = write_log(log.parent, [json.loads(lines[-1])["episode"]], trial=folder.name)
    assert told(folder) == [] and written.read_bytes().splitlines() == [line.strip() for line in lines]


def test_an_older_log_goes_on_with_digests(folder: Path) -> None:
    log = log_of(folder)
    plain = ("digest", *to_json(Origin(trial="", checkpoint=0, evaluation="", execute=0)))
    older = [
        {k: v for k, v in json.loads(n).items() if k not in plain} for n in log.read_text().splitlines()[:5]
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in older))
    write_log(log.parent, NAMES[5:], trial=folder.name)
    assert told(folder) == []
    assert [len(read_log(log)[0]), log.read_text().count('"digest"')] == [8, 3]
    edit(folder, lambda lines: lines[6].update(goals_completed=1))
    assert any("line 7 is not as written" in problem for problem in told(folder))


def test_a_changed_log_is_not_continued(folder: Path) -> None:
    log = log_of(folder)
    edit(folder, lambda lines: lines[2].update(goals_completed=1))
    before = log.read_bytes()
    with pytest.raises(
        RunError, match=r"episodes\.jsonl:3: not as it was written.*remove this line and all behind"
    ):
        write_log(log.parent, [], trial=folder.name)
    assert log.read_bytes() == before
    log.write_bytes(b"".join(before.splitlines(keepends=True)[:2]))  # as the message says
    write_log(log.parent, NAMES[2:], trial=folder.name)
    assert told(folder) == []
    with pytest.raises(RunError, match=r"episodes\.jsonl:1: .* of another evaluation"):
        write_log(log.parent, [], trial="0123456789ab")


def test_the_command_names_what_was_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder, invent)
    assert main(["report", str(folder.parents[1])]) == 0
    printed = capsys.readouterr().out
    assert "Incomplete" in printed and "A/lift/10000/0099" in printed
    assert "not of this benchmark" in (folder.parents[1] / "report.html").read_text()


def test_joined_records_tell_whose_each_is(folder: Path, tmp_path: Path) -> None:
    """Two evaluations of the same episodes: as they lie, and as one table."""
    step = folder / "checkpoints" / "step-001000" / "evaluations" / fingerprint(RECIPE)
    step.mkdir(parents=True)
    write_json(step / "evaluation.json", to_json(RECIPE))
    origin = Origin(trial=folder.name, checkpoint=1000, evaluation=fingerprint(RECIPE), execute=3)
    played = replace(read_log(log_of(folder))[0][0], software=keep_software(step, {"mujoco": "4.0"}))
    with EpisodeLog(step, NAMES, origin=origin) as log:
        log.add(played)
    raw = log_of(folder).read_text() + (step / "episodes.jsonl").read_text()
    lines = [json.loads(line) for line in raw.splitlines()]
    assert misfits(lines) == []
    told = [(n["trial"], n["checkpoint"], n["evaluation"], n["execute"], n["episode"]) for n in lines]
    assert len(set(told)) == 9 and len({n["episode"] for n in lines}) == 8

    for name in ("all.jsonl", "all.parquet"):
        assert main(["report", str(folder.parents[1]), "--episodes", str(tmp_path / name)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert pq.read_table(tmp_path / "all.parquet").to_pylist() == rows
    keys = ("trial", "checkpoint", "evaluation", "execute", "episode")
    assert sorted(tuple(row[key] for key in keys) for row in rows) == sorted(told)
    (early,) = [row for row in rows if row["checkpoint"] == 1000]
    assert (early["goals_completed"], early["error"], early["commit"]) == (0, None, "1f8c327d0a9b")
    assert json.loads(early["versions"])["played with"] == {"mujoco": "4.0"}
    assert json.loads(early["versions"])["torch"] == "2.13.0+cpu"
    with pytest.raises(RecipeError, match=r"ends in \.jsonl or \.parquet"):
        write_episodes([], tmp_path, tmp_path / "all.csv")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_episodes_of_a_benchmark_are_known_without_it(name: str) -> None:
    entry = BENCHMARKS[name]
    settings = {"episodes_per_task": 2} | {
        k: v for k, v in entry.defaults.items() if k != "episodes_per_task"
    }
    recipe = EvaluationRecipe(benchmark=name, **({"look": entry.arguments.get("look", "D")} | settings))  # type: ignore[arg-type]
    told = outline(recipe)
    assert told is not None
    assert [(s.id, len(s.goals), s.max_steps_per_goal) for s in told] == [
        (s.id, len(s.goals), s.max_steps_per_goal) for s in make_benchmark(recipe).episodes()
    ]
    assert outline(replace(recipe, benchmark="point_world:made_from_recipe")) is None


def test_what_is_installed_beside_a_simulator_makes_no_episode_unknown(tmp_path: Path) -> None:
    recipe = EvaluationRecipe(
        benchmark="simpler-bridge",
        look="",
        renderer="lavapipe",
        image_size=224,
        episodes_per_task=1,
        execute=3,
    )
    folder = write_trial(tmp_path, replace(TRIAL, evaluations=(recipe,)), skill=0.5)
    for part in ("", "-substitutes"):
        names = [f"simpler-bridge{part}-v1/{spec.goals[0].task}/00" for spec in outline(recipe) or ()]
        lines = [
            to_json(EpisodeResult(episode=n, task="t", tier="", goals=1, goals_completed=0, steps=60))
            for n in names
        ]
        log_of(folder).write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert told(folder) == []
