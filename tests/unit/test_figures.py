"""Figures: well-formed SVG whose positions are the numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from run_folders import make_trial, write_study, write_trial

from vlm4vla.core.recipes import TrainRecipe
from vlm4vla.reports import figures
from vlm4vla.reports.estimates import Estimate
from vlm4vla.reports.figures import Mark
from vlm4vla.reports.records import TrialRecord, collect
from vlm4vla.reports.results import evaluation_rows, labels


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialRecord, ...]:
    out = tmp_path_factory.mktemp("study")
    write_study(out, episodes_per_task=4)
    return collect(out)


def test_an_interval_stands_where_its_numbers_are() -> None:
    tree = ET.fromstring(figures.interval(Estimate(0.62, 0.48, 0.74), Mark("hue-0", False), title="a < b"))
    assert tree.findtext("title") == "a < b"
    bar, dot = tree.find("line[@class='bar']"), tree.find("circle")
    assert bar is not None
    assert dot is not None
    assert (bar.get("x1"), bar.get("x2"), dot.get("cx")) == ("48.00%", "74.00%", "62.00%")


def test_a_difference_has_zero_in_the_middle_and_is_marked_only_when_sure() -> None:
    sure = ET.fromstring(figures.difference(Estimate(0.5, 0.2, 0.7), title=""))
    unsure = ET.fromstring(figures.difference(Estimate(0.0, -0.2, 0.2), title=""))
    dot = unsure.find("circle")
    assert dot is not None
    assert dot.get("cx") == "50.00%"
    assert ("sure" in sure.get("class", "").split(), "sure" in unsure.get("class", "").split()) == (
        True,
        False,
    )


def test_success_by_task_has_a_dot_for_every_scored_row(records: tuple[TrialRecord, ...]) -> None:
    policies = {r.fingerprint: evaluation_rows(r, r.evaluations[0]) for r in records}
    tree = ET.fromstring(figures.success_by_task(policies, labels(records), figures.marks(records)))
    scored = [row for rows in policies.values() for row in rows if row.task != "all" and row.rate is not None]
    dots = tree.findall(".//g/circle")
    assert len(dots) == len(scored) == 45
    assert sorted(dot.get("cx", "") for dot in dots) == sorted(
        f"{100 * (row.rate or 0):.2f}%" for row in scored
    )
    titles = [title.text or "" for title in tree.findall(".//g/title")]
    assert any(title.startswith("random policy on press: ") for title in titles)


def test_learning_curves_show_every_held_out_point_twice(records: tuple[TrialRecord, ...]) -> None:
    tree = ET.fromstring(figures.learning_curves(records, labels(records), figures.marks(records)))
    points = sum(len(record.curve("held_out")) for record in records)
    assert len(tree.findall(".//svg[@class='plot']/circle")) == 2 * points
    assert len(tree.findall("figure")) == 1 + 5
    for line in tree.findall(".//polyline"):
        numbers = [float(n) for pair in line.get("points", "").split() for n in pair.split(",")]
        assert all(0 <= number <= 1000 for number in numbers)


def test_no_curves_no_figure(tmp_path: Path) -> None:
    write_trial(tmp_path, make_trial("random-policy"), skill=None)
    records = collect(tmp_path)
    assert figures.learning_curves(records, labels(records), figures.marks(records)) == ""


def test_backbones_have_hues_and_random_weights_are_hollow(records: tuple[TrialRecord, ...]) -> None:
    marks = [figures.marks(records)[record.fingerprint] for record in records]
    assert marks[1].hue == marks[2].hue != marks[3].hue == marks[4].hue
    assert [mark.hollow for mark in marks] == [False, False, True, False, True, False]
    assert marks[5].hue == "hue-none"


def test_trials_of_one_backbone_get_their_own_hues(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_trial(tmp_path, make_trial("tiny-qwen3-vl", train=TrainRecipe(steps=10, seed=seed)), skill=None)
    marks = figures.marks(collect(tmp_path))
    assert len({mark.hue for mark in marks.values()}) == 2


@pytest.mark.parametrize(("low", "high"), [(0.03, 0.5), (0.2, 0.21), (1e-4, 30.0), (0.1, 0.1), (1.0, 10.0)])
def test_the_loss_axis_is_round_and_holds_the_losses(low: float, high: float) -> None:
    bottom, top = figures.loss_bounds([low, high])
    assert bottom <= low < top
    assert high <= top
    assert len(figures.loss_ticks(bottom, top)) >= 1
