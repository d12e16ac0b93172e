from __future__ import annotations

import io

import pytest

from vlm4vla.benchmarks.progress import Progress
from vlm4vla.core.types import EpisodeResult


def result(completed: int, goals: int = 1, error: str | None = None) -> EpisodeResult:
    return EpisodeResult(
        episode="e", task="t", tier="t", goals=goals, goals_completed=completed, steps=1, error=error
    )


def test_errors_are_counted_beside_the_rate_never_in_it() -> None:
    progress = Progress("world-v1", 10, [], shown=False)
    for each in (result(1), result(1), result(0), result(0, error="broke")):
        progress.add(each)
    line = progress.line(seconds=2.0)
    assert line == "world-v1  4/10 episodes, success 66.7%, 1 error, 2.00 episodes/s, 0:03 left"


def test_chains_show_their_length_and_earlier_results_do_not_count_as_speed() -> None:
    progress = Progress("chain-v1", 8, [result(5, 5), result(2, 5)], shown=False)
    assert progress.line(10.0) == "chain-v1  2/8 episodes, success 50.0%, chain length 3.50"
    progress.add(result(2, 5))
    assert progress.line(10.0).endswith("chain length 3.00, 0.10 episodes/s, 0:50 left")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_rewritten_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("vlm4vla.benchmarks.progress._TERMINAL_SECONDS", 0.0)
    progress = Progress("world-v1", 3, [], shown=True)
    for _ in range(3):
        progress.add(result(1))
    progress.finish()
    assert terminal.getvalue().count("\r") == 4 and terminal.getvalue().count("\n") == 1


def test_a_file_gets_few_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("world-v1", 50, [result(1)], shown=True)
    for _ in range(49):
        progress.add(result(1))
    progress.finish()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == "world-v1: 1 of 50 episodes were played before"
    assert len(captured.err.splitlines()) == 2 and "\r" not in captured.err
