"""Drawings as numbers: what a diffusion branch learns from, and how near what it draws comes to the truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from vlm4vla.tuning.examples import Drawing

MEASURES: Mapping[str, tuple[str, ...]] = {
    "image": ("psnr_db",),
    "depth": ("depth_error_mm", "depth_error_relative"),
    "segmentation": ("iou",),
}
"""Of every kind. Errors are better when they are less, the others when they are more."""
_WHITE = 0.98
"""Of a depth's range, from which it is too far away to be scored."""


def to_tensor(drawing: Drawing, side: int) -> Float[Tensor, "3 side side"]:
    """In -1..1 at another size: colours are averaged, distances and classes picked."""
    box = Image.Resampling.BOX if drawing.kind == "image" else Image.Resampling.NEAREST
    pixels = np.asarray(Image.fromarray(drawing.pixels).resize((side, side), box), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1).contiguous()


def to_pixels(picture: Float[Tensor, "3 side side"]) -> UInt8[np.ndarray, "side side 3"]:
    """Of a picture in -1..1; what lies outside is cut off."""
    return ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()


def measured(
    drawn: Float[Tensor, "3 side side"], truth: Float[Tensor, "3 side side"], asked: Drawing
) -> dict[str, float]:
    """How near a drawing is to the truth, by the measures of its kind.

    `psnr_db`: of colours. `depth_error_mm`, `depth_error_relative`: mean absolute error of a pixel's distance, where
    the truth is not beyond the range (nothing where all of it is), and its share of that distance. `iou`: mean over
    the classes in the truth but for the background; a pixel is of the class whose colour is nearest. Where there is
    background alone: 1 or 0.
    """
    drawn = drawn.clamp(-1, 1)
    if asked.kind == "image":
        squared = ((drawn - truth) / 2).square().mean().item()
        return {"psnr_db": float(-10 * np.log10(max(squared, 1e-10)))}
    if asked.kind == "depth":
        right, seen = _distance(truth, asked)
        if not seen.any():
            return {}
        off = np.abs(_distance(drawn, asked)[0] - right)[seen]
        return {
            "depth_error_mm": float(off.mean() * 1000),
            "depth_error_relative": float((off / right[seen]).mean()),
        }
    said, right = classes(drawn, asked), classes(truth, asked)
    shares = [
        ((said == index) & (right == index)).sum() / ((said == index) | (right == index)).sum()
        for index in np.unique(right[right > 0])
    ]
    return {"iou": float(np.mean(shares)) if shares else float(not said.any())}


def classes(picture: Float[Tensor, "3 side side"], asked: Drawing) -> Int64[np.ndarray, "side side"]:
    """Per pixel the class whose colour is nearest."""
    colors = torch.tensor(asked.colors, dtype=torch.float32) / 127.5 - 1
    off = (picture.cpu()[None] - colors[:, :, None, None]).square().sum(dim=1)
    return off.argmin(dim=0).numpy()


def _distance(
    picture: Float[Tensor, "3 side side"], asked: Drawing
) -> tuple[Float[np.ndarray, "side side"], Bool[np.ndarray, "side side"]]:
    """Metres per pixel, and where they are within the range."""
    share = (picture.mean(dim=0).cpu().numpy().astype(np.float64) + 1) / 2
    near, far = asked.metres
    return near + share * (far - near), share < _WHITE
