from __future__ import annotations

from pathlib import Path

import pytest

from vlm4vla.benchmarks.records import EpisodeLog
from vlm4vla.core.errors import RunError
from vlm4vla.core.types import EpisodeResult

NAMES = ["a/0", "a/1", "b/0"]


def result(name: str, error: str | None = None) -> EpisodeResult:
    return EpisodeResult(
        episode=name, task=name[0], tier="t", goals=1, goals_completed=1, steps=3, error=error
    )


def written(folder: Path, *results: EpisodeResult) -> Path:
    with EpisodeLog(folder, NAMES) as log:
        for each in results:
            log.add(each)
    return folder / "episodes.jsonl"


def test_results_are_in_the_file_at_once_and_read_back(tmp_path: Path) -> None:
    with EpisodeLog(tmp_path, NAMES) as log:
        log.add(result("a/1"))
        assert (tmp_path / "episodes.jsonl").read_text().endswith("}\n")
        assert not log.to_play("a/1") and log.to_play("a/0")
    with EpisodeLog(tmp_path, NAMES) as log:
        assert log.results == {"a/1": result("a/1")}


def test_the_last_attempt_counts_and_there_are_two(tmp_path: Path) -> None:
    written(tmp_path, result("a/0", "first"))
    with EpisodeLog(tmp_path, NAMES) as log:
        assert log.to_play("a/0")
    written(tmp_path, result("a/0", "second"))
    with EpisodeLog(tmp_path, NAMES) as log:
        assert not log.to_play("a/0")
        assert log.results["a/0"].error == "second"


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_half_written_last_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path, result("a/0"), result("a/1"))
    first = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(path.read_bytes()[:-cut])
    with EpisodeLog(tmp_path, NAMES) as log:
        assert list(log.results) == ["a/0"]
        log.add(result("b/0"))
    assert path.read_bytes().startswith(first)
    with EpisodeLog(tmp_path, NAMES) as log:
        assert list(log.results) == ["a/0", "b/0"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{\n", "damaged line"),
        (b"\n", "damaged line"),
        (b"7\n", "damaged line"),
        (b"\xff\xfe\n", "damaged line"),
        (b'{"episode": "a/0"}\n', "damaged line"),
        (b'{"episode": "a/0", "colour": 1}\n', "unknown field 'colour'"),
    ],
)
def test_damage_elsewhere_names_file_and_line_and_changes_nothing(
    tmp_path: Path, line: bytes, words: str
) -> None:
    path = written(tmp_path, result("a/0"), result("a/1"))
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + second + b"{half")
    with pytest.raises(RunError, match=rf"episodes\.jsonl:2: .*{words}"):
        EpisodeLog(tmp_path, NAMES)
    assert path.read_bytes() == first + line + second + b"{half"


def test_an_episode_of_another_benchmark_is_refused(tmp_path: Path) -> None:
    written(tmp_path, result("a/0"))
    with pytest.raises(RunError, match=r"episodes\.jsonl:1: episode 'a/0' is not of this benchmark"):
        EpisodeLog(tmp_path, ["z/0"])


def test_a_full_disk_is_one_clear_error() -> None:
    with EpisodeLog(None, NAMES) as log:
        log._path = Path("/dev/full")
        log._file = log._path.open("ab", buffering=0)
        with pytest.raises(RunError, match="No space left on device; free some space"):
            log.add(result("a/0"))
