"""The nine tasks: phrasings, tiers, when they make sense and when they are fulfilled."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlm4vla.benchmarks.tabletop.scene import (
    BLOCK_HALF,
    BUTTON_TRAVEL,
    COLORS,
    DRAWER_TRAVEL,
    PLATE_RADIUS,
    PLATE_TOP,
    SceneState,
    before_drawer,
)
from vlm4vla.core.errors import unknown_name
from vlm4vla.core.types import Goal

TIERS: Mapping[str, tuple[str, ...]] = {
    "fixed-target": ("press", "open", "close"),
    "single-block": ("reach", "lift", "push_left", "push_right"),
    "two-object": ("place", "stack"),
}
TASKS: tuple[str, ...] = tuple(task for tasks in TIERS.values() for task in tasks)
TIER_OF: Mapping[str, str] = {task: tier for tier, tasks in TIERS.items() for task in tasks}

PHRASINGS: Mapping[str, tuple[str, ...]] = {
    "press": ("press the button", "push the pink button down", "hit the button"),
    "open": ("open the drawer", "pull the drawer open", "pull out the drawer"),
    "close": ("close the drawer", "push the drawer shut", "shut the drawer"),
    "reach": ("reach the {0} block", "move to the {0} block", "go to the {0} block"),
    "lift": ("lift the {0} block", "pick up the {0} block", "raise the {0} block"),
    "push_left": ("push the {0} block left", "slide the {0} block to the left", "move the {0} block left"),
    "push_right": (
        "push the {0} block right",
        "slide the {0} block to the right",
        "move the {0} block right",
    ),
    "place": (
        "place the {0} block on the plate",
        "put the {0} block on the plate",
        "set the {0} block on the plate",
    ),
    "stack": (
        "stack the {0} block on the {1} block",
        "put the {0} block on the {1} block",
        "place the {0} block on top of the {1} block",
    ),
}
MAX_STEPS: Mapping[str, int] = {
    **dict.fromkeys(TIERS["fixed-target"], 40),
    **dict.fromkeys(TIERS["single-block"], 40),
    **dict.fromkeys(TIERS["two-object"], 60),
}


REACH_DISTANCE = 0.028
LIFT_HEIGHT = 0.05
PUSH_DISTANCE = 0.05


def instructions() -> list[str]:
    """Every phrasing of every task with every colour, for a tokenizer to learn the words from."""
    return [
        phrasing.format(first, second)
        for phrasings in PHRASINGS.values()
        for phrasing in phrasings
        for first, second in itertools.permutations(COLORS, 2)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A task with its blocks: what a goal means to the scene."""

    task: str
    blocks: tuple[str, ...] = ()
    """The block to act on and, for `stack`, the one below."""

    def goal(self, rng: np.random.Generator) -> Goal:
        """The goal in one of the task's phrasings."""
        phrasing = PHRASINGS[self.task][int(rng.integers(len(PHRASINGS[self.task])))]
        return Goal(task=self.task, instruction=phrasing.format(*self.blocks), tier=TIER_OF[self.task])


def tasks_named(names: Sequence[str]) -> tuple[str, ...]:
    """Task names with tiers expanded, in the benchmark's order; empty means all."""
    wanted: set[str] = set()
    for name in names:
        if name not in TIER_OF and name not in TIERS:
            raise unknown_name("task or tier", name, (*TASKS, *TIERS))
        wanted.update(TIERS.get(name, (name,)))
    return tuple(task for task in TASKS if task in wanted) if wanted else TASKS


def fulfilled(assignment: Assignment, start: SceneState, now: SceneState) -> bool:
    """Whether the task has been done, given the state when it was set."""
    match assignment.task:
        case "press":
            return now.button > 0.55 * BUTTON_TRAVEL
        case "open":
            return now.drawer > 0.75 * DRAWER_TRAVEL
        case "close":
            return now.drawer < 0.12 * DRAWER_TRAVEL
    block = now.blocks[assignment.blocks[0]]
    moved = block - start.blocks[assignment.blocks[0]]
    on_table = bool(abs(block[2] - BLOCK_HALF) < 0.012)
    match assignment.task:
        case "reach":
            near = np.linalg.norm(now.gripper[:2] - block[:2]) < REACH_DISTANCE
            return bool(near and now.gripper[2] < block[2] + 0.035)
        case "lift":
            return bool(block[2] > BLOCK_HALF + LIFT_HEIGHT and now.held == assignment.blocks[0])
        case "push_left":
            return bool(moved[0] < -PUSH_DISTANCE and on_table)
        case "push_right":
            return bool(moved[0] > PUSH_DISTANCE and on_table)
        case "place":
            over = np.linalg.norm(block[:2] - now.plate) < PLATE_RADIUS - 0.005
            low = abs(block[2] - BLOCK_HALF - PLATE_TOP) < 0.012
            return bool(over and low and now.held != assignment.blocks[0])
        case "stack":
            below = now.blocks[assignment.blocks[1]]
            over = np.linalg.norm(block[:2] - below[:2]) < 1.2 * BLOCK_HALF
            high = abs(block[2] - below[2] - 2 * BLOCK_HALF) < 0.012
            return bool(over and high and now.held != assignment.blocks[0])
    raise unknown_name("task", assignment.task, TASKS)


def sensible(assignment: Assignment, state: SceneState) -> bool:
    """Whether the task can be set now: not already done, nothing in the way, room to do it."""
    match assignment.task:
        case "press":
            return state.button < 0.2 * BUTTON_TRAVEL
        case "open":
            free = not any(before_drawer(block) for block in state.blocks.values())
            return state.drawer < 0.2 * DRAWER_TRAVEL and free
        case "close":
            return state.drawer > 0.6 * DRAWER_TRAVEL
    name = assignment.blocks[0]
    block = state.blocks[name]
    others = [position for color, position in state.blocks.items() if color != name]
    if state.held == name or _covered(block, others) or not _reachable(block):
        return False
    on_table = bool(abs(block[2] - BLOCK_HALF) < 0.01)
    clear = all(abs(block[0] - other[0]) > 0.08 or abs(block[1] - other[1]) > 0.048 for other in others)
    match assignment.task:
        case "reach":
            return bool(np.linalg.norm(state.gripper[:2] - block[:2]) > 0.07)
        case "lift":
            return clear
        case "push_left" | "push_right":
            sign = -1.0 if assignment.task == "push_left" else 1.0
            ahead = [o for o in others if abs(o[1] - block[1]) < 0.05 and 0 < sign * (o[0] - block[0]) < 0.13]
            behind = [
                o for o in others if abs(o[1] - block[1]) < 0.05 and 0 < -sign * (o[0] - block[0]) < 0.12
            ]
            room = sign * block[0] < 0.11 and -sign * block[0] < 0.165
            return bool(on_table and not ahead and not behind and room)
        case "place":
            free = all(np.linalg.norm(other[:2] - state.plate) > PLATE_RADIUS + 0.02 for other in others)
            away = np.linalg.norm(block[:2] - state.plate) > PLATE_RADIUS + 0.02
            return bool(clear and free and away)
        case "stack":
            below = state.blocks[assignment.blocks[1]]
            rest = [o for color, o in state.blocks.items() if color not in assignment.blocks]
            open_above = all(abs(below[0] - o[0]) > 0.08 or abs(below[1] - o[1]) > 0.048 for o in rest)
            return bool(
                clear
                and open_above
                and not _covered(below, [o for c, o in state.blocks.items() if c != assignment.blocks[1]])
                and state.held != assignment.blocks[1]
                and np.linalg.norm(block[:2] - below[:2]) > 0.06
            )
    raise unknown_name("task", assignment.task, TASKS)


def candidates(task: str, state: SceneState) -> list[Assignment]:
    """Every way to set the task now."""
    if TIER_OF[task] == "fixed-target":
        options = [Assignment(task=task)]
    elif task == "stack":
        options = [Assignment(task=task, blocks=(a, b)) for a in state.blocks for b in state.blocks if a != b]
    else:
        options = [Assignment(task=task, blocks=(block,)) for block in state.blocks]
    return [option for option in options if sensible(option, state)]


def _covered(block: np.ndarray, others: Sequence[np.ndarray]) -> bool:
    return any(
        o[2] > block[2] + BLOCK_HALF and np.linalg.norm(o[:2] - block[:2]) < 2 * BLOCK_HALF for o in others
    )


def _reachable(block: np.ndarray) -> bool:
    return bool(abs(block[0]) < 0.21 and -0.19 < block[1] < 0.10 and -0.01 < block[2] < 0.12)
