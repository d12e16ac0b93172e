"""Drawings beside the truth on one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vlm4vla.tuning.drawings import measured, to_pixels
from vlm4vla.tuning.examples import IMAGE_MARK, Conversation

_SIDE, _GAP, _LABEL, _LINE = 128, 8, 112, 14
_COLUMNS = 6
_ROWS = ("picture", "truth", "drawn", "mean of the\ntraining drawings\n(in brackets)")
_TEXTS = {
    "psnr_db": "PSNR {:.1f} dB ({:.1f})",
    "depth_error_mm": "off by {:.1f} mm ({:.1f})",
    "depth_error_relative": "{:.1%} ({:.1%})",
    "iou": "IoU {:.2f} ({:.2f})",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """A drawing and what it is compared with, in -1..1."""

    asked: Conversation
    truth: Float[Tensor, "3 side side"]
    drawn: Float[Tensor, "3 side side"]
    mean: Float[Tensor, "3 side side"]
    """Of the training drawings of its kind."""


def drawing_sheet(shown: Sequence[Shown]) -> UInt8[np.ndarray, "height width 3"]:
    """Of every kind the first few: the picture, the truth, what was drawn and the mean, with the measures below."""
    kinds: dict[str, list[Shown]] = {}
    for one in shown:
        assert one.asked.drawing is not None
        kinds.setdefault(one.asked.drawing.kind, []).append(one)
    block = 2 * _LINE + 4 * (_SIDE + _GAP) + 3 * _LINE
    width = _LABEL + _COLUMNS * (_SIDE + _GAP)
    sheet = Image.new("RGB", (width, _GAP + block * len(kinds)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, (kind, found) in enumerate(kinds.items()):
        top = _GAP + number * block
        question = found[0].asked.exchanges[0].question.replace(IMAGE_MARK, "").strip()
        draw.text((_GAP, top), f"{kind}: {question}", fill="black", font=font)
        top += 2 * _LINE
        for row, label in enumerate(_ROWS):
            draw.text((_GAP, top + row * (_SIDE + _GAP)), label, fill="black", font=font)
        for column, one in enumerate(found[:_COLUMNS]):
            left = _LABEL + column * (_SIDE + _GAP)
            rows = (
                _picture(one.asked),
                *(Image.fromarray(to_pixels(p)) for p in (one.truth, one.drawn, one.mean)),
            )
            for row, picture in enumerate(rows):
                place = (left, top + row * (_SIDE + _GAP))
                sheet.paste(picture.resize((_SIDE, _SIDE), Image.Resampling.NEAREST), place)
            for line, text in enumerate(_measures(one)):
                draw.text((left, top + 4 * (_SIDE + _GAP) + line * _LINE), text, fill="black", font=font)
    return np.array(sheet)


def _measures(one: Shown) -> list[str]:
    assert one.asked.drawing is not None
    mine = measured(one.drawn, one.truth, one.asked.drawing)
    mean = measured(one.mean, one.truth, one.asked.drawing)
    return [_TEXTS[name].format(mine[name], mean[name]) for name in mine]


def _picture(asked: Conversation) -> Image.Image:
    image = asked.images[0]
    return (
        Image.fromarray(image)
        if isinstance(image, np.ndarray)
        else Image.open(io.BytesIO(image)).convert("RGB")
    )
