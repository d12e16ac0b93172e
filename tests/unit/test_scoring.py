"""Measures of answers: what each takes for right, wrong, and unreadable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlm4vla.cli_tune import scores
from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.tuning.examples import Exchange, Measure
from vlm4vla.tuning.scoring import WORST, Answer, read_answers, value_of, write_answers

REGION = np.zeros((10, 20), dtype=bool)
REGION[5:, 10:] = True
"""The lower right quarter."""
PATH = [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]
LETTERS: dict[str, Any] = {"choices": ("A", "B", "C")}


@pytest.mark.parametrize(
    "measure, answer, truth, said, value",
    [
        ("exact", "Red block", {}, "the red block.", 1.0),
        ("exact", "Red block", {}, "red", 0.0),
        ("exact", "Red block", {}, " . ", None),
        ("choice", "B", LETTERS, "B", 1.0),
        ("choice", "B", LETTERS, "B. The left one", 1.0),
        ("choice", "B", LETTERS, "(b)", 1.0),
        ("choice", "B", LETTERS, "Bright", None),
        ("choice", "B", LETTERS, "C", 0.0),
        ("choice", "left", {"choices": ("left", "far right")}, "Far right.", 0.0),
        ("points", "", {"region": REGION}, "[(0.75, 0.80)]", 1.0),
        ("points", "", {"region": REGION}, "[(0.75, 0.80), (0.2, 0.8), [0.6,0.9], (0.9, 1.2)]", 0.5),
        ("points", "", {"region": REGION}, "in the lower right", None),
        ("number", "4", {"value": 4.0}, "about 5 cm", 0.25),
        ("number", "4", {"value": 4.0}, "-40", 1.0),
        ("number", "0", {"value": 0.0}, "0", 0.0),
        ("number", "4", {"value": 4.0}, "four", None),
        ("trajectory", "", {"path": PATH}, "[(0.1, 0.1), (0.5, 0.1), (0.5, 0.5)]", 0.0),
        ("trajectory", "", {"path": PATH}, "[(0.1, 0.2), (0.5, 0.2), (0.5, 0.6)]", 0.1),
        ("trajectory", "", {"path": PATH}, "straight on", None),
    ],
)
def test_what_an_answer_is_worth(
    measure: Measure, answer: str, truth: dict[str, Any], said: str, value: float | None
) -> None:
    assert value_of(Exchange("?", answer, measure, truth), said) == pytest.approx(value)


def test_a_truth_that_a_measure_needs_is_asked_for() -> None:
    with pytest.raises(RecipeError, match="measure 'points' needs truth"):
        value_of(Exchange("where", "[(0.1, 0.1)]", "points"), "[(0.1, 0.1)]")


def made(said: str, value: float | None, measure: Measure = "choice") -> Answer:
    worth = WORST[measure] if value is None else value
    return Answer(
        id="a",
        task="t",
        measure=measure,
        question="q",
        answer="A",
        said=said,
        value=worth,
        readable=value is not None,
    )


def test_what_cannot_be_read_counts_as_wrong_and_is_told() -> None:
    answers = [made("A", 1.0), made("A", 1.0), made("B", 0.0), made("hm", None), made("?", None, "number")]
    choice, number = scores({"vlm": answers})
    assert (choice["value"], choice["n"], choice["unreadable"]) == (0.5, 4, 1)
    assert 0.1 < float(choice["low"]) < 0.2 and 0.8 < float(choice["high"]) < 0.9
    assert (number["value"], number["unreadable"]) == (1.0, 1)


def test_answers_are_kept_whole(tmp_path: Path) -> None:
    answers = [made("A", 1.0), made("\n\u2028", None)]
    write_answers(answers, tmp_path / "answers" / "a.jsonl")
    assert read_answers(tmp_path / "answers" / "a.jsonl") == answers
    (tmp_path / "answers" / "a.jsonl").write_text('{"id": ')
    with pytest.raises(RunError, match=r"a\.jsonl: damaged"):
        read_answers(tmp_path / "answers" / "a.jsonl")
