"""CALVIN's protocol: 1,000 chains of five tasks, the state each begins in, and one sentence per task.

The chains and sentences in `protocol.json` are the published ones (calvin_agent/evaluation/multistep_sequences.py with
seed 0, conf/annotations/new_playtable_validation.yaml); `generate` makes the chains anew.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vlm4vla.benchmarks.calvin.world import SCENE_OBS

PROTOCOL = Path(__file__).with_name("protocol.json")
LENGTH = 5
Condition = Mapping[str, Any]
"""led, lightbulb (0 or 1), slider, drawer, where each block is; in this order, which the random state depends on."""

_VALUES: Mapping[str, tuple[Any, ...]] = {
    "led": (0, 1),
    "lightbulb": (0, 1),
    "slider": ("right", "left"),
    "drawer": ("closed", "open"),
    "red_block": ("table", "slider_right", "slider_left"),
    "blue_block": ("table", "slider_right", "slider_left"),
    "pink_block": ("table", "slider_right", "slider_left"),
    "grasped": (0,),
}
_BLOCKS = ("red_block", "blue_block", "pink_block")
_TOOL_AND_GRIPPER = (0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963)
_JOINTS = (-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928)
_ON_TABLE = (
    (5.00000896e-02, -1.20000177e-01, 4.59990009e-01),
    (2.29995412e-01, -1.19995140e-01, 4.59990010e-01),
)
_IN_CABINET = {
    "slider_left": (-2.40851662e-01, 9.24044687e-02, 4.60990009e-01),
    "slider_right": (7.03416330e-02, 9.24044687e-02, 4.60990009e-01),
}
_YAW = (math.pi / 2 - math.pi / 8, math.pi / 2 + math.pi / 8)
_HASH_PRIME = 0x01000193


@dataclass(frozen=True, slots=True)
class Chain:
    """Five tasks in a row, and how the desk is found."""

    condition: Condition
    tasks: tuple[str, ...]


@functools.lru_cache(maxsize=1)
def _protocol() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(PROTOCOL.read_text(encoding="utf-8"))
    return found


def chains() -> tuple[Chain, ...]:
    """The published 1,000, in their order."""
    tasks = list(instructions())
    return tuple(
        Chain(
            {name: values[index] for (name, values), index in zip(_VALUES.items(), places, strict=True)},
            tuple(tasks[index] for index in chosen),
        )
        for places, chosen in _protocol()["chains"]
    )


def instructions() -> Mapping[str, str]:
    """What a policy is told, by task: the first sentence of the validation annotations."""
    found: dict[str, str] = _protocol()["instructions"]
    return found


def initial_state(condition: Condition) -> tuple[Float[np.ndarray, "15"], Float[np.ndarray, "24"]]:
    """robot_obs and scene_obs, blocks in scene D's order (calvin_agent/evaluation/utils.py)."""
    random = np.random.RandomState(_seed(condition))
    table = [np.array(place) for place in _ON_TABLE]
    random.shuffle(table)
    scene = np.zeros(SCENE_OBS)
    scene[0] = 0.28 if condition["slider"] == "left" else 0
    scene[1] = 0.22 if condition["drawer"] == "open" else 0
    scene[3] = 0.088 if condition["lightbulb"] else 0
    scene[4], scene[5] = condition["lightbulb"], condition["led"]
    # On the table red takes the first place, pink the second, and blue the one that red leaves.
    places = {"red_block": table[0], "pink_block": table[1]}
    places["blue_block"] = table[1] if condition["red_block"] == "table" else table[0]
    for index, block in enumerate(_BLOCKS):
        first = 6 + 6 * index
        scene[first : first + 3] = _IN_CABINET.get(condition[block], places[block])
        scene[first + 5] = random.uniform(*_YAW)
    return np.array([*_TOOL_AND_GRIPPER, *_JOINTS, 1.0]), scene


def _seed(condition: Condition) -> int:
    """pyhash's 32-bit FNV-1 of the text of the values: of its UTF-16 bytes, and begun at zero, unlike the standard."""
    value = 0
    for byte in f"dict_values([{', '.join(map(repr, condition.values()))}])".encode("utf-16-le"):
        value = (value * _HASH_PRIME) & 0xFFFFFFFF ^ byte
    return value


Change = tuple[Condition, Condition]
"""What must hold before a task, and what holds after it."""


def _changes() -> dict[str, list[Change]]:
    """In the order of calvin_agent's table: the draws depend on it."""
    found: dict[str, list[Change]] = {}
    colors = ("red", "blue", "pink")
    for verb in ("rotate", "push"):
        for color in colors:
            here = {f"{color}_block": "table"}
            for side in ("right", "left"):
                found[f"{verb}_{color}_block_{side}"] = [(here | {"grasped": 0}, here)]
    found["move_slider_left"] = [({"slider": "right", "grasped": 0}, {"slider": "left"})]
    found["move_slider_right"] = [({"slider": "left", "grasped": 0}, {"slider": "right"})]
    found["open_drawer"] = [({"drawer": "closed", "grasped": 0}, {"drawer": "open"})]
    found["close_drawer"] = [({"drawer": "open", "grasped": 0}, {"drawer": "closed"})]
    for color in colors:
        block = f"{color}_block"
        held = {block: "grasped", "grasped": 1}
        found[f"lift_{block}_table"] = [({block: "table", "grasped": 0}, held)]
        found[f"lift_{block}_slider"] = [
            ({block: f"slider_{side}", "slider": other, "grasped": 0}, held)
            for side, other in (("left", "right"), ("right", "left"))
        ]
        found[f"lift_{block}_drawer"] = [({block: "drawer", "drawer": "open", "grasped": 0}, held)]
    found["place_in_slider"] = [
        (
            {f"{color}_block": "grasped", "slider": side, "grasped": 1},
            {f"{color}_block": f"slider_{side}", "grasped": 0},
        )
        for color in colors
        for side in ("right", "left")
    ]
    found["place_in_drawer"] = [
        (
            {f"{color}_block": "grasped", "drawer": "open", "grasped": 1},
            {f"{color}_block": "drawer", "grasped": 0},
        )
        for color in colors
    ]
    pairs = [(top, bottom) for top in colors for bottom in colors if top != bottom]
    found["stack_block"] = [
        (
            {f"{top}_block": "grasped", f"{bottom}_block": "table", "grasped": 1},
            {f"{top}_block": "stacked_top", f"{bottom}_block": "stacked_bottom", "grasped": 0},
        )
        for top, bottom in pairs
    ]
    found["unstack_block"] = [
        (
            {f"{top}_block": "stacked_top", f"{bottom}_block": "stacked_bottom", "grasped": 0},
            {f"{top}_block": "table", f"{bottom}_block": "table"},
        )
        for top, bottom in pairs
    ]
    for light in ("lightbulb", "led"):
        found[f"turn_on_{light}"] = [({light: 0, "grasped": 0}, {light: 1})]
        found[f"turn_off_{light}"] = [({light: 1, "grasped": 0}, {light: 0})]
    cabinet = ("slider_right", "slider_left")
    found["push_into_drawer"] = [
        (
            {f"{color}_block": "table", "drawer": "open", "grasped": 0}
            | {f"{other}_block": cabinet for other in colors if other != color},
            {f"{color}_block": "drawer", "grasped": 0},
        )
        for color in colors
    ]
    return found


def _kind(task: str) -> str:
    """Of one kind a chain has one task."""
    words = task.split("_")
    if words[0] in ("rotate", "push") and task != "push_into_drawer":
        return "push"
    if words[0] == "lift":
        return f"lift {words[-1]}"
    if words[0] in ("turn", "place"):
        return words[0]
    return "slider" if "slider" in words else "drawer" if task in ("open_drawer", "close_drawer") else task


def conditions() -> list[Condition]:
    """The 192 states a chain may begin in, in calvin_agent's order."""
    found: list[Condition] = []
    for values in itertools.product(*_VALUES.values()):
        if (
            values.count("table") in (1, 2)
            and values.count("slider_right") < 2
            and values.count("slider_left") < 2
        ):
            found.append(dict(zip(_VALUES, values, strict=True)))
    return found


def chains_from(condition: Condition, count: int, *, seed: int) -> Iterator[tuple[str, ...]]:
    """Random chains that can be done from this state; `seed` is the state's number in `conditions`."""
    changes = _changes()
    names, random = list(changes), np.random.RandomState(seed)
    while count:
        tasks = [str(name) for name in random.choice(names, size=LENGTH, replace=False)]
        if _possible(condition, tasks, changes):
            count -= 1
            yield tuple(tasks)


def generate(count: int = 1000) -> list[Chain]:
    """The chains anew: minutes of work."""
    states = conditions()
    shares = [len(part) for part in np.array_split(range(count), len(states))]
    made = [
        Chain(condition, tasks)
        for seed, (condition, share) in enumerate(zip(states, shares, strict=True))
        for tasks in chains_from(condition, share, seed=seed)
    ]
    order = list(range(count))
    np.random.RandomState(0).shuffle(order)
    return [made[index] for index in order]


def _possible(condition: Condition, tasks: Sequence[str], changes: Mapping[str, list[Change]]) -> bool:
    state = dict(condition)
    for task in tasks:
        following = [
            {**state, **after}
            for before, after in changes[task]
            if all(
                state[name] in value if isinstance(value, tuple) else state[name] == value
                for name, value in before.items()
            )
        ]
        if len(following) != 1:
            return False
        state = following[0]
    kinds = [_kind(task) for task in tasks]
    return len(kinds) == len(set(kinds))
