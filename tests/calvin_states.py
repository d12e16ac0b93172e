"""Hand-made states of CALVIN's desk, a step on either side of every condition of its oracle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vlm4vla.benchmarks.calvin.world import Body, State, World

ROBOT, TABLE = 0, 5
BLOCKS = {"block_red": 2, "block_blue": 3, "block_pink": 4}
LINKS = {"button_link": 0, "drawer_link": 3, "plank_link": 6, "base_link": -1}
HAND = (ROBOT, 10)
DESK, DRAWER, PLANK = ((TABLE, LINKS[name]) for name in ("base_link", "drawer_link", "plank_link"))
COLORS = ("red", "blue", "pink")


def world() -> World:
    """Its bodies' numbers, without a simulator."""
    found = World(None, "D", Path())
    found.robot, found.table, found.blocks, found.links = ROBOT, TABLE, BLOCKS, LINKS
    return found


def _body(
    contacts: tuple[tuple[int, int], ...] = (DESK,),
    *,
    moved: tuple[float, float, float] = (0, 0, 0),
    yaw: float = 0,
    tilt: float = 0,
    speed: float = 0,
) -> Body:
    """Metres, degrees about z and then about the fixed x, metres and radians a second along every axis."""
    z, x = math.radians(yaw) / 2, math.radians(tilt) / 2
    quaternion = [math.sin(x) * math.cos(z), -math.sin(x) * math.sin(z), math.cos(x) * math.sin(z)]
    place = np.array([0.05, -0.1, 0.46]) + np.array(moved)
    return Body(
        place,
        np.array([*quaternion, math.cos(x) * math.cos(z)]),
        np.full(6, float(speed)),
        frozenset(contacts),
    )


def _state(
    color: str = "red",
    body: Body | None = None,
    *,
    touched: tuple[int, ...] = (),
    doors: tuple[float, float] = (0.0, 0.0),
    lights: tuple[int, int] = (0, 0),
) -> State:
    """All blocks at rest but one."""
    blocks = {name: _body() for name in BLOCKS}
    if body is not None:
        blocks[f"block_{color}"] = body
    return State(
        blocks,
        dict(zip(("base__slide", "base__drawer"), doors, strict=True)),
        dict(zip(("lightbulb", "led"), lights, strict=True)),
        frozenset(touched),
    )


def of_block(color: str) -> Mapping[str, State]:
    """What can be with one block, by name."""
    own, others = BLOCKS[f"block_{color}"], [(BLOCKS[f"block_{c}"], -1) for c in COLORS if c != color]
    bodies = {
        "rest": _body(),
        **{f"turned {yaw}": _body(yaw=yaw) for yaw in (61, 59, -61, -59, 150)},
        **{f"turned {yaw}, tilted 31": _body(yaw=yaw, tilt=31) for yaw in (61, -61)},
        **{f"turned {yaw}, moved": _body(yaw=yaw, moved=(0.08, 0.065, 0)) for yaw in (61, -61)},
        **{f"turned {yaw}, in the air": _body((HAND,), yaw=yaw) for yaw in (61, -61)},
        **{f"pushed {x}": _body(moved=(x, 0, 0)) for x in (0.101, 0.099, -0.101, -0.099)},
        **{f"flown {x}": _body((), moved=(x, 0, 0)) for x in (0.15, -0.15)},
        "pushed aside": _body(moved=(0, -0.15, 0)),
        **{f"lifted {z}": _body((HAND,), moved=(0, 0, z)) for z in (0.051, 0.049, 0.031, 0.029)},
        "lifted and touching": _body((HAND, others[0]), moved=(0, 0, 0.06)),
        "thrown up": _body((), moved=(0, 0, 0.06)),
        "on plank": _body((PLANK,)),
        "in drawer": _body((DRAWER,)),
        "on desk and drawer": _body((DESK, DRAWER)),
        "on a block": _body((others[0],), speed=0.9),
        "on two blocks": _body(tuple(others)),
        "on a block, fast": _body((others[0],), speed=1.1),
        "on a block and the desk": _body((others[0], DESK)),
    }
    held = {name: _state(color, body) for name, body in bodies.items()}
    for name, body in (("held", _body((HAND,))), ("held against the desk", _body((HAND, DESK)))):
        held[name] = _state(color, body, touched=(own,))
    held["held, the hand on the desk"] = _state(color, _body((HAND,)), touched=(own, TABLE))
    for name, link in (("plank", PLANK), ("drawer", DRAWER)):
        held[f"in hand on {name}"] = _state(color, _body((link, HAND)), touched=(own,))
    return held


def of_desk() -> Mapping[str, State]:
    """Doors and lights, by name."""
    return {
        "rest": _state(),
        **{f"slider {x}": _state(doors=(x, 0)) for x in (0.151, 0.149)},
        **{f"drawer {x}": _state(doors=(0, x)) for x in (0.121, 0.119)},
        "lightbulb": _state(lights=(1, 0)),
        "led": _state(lights=(0, 1)),
    }


def groups() -> Mapping[str, Mapping[str, State]]:
    """Within a group every state is a beginning and every one an end."""
    return {**{color: of_block(color) for color in COLORS}, "desk": of_desk()}


Pair = tuple[str, str]
"""Beginning and end."""


def cases() -> Mapping[str, tuple[str, Pair, tuple[Pair, ...]]]:
    """Of every task: the group, a pair in which it is done, and pairs that miss by little."""
    found: dict[str, tuple[str, Pair, tuple[Pair, ...]]] = {}
    for color in COLORS:
        for side, yaw, x in (("right", -61, 0.101), ("left", 61, -0.101)):
            short = {61: 59, -61: -59, 0.101: 0.099, -0.101: -0.099}
            ends = (
                f"turned {short[yaw]}",
                *(f"turned {yaw}, {how}" for how in ("tilted 31", "moved", "in the air")),
                f"turned {-yaw}",
            )
            found[f"rotate_{color}_block_{side}"] = (
                color,
                ("rest", f"turned {yaw}"),
                tuple(("rest", end) for end in ends),
            )
            ends = (f"pushed {short[x]}", f"pushed {-x}", f"flown {math.copysign(0.15, x)}", "pushed aside")
            found[f"push_{color}_block_{side}"] = (
                color,
                ("rest", f"pushed {x}"),
                (*(("rest", end) for end in ends), ("on plank", f"pushed {x}")),
            )
        for place, start, z in (
            ("table", "rest", 0.051),
            ("slider", "on plank", 0.031),
            ("drawer", "in drawer", 0.051),
        ):
            wrong = "rest" if start != "rest" else "in drawer"
            ends = (f"lifted {z - 0.002:.3f}", "lifted and touching", "thrown up")
            found[f"lift_{color}_block_{place}"] = (
                color,
                (start, f"lifted {z}"),
                (*((start, end) for end in ends), (wrong, f"lifted {z}")),
            )
    for task, link, other, end in (
        ("place_in_slider", "plank", "drawer", "on plank"),
        ("place_in_drawer", "drawer", "plank", "in drawer"),
    ):
        wrong_end = {"plank": "on plank", "drawer": "in drawer"}[other]
        found[task] = (
            "blue",
            ("held", end),
            (
                ("held", f"in hand on {link}"),
                ("held", wrong_end),
                ("held against the desk", end),
                ("held, the hand on the desk", end),
                ("rest", end),
            ),
        )
    fast = (
        ("rest", "on a block, fast"),
        ("rest", "on a block and the desk"),
        ("on a block", "on two blocks"),
    )
    found["stack_block"] = ("red", ("rest", "on a block"), fast)
    slow = (
        ("on a block, fast", "rest"),
        ("on a block and the desk", "rest"),
        ("on a block", "on two blocks"),
    )
    found["unstack_block"] = ("red", ("on a block", "rest"), slow)
    missed = (
        ("on desk and drawer", "in drawer"),
        ("rest", "on plank"),
        ("on plank", "in drawer"),
        ("held against the desk", "in drawer"),
    )
    found["push_into_drawer"] = ("pink", ("rest", "in drawer"), missed)
    for opening, closing, name, enough, short_of in (
        ("move_slider_left", "move_slider_right", "slider", 0.151, 0.149),
        ("open_drawer", "close_drawer", "drawer", 0.121, 0.119),
    ):
        far, near = f"{name} {enough}", f"{name} {short_of}"
        found[opening] = ("desk", ("rest", far), (("rest", near), (far, "rest")))
        found[closing] = ("desk", (far, "rest"), ((near, "rest"), ("rest", far)))
    for light, other in (("lightbulb", "led"), ("led", "lightbulb")):
        found[f"turn_on_{light}"] = ("desk", ("rest", light), (("rest", other), (light, light)))
        found[f"turn_off_{light}"] = ("desk", (light, "rest"), ((other, "rest"), (light, light)))
    return found
