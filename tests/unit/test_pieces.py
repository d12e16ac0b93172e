"""Demonstrations kept one by one: as they were made, gone on with, made again where damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlm4vla.benchmarks.pieces import count, made, make_share, whole
from vlm4vla.core.errors import SimulatorError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    task: str
    actions: np.ndarray
    images: dict[str, list[np.ndarray]]
    files: list[bytes]
    frames: list[np.ndarray]


def one(number: int) -> Shown:
    rng = np.random.default_rng(number)
    return Shown(
        task=f"lift {number}",
        actions=rng.normal(size=(3, 7)).astype(np.float32),
        images={"front": [rng.integers(0, 255, (4, 4, 3), np.uint8) for _ in range(3)], "wrist": []},
        files=[rng.bytes(5 + number), b"", rng.bytes(2)],
        frames=[rng.integers(0, 255, (4, 4, 3), np.uint8) for _ in range(3)],
    )


def planned(total: int, made_here: list[int]) -> Iterator[tuple[str, Callable[[], Shown]]]:
    def make(number: int) -> Shown:
        made_here.append(number)
        return one(number)

    for number in range(total):
        yield f"piece-{number}", partial(make, number)


def alike(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(alike(first[key], second[key]) for key in first)
    if isinstance(first, str | bytes):
        return first == second
    return len(first) == len(second) and all(
        np.array_equal(a, b) if not isinstance(a, bytes) else a == b
        for a, b in zip(first, second, strict=True)
    )


def test_shares_together_are_the_whole_as_it_was_made(tmp_path: Path) -> None:
    here: list[int] = []
    assert make_share(planned(5, here), Shown, tmp_path / "kept", "0/2") == 3 and here == [0, 2, 4]
    assert make_share(planned(5, here), Shown, tmp_path / "kept", "1/2") == 2 and here == [0, 2, 4, 1, 3]
    assert count(tmp_path / "kept") == 5
    for number, piece in enumerate(made(planned(5, here), Shown, tmp_path / "kept")):
        expected = one(number)
        assert all(alike(getattr(expected, f.name), getattr(piece, f.name)) for f in fields(Shown))
    assert len(here) == 5, "none was made twice"
    assert [piece.task for piece in made(planned(2, here), Shown, None)] == ["lift 0", "lift 1"]


def test_what_is_there_is_not_made_again_and_what_is_damaged_is(tmp_path: Path) -> None:
    here: list[int] = []
    make_share(planned(3, here), Shown, tmp_path, "0/1")
    (tmp_path / "piece-1.npz").write_bytes((tmp_path / "piece-1.npz").read_bytes()[:100])
    (tmp_path / ".piece-2.npz.1234").write_bytes(b"half")
    here.clear()
    make_share(planned(4, here), Shown, tmp_path, "0/1")
    assert here == [1, 3] and count(tmp_path) == 4
    assert [p.task for p in made(planned(4, here), Shown, tmp_path)] == [f"lift {n}" for n in range(4)]


def test_a_piece_of_another_version_is_made_again(tmp_path: Path) -> None:
    here: list[int] = []
    make_share(planned(2, here), Shown, tmp_path, "0/1")
    with np.load(tmp_path / "piece-1.npz") as file:
        fewer = {name: file[name] for name in file.files if name != "actions"}
    np.savez_compressed(tmp_path / "piece-1.npz", **fewer)
    here.clear()
    assert [p.task for p in made(planned(2, here), Shown, tmp_path)] == ["lift 0", "lift 1"] and here == [1]
    make_share(planned(2, here), Shown, tmp_path, "0/1")
    assert here == [1, 1]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "set") as folder:
        (folder / "a").write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with whole(tmp_path / "set") as folder:
        (folder / "a").write_text("all")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    with pytest.raises(SimulatorError, match="exists already"), whole(tmp_path / "set"):
        pass


def test_a_full_disk_keeps_the_ones_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here: list[int] = []
    make_share(planned(1, here), Shown, tmp_path, "0/1")

    def full(file: Any, **arrays: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(SimulatorError, match=r"No space left.*before it are kept"):
        make_share(planned(2, here), Shown, tmp_path, "0/1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["piece-0.npz"]
