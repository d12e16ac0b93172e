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
CLEAR = 0.04
"""Share of the picture's side by which places differ that are compared."""
_CLEAR_RATIO = 0.15
"""Share of the larger by which distances and widths differ that are compared."""
_ALONG = 0.7
"""Beside means so much more along a direction than across it; as much across as along is neither."""
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
    """Of its centre: metres, in any one frame."""
    width: float | None = None
    """Metres across."""
    whole: bool = True
    """Nothing hides so much of it that its box does not tell where it is."""

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
    words = (("more to the left", "more to the right"), ("higher in the picture", "lower in the picture"))[
        axis
    ]
    whole = [thing for thing in things if thing.whole]
    return _compared(whole, rng, "Who is positioned {}, the {} or the {}?", words, lambda t: t.centre[axis])


def depth_order(things: Sequence[Thing], rng: np.random.Generator) -> Exchange | None:
    """Which of two is nearer to the camera."""
    words = ("closer to the camera", "further from the camera")
    return _compared(things, rng, "Which is {}, the {} or the {}?", words, lambda t: t.depth, ratio=True)


def width_order(things: Sequence[Thing], rng: np.random.Generator) -> Exchange | None:
    """Which of two is the wider."""
    return _compared(
        things, rng, "Which is {}, the {} or the {}?", ("narrower", "wider"), lambda t: t.width, ratio=True
    )


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


def width(things: Sequence[Thing], rng: np.random.Generator) -> Exchange | None:
    """How wide a thing is, in centimetres."""
    known = [thing for thing in _named_once(things) if thing.width]
    if not known:
        return None
    thing = known[int(rng.integers(len(known)))]
    assert thing.width is not None
    value = round(thing.width * 100, 1)
    question = f"How wide is the {thing.name}, in centimeters?"
    return None if value == 0 else Exchange(question, f"{value:.1f}", "number", {"value": value})


def count(things: Sequence[Thing], rng: np.random.Generator) -> Exchange | None:
    """How many things there are of a name's last word: all of them must be among `things`."""
    if not things:
        return None
    kinds = [thing.name.split()[-1] for thing in things]
    kind = kinds[int(rng.integers(len(kinds)))]
    value = kinds.count(kind)
    plural = kind + ("es" if kind.endswith(("s", "x", "ch", "sh")) else "s")
    question = f"How many {plural} are in the picture?"
    return Exchange(question, str(value), "number", {"value": float(value)})


def point(things: Sequence[Thing], rng: np.random.Generator) -> Exchange | None:
    """Points on a thing, in 0..1. RoboPoint's wording, Paper A.6."""
    named = _named_once(things)
    if not named:
        return None
    thing = named[int(rng.integers(len(named)))]
    return pointed(f"Locate several points on the {thing.name}.", thing, rng)


def pointed(question: str, thing: Thing, rng: np.random.Generator) -> Exchange | None:
    """A question whose answer is two to four points on a thing; None when too little of it is seen."""
    region = box_region(thing.box) if thing.region is None else thing.region
    height, width = region.shape
    rows, columns = np.nonzero(region)
    if len(rows) < 2:
        return None
    chosen = rng.permutation(len(rows))[: 4 * _POINTS]
    places = [(round((columns[i] + 0.5) / width, 2), round((rows[i] + 0.5) / height, 2)) for i in chosen]
    hits = [(x, y) for x, y in places if x < 1 and y < 1 and region[int(y * height), int(x * width)]]
    if len(hits) < 2:
        return None
    answer = ", ".join(f"({x:.2f}, {y:.2f})" for x, y in hits[:_POINTS])
    return Exchange(question, f"[{answer}]", "points", {"region": region})


QUESTIONS: Mapping[str, Ask] = {
    "side": which_side,
    "depth": depth_order,
    "wider": width_order,
    "distance": distance,
    "width": width,
    "count": count,
    "point": point,
}


def bordered(
    things: Sequence[Thing], pixels: Pixels, rng: np.random.Generator
) -> tuple[Pixels, Exchange] | None:
    """Points on what lies beside a thing with a red border, which is drawn. RoboPoint's object reference.

    `things` are all that a viewer would count as items: none is asked for where another could be meant, and none is
    bordered whose border holds another.
    """
    sides = (("beneath", 1, 1), ("above", 1, -1), ("to the left of", 0, -1), ("to the right of", 0, 1))
    for other in (things[i] for i in rng.permutation(len(things))):
        rest = [thing for thing in things if thing is not other]
        if not other.whole or any(_holds(other.box, thing.centre) for thing in rest):
            continue
        for place in rng.permutation(len(sides)):
            word, axis, sign = sides[place]
            beside = []
            for thing in rest:
                along = sign * (thing.centre[axis] - other.centre[axis])
                across = abs(thing.centre[1 - axis] - other.centre[1 - axis])
                if along > 0 and across < along / _ALONG:
                    beside.append((thing, _apart(other, thing, along, across)))
            if len(beside) == 1 and beside[0][1] and beside[0][0].whole:
                question = f"Locate several points on an item situated {word} the bordered item."
                asked = pointed(question, beside[0][0], rng)
                return None if asked is None else (boxed(pixels, other.box), asked)
    return None


def _apart(other: Thing, thing: Thing, along: float, across: float) -> bool:
    return along > CLEAR and across < along * _ALONG and not _holds(thing.box, other.centre)


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
    """A copy of the picture with an arrow of each colour from `start` (0..1), directions of length 1.

    White edges part them from whatever has their colour.
    """
    height, width = pixels.shape[:2]
    drawn = Image.fromarray(pixels)
    draw = ImageDraw.Draw(drawn)
    begin = np.array(start) * [width, height]
    line = max(2, width // 60)
    for edge in (max(1, line // 2), 0):
        for color, direction in directions.items():
            tip = begin + direction * (0.2 * width + 1.5 * edge)
            neck = begin + direction * (0.2 * width - 3.5 * line - edge)
            across = np.array([-direction[1], direction[0]]) * (2.5 * line + 1.5 * edge)
            fill = "white" if edge else color
            draw.line([*begin, *neck], fill=fill, width=line + 2 * edge)
            draw.polygon([(float(x), float(y)) for x, y in (tip, neck + across, neck - across)], fill=fill)
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
    ratio: bool = False,
) -> Exchange | None:
    """`words` for the lesser and the greater value. None for values so alike that it is a matter of taste."""
    known = [thing for thing in _named_once(things) if value(thing) is not None]
    if len(known) < 2:
        return None
    first, second = _two(known, rng)
    lesser, greater = sorted((first, second), key=lambda thing: value(thing) or 0.0)
    low, high = value(lesser) or 0.0, value(greater) or 0.0
    if high - low <= (_CLEAR_RATIO * high if ratio else CLEAR):
        return None
    which = int(rng.integers(2))
    answer = f"{(lesser, greater)[which].name.capitalize()} is {words[which]}."
    return Exchange(question.format(words[which], first.name, second.name), answer, "exact")


def _holds(box: tuple[float, float, float, float], place: tuple[float, float]) -> bool:
    left, top, right, bottom = box
    return left <= place[0] <= right and top <= place[1] <= bottom


def _two(things: Sequence[Thing], rng: np.random.Generator) -> tuple[Thing, Thing]:
    first, second = rng.permutation(len(things))[:2]
    return things[first], things[second]


def _named_once(things: Sequence[Thing]) -> list[Thing]:
    """Those whose name says which is meant."""
    names = [thing.name for thing in things]
    return [thing for thing in things if names.count(thing.name) == 1]
