"""What is wrong with demonstrations, found before anything is trained on them: every fault with its place and remedy.

What no program can know (a flipped gripper, the wrong camera, a picture upside down) is for the eye: `view.py`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float64, Shaped, UInt8

from vlm4vla.core.actions import ACTION_SIZE, GRIPPER, ActionSpec
from vlm4vla.core.errors import DataError
from vlm4vla.core.interfaces import DemonstrationSource
from vlm4vla.core.types import Demonstration
from vlm4vla.demonstrations.recordings import Reader, Recording
from vlm4vla.demonstrations.statistics import DIMENSIONS

Severity = Literal["error", "warning"]
Decode = Literal["none", "sample", "all"]
"""Which frames are looked at: none, the first, middle and last of every episode, or all."""

KINDS: Mapping[str, tuple[Severity, str]] = {
    "unreadable": ("error", "copy or download the file again, or leave it out"),
    "undecodable": ("error", "copy or download the file again, or leave the episode out"),
    "not finite": ("error", "leave the episode out, or repair the column where it was made"),
    "width": ("error", "name the column that holds the actions; all episodes must have equally many numbers"),
    "frames": ("error", "there must be one frame for each action: record or cut the episode again"),
    "duplicate id": ("error", "give every episode an id of its own; the same file may be there twice"),
    "no episodes": ("error", "check the folder, the filters and what is missing"),
    "beyond bound": ("warning", "check the unit; a turn near 2 pi is an angle that wrapped around"),
    "no instruction": ("warning", "the transform `with_instruction` leaves such episodes out"),
    "short": ("warning", "an episode of fewer than two steps teaches nothing: leave it out"),
    "constant dimension": ("warning", "check the order of the columns; normalisation maps it to 0"),
    "gripper still": ("warning", "check which column the gripper is and whether its values were cut off"),
    "frozen camera": ("warning", "look at the episode; a camera that stopped shows nothing of the actions"),
    "black": ("warning", "check that this camera recorded; choose another one"),
    "image size": ("warning", "bring all to one size before packing; training resizes them anyway"),
    "missing": ("warning", "copy or download the rest; what lacks a file is left out"),
}
"""What can be found, how bad it is, and what to do."""

_DARK = 8
"""A picture without a brighter pixel is black; JPEG leaves a little noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault of one episode, or of the whole."""

    kind: str
    """One of `KINDS`."""
    where: str
    what: str

    @property
    def severity(self) -> Severity:
        """An error spoils training or stops it; a warning may be meant."""
        return KINDS[self.kind][0]

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return KINDS[self.kind][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All faults, counted; of every kind the first few."""

    name: str
    episodes: int
    steps: int
    frames: int
    """How many were looked at."""
    counts: Mapping[str, int]
    """By kind, errors first."""
    examples: tuple[Finding, ...]

    def total(self, severity: Severity) -> int:
        """Faults of this severity."""
        return sum(count for kind, count in self.counts.items() if KINDS[kind][0] == severity)

    def lines(self) -> Iterator[str]:
        """For a terminal: a summary, then every kind with its examples and its remedy."""
        looked = f"{self.frames:,} frames looked at"
        faults = f"errors {self.total('error'):,}, warnings {self.total('warning'):,}"
        yield f"{self.name}: {self.episodes:,} episodes, {self.steps:,} steps, {looked}: {faults}"
        for kind, count in self.counts.items():
            severity, remedy = KINDS[kind]
            yield f"{severity}: {kind} ({count:,}): {remedy}"
            shown = [example for example in self.examples if example.kind == kind]
            yield from (f"    {example.where}: {example.what}" for example in shown)
            if count > len(shown):
                yield f"    ... and {count - len(shown):,} more"


@dataclass(slots=True)
class _Seen:
    """What is remembered from episode to episode; its size does not grow with their length."""

    limits: Float64[np.ndarray, " dim"] | None
    width: int | None
    steps: int = 0
    frames: int = 0
    ids: set[bytes] = field(default_factory=set)
    size: tuple[int, ...] | None = None
    least: Shaped[np.ndarray, " dim"] | None = None
    most: Shaped[np.ndarray, " dim"] | None = None


def examine(
    source: Reader | DemonstrationSource,
    *,
    decode: Decode = "sample",
    bound: float | None = None,
    examples: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Look through recordings or demonstrations, one at a time; memory does not grow with their frames.

    `bound` is the largest magnitude an action may have. Unless given it follows from the source's action convention: 1
    for controller units, 1 metre and pi radians a step otherwise; without a convention nothing is too large.
    `examples` are kept of every kind; `progress` is called with how many episodes were read, and of how many.
    """
    seen = _Seen(*_expected(source, bound))
    counts: Counter[str] = Counter()
    kept: list[Finding] = []
    for finding in _findings(source, decode, seen, progress):
        counts[finding.kind] += 1
        if counts[finding.kind] <= examples:
            kept.append(finding)
    return Report(
        name=source.name,
        episodes=len(source),
        steps=seen.steps,
        frames=seen.frames,
        counts={kind: counts[kind] for kind in KINDS if counts[kind]},
        examples=tuple(kept),
    )


def _expected(
    source: Reader | DemonstrationSource, bound: float | None
) -> tuple[Float64[np.ndarray, " dim"] | None, int | None]:
    spec = getattr(source, "action_spec", None)
    if not isinstance(spec, ActionSpec):
        return None if bound is None else np.array([bound]), None
    if bound is None:
        limits = [1.0] * ACTION_SIZE if spec.unit == "controller" else [1.0] * 3 + [np.pi] * 3 + [1.0]
    else:
        limits = [bound] * ACTION_SIZE
    return np.array(limits) + 1e-6, ACTION_SIZE


def _findings(
    source: Reader | DemonstrationSource,
    decode: Decode,
    seen: _Seen,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Finding]:
    for name, count in getattr(source, "missing", {}).items():
        what = f"{count:,} {name} that its metadata names are not on disk"
        yield Finding(kind="missing", where=source.name, what=what)
    if not len(source):
        yield Finding(kind="no episodes", where=source.name, what="there is nothing to learn from")
    for index in range(len(source)):
        try:
            episode = source[index]
        except DataError as error:
            yield Finding(kind="unreadable", where=f"{source.name}, episode {index}", what=str(error))
        else:
            where = f"{episode.facts.get('file', source.name)}, episode {episode.id}"
            yield from _of_columns(episode, where, seen)
            if decode != "none":
                yield from _of_frames(episode.images, where, decode, seen)
        if progress:
            progress(index + 1, len(source))
    if seen.steps > 1 and seen.least is not None and seen.most is not None:
        for dimension in np.flatnonzero(seen.least == seen.most).tolist():
            gripper = (len(seen.least), dimension) == (ACTION_SIZE, GRIPPER)
            what = f"{_dimension(dimension, len(seen.least))} is {seen.least[dimension]:g} in every step"
            kind = "gripper still" if gripper else "constant dimension"
            yield Finding(kind=kind, where=source.name, what=what)


def _of_columns(episode: Recording | Demonstration, where: str, seen: _Seen) -> Iterator[Finding]:
    actions = episode.actions
    seen.steps += len(actions)
    name = hashlib.blake2b(episode.id.encode(), digest_size=12).digest()
    if name in seen.ids:
        yield Finding(kind="duplicate id", where=where, what="another episode before it has this id")
    seen.ids.add(name)
    if not episode.instruction.strip():
        yield Finding(kind="no instruction", where=where, what="the instruction is empty")
    if len(actions) < 2:
        yield Finding(kind="short", where=where, what=f"{len(actions)} steps")
    if len(episode.images) != len(actions):
        what = f"{len(episode.images)} frames and {len(actions)} actions"
        yield Finding(kind="frames", where=where, what=what)
    seen.width = seen.width or actions.shape[1]
    if actions.shape[1] != seen.width:
        what = f"{actions.shape[1]} numbers a step instead of {seen.width}"
        yield Finding(kind="width", where=where, what=what)
        return
    state = getattr(episode, "state", None)
    for column, values in (("action", actions), ("state", state)):
        if values is not None and not np.isfinite(values).all():
            steps = np.flatnonzero(~np.isfinite(values).all(axis=1))
            what = f"the {column} of {len(steps)} steps is not finite, first of step {steps[0]}"
            yield Finding(kind="not finite", where=where, what=what)
    actions = actions[np.isfinite(actions).all(axis=1)]
    if not len(actions):
        return
    least, most = actions.min(axis=0), actions.max(axis=0)
    seen.least = least if seen.least is None else np.minimum(seen.least, least)
    seen.most = most if seen.most is None else np.maximum(seen.most, most)
    largest = np.maximum(-least, most)
    if seen.limits is not None and (beyond := largest > seen.limits).any():
        dimension = int(beyond.argmax())
        limit = np.broadcast_to(seen.limits, largest.shape)[dimension]
        what = f"{_dimension(dimension, len(largest))} reaches {largest[dimension]:.4g}, beyond {limit:.4g}"
        yield Finding(kind="beyond bound", where=where, what=what)


def _of_frames(
    images: Sequence[UInt8[np.ndarray, "height width 3"]], where: str, decode: Decode, seen: _Seen
) -> Iterator[Finding]:
    count = len(images)
    steps = range(count) if decode == "all" else sorted({0, count // 2, count - 1} if count else ())
    first: UInt8[np.ndarray, "height width 3"] | None = None
    moved = False
    broken, dark, sizes = list[str](), list[int](), set[tuple[int, ...]]()
    for step in steps:
        try:
            image = images[step]
        except DataError as error:
            broken.append(str(error))
            continue
        seen.frames += 1
        seen.size = seen.size or image.shape[:2]
        sizes.add(image.shape[:2])
        if image.max(initial=0) <= _DARK:
            dark.append(step)
        moved = moved or (first is not None and not np.array_equal(first, image))
        first = image if first is None else first
    looked = f"of {len(steps)} frames looked at"
    if broken:
        what = f"{len(broken)} {looked} cannot be decoded, the first: {broken[0]}"
        yield Finding(kind="undecodable", where=where, what=what)
    if sizes - {seen.size}:
        found = ", ".join(f"{height} x {width}" for height, width in sorted(sizes))
        what = f"frames of {found} pixels; the first was {' x '.join(map(str, seen.size or ()))}"
        yield Finding(kind="image size", where=where, what=what)
    if dark:
        what = f"{len(dark)} {looked} are black, the first is frame {dark[0]}"
        yield Finding(kind="black", where=where, what=what)
    elif not moved and len(steps) - len(broken) > 1:
        yield Finding(kind="frozen camera", where=where, what=f"all {looked.removeprefix('of ')} are equal")


def _dimension(index: int, width: int) -> str:
    return DIMENSIONS[index] if width == ACTION_SIZE else f"action dimension {index}"
