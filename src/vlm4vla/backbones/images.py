"""The image path: uint8 frames -> standard size -> the VLM's own size -> normalised pixels, on the device, batched.

Replaces the Hugging Face image processors (which need torchvision for Qwen): the same bits as their torchvision
versions on the same device, within one grey level of their Pillow versions. Frames stay uint8 until here: 32 times
fewer bytes than patches through workers and onto the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate


def resize(images: UInt8[Tensor, "batch height width 3"], size: int) -> UInt8[Tensor, "batch size size 3"]:
    """Bicubic with antialiasing to a square; the identity when the size is right already.

    As torchvision does it: on the CPU in whole numbers, clipped after each of two passes like Pillow; elsewhere in
    floats, rounded once, which at hard edges is another picture.
    """
    if images.shape[1:3] == (size, size):
        return images
    pixels = images.permute(0, 3, 1, 2)
    pixels = pixels if images.device.type == "cpu" else pixels.float()
    resized = interpolate(pixels, (size, size), mode="bicubic", antialias=True, align_corners=False)
    if resized.is_floating_point():
        resized = resized.round_().clamp_(0, 255).to(torch.uint8)
    return resized.permute(0, 2, 3, 1).contiguous()


def nearest_allowed_size(size: int, *, multiple: int, least_pixels: int, most_pixels: int) -> int:
    """Side to which Qwen's processors bring a square image: a multiple of `multiple`, area within the bounds."""
    side = round(size / multiple) * multiple
    if side * side > most_pixels:
        side = max(multiple, math.floor(math.sqrt(most_pixels) / multiple) * multiple)
    elif side * side < least_pixels:
        side = math.ceil(math.sqrt(least_pixels) / multiple) * multiple
    return side


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchLayout:
    """How Qwen wants pixels: one row per patch, neighbours of a merged token after one another."""

    patch: int
    merge: int
    temporal: int
    """A still image is repeated this many times: the vision tower reads pairs of video frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePath:
    """From uint8 frames of any size to what the VLM's forward takes as `pixel_values`."""

    standard: int
    """Every image is first brought to this square size (Paper 3.3)."""
    size: int
    """The VLM's own input size."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Of pixel values in [0, 1], per RGB channel."""
    patches: PatchLayout | None = None

    def __call__(self, images: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "..."]:
        """`[batch 3 size size]`, or `[batch * patches, 3 * temporal * patch * patch]` with a patch layout."""
        images = resize(resize(images, self.standard), self.size)
        mean = 255 * torch.tensor(self.mean, device=images.device)
        std = 255 * torch.tensor(self.std, device=images.device)
        pixels = images.float().sub_(mean).div_(std)
        return _patchify(pixels, self.patches) if self.patches else pixels.permute(0, 3, 1, 2).contiguous()


def _patchify(
    pixels: Float[Tensor, "batch height width 3"], layout: PatchLayout
) -> Float[Tensor, "patches row"]:
    batch, height, width, channels = pixels.shape
    patch, merge = layout.patch, layout.merge
    blocks = pixels.reshape(
        batch, height // patch // merge, merge, patch, width // patch // merge, merge, patch, channels
    )
    # -> batch, block row, block column, row in block, column in block, channel, y, x; then repeated over time
    ordered = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6).unsqueeze(6)
    repeated = ordered.expand(-1, -1, -1, -1, -1, -1, layout.temporal, -1, -1)
    return repeated.reshape(-1, channels * layout.temporal * patch * patch)
