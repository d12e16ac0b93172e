"""Spatial questions from what is known of a scene: where things are in the picture, how far, how large, how many.

In the manner of VQASynth (github.com/remyxai/VQASynth), worded after the examples of Paper A.6. Whoever knows boxes,
depths or positions of things can have questions about them; what a question needs and a scene lacks is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from vlm4vla.tuning.examples import Exchange

Pixels = UInt8[np.ndarray, "height width 3"]
_CLEAR = 0.04
"""Share of the picture's side, or of the larger distance, below which a comparison is a matter of taste."""
_POINTS = 4


@dataclass(frozen=True, slots=True)
class Thing:
    """Something in a picture, and as much of it as is known."""

    name: str
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in 0..1."""
    region: Bool[np.ndarray, "height width"] | None = None
    """The pixels that show it; None: those of the box."""
    depth: float | None = None
    """Metres from the camera."""
    position: Float[np.ndarray, "3"] | None = None
    """Metres, in any one frame."""
    size: float | None = None
    """Metres along its longest side."""

    @property
    def centre(self) -> tuple[float, float]:
        """Of the box: x, y in 0..1."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


Ask = Callable[[Sequence[Thing], np.random.Generator], Exchange | None]
"""A question about a picture's things, without image mark; None where they allow none."""


def which_side(things: Sequence[Thing], rng: np.random.Generator) -> Exchange | None:
    """Which of two is further left, right, up or down in the picture. Paper A.6 (Bridgevqa)."""
    axis = int(rng.integers(2))
    words = (("to the left", "to the right"), ("at the top", "at the bottom"))[axis]
    return _compared(
        things, rng, "Who is positioned more {}, the {} or the {}?", words, lambda thing: thing.centre[axis]
    )


def depth_order(things: Sequence[Thing], rng: np.random.Generator) -> Exchange | None:
    """Which of two is nearer to the camera."""
    words = ("closer to the camera", "further from the camera")
    return _compared(things, rng, "Which is {}, the {} or the {}?", words, lambda thing: thing.depth, more=False)


def size_order(things: Sequence[Thing], rng: np.random.Generator) -> Exchange | None:
    """Which of two is the larger."""
    words = ("smaller", "larger")
    return _compared(things, rng, "Which is {}, the {} or the {}?", words, lambda thing: thing.size, more=False)


def distance(things: Sequence[Thing], rng: np.random.Generator) -> Exchange | None:
    """From centre to centre of two things, a number of metres as in Paper A.6 (Vica)."""
    placed = [thing for thing in _named_once(things) if thing.position is not None]
    if len(placed) < 2:
        return None
    first, second = _two(placed, rng)
    assert first.position is not None and second.position is not None
    value = round(float(np.linalg.norm(first.position - second.position)), 2)
    question = f"What is the direct distance between the centers of the {first.name} and the {second.name}, in meters?"
    return None if value == 0 else Exchange(question, f"{value:.2f}", "number", {"value": value})


def size(things: Sequence[Thing], rng: np.random.Generator) -> Exchange | None:
    """The longest side of a thing, in centimetres."""
    known = [thing for thing in _named_once(things) if thing.size]
    if not known:
        return None
    thing = known[int(rng.integers(len(known)))]
    assert thing.size is not None
    value = round(thing.size * 100, 1)
    question = f"What is the length of the longest side of the {thing.name}, in centimeters?"
    return Exchange(question, f"{value:.1f}", "number", {"value": value})


def count(things: Sequence[Thing], rng: np.random.Generator) -> Exchange | None:
    """How many things there are of a name's last word."""
    if not things:
        return None
    kinds = [thing.name.split()[-1] for thing in things]
    kind = kinds[int(rng.integers(len(kinds)))]
    value = kinds.count(kind)
    question = f"How many {kind if kind.endswith('s') else kind + 's'} are in the picture?"
    return Exchange(question, str(value), "number", {"value": float(value)})


def point(things: Sequence[Thing], rng: np.random.Generator) -> Exchange | None:
    """Points on a thing, in 0..1. RoboPoint's wording, Paper A.6."""
    named = _named_once(things)
    if not named:
        return None
    thing = named[int(rng.integers(len(named)))]
    return pointed(f"Locate several points on the {thing.name}.", thing, rng)


def pointed(question: str, thing: Thing, rng: np.random.Generator) -> Exchange | None:
    """A question whose answer is points on a thing; None when it shows no two pixels."""
    region = box_region(thing.box) if thing.region is None else thing.region
    height, width = region.shape
    rows, columns = np.nonzero(region)
    if len(rows) < 2:
        return None
    chosen = rng.permutation(len(rows))[: 4 * _POINTS]
    places = [(round((columns[i] + 0.5) / width, 2), round((rows[i] + 0.5) / height, 2)) for i in chosen]
    hits = [(x, y) for x, y in places if x < 1 and y < 1 and region[int(y * height), int(x * width)]]
    if not hits:
        return None
    answer = ", ".join(f"({x:.2f}, {y:.2f})" for x, y in hits[:_POINTS])
    return Exchange(question, f"[{answer}]", "points", {"region": region})


QUESTIONS: Mapping[str, Ask] = {
    "side": which_side,
    "depth": depth_order,
    "larger": size_order,
    "distance": distance,
    "size": size,
    "count": count,
    "point": point,
}


def bordered(
    things: Sequence[Thing], pixels: Pixels, rng: np.random.Generator
) -> tuple[Pixels, Exchange] | None:
    """Points on what lies beside a thing with a red border, which is drawn. RoboPoint's object reference."""
    order = [things[i] for i in rng.permutation(len(things))]
    sides = (("beneath", 1, 1), ("above", 1, -1), ("to the left of", 0, -1), ("to the right of", 0, 1))
    for other in order:
        for place in rng.permutation(len(sides)):
            word, axis, sign = sides[place]
            beside = [
                thing
                for thing in things
                if thing is not other
                and sign * (thing.centre[axis] - other.centre[axis]) > _CLEAR
                and abs(thing.centre[1 - axis] - other.centre[1 - axis]) < 0.15
            ]
            if len(beside) != 1:
                continue
            asked = pointed(f"Locate several points on an item situated {word} the bordered item.", beside[0], rng)
            if asked is not None:
                return boxed(pixels, other.box), asked
    return None


def boxed(pixels: Pixels, box: tuple[float, float, float, float]) -> Pixels:
    """A copy of the picture with a red border around a box."""
    height, width = pixels.shape[:2]
    drawn = Image.fromarray(pixels)
    left, top, right, bottom = box
    edges = (left * width - 1, top * height - 1, right * width, bottom * height)
    ImageDraw.Draw(drawn).rectangle(edges, outline=(255, 0, 0), width=max(1, width // 100))
    return np.array(drawn)


def arrows(
    pixels: Pixels, start: tuple[float, float], directions: Mapping[str, Float[np.ndarray, "2"]]
) -> Pixels:
    """A copy of the picture with an arrow of each colour from `start` (0..1), directions of length 1."""
    height, width = pixels.shape[:2]
    drawn = Image.fromarray(pixels)
    draw = ImageDraw.Draw(drawn)
    begin = np.array(start) * [width, height]
    line = max(1, width // 60)
    for color, direction in directions.items():
        tip = begin + direction * 0.2 * width
        across = np.array([-direction[1], direction[0]])
        neck = tip - direction * 3.5 * line
        draw.line([*begin, *neck], fill=color, width=line)
        corners = (tip, neck + across * 2.5 * line, neck - across * 2.5 * line)
        draw.polygon([(float(x), float(y)) for x, y in corners], fill=color)
    return np.array(drawn)


def box_region(box: tuple[float, float, float, float], side: int = 100) -> Bool[np.ndarray, "side side"]:
    """The cells of a square grid whose centres lie in a box."""
    centres = (np.arange(side) + 0.5) / side
    left, top, right, bottom = box
    return ((centres >= top) & (centres <= bottom))[:, None] & ((centres >= left) & (centres <= right))[None]


def _compared(
    things: Sequence[Thing],
    rng: np.random.Generator,
    question: str,
    words: tuple[str, str],
    value: Callable[[Thing], float | None],
    *,
    more: bool = True,
) -> Exchange | None:
    """`words` for the lesser and the greater value."""
    known = [thing for thing in _named_once(things) if value(thing) is not None]
    if len(known) < 2:
        return None
    first, second = _two(known, rng)
    values = [value(first) or 0.0, value(second) or 0.0]
    if abs(values[0] - values[1]) < _CLEAR * (1 if more else max(values)):
        return None
    which = int(rng.integers(2))
    lesser, greater = (first, second) if values[0] < values[1] else (second, first)
    chosen = (lesser, greater)[which]
    answer = f"{chosen.name.capitalize()} is {'more ' if more else ''}{words[which]}."
    return Exchange(question.format(words[which], first.name, second.name), answer, "exact")


def _two(things: Sequence[Thing], rng: np.random.Generator) -> tuple[Thing, Thing]:
    first, second = rng.permutation(len(things))[:2]
    return things[first], things[second]


def _named_once(things: Sequence[Thing]) -> list[Thing]:
    """Those whose name says which is meant."""
    names = [thing.name for thing in things]
    return [thing for thing in things if names.count(thing.name) == 1]
