"""Rows, the files they are written to, and who is compared with whom."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from run_folders import chain_result, make_trial, write_lines, write_study, write_trial

from vlm4vla.core.recipes import EvaluationRecipe, TrainRecipe
from vlm4vla.demonstrations.scripted import SCRIPTED
from vlm4vla.reports.page import page
from vlm4vla.reports.records import collect
from vlm4vla.reports.results import labels, rows, setting_labels, settings, weights_comparisons, write_results
from vlm4vla.reports.tables import markdown, terminal

SMALL = (EvaluationRecipe(look="A", episodes_per_task=4, execute=3),)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    write_study(out, episodes_per_task=4)
    return out


def without_seconds(path: Path) -> str:
    return json.dumps(
        [{k: v for k, v in row.items() if k != "seconds"} for row in json.loads(path.read_text())]
    )


def test_a_row_per_task_tier_and_whole(study: Path) -> None:
    found = [
        row for row in rows(collect(study)) if (row.backbone, row.weights) == ("tiny-qwen3-vl", "random")
    ]
    assert [(row.tier, row.task) for row in found] == [
        ("all", "all"),
        ("fixed-target", "all"),
        ("fixed-target", "close"),
        ("fixed-target", "open"),
        ("fixed-target", "press"),
        ("single-block", "all"),
        ("single-block", "lift"),
        ("single-block", "push_left"),
        ("single-block", "push_right"),
        ("single-block", "reach"),
        ("two-object", "all"),
        ("two-object", "place"),
        ("two-object", "stack"),
    ]
    tasks = [row for row in found if row.task != "all"]
    assert sum(row.successes for row in tasks) == found[0].successes
    assert found[0].episodes == 36
    assert found[0].rate == found[0].successes / 36
    assert found[0].train_steps == 3000


def test_broken_episodes_are_beside_the_rate(study: Path) -> None:
    found = [row for row in rows(collect(study)) if row.errors]
    assert {(row.tier, row.task) for row in found} == {
        ("all", "all"),
        ("two-object", "all"),
        ("two-object", "stack"),
    }
    stack = found[-1]
    assert (stack.episodes, stack.errors) == (2, 2)
    assert stack.rate == stack.successes / 2
    assert "2 of 4 episodes broke" in stack.incomplete


def test_unscored_is_null_and_says_why(study: Path) -> None:
    row = next(row for row in rows(collect(study)) if row.backbone == "tiny-kosmos-2")
    assert (row.episodes, row.rate, row.low, row.high) == (0, None, None, None)
    assert "has not been evaluated yet" in row.incomplete


def test_a_damaged_trial_still_has_a_row(tmp_path: Path) -> None:
    folder = write_trial(tmp_path, make_trial("tiny-qwen3-vl", evaluations=SMALL), skill=None)
    (folder / "trial.json").write_text("{")
    (row,) = rows(collect(tmp_path))
    assert (row.backbone, row.episodes, row.rate) == ("unknown", 0, None)
    assert "trial.json: damaged" in row.incomplete


def test_whoever_saw_scripted_demonstrations_is_called_so(tmp_path: Path) -> None:
    for backbone, facts in (("tiny-qwen3-vl", {"scripted": "by a test"}), ("tiny-paligemma-2", {})):
        folder = write_trial(tmp_path, make_trial(backbone, evaluations=SMALL), skill=0.9)
        kept = folder / "provenance.json"
        kept.write_text(json.dumps({**json.loads(kept.read_text()), **facts}))
    records = collect(tmp_path)
    assert sorted(labels(records).values()) == [
        "tiny-paligemma-2, pretrained",
        f"tiny-qwen3-vl, pretrained ({SCRIPTED})",
    ]
    assert {(row.backbone, row.note) for row in rows(records)} == {
        ("tiny-paligemma-2", ""),
        ("tiny-qwen3-vl", SCRIPTED),
    }
    for text in (terminal(records), markdown(records), page(records, title="Scores")):
        assert text.count(SCRIPTED) >= 2


def test_files_are_identical_apart_from_seconds(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "again")
    for path in (tmp_path / "again").glob("trials/*/evaluations/*/episodes.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        write_lines(path, [{**line, "seconds": line["seconds"] * 1.7} for line in reversed(lines)])
    for out in (study, tmp_path / "again"):
        write_results(collect(out), out)
    assert (study / "results.json").read_text() != (tmp_path / "again" / "results.json").read_text()
    assert without_seconds(study / "results.json") == without_seconds(tmp_path / "again" / "results.json")
    assert not list(study.glob(".results*"))


def test_csv_holds_the_same_rows(study: Path) -> None:
    write_results(collect(study), study)
    expected = json.loads((study / "results.json").read_text())
    with (study / "results.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert row == {k: "" if v is None else str(v) for k, v in other.items()}


def test_pretrained_against_random_is_paired_on_shared_episodes(study: Path) -> None:
    found = weights_comparisons(collect(study))
    assert [(arms.pretrained.backbone, arms.tier) for arms in found] == [
        (backbone, tier)
        for backbone in ("tiny-paligemma-2", "tiny-qwen3-vl")
        for tier in ("all", "fixed-target", "single-block", "two-object")
    ]
    assert all(arms.comparison.paired and arms.differing == () for arms in found)
    whole = {
        row.weights: row
        for row in rows(collect(study))
        if (row.backbone, row.tier) == ("tiny-qwen3-vl", "all")
    }
    assert whole["pretrained"].rate is not None
    assert whole["random"].rate is not None
    assert found[4].comparison.difference.value == pytest.approx(
        whole["pretrained"].rate - whole["random"].rate
    )


def test_a_pair_over_broken_episodes_uses_those_both_scored(study: Path) -> None:
    found = [a for a in weights_comparisons(collect(study)) if a.pretrained.backbone == "tiny-paligemma-2"]
    records = collect(study)
    first = {e.episode: e for e in records[1].evaluations[0].episodes}
    second = [e for e in records[2].evaluations[0].episodes if e.error is None]
    value = sum(first[e.episode].success - e.success for e in second) / len(second)
    assert len(second) == 34
    assert found[0].comparison.difference.value == pytest.approx(value)


def test_recipes_that_differ_otherwise_are_named(tmp_path: Path) -> None:
    write_trial(tmp_path, make_trial("tiny-qwen3-vl", evaluations=SMALL), skill=0.9)
    shorter = make_trial(
        "tiny-qwen3-vl", "random", evaluations=SMALL, train=TrainRecipe(steps=900, batch_size=64)
    )
    write_trial(tmp_path, shorter, skill=0.5)
    found = weights_comparisons(collect(tmp_path))
    assert found[0].differing == ("train.steps", "train.learning_rate", "train.warmup_steps")


def test_chains_have_a_length_and_one_row(tmp_path: Path) -> None:
    recipe = EvaluationRecipe(benchmark="tabletop-chain", look="A", episodes_per_task=30, execute=3)
    folder = write_trial(tmp_path, make_trial("tiny-qwen3-vl", evaluations=(recipe,)), skill=0.9)
    path = next(folder.glob("evaluations/*/episodes.jsonl"))
    write_lines(path, [asdict(chain_result(number)) for number in range(30)])
    (row,) = rows(collect(tmp_path))
    assert (row.tier, row.task, row.goals, row.episodes, row.successes) == ("all", "all", 5, 30, 5)
    assert row.incomplete == ""
    assert row.chain_length == 2.5
    assert row.chain_low is not None
    assert row.chain_high is not None
    assert row.chain_low < 2.5 < row.chain_high


def test_names_tell_trials_and_settings_apart(tmp_path: Path) -> None:
    for seed in (0, 1):
        trial = make_trial("tiny-qwen3-vl", evaluations=SMALL, train=TrainRecipe(steps=10, seed=seed))
        write_trial(tmp_path, trial, skill=None)
    write_trial(tmp_path, make_trial("random-policy", evaluations=SMALL), skill=None)
    records = collect(tmp_path)
    names = labels(records)
    assert len(set(names.values())) == 3
    assert names[records[-1].fingerprint] == "random policy"
    recipes = [SMALL[0], replace(SMALL[0], seed=7)]
    assert len(set(setting_labels(recipes).values())) == 2
    assert list(settings(records)) == [SMALL[0]]


def test_other_pictures_are_another_setting() -> None:
    recipes = [SMALL[0], replace(SMALL[0], renderer="opengl")]
    rays, opengl = setting_labels(recipes).values()
    assert opengl == f"{rays}, drawn with opengl"
