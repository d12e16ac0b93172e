"""CALVIN's sentences and scenes: which spans of frames they are about."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from vlm4vla.core.errors import DataError
from vlm4vla.demonstrations.pickled import plain, read_array, read_pickled


@dataclass(frozen=True, slots=True)
class Spans:
    """Every annotation, in the order of the file."""

    starts: Int64[np.ndarray, " spans"]
    ends: Int64[np.ndarray, " spans"]
    """Exclusive."""
    sentences: list[str]
    tasks: list[str]
    ids: list[str]


@dataclass(frozen=True, slots=True)
class Scenes:
    """Which frames were recorded in which scene; empty where nothing tells."""

    ranges: Mapping[str, tuple[int, int]]
    """First and last frame."""

    def get(self, start: int, end: int) -> str | None:
        """The scene that frames start .. end - 1 lie in."""
        within = [name for name, (first, last) in self.ranges.items() if first <= start and end - 1 <= last]
        return within[0] if within else None


def annotations_of(folder: Path) -> Path:
    """The file of a split's sentences."""
    return folder / "lang_annotations" / "auto_lang_ann.npy"


def read_spans(path: Path) -> Spans:
    """The annotations in a file. Raises: DataError for anything but equally many sentences, tasks and spans."""
    if not path.exists():
        raise DataError(
            f"{path}: is missing; only spans with a sentence can be learned from. Unpack it from the archive"
        )
    content = read_pickled(path)
    try:
        language, info = content["language"], content["info"]
        sentences, tasks, pairs = plain(language["ann"]), plain(language["task"]), plain(info["indx"])
        pairs = [[operator.index(plain(number)) for number in plain(pair)] for pair in pairs]
        if not len(sentences) == len(tasks) == len(pairs) > 0:
            raise ValueError(f"{len(sentences)} sentences, {len(tasks)} tasks and {len(pairs)} spans")
        if not all(isinstance(text, str) for text in (*sentences, *tasks)):
            raise ValueError("a sentence or a task is no text")
        numbers = np.array(pairs, dtype=np.int64).reshape(len(pairs), 2)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: not CALVIN's annotations ({type(error).__name__}: {error}); unpack it again from the archive"
        ) from error
    starts, ends = numbers[:, 0], numbers[:, 1]
    wrong = np.flatnonzero((starts < 0) | (ends <= starts))
    if len(wrong):
        raise DataError(
            f"{path}: span {wrong[0]} goes from frame {starts[wrong[0]]} to before {ends[wrong[0]]}"
        )
    seen: dict[str, int] = {}
    ids = []
    for start, end in pairs:
        name = f"{start:07d}-{end:07d}"
        seen[name] = seen.get(name, 0) + 1
        ids.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return Spans(starts, ends, sentences, tasks, ids)


def read_scenes(folder: Path) -> Scenes:
    """Of a split; none where the file is absent or contradicts the stretches of play, each of which has one scene.

    CALVIN replaced it for all splits (its README, 16 Sep 2022 and 24 Feb 2023); old downloads have the wrong one.
    """
    path, play = folder / "scene_info.npy", folder / "ep_start_end_ids.npy"
    if not path.exists():
        return Scenes({})
    try:
        found = {
            name: [operator.index(plain(n)) for n in plain(ends)] for name, ends in read_pickled(path).items()
        }
        ranges = {name: (first, last) for name, (first, last) in found.items()}
        stretches = read_array(play.read_bytes()) if play.exists() else np.empty((0, 2), np.int64)
        scenes = Scenes(ranges)
        trusted = all(scenes.get(int(first), int(last) + 1) for first, last in stretches)
    except (DataError, TypeError, ValueError, OSError) as error:
        raise DataError(
            f"{path} or {play.name}: cannot be read ({error}). Unpack it again, or delete scene_info.npy: scenes are "
            "then unknown"
        ) from error
    borders = sorted(ranges.values())
    disjoint = all(last < first for (_, last), (first, _) in itertools.pairwise(borders))
    return scenes if trusted and disjoint else Scenes({})


def _merged(
    starts: Int64[np.ndarray, " spans"], ends: Int64[np.ndarray, " spans"]
) -> tuple[Int64[np.ndarray, " spans"], Int64[np.ndarray, " spans"]]:
    """Spans without what an earlier one covers, ascending; some are empty."""
    order = np.argsort(starts, kind="stable")
    reach = np.maximum.accumulate(ends[order])
    firsts = np.maximum(starts[order], np.append(0, reach[:-1]))
    return firsts, np.maximum(ends[order], firsts)


def union_size(starts: Int64[np.ndarray, " spans"], ends: Int64[np.ndarray, " spans"]) -> int:
    """How many frames lie in any span."""
    firsts, stops = _merged(starts, ends)
    return int((stops - firsts).sum())


def union(
    starts: Int64[np.ndarray, " spans"],
    ends: Int64[np.ndarray, " spans"],
    numbers: Int64[np.ndarray, " frames"],
) -> Int64[np.ndarray, " covered"]:
    """Those of the ascending numbers that lie in any span, each once."""
    firsts, stops = _merged(starts, ends)
    low, high = np.searchsorted(numbers, firsts), np.searchsorted(numbers, stops)
    return np.concatenate([numbers[a:b] for a, b in zip(low.tolist(), high.tolist(), strict=True)])
