"""Tables for terminals and Markdown."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from run_folders import chain_result, make_trial, write_lines, write_study, write_trial

from vlm4vla.core.recipes import EvaluationRecipe
from vlm4vla.reports.estimates import Estimate
from vlm4vla.reports.records import TrialRecord, collect
from vlm4vla.reports.tables import Table, incomplete, markdown, p_text, percent, points, tables, terminal


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialRecord, ...]:
    out = tmp_path_factory.mktemp("study")
    write_study(out, episodes_per_task=4)
    return collect(out)


def test_numbers_as_they_are_written() -> None:
    assert percent(Estimate(0.62, 0.484, 0.741)) == "62 % [48, 74]"
    assert percent(None) == "\N{EM DASH}"
    minus = "\N{MINUS SIGN}"
    assert points(Estimate(0.12, -0.03, 0.27)) == f"+12 [{minus}3, +27]"
    assert points(Estimate(-0.001, -0.2, 0.004)) == f"0 [{minus}20, 0]"
    assert (p_text(1e-9), p_text(0.0123), p_text(0.5)) == ("p < 0.001", "p = 0.012", "p = 0.50")


def test_the_terminal_shows_rate_interval_count_and_errors(records: tuple[TrialRecord, ...]) -> None:
    text = terminal(records, width=200)
    assert "Success by tier · tabletop, look A, 3 actions of each chunk executed" in text
    line = next(line for line in text.splitlines() if line.startswith("tiny-paligemma-2, random weights"))
    assert "/34 (2 broke)" in line
    assert "Pretrained against random weights" in text
    assert "tiny-kosmos-2, pretrained" in text
    assert "has not been evaluated yet" in text


@pytest.mark.parametrize("width", [70, 100, 140])
def test_no_line_is_wider_than_asked(records: tuple[TrialRecord, ...], width: int) -> None:
    lines = terminal(records, width=width).splitlines()
    assert max(len(line) for line in lines if not line.startswith("Pretrained")) <= width


def test_columns_that_do_not_fit_follow_below_with_names_repeated() -> None:
    table = Table("title", ("name", "first", "second"), (("a", "1" * 20, "2" * 20), ("b", "3", "4")))
    assert table.text(80).count("name") == 1
    narrow = table.text(30)
    assert narrow.count("name") == 2
    assert narrow.index("1" * 20) < narrow.index("second")


def test_control_characters_do_not_reach_the_terminal() -> None:
    table = Table("t\x1b[2J", ("name",), (("a\nb\x07",),))
    assert not any(c in table.text() for c in "\x1b\x07")
    assert "a\N{REPLACEMENT CHARACTER}b" in table.text()


def test_markdown_has_a_row_per_row_and_escapes_bars(records: tuple[TrialRecord, ...]) -> None:
    assert (
        Table("t", ("a", "b"), (("x|y", "1"),)).markdown() == "**t**\n\n| a | b |\n|---|---|\n| x\\|y | 1 |"
    )
    for table in tables(records):
        lines = table.markdown().splitlines()
        assert len(lines) == len(table.rows) + 4
        assert {line.count("|") for line in lines[2:]} == {len(table.columns) + 1}
    assert "**Incomplete**" in markdown(records)


def test_incomplete_lists_every_reason(records: tuple[TrialRecord, ...]) -> None:
    reasons = [problem for _, problem in incomplete(records)]
    assert len(reasons) == 3
    assert reasons[2].endswith(
        "2 of 36 episodes broke and are in no rate; the first: SimulatorError: the physics diverged at step 11"
    )


def test_chains_are_shown_by_goals_in_a_row(tmp_path: Path) -> None:
    recipe = EvaluationRecipe(benchmark="tabletop-chain", look="A", episodes_per_task=6, execute=3)
    folder = write_trial(tmp_path, make_trial("tiny-qwen3-vl", evaluations=(recipe,)), skill=0.9)
    write_lines(
        next(folder.glob("evaluations/*/episodes.jsonl")), [asdict(chain_result(n)) for n in range(6)]
    )
    (table,) = tables(collect(tmp_path))
    assert table.columns[:3] == ("policy", "chain length", "1 in a row")
    assert table.rows[0][1].startswith("2.50 [")
    assert table.rows[0][2:] == ("83 %", "67 %", "50 %", "33 %", "17 %", "6", "0")
