"""Every auxiliary task of the paper in small: questions about Tabletop scenes, worded as the examples of Paper A.6.

Scenes are those of the benchmark's kind in looks that it never shows, some steps after an expert set out for a goal.
Training and test scenes have seeds of their own, so that none is in both.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from vlm4vla.benchmarks.tabletop.benchmark import VERSION as TABLETOP
from vlm4vla.benchmarks.tabletop.benchmark import seed_of
from vlm4vla.benchmarks.tabletop.expert import expert_action
from vlm4vla.benchmarks.tabletop.render import RayRenderer, depth, project, random_look
from vlm4vla.benchmarks.tabletop.scene import (
    BLOCK_HALF,
    BUTTON_CENTRE,
    BUTTON_TOP,
    COLORS,
    DRAWER_TRAVEL,
    PLATE_RADIUS,
    PLATE_TOP,
    Scene,
    SceneState,
    random_layout,
)
from vlm4vla.benchmarks.tabletop.tasks import MAX_STEPS, TASKS, Assignment, candidates, fulfilled
from vlm4vla.core.errors import RecipeError, unknown_name
from vlm4vla.core.recipes import fingerprint
from vlm4vla.tuning import spatial
from vlm4vla.tuning.examples import IMAGE_MARK, Conversation, Exchange
from vlm4vla.tuning.layouts import choice_exchange, path_exchange
from vlm4vla.tuning.spatial import Pixels, Thing

VERSION = 1
_COLORS = ("yellow", "blue", "purple", "green")
"""Of arrows."""
_SEEN = ("open", "close", "lift", "place", "stack")
"""Tasks of which one picture tells whether they are done."""
_SMALL = 0.0015
"""Share of the picture below which a thing is not asked for."""
_GEOMS: Mapping[str, str] = {
    **{f"{color} block": color for color in COLORS},
    "plate": "plate",
    "drawer handle": "handle",
    "button": "button_cap",
    "gripper": "finger",
}
_SIZES = {"plate": 2 * PLATE_RADIUS, **{f"{color} block": 2 * BLOCK_HALF for color in COLORS}}


class TabletopSpatial:
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
        if split not in ("train", "test"):
            raise unknown_name("split", split, ("train", "test"))
        if scenes < 1 or image_size < 16:
            raise RecipeError("tabletop questions need at least one scene, and pictures of at least 16 pixels")
        if folder is not None:
            raise RecipeError(f"tabletop-{kind}: makes its pictures; name no folder")
        self.kind, self.scenes, self.split, self.seed = kind, scenes, split, seed
        self.image_size, self.normalized = image_size, normalized
        self.name = f"tabletop-{kind}"

    @property
    def fingerprint(self) -> str:
        """Of all options, and of what makes scenes and questions."""
        parts = [self.kind, self.scenes, self.split, self.seed, self.image_size, self.normalized]
        return fingerprint(TABLETOP, VERSION, *parts)

    def __len__(self) -> int:
        """Scenes."""
        return self.scenes

    def __getitem__(self, index: int) -> Conversation:
        """A scene's picture and question."""
        if not 0 <= index < self.scenes:
            raise IndexError(f"{self.name}: scene {index} of {self.scenes}")
        attempt, asked = 0, None
        while asked is None:
            parts = ("tabletop", TABLETOP, "spatial", self.split, self.kind, self.seed, index, attempt)
            rng = np.random.default_rng(seed_of(*parts))
            table = _table(os.getpid(), self.image_size)
            table.begin(rng)
            asked = KINDS[self.kind](table, rng)
            attempt += 1
        pixels, exchange = asked
        if exchange.measure == "trajectory" and not self.normalized:
            question = exchange.question.removeprefix(f"{IMAGE_MARK}\n")
            exchange = path_exchange(question, exchange.truth["path"], self.image_size, self.image_size, False)
        if IMAGE_MARK not in exchange.question:
            exchange = replace(exchange, question=f"{IMAGE_MARK}\n{exchange.question}")
        where = f"{self.name}, {self.split}, seed {self.seed}, scene {index}"
        return Conversation(where, (pixels,), (exchange,), task=self.name)


@dataclass(slots=True)
class Table:
    """A scene that is played and looked at."""

    scene: Scene
    renderer: RayRenderer
    columns: Mapping[str, Sequence[int]]
    """Geoms by thing."""

    def begin(self, rng: np.random.Generator) -> None:
        """A new scene of two to four blocks in a new look."""
        colors = [COLORS[i] for i in rng.permutation(len(COLORS))[: int(rng.integers(2, 5))]]
        self.scene.reset(random_layout(rng, {"colors": colors}))
        self.renderer.dress(random_look(rng))

    def goal(self, rng: np.random.Generator, tasks: Sequence[str] = TASKS) -> Assignment | None:
        """One that makes sense now."""
        found = [goal for task in tasks for goal in candidates(task, self.scene.state())]
        return found[int(rng.integers(len(found)))] if found else None

    def play(self, goal: Assignment, steps: int) -> Float[np.ndarray, "steps 3"]:
        """The expert's way: the gripper's positions, before each step and at the end. It stops when done."""
        start = state = self.scene.state()
        way = [state.gripper]
        for _ in range(steps):
            if fulfilled(goal, start, state):
                break
            self.scene.step(expert_action(goal, state))
            state = self.scene.state()
            way.append(state.gripper)
        return np.array(way)

    def look(self) -> tuple[Pixels, list[Thing]]:
        """The picture, and the things of which enough is seen."""
        pixels = self.renderer.image()
        geoms = self.renderer.segmentation()
        places = _places(self.scene.state())
        return pixels, [
            thing
            for name, place in places.items()
            if (thing := _thing(name, place, np.isin(geoms, self.columns[name]))) is not None
        ]


def pointing(table: Table, rng: np.random.Generator) -> tuple[Pixels, Exchange] | None:
    """As RoboPoint: points on a thing that is named, or told by its place beside a bordered one."""
    pixels, things = table.look()
    if rng.random() < 0.5:
        return spatial.bordered(things, pixels, rng)
    asked = spatial.point(things, rng)
    return None if asked is None else (pixels, asked)


def measuring(table: Table, rng: np.random.Generator) -> tuple[Pixels, Exchange] | None:
    """As ViCA: numbers of distances, heights, openings and things."""
    if (goal := table.goal(rng)) is not None:
        table.play(goal, int(rng.integers(30)))
    pixels, things = table.look()
    state = table.scene.state()
    which = int(rng.integers(4))
    if which == 0:
        asked = spatial.distance(things, rng)
    elif which == 1:
        blocks = [thing for thing in things if thing.name.endswith("block")]
        asked = spatial.count(blocks, rng)
    elif which == 2:
        question = "How high is the gripper above the table, in centimeters?"
        asked = _number(question, 100 * float(state.gripper[2]))
    else:
        asked = _number("How far is the drawer open, in centimeters?", 100 * max(0.0, state.drawer))
    return None if asked is None else (pixels, asked)


def comparing(table: Table, rng: np.random.Generator) -> tuple[Pixels, Exchange] | None:
    """As the paper's Bridgevqa: side, depth and size of two things."""
    pixels, things = table.look()
    asks = (spatial.which_side, spatial.which_side, spatial.depth_order, spatial.size_order)
    asked = asks[int(rng.integers(len(asks)))](things, rng)
    return None if asked is None else (pixels, asked)


def choosing(table: Table, rng: np.random.Generator) -> tuple[Pixels, Exchange] | None:
    """As Robo2VLM: where the gripper moves next among coloured arrows, or whether a task is done."""
    return _next_motion(table, rng) if rng.random() < 0.5 else _success(table, rng)


def moving(table: Table, rng: np.random.Generator) -> tuple[Pixels, Exchange] | None:
    """As ShareRobot: an instruction -> the gripper's path in the picture, four to eight points."""
    if (goal := table.goal(rng)) is None:
        return None
    pixels = table.renderer.image()
    way = project(table.play(goal, MAX_STEPS[goal.task]))
    steps = np.linalg.norm(np.diff(way, axis=0), axis=1)
    if not len(steps) or steps.sum() < 0.05 or way.min() < 0 or way.max() > 1:
        return None
    count = int(rng.integers(4, 9))
    along = np.concatenate([[0.0], np.cumsum(steps)])
    path = np.stack(
        [np.interp(np.linspace(0, along[-1], count), along, way[:, axis]) for axis in (0, 1)], axis=1
    )
    return pixels, path_exchange(goal.goal(rng).instruction, path, 1, 1, True)


def general(table: Table, rng: np.random.Generator) -> tuple[Pixels, Exchange] | None:
    """What VQA-Mix mixes in: what there is and what it looks like, nothing of where."""
    if (goal := table.goal(rng)) is not None:
        table.play(goal, int(rng.integers(40)))
    pixels, things = table.look()
    state = table.scene.state()
    held = f"the {state.held} block" if state.held else "nothing"
    color = COLORS[int(rng.integers(len(COLORS)))]
    seen = any(thing.name == f"{color} block" for thing in things)
    open_ = state.drawer > 0.5 * DRAWER_TRAVEL
    questions = (
        ("What is the gripper holding?", held),
        (f"Is there a {color} block on the table?", "Yes" if seen else "No"),
        ("Is the drawer open or closed?", "Open" if open_ else "Closed"),
    )
    question, answer = questions[int(rng.integers(len(questions)))]
    return pixels, Exchange(question, answer, "exact")


KINDS: Mapping[str, Callable[[Table, np.random.Generator], tuple[Pixels, Exchange] | None]] = {
    "robopoint": pointing,
    "vica": measuring,
    "bridgevqa": comparing,
    "robo2vlm": choosing,
    "robobrain2": moving,
    "general": general,
}


def _next_motion(table: Table, rng: np.random.Generator) -> tuple[Pixels, Exchange] | None:
    if (goal := table.goal(rng)) is None:
        return None
    table.play(goal, int(rng.integers(12)))
    pixels = table.renderer.image()
    way = project(table.play(goal, 4))
    moved = way[-1] - way[0]
    length = float(np.linalg.norm(moved))
    if length < 0.04:
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
        f"The robot task is to {goal.goal(rng).instruction}. Which colored arrow correctly shows the direction the robot "
        "will move next?"
    )
    start = (float(way[0][0]), float(way[0][1]))
    return spatial.arrows(pixels, start, drawn), choice_exchange(question, [choices[i] for i in order], right)


def _success(table: Table, rng: np.random.Generator) -> tuple[Pixels, Exchange] | None:
    if (goal := table.goal(rng, _SEEN)) is None:
        return None
    start = table.scene.state()
    longest = MAX_STEPS[goal.task]
    table.play(goal, longest if rng.random() < 0.5 else int(rng.integers(longest // 4)))
    done = fulfilled(goal, start, table.scene.state())
    choices = ["Yes", "No"] if rng.random() < 0.5 else ["No", "Yes"]
    question = f"The robot task is to {goal.goal(rng).instruction}. Has the robot successfully completed the task?"
    return table.renderer.image(), choice_exchange(question, choices, choices.index("Yes" if done else "No"))


@functools.lru_cache(maxsize=4)
def _table(pid: int, image_size: int) -> Table:
    """One a process: a scene is reset for every question."""
    scene = Scene()
    renderer = RayRenderer(scene, image_size)
    names = [renderer.geom_name(i) for i in range(scene.model.ngeom)]
    columns = {
        thing: [i for i, name in enumerate(names) if name.startswith(start) and not name.endswith("_stem")]
        for thing, start in _GEOMS.items()
    }
    return Table(scene, renderer, columns)


def _places(state: SceneState) -> dict[str, Float[np.ndarray, "3"]]:
    return {
        **{f"{color} block": place for color, place in state.blocks.items()},
        "plate": np.array([*state.plate, PLATE_TOP]),
        "drawer handle": state.handle,
        "button": np.array([*BUTTON_CENTRE, BUTTON_TOP - state.button]),
        "gripper": state.gripper,
    }


def _thing(name: str, place: Float[np.ndarray, "3"], region: Bool[np.ndarray, "size size"]) -> Thing | None:
    rows, columns = np.nonzero(region)
    if len(rows) < _SMALL * region.size:
        return None
    side = len(region)
    box = (columns.min() / side, rows.min() / side, (columns.max() + 1) / side, (rows.max() + 1) / side)
    return Thing(
        name,
        (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
        region=region,
        depth=float(depth(place)),
        position=place,
        size=_SIZES.get(name),
    )


def _number(question: str, value: float) -> Exchange:
    value = round(value, 1)
    return Exchange(question, f"{value:.1f}", "number", {"value": value})


def _turned(direction: Float[np.ndarray, "2"], angle: float) -> Float[np.ndarray, "2"]:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([cos * direction[0] - sin * direction[1], sin * direction[0] + cos * direction[1]])
