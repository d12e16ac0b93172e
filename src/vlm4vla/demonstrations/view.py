"""A contact sheet: frames of a few episodes and the distribution of every action dimension, on one picture.

A wrong camera, an upside-down image or a flipped gripper cannot be found by a program; here they are seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vlm4vla.core.actions import ACTION_SIZE, GRIPPER, ActionSpec
from vlm4vla.core.types import Demonstration
from vlm4vla.demonstrations.statistics import DIMENSIONS, describe

_CELL, _GAP, _LINE = 144, 8, 18
_PLOT = 110
_INK, _PAPER, _QUIET, _ACCENT = (28, 30, 36), (255, 255, 255), (118, 124, 135), (46, 105, 199)


def contact_sheet(
    demonstrations: Sequence[Demonstration],
    actions: Float32[np.ndarray, "steps 7"],
    action_spec: ActionSpec,
    *,
    frames: int = 6,
) -> UInt8[np.ndarray, "height width 3"]:
    """`frames` evenly spread frames of every demonstration under its instruction, then histograms of `actions`.

    Each frame tells its step and what the gripper is commanded, if the actions mean what `action_spec` says.
    """
    width = max(frames * (_CELL + _GAP) + _GAP, 4 * (_CELL + _PLOT))
    row = _CELL + 2 * _LINE + _GAP
    plots = -(-ACTION_SIZE // 4)
    sheet = Image.new(
        "RGB", (width, _GAP + len(demonstrations) * row + plots * (_PLOT + 3 * _LINE) + _GAP), _PAPER
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    top = _GAP
    for demonstration in demonstrations:
        title = f"{demonstration.id}: {demonstration.instruction or '(no instruction)'}"
        draw.text((_GAP, top), _fitting(draw, title, width - 2 * _GAP, font), fill=_INK, font=font)
        steps = np.linspace(0, len(demonstration.actions) - 1, frames).round().astype(int)
        for place, step in enumerate(steps.tolist()):
            left = _GAP + place * (_CELL + _GAP)
            picture = Image.fromarray(np.ascontiguousarray(demonstration.images[step]))
            sheet.paste(ImageOps.contain(picture, (_CELL, _CELL)), (left, top + _LINE))
            positive = demonstration.actions[step, GRIPPER] > 0
            word = "open" if positive == (action_spec.gripper == "open_positive") else "close"
            draw.text((left, top + _LINE + _CELL), f"step {step}  {word}", fill=_QUIET, font=font)
        top += row
    for index, column in enumerate(describe(actions)):
        left = _GAP + index % 4 * (width // 4)
        base = top + index // 4 * (_PLOT + 3 * _LINE)
        draw.text((left, base), DIMENSIONS[index], fill=_INK, font=font)
        room, most = width // 4 - 4 * _GAP, max(column.histogram)
        wide = room / len(column.histogram)
        for bin_number, count in enumerate(column.histogram):
            tall = (_PLOT - 4) * count / most
            x = left + bin_number * wide
            draw.rectangle((x, base + _LINE + _PLOT - tall, x + wide - 1, base + _LINE + _PLOT), fill=_ACCENT)
        ends = f"{column.least:.3g} .. {column.most:.3g}  (1-99 %: {column.q01:.3g} .. {column.q99:.3g})"
        draw.text((left, base + _LINE + _PLOT + 2), _fitting(draw, ends, room, font), fill=_QUIET, font=font)
    return np.asarray(sheet)


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: int, font: Any) -> str:
    text = " ".join(text.split())
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"
