"""Questions about Tabletop scenes with their ground truth, worded otherwise than in the tiny backbones' pretraining.

Pictures are of random scenes, never those of episodes, demonstrations or pretraining.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vlm4vla.benchmarks.tabletop.scene import COLORS
from vlm4vla.benchmarks.tabletop.scenes import THINGS, VISIBLE, SceneBatch, sample_scenes
from vlm4vla.core.errors import RecipeError
from vlm4vla.core.recipes import fingerprint
from vlm4vla.tuning.examples import IMAGE_MARK, Conversation, Exchange
from vlm4vla.tuning.questions import AnswerTokens, SceneQuestions

VERSION = 1
PICTURES_SEED = 1000
"""Beside the seed: the pretraining has seed 0."""
PATH_POINTS = 4
NAMES = (*(f"{color} block" for color in COLORS), "plate", "drawer handle", "button", "gripper")
_GRIPPER = THINGS.index("gripper")
_EXTREMES = (("furthest left", 0, -1), ("furthest right", 0, 1), ("nearest", 1, -1), ("furthest away", 1, 1))
"""Words, axis of the scene, and its sign."""
_APART = 0.02
"""Metres between the right choice and the next, so that no question is a matter of taste."""
Ask = Callable[[SceneBatch, int, np.random.Generator], Exchange | None]


class TabletopQuestions:
    """One question about each of many scenes."""

    def __init__(self, kind: str, *, scenes: int, seed: int, image_size: int, processes: int) -> None:
        """`image_size` in pixels; `processes` make the pictures, when they are first wanted."""
        if min(scenes, image_size, processes) < 1:
            raise RecipeError(f"tabletop-{kind}: scenes, image_size and processes must be at least 1")
        self.kind, self.scenes, self.seed = kind, scenes, seed
        self.image_size, self.processes = image_size, processes

    @property
    def name(self) -> str:
        """As in the registry."""
        return f"tabletop-{self.kind}"

    @property
    def fingerprint(self) -> str:
        """Of all but the processes."""
        return fingerprint([self.name, VERSION, self.scenes, self.seed, self.image_size])

    def __len__(self) -> int:
        """Scenes."""
        return self.scenes

    def __getitem__(self, index: int) -> Conversation:
        """A scene's picture and question."""
        batch = _pictures(self.scenes, self.seed, self.image_size, self.processes)
        rng = np.random.default_rng([PICTURES_SEED, self.seed, index])
        asked = None
        while asked is None:
            asked = _ASK[self.kind](batch, index, rng)
        first = Exchange(f"{IMAGE_MARK}{asked.question}", asked.answer, asked.measure, asked.truth)
        return Conversation(
            f"{self.name}, scene {index}", (batch.images[index],), (first,), task=self.name
        )


@functools.lru_cache(maxsize=2)
def _pictures(count: int, seed: int, size: int, processes: int) -> SceneBatch:
    batches = list(sample_scenes(count, seed=PICTURES_SEED + seed, image_size=size, processes=processes))
    return SceneBatch(
        **{f.name: np.concatenate([getattr(batch, f.name) for batch in batches]) for f in fields(SceneBatch)}
    )


def _seen(scenes: SceneBatch, row: int) -> list[int]:
    places = scenes.places[row]
    inside = ((places >= 0) & (places < 1)).all(-1) & (scenes.visible[row] > VISIBLE)
    return [int(thing) for thing in np.flatnonzero(inside)]


def _point(place: Float[np.ndarray, "2"]) -> str:
    x, y = np.clip(place, 0, 0.99)
    return f"({x:.2f}, {y:.2f})"


def _pointing(scenes: SceneBatch, row: int, rng: np.random.Generator) -> Exchange:
    thing = int(rng.choice(_seen(scenes, row)))
    region = scenes.shown[row] == thing
    # The centre of what is seen of it, if that is part of it, else its pixel nearest to there.
    rows, columns = np.nonzero(region)
    middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    place = np.array([columns[middle] + 0.5, rows[middle] + 0.5]) / region.shape[0]
    question = f"Locate the {NAMES[thing]}. Answer as [(x, y)]."
    return Exchange(question, f"[{_point(place)}]", "points", {"region": region})


def _choice(scenes: SceneBatch, row: int, rng: np.random.Generator) -> Exchange | None:
    seen = _seen(scenes, row)
    if len(seen) < 3:
        return None
    things = [int(thing) for thing in rng.permutation(seen)[: min(4, len(seen))]]
    words, axis, sign = _EXTREMES[int(rng.integers(len(_EXTREMES)))]
    values = sign * scenes.positions[row, things, axis]
    best, second = np.sort(values)[::-1][:2]
    if best - second < _APART:
        return None
    letters = "ABCD"[: len(things)]
    listed = " ".join(f"{letter}. {NAMES[thing]}" for letter, thing in zip(letters, things, strict=True))
    return Exchange(
        f"Which is {words}? {listed}. Answer with the letter.",
        letters[int(values.argmax())],
        "choice",
        {"choices": tuple(letters)},
    )


def _counting(scenes: SceneBatch, row: int, rng: np.random.Generator) -> Exchange:
    count = sum(thing < len(COLORS) for thing in _seen(scenes, row))
    return Exchange("How many blocks do you see? Answer with a number.", str(count), "exact")


def _distance(scenes: SceneBatch, row: int, rng: np.random.Generator) -> Exchange | None:
    seen = _seen(scenes, row)
    if len(seen) < 2:
        return None
    first, second = (int(thing) for thing in rng.choice(seen, 2, replace=False))
    apart = 100 * float(np.linalg.norm(scenes.positions[row, first] - scenes.positions[row, second]))
    question = f"How many centimetres is the {NAMES[first]} from the {NAMES[second]}? Answer with a number."
    return Exchange(question, f"{apart:.0f}", "number", {"value": apart})


def _trajectory(scenes: SceneBatch, row: int, rng: np.random.Generator) -> Exchange | None:
    seen = [thing for thing in _seen(scenes, row) if thing != _GRIPPER]
    if not seen:
        return None
    thing = int(rng.choice(seen))
    start = np.clip(scenes.places[row, _GRIPPER], 0, 0.99)
    shares = np.linspace(0, 1, PATH_POINTS)[:, None]
    path = start + shares * (scenes.places[row, thing] - start)
    answer = ", ".join(_point(place) for place in path)
    question = f"Draw the way of the gripper to the {NAMES[thing]}. Answer as [(x, y), ...]."
    truth = {"path": [[float(x), float(y)] for x, y in path]}
    return Exchange(question, f"[{answer}]", "trajectory", truth)


def _general(scenes: SceneBatch, row: int, rng: np.random.Generator) -> Exchange | None:
    """What the tiny backbones' pretraining asked for in words: how much of it is forgotten."""
    questions = SceneQuestions(AnswerTokens())
    kinds = (questions.gripper_state, questions.drawer_state, questions.relation, questions.caption)
    turn = kinds[int(rng.integers(len(kinds)))](scenes, row, rng)
    return None if turn is None else Exchange(turn.question, turn.answer, "exact")


_ASK: dict[str, Ask] = {
    "pointing": _pointing,
    "choice": _choice,
    "counting": _counting,
    "distance": _distance,
    "trajectory": _trajectory,
    "general": _general,
}


def _task(kind: str) -> Callable[..., TabletopQuestions]:
    def make(
        folder: Path | None, *, scenes: Any = 8000, seed: Any = 0, image_size: Any = 64, processes: Any = 2
    ) -> TabletopQuestions:
        if folder is not None:
            raise RecipeError(f"tabletop-{kind}: makes its own pictures and reads no folder ({folder})")
        try:
            numbers = [int(value) for value in (scenes, seed, image_size, processes)]
        except ValueError as error:
            raise RecipeError(f"tabletop-{kind}: {error}; its options are whole numbers") from error
        return TabletopQuestions(
            kind, scenes=numbers[0], seed=numbers[1], image_size=numbers[2], processes=numbers[3]
        )

    return make


pointing, choice, counting = _task("pointing"), _task("choice"), _task("counting")
distance, trajectory, general = _task("distance"), _task("trajectory"), _task("general")
