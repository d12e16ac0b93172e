"""Random changes of training images, a pure function of (seed, epoch, sample), on the device, batched.

`shift` is what the released code does to CALVIN's images, `crop_and_color` what it does to Bridge's and LIBERO's
(`docs/fidelity.md`); the paper's text does not mention them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from vlm4vla.backbones.images import resize
from vlm4vla.demonstrations.order import mixed

DRAWS = 6
"""Random numbers per image: two of place, then brightness, contrast, saturation, hue."""
_PADDING = 10 / 224
"""Of the image's side: how far `shift` moves at most."""
_AREA = 0.9
_BRIGHTNESS = 0.2
_CONTRAST = (0.8, 1.2)
_SATURATION = (0.8, 1.2)
_HUE = 0.05
"""Of the whole circle."""
_CPU_CHUNK = 16


def draws(
    seed: int, epochs: Int64[np.ndarray, " batch"], indices: Int64[np.ndarray, " batch"]
) -> Float32[np.ndarray, "batch 6"]:
    """Numbers in [0, 1), one row per sample: the same whatever the batch, the process and the version of numpy."""
    key = mixed(np.array([seed % 2**64], dtype=np.uint64))
    key = mixed(mixed(key ^ epochs.astype(np.uint64)) ^ indices.astype(np.uint64))
    bits = mixed(key[:, None] ^ np.arange(DRAWS, dtype=np.uint64))
    return ((bits >> np.uint64(40)).astype(np.float64) / 2**24).astype(np.float32)


def augment(
    images: UInt8[Tensor, "batch height width 3"],
    *,
    drawn: Float[Tensor, "batch 6"],
    kind: Literal["none", "shift", "crop_and_color"],
    size: int,
) -> UInt8[Tensor, "batch side side 3"]:
    """Images brought to the standard `size` and changed; `none` returns them as they are."""
    if kind == "none":
        return images
    change = _shifted if kind == "shift" else _cropped_and_colored
    images = resize(images, size)
    chunk = _CPU_CHUNK if images.device.type == "cpu" else len(images)
    drawn = drawn.to(images.device, non_blocking=True)
    parts = zip(torch.split(images, chunk), torch.split(drawn, chunk), strict=True)
    return torch.cat([change(part, numbers) for part, numbers in parts])


def _shifted(
    images: UInt8[Tensor, "batch size size 3"], drawn: Float[Tensor, "batch 6"]
) -> UInt8[Tensor, "batch size size 3"]:
    """By whole pixels, edges repeated: at 224 by -9 to 10 along either axis, each equally likely."""
    side = images.shape[1]
    padding = max(1, round(_PADDING * side))
    offsets = (drawn[:, :2] * 2 * padding).floor().long() + 1 - padding
    places = (torch.arange(side, device=images.device) + offsets[..., None]).clamp(0, side - 1)
    rows = torch.arange(len(images), device=images.device)[:, None, None]
    return images[rows, places[:, 0, :, None], places[:, 1, None, :]]


def _cropped_and_colored(
    images: UInt8[Tensor, "batch size size 3"], drawn: Float[Tensor, "batch 6"]
) -> UInt8[Tensor, "batch size size 3"]:
    """A random square of 0.9 of the area, enlarged bilinearly, then brightness, contrast, saturation and hue."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    pixels = _cropped(pixels, drawn[:, :2])
    brightness, contrast, saturation, hue = drawn[:, 2:, None, None, None].unbind(1)
    pixels = (pixels + _between(brightness, -_BRIGHTNESS, _BRIGHTNESS)).clamp_(0, 1)
    mean = pixels.mean((2, 3), keepdim=True)
    pixels = ((pixels - mean) * _between(contrast, *_CONTRAST) + mean).clamp_(0, 1)
    pixels = _recolored(pixels, _between(saturation, *_SATURATION)[:, 0], _between(hue, -_HUE, _HUE)[:, 0])
    return pixels.mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1)


def _between(drawn: Tensor, low: float, high: float) -> Tensor:
    return low + drawn * (high - low)


def _cropped(
    pixels: Float[Tensor, "batch 3 size size"], drawn: Float[Tensor, "batch 2"]
) -> Float[Tensor, "batch 3 size size"]:
    """Corner pixels of the square fall onto corner pixels of the result."""
    share = _AREA**0.5
    centers = (1 - share) * (2 * drawn - 1)  # of the square, in coordinates where the image is [-1, 1]
    matrix = torch.zeros(len(pixels), 2, 3, device=pixels.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = share
    matrix[:, :, 2] = centers.flip(1)
    grid = affine_grid(matrix, list(pixels.shape), align_corners=True)
    return grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _recolored(
    pixels: Float[Tensor, "batch 3 height width"],
    saturation: Float[Tensor, "batch 1 1"],
    hue: Float[Tensor, "batch 1 1"],
) -> Float[Tensor, "batch 3 height width"]:
    """Saturation times a factor, then hue turned by a share of the circle, in HSV; pixels in [0, 1]."""
    value, strongest = pixels.max(1)
    spread = value - pixels.min(1).values
    red, green, blue = pixels.unbind(1)
    safe = torch.where(spread > 0, spread, torch.ones_like(spread))
    sixths = torch.stack(
        [(green - blue) / safe, (blue - red) / safe + 2, (red - green) / safe + 4], dim=1
    ).gather(1, strongest[:, None])[:, 0]
    angle = (sixths / 6 + hue) % 1
    strength = torch.where(value > 0, spread / value.clamp(min=1e-12), torch.zeros_like(value))
    strength = (strength * saturation).clamp(0, 1)
    steps = (torch.tensor([5.0, 3.0, 1.0], device=pixels.device)[:, None, None] + 6 * angle[:, None]) % 6
    fall = torch.minimum(steps, 4 - steps).clamp(0, 1)
    return (value[:, None] * (1 - strength[:, None] * fall)).clamp_(0, 1)
