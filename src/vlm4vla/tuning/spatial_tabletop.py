"""Every auxiliary task of the paper in small: questions about Tabletop scenes, worded as the examples of Paper A.6.

Scenes are those of the benchmark's kind in looks that it never shows, some steps after an expert set out for a goal.
Training and test scenes have seeds of their own, so that none is in both. What a viewer could dispute is not asked:
things hidden or as good as equal, blocks nearly lifted, drawers half open, a goal nearly reached, ways that bend.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vlm4vla.benchmarks.tabletop.benchmark import VERSION as TABLETOP
from vlm4vla.benchmarks.tabletop.benchmark import seed_of
from vlm4vla.benchmarks.tabletop.render import project
from vlm4vla.benchmarks.tabletop.scene import COLORS, DRAWER_TRAVEL
from vlm4vla.benchmarks.tabletop.tasks import MAX_STEPS
from vlm4vla.core.errors import unknown_name
from vlm4vla.core.recipes import fingerprint
from vlm4vla.tuning import spatial
from vlm4vla.tuning.examples import IMAGE_MARK, Conversation, Exchange
from vlm4vla.tuning.layouts import choice_exchange, path_exchange
from vlm4vla.tuning.spatial import Pixels
from vlm4vla.tuning.spatial_scene import MadeScenes, Table, carried, nearest_block, table

VERSION = 1
_COLORS = ("yellow", "blue", "purple", "green")
"""Of arrows."""
_SEEN = ("open", "close", "lift", "place", "stack")
"""Tasks of which one picture tells whether they are done."""
_UNDONE = 5
"""Steps that an expert still needs at least where a task counts as not done."""
_CLEAR_OF = 0.07
"""Metres between gripper and blocks from which everyone sees that it holds none."""
_STRAIGHT = 0.95
"""A way's length in a straight line to that of the way itself, from which one arrow shows it."""
Asked = tuple[Pixels, Exchange] | None


class TabletopSpatial(MadeScenes):
    """One question about each of many scenes, a pure function of kind, split, seed and number."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        kind: str = "robopoint",
        scenes: int = 10_000,
        split: str = "train",
        seed: int = 0,
        image_size: int = 128,
        normalized: bool = True,
    ) -> None:
        """`split`: `train` or `test`. `normalized`: paths in 0..1, which are scored; else in pixels as in Paper A.6.

        Raises: RecipeError for what does not exist, or a folder, of which there is no need.
        """
        if kind not in KINDS:
            raise unknown_name("kind of Tabletop question", kind, KINDS)
        super().__init__(
            f"tabletop-{kind}", folder, scenes=scenes, split=split, seed=seed, image_size=image_size
        )
        self.kind, self.normalized = kind, normalized

    @property
    def fingerprint(self) -> str:
        """Of all options, and of what makes scenes and questions."""
        parts = [self.kind, self.scenes, self.split, self.seed, self.image_size, self.normalized]
        return fingerprint(TABLETOP, VERSION, *parts)

    def made(self, index: int) -> Conversation:
        """A scene's picture and question."""
        attempt, asked = 0, None
        while asked is None:  # of many scenes a third allows no such question
            parts = ("tabletop", TABLETOP, "spatial", self.split, self.kind, self.seed, index, attempt)
            rng = np.random.default_rng(seed_of(*parts))
            scene = table(self.image_size, os.getpid())
            scene.begin(rng)
            asked = KINDS[self.kind](scene, rng)
            attempt += 1
        pixels, exchange = asked
        if exchange.measure == "trajectory" and not self.normalized:
            question = exchange.question.removeprefix(f"{IMAGE_MARK}\n")
            exchange = path_exchange(
                question, exchange.truth["path"], self.image_size, self.image_size, False
            )
        if IMAGE_MARK not in exchange.question:
            exchange = replace(exchange, question=f"{IMAGE_MARK}\n{exchange.question}")
        where = f"{self.name}, {self.split}, seed {self.seed}, scene {index}"
        return Conversation(where, (pixels,), (exchange,), task=self.name)


def pointing(table: Table, rng: np.random.Generator) -> Asked:
    """As RoboPoint: points on a thing that is named, or told by its place beside a bordered one."""
    pixels, things = table.look()
    if rng.random() < 0.5:
        return spatial.bordered(things, pixels, rng)
    asked = spatial.point(things, rng)
    return None if asked is None else (pixels, asked)


def measuring(table: Table, rng: np.random.Generator) -> Asked:
    """As ViCA: numbers of distances, widths, heights, openings and things."""
    which = int(rng.integers(5))
    if (goal := table.goal(rng)) is not None:
        table.play(goal, int(rng.integers(30)))
    pixels, things = table.look()
    state = table.scene.state()
    if which == 0:
        asked = spatial.distance(things, rng)
    elif which == 1:
        asked = spatial.width(things, rng)
    elif which == 2:
        blocks = [thing for thing in things if thing.name.endswith("block") and thing.whole]
        asked = spatial.count(blocks, rng) if len(blocks) == len(state.blocks) else None
    elif which == 3:
        height = "How high above the table is the point between the fingertips, in centimeters?"
        asked = _number(height, 100 * float(state.gripper[2]))
    else:
        asked = _number("How far is the drawer open, in centimeters?", 100 * max(0.0, state.drawer))
    return None if asked is None else (pixels, asked)


def comparing(table: Table, rng: np.random.Generator) -> Asked:
    """As the paper's Bridgevqa: side, depth and width of two things."""
    pixels, things = table.look()
    asks = (spatial.which_side, spatial.which_side, spatial.depth_order, spatial.width_order)
    asked = asks[int(rng.integers(len(asks)))](things, rng)
    return None if asked is None else (pixels, asked)


def choosing(table: Table, rng: np.random.Generator) -> Asked:
    """As Robo2VLM: where the gripper moves next among coloured arrows, or whether a task is done."""
    return _next_motion(table, rng) if rng.random() < 0.5 else _success(table, rng)


def acting(table: Table, rng: np.random.Generator) -> Asked:
    """As RoboBrain 2: the gripper's path for an instruction, points on what is named, or the next of two steps."""
    return (_path, _path, pointing, _next_step)[int(rng.integers(4))](table, rng)


def general(table: Table, rng: np.random.Generator) -> Asked:
    """What VQA-Mix mixes in: what there is and what it looks like, nothing of where."""
    which = int(rng.integers(3))
    if (goal := table.goal(rng)) is not None:
        table.play(goal, int(rng.integers(40)))
    pixels, things = table.look()
    state = table.scene.state()
    if which == 0:
        held = carried(state)
        if held is None and (state.held or nearest_block(state) < _CLEAR_OF):
            return None
        return pixels, Exchange(
            "What is the gripper holding?", f"The {held} block" if held else "Nothing", "exact"
        )
    if which == 1:
        color = COLORS[int(rng.integers(len(COLORS)))]
        seen = any(thing.name == f"{color} block" for thing in things)
        if seen != (color in state.blocks):
            return None
        return pixels, Exchange(f"Is there a {color} block in the picture?", "Yes" if seen else "No", "exact")
    share = state.drawer / DRAWER_TRAVEL
    if 0.1 < share < 0.7:
        return None
    return pixels, Exchange("Is the drawer open or closed?", "Open" if share > 0.5 else "Closed", "exact")


KINDS: Mapping[str, Callable[[Table, np.random.Generator], Asked]] = {
    "robopoint": pointing,
    "vica": measuring,
    "bridgevqa": comparing,
    "robo2vlm": choosing,
    "robobrain2": acting,
    "general": general,
}


def _path(table: Table, rng: np.random.Generator) -> Asked:
    """ShareRobot: an instruction -> the gripper's path in the picture, four to eight points."""
    if (goal := table.goal(rng)) is None:
        return None
    pixels = table.renderer.image()
    play = table.play(goal, MAX_STEPS[goal.task])
    way = project(play.way)
    steps = np.linalg.norm(np.diff(way, axis=0), axis=1)
    if not play.done or steps.sum() < 0.05 or way.min() < 0 or way.max() > 1:
        return None
    count = int(rng.integers(4, 9))
    along = np.concatenate([[0.0], np.cumsum(steps)])
    stops = np.linspace(0, along[-1], count)
    path = np.stack([np.interp(stops, along, way[:, axis]) for axis in (0, 1)], axis=1)
    return pixels, path_exchange(goal.goal(rng).instruction, path, 1, 1, True)


def _next_step(table: Table, rng: np.random.Generator) -> Asked:
    if (goal := table.goal(rng, ("place", "stack"))) is None:
        return None
    table.play(goal, int(rng.integers(20)))
    pixels, state = table.renderer.image(), table.scene.state()
    block, below = goal.blocks[0], f"{goal.blocks[1]} block" if goal.blocks[1:] else "plate"
    if carried(state) == block:
        answer = f"Put the {block} block on the {below}."
    elif nearest_block(state) > _CLEAR_OF and not table.play(goal, _UNDONE).done:
        answer = f"Pick up the {block} block."
    else:
        return None
    question = f"The robot task is to {goal.goal(rng).instruction}. What does the robot have to do next?"
    return pixels, Exchange(question, answer, "exact")


def _next_motion(table: Table, rng: np.random.Generator) -> Asked:
    if (goal := table.goal(rng)) is None:
        return None
    start = table.scene.state()
    if table.play(goal, int(rng.integers(12))).done:
        return None
    pixels = table.renderer.image()
    way = project(table.play(goal, 4, start).way)
    moved = way[-1] - way[0]
    length = float(np.linalg.norm(moved))
    if length < max(0.04, _STRAIGHT * float(np.linalg.norm(np.diff(way, axis=0), axis=1).sum())):
        return None
    direction = moved / length
    none = bool(rng.random() < 0.2)
    turns = np.radians([72.0, 144.0, 216.0, 288.0] if none else [0.0, 90.0, 180.0, 270.0])
    colors = [_COLORS[i] for i in rng.permutation(len(_COLORS))]
    drawn = {color: _turned(direction, angle) for color, angle in zip(colors, turns, strict=True)}
    choices = [*(color.capitalize() for color in colors), "None of the above"]
    order = rng.permutation(len(choices))
    right = int(np.flatnonzero(order == (len(colors) if none else 0))[0])
    question = (
        f"The robot task is to {goal.goal(rng).instruction}. Which colored arrow correctly shows the direction the "
        "robot will move next?"
    )
    begin = (float(way[0][0]), float(way[0][1]))
    return spatial.arrows(pixels, begin, drawn), choice_exchange(question, [choices[i] for i in order], right)


def _success(table: Table, rng: np.random.Generator) -> Asked:
    if (goal := table.goal(rng, _SEEN)) is None:
        return None
    start, longest = table.scene.state(), MAX_STEPS[goal.task]
    wanted = bool(rng.random() < 0.5)
    done = table.play(goal, longest if wanted else int(rng.integers(longest // 3))).done
    pixels = table.renderer.image()
    if done != wanted or (not wanted and table.play(goal, _UNDONE, start).done):
        return None
    choices = ["Yes", "No"] if rng.random() < 0.5 else ["No", "Yes"]
    question = (
        f"The robot task is to {goal.goal(rng).instruction}. Has the robot successfully completed the task?"
    )
    return pixels, choice_exchange(question, choices, choices.index("Yes" if done else "No"))


def _number(question: str, value: float) -> Exchange:
    value = round(value, 1)
    return Exchange(question, f"{value:.1f}", "number", {"value": value})


def _turned(direction: Float[np.ndarray, "2"], angle: float) -> Float[np.ndarray, "2"]:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([cos * direction[0] - sin * direction[1], sin * direction[0] + cos * direction[1]])
