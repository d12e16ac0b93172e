"""Questions and answers about Tabletop scenes, made from their ground truth.

Places and distances are answered in tokens of their own: an area of an 8 x 8 grid first and the exact place after
it, so that a small model learns where to look before it learns to measure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vlm4vla.benchmarks.tabletop.scene import COLORS
from vlm4vla.benchmarks.tabletop.scenes import THINGS, VISIBLE, SceneBatch
from vlm4vla.benchmarks.tabletop.tasks import PHRASINGS, TASKS, TIERS

AREAS = 8
PLACES = 64
OFFSETS = 33
"""Odd: the middle one means no distance."""
_OFFSET_RANGE = 0.35
"""Metres; the largest distance told apart."""
_OFFSET_POWER = 0.6
"""Below 1: finer near zero, where a hand needs it."""
_GRIPPER = THINGS.index("gripper")
_PUSHED_FROM = {"push_left": 0.05, "push_right": -0.05}
"""Metres along x from the block's centre to the side from which a task pushes it."""
_NAMES = (*(f"{color} block" for color in COLORS), "plate", "drawer handle", "button", "gripper")


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer, as text."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """How places and distances are written: format strings with one number."""

    place: str = "<loc{:04d}>"
    area: str = "<area{:d}>"
    offset: str = "<offset{:02d}>"

    def ordered(self) -> tuple[tuple[str, ...], ...]:
        """Groups of tokens whose neighbours are nearly right, in order."""
        return (
            tuple(self.place.format(i) for i in range(PLACES)),
            tuple(self.offset.format(i) for i in range(OFFSETS)),
        )

    def extra(self) -> tuple[str, ...]:
        """Every token a tokenizer must get."""
        return (
            *(token for group in self.ordered() for token in group),
            *(self.area.format(i) for i in range(AREAS)),
        )


def offset_bin(metres: float) -> int:
    """Signed distance -> token number."""
    share = min(1.0, abs(metres) / _OFFSET_RANGE) ** _OFFSET_POWER
    return round((OFFSETS // 2) * (1 + np.sign(metres) * share))


class SceneQuestions:
    """Draws questions about rows of a SceneBatch."""

    def __init__(self, tokens: AnswerTokens) -> None:
        self.tokens = tokens
        self._kinds: tuple[
            tuple[float, Callable[[SceneBatch, int, np.random.Generator], Turn | None]], ...
        ] = (
            (0.30, self.where),
            (0.30, self.how_far),
            (0.20, self.what_to_do),
            (0.06, self.what_is_at),
            (0.04, self.gripper_state),
            (0.04, self.drawer_state),
            (0.03, self.relation),
            (0.03, self.caption),
        )

    def draw(self, scenes: SceneBatch, row: int, count: int, rng: np.random.Generator) -> list[Turn]:
        """`count` questions about one scene."""
        weights = np.array([weight for weight, _ in self._kinds])
        turns: list[Turn] = []
        while len(turns) < count:
            kind = int(rng.choice(len(weights), p=weights / weights.sum()))
            turn = self._kinds[kind][1](scenes, row, rng)
            if turn is not None:
                turns.append(turn)
        return turns

    def where(self, scenes: SceneBatch, row: int, rng: np.random.Generator) -> Turn | None:
        """Grounding: a thing's name -> area and place."""
        thing = _pick(_visible(scenes, row), rng)
        if thing is None:
            return None
        question = ("where is the {}", "find the {}", "point at the {}")[int(rng.integers(3))].format(
            _NAMES[thing]
        )
        return Turn(question, self._place(scenes.places[row, thing]))

    def how_far(self, scenes: SceneBatch, row: int, rng: np.random.Generator) -> Turn | None:
        """Spatial: from the gripper (or another thing) to a thing, along x, y and z in metres."""
        things = [thing for thing in _visible(scenes, row) if thing != _GRIPPER]
        thing = _pick(things, rng)
        if thing is None:
            return None
        start, name = _GRIPPER, "gripper"
        rest = [other for other in things if other != thing]
        if rest and rng.random() < 0.2:
            start = int(rng.choice(rest))
            name = _NAMES[start]
        offset = scenes.positions[row, thing] - scenes.positions[row, start]
        return Turn(f"how far is the {_NAMES[thing]} from the {name}", self._offset(offset))

    def what_to_do(self, scenes: SceneBatch, row: int, rng: np.random.Generator) -> Turn | None:
        """Pointing by purpose: an instruction -> from the gripper to where it must go next, in metres.

        It teaches what instructions speak of. There is no action in it: neither a step nor the gripper's state.
        """
        task = TASKS[int(rng.integers(len(TASKS)))]
        seen = _visible(scenes, row)
        blocks = [thing for thing in seen if thing < len(COLORS)]
        goal: tuple[int, ...] = ()
        if task in TIERS["fixed-target"]:
            target = _NAMES.index("button" if task == "press" else "drawer handle")
        elif len(blocks) < (2 if task == "stack" else 1):
            return None
        else:
            goal = tuple(int(thing) for thing in rng.permutation(blocks)[:2])
            target = goal[0]
            if scenes.held[row] == target and task in TIERS["two-object"]:
                target = goal[1] if task == "stack" else _NAMES.index("plate")
        if target not in seen:
            return None
        offset = scenes.positions[row, target] - scenes.positions[row, _GRIPPER]
        if task in _PUSHED_FROM:
            offset = offset + np.array([_PUSHED_FROM[task], 0.0, 0.0])
        phrasing = PHRASINGS[task][int(rng.integers(len(PHRASINGS[task])))]
        instruction = phrasing.format(*(COLORS[thing] for thing in goal))
        return Turn(f"how far to go to {instruction}", self._offset(offset))

    def what_is_at(self, scenes: SceneBatch, row: int, rng: np.random.Generator) -> Turn | None:
        """Grounding backwards: a place -> the thing's name."""
        thing = _pick(_visible(scenes, row), rng)
        if thing is None:
            return None
        return Turn(f"what is at {self._place(scenes.places[row, thing])}", _NAMES[thing])

    def gripper_state(self, scenes: SceneBatch, row: int, rng: np.random.Generator) -> Turn | None:
        """What the gripper holds, or whether it is open."""
        held = int(scenes.held[row])
        if rng.random() < 0.5:
            return Turn(
                "what does the gripper hold", f"{COLORS[held]} block" if held < len(COLORS) else "nothing"
            )
        gap = float(scenes.gap[row])
        return Turn("is the gripper open", "yes" if gap > 0.7 else "no" if gap < 0.3 else "half")

    def drawer_state(self, scenes: SceneBatch, row: int, rng: np.random.Generator) -> Turn | None:
        """Whether the drawer is open."""
        opening = float(scenes.drawer[row])
        return Turn("is the drawer open", "yes" if opening > 0.7 else "no" if opening < 0.15 else "half")

    def relation(self, scenes: SceneBatch, row: int, rng: np.random.Generator) -> Turn | None:
        """Which of two things is further left, right, near or far."""
        things = _visible(scenes, row)
        if len(things) < 2:
            return None
        first, second = (int(thing) for thing in rng.choice(things, 2, replace=False))
        axis = int(rng.integers(2))
        word = (("left", "right"), ("near", "far"))[axis][int(rng.integers(2))]
        difference = float(scenes.positions[row, first, axis] - scenes.positions[row, second, axis])
        if abs(difference) < 0.015:
            return None
        chosen = first if (difference < 0) == (word in ("left", "near")) else second
        return Turn(f"which is more {word} , the {_NAMES[first]} or the {_NAMES[second]}", _NAMES[chosen])

    def caption(self, scenes: SceneBatch, row: int, rng: np.random.Generator) -> Turn | None:
        """The blocks on the table and the drawer's state, in a fixed order."""
        blocks = [
            color for thing, color in enumerate(COLORS) if not np.isnan(scenes.positions[row, thing, 0])
        ]
        opening = "open" if scenes.drawer[row] > 0.5 else "closed"
        return Turn("describe the table", f"blocks {' '.join(blocks)} , drawer {opening}")

    def _offset(self, offset: Float[np.ndarray, "3"]) -> str:
        return "".join(self.tokens.offset.format(offset_bin(float(metres))) for metres in offset)

    def _place(self, place: Float[np.ndarray, "2"]) -> str:
        x, y = np.clip(place, 0, 0.9999)
        areas = (self.tokens.area.format(int(v * AREAS)) for v in (x, y))
        exact = (self.tokens.place.format(int(v * PLACES)) for v in (x, y))
        return "".join((*areas, *exact))


def example_texts() -> list[str]:
    """Every wording of questions and answers but the tasks' instructions, for the tokenizer."""
    words = [f"where is the {name}" for name in _NAMES]
    words += [
        "find the gripper",
        "point at the plate",
        "how far is the button from the gripper",
        "how far to go to",
        "what is at",
    ]
    words += [
        "what does the gripper hold",
        "is the gripper open",
        "is the drawer open",
        "yes",
        "no",
        "half",
        "nothing",
    ]
    words += [f"which is more {w} , the plate or the button" for w in ("left", "right", "near", "far")]
    return [*words, "describe the table", "blocks red green blue yellow , drawer closed open"]


def _visible(scenes: SceneBatch, row: int) -> Sequence[int]:
    return [int(thing) for thing in np.flatnonzero(scenes.visible[row] > VISIBLE)]


def _pick(things: Sequence[int], rng: np.random.Generator) -> int | None:
    return int(things[int(rng.integers(len(things)))]) if things else None
