"""Questions on one picture with their answers drawn: what a program cannot find wrong is seen."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlm4vla.tuning.examples import IMAGE_MARK, Conversation, ConversationSource, Exchange
from vlm4vla.tuning.readers_images import Picture
from vlm4vla.tuning.spatial import Pixels

_SIDE, _GAP, _LINE, _LETTERS = 256, 12, 13, 42
_NUMBERS = re.compile(r"[(\[](\d?\.\d+), ?(\d?\.\d+)[)\]]")


def question_sheet(conversations: Sequence[Conversation], *, columns: int = 4) -> Pixels:
    """Every conversation's first picture with its exchanges below; points and paths of an answer are drawn on it."""
    texts = [[line for e in shown.exchanges for line in _lines(e)] for shown in conversations]
    heights = [
        _SIDE + _LINE * max(map(len, texts[start : start + columns])) + 2 * _GAP
        for start in range(0, len(texts), columns)
    ]
    width = min(columns, len(conversations)) * (_SIDE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, sum(heights)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (shown, lines) in enumerate(zip(conversations, texts, strict=True)):
        left = _GAP + index % columns * (_SIDE + _GAP)
        top = sum(heights[: index // columns]) + _GAP // 2
        if shown.images:
            sheet.paste(_drawn(shown.images[0], shown.exchanges), (left, top))
        for number, line in enumerate(lines):
            draw.text((left, top + _SIDE + _LINE * number + 2), line, fill="black", font=font)
    return np.array(sheet)


def spread(source: ConversationSource, count: int) -> list[Conversation]:
    """So many conversations from all over a source. Raises: DataError as the source does."""
    return [source[i] for i in np.unique(np.linspace(0, len(source) - 1, count).astype(int)).tolist()]


def _lines(exchange: Exchange) -> list[str]:
    question = " ".join(exchange.question.replace(IMAGE_MARK, "").split())
    answer = exchange.answer if exchange.drawing is None else "(on the right)"
    return textwrap.wrap(question, _LETTERS) + textwrap.wrap(f"> {answer}", _LETTERS)


def _drawn(image: Picture, exchanges: Sequence[Exchange]) -> Image.Image:
    opened = Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(io.BytesIO(image))
    shown = opened.convert("RGB").resize((_SIDE, _SIDE))
    if (drawing := exchanges[0].drawing) is not None:
        half, beside = (_SIDE // 2, _SIDE // 2), Image.new("RGB", (_SIDE, _SIDE // 2))
        beside.paste(shown.resize(half))
        beside.paste(Image.fromarray(drawing.pixels).resize(half), (_SIDE // 2, 0))
        return beside
    draw = ImageDraw.Draw(shown)
    for exchange in exchanges:
        places = [(float(x) * _SIDE, float(y) * _SIDE) for x, y in _NUMBERS.findall(exchange.answer)]
        if exchange.measure == "trajectory":
            draw.line(places, fill="magenta", width=2)
            places = places[:1]
        if exchange.measure in ("points", "trajectory"):
            for x, y in places:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill="magenta", outline="white")
    return shown
