"""What a VLM's own forward takes, made from token ids and uint8 images on the device.

Every row has its image tokens at the same place, so positions and masks depend on the row's length alone: they are
computed once per length by the model's own code and kept.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from transformers import PreTrainedModel

from vlm4vla.backbones.families import Family
from vlm4vla.backbones.images import ImagePath


class NativeInputs:
    """Builds the keyword arguments of the native forward. Serves the base model and the one with a language head."""

    def __init__(self, *, family: Family, images: ImagePath, image_start: int, image_tokens: int) -> None:
        """`image_start`: index of the first image token of every row."""
        self.family = family
        self.images = images
        self.image_start = image_start
        self.image_tokens = image_tokens
        self._positions: dict[tuple[int, torch.device], Int64[Tensor, "3 1 length"]] = {}

    def __call__(
        self,
        vlm: PreTrainedModel,
        input_ids: Int64[Tensor, "batch length"],
        images: UInt8[Tensor, "batch height width 3"],
    ) -> dict[str, Any]:
        """Arguments for rows padded on the right.

        There is no attention mask: attention is causal behind the image, so padding cannot reach what stands before it.
        """
        arguments: dict[str, Any] = {"input_ids": input_ids, "pixel_values": self.images(images)}
        extra = self.family.extra_inputs
        if "image_grid_thw" in extra:
            arguments["image_grid_thw"] = self._grid(len(images), input_ids.device)
            arguments["position_ids"] = self._positions_of(vlm, input_ids.shape[1], input_ids.device)
        if "token_type_ids" in extra:
            # 0: bidirectional prefix (the image), 1: causal (text and query), Paper A.2.3.
            arguments["token_type_ids"] = (~self._is_image(input_ids)).long()
        if "image_embeds_position_mask" in extra:
            arguments["image_embeds_position_mask"] = self._is_image(input_ids)
        return arguments

    def position(
        self, vlm: PreTrainedModel, before: Int64[Tensor, "batch 1"]
    ) -> Int64[Tensor, "*axes batch 1"]:
        """The VLM's own number of a token behind the image with so many `before` it; each more adds one."""
        if "image_grid_thw" in self.family.extra_inputs:
            behind = self.image_start + self.image_tokens
            table = self._positions_of(vlm, behind + 1, before.device)
            return table[:, :, behind:] + before - behind
        return before + self.family.first_position

    def without_image(self) -> dict[str, Tensor]:
        """What the native forward asks for beside ids where the cache has the image."""
        # Kosmos-2 wants an image and does not read it.
        return (
            {"image_embeds": torch.empty(0)}
            if "image_embeds_position_mask" in self.family.extra_inputs
            else {}
        )

    def _is_image(self, input_ids: Int64[Tensor, "batch length"]) -> Tensor:
        mask = torch.zeros_like(input_ids, dtype=torch.bool)
        mask[:, self.image_start : self.image_start + self.image_tokens] = True
        return mask

    def _grid(self, batch: int, device: torch.device) -> Int64[Tensor, "batch 3"]:
        assert self.images.patches is not None
        side = self.images.size // self.images.patches.patch
        return torch.tensor([[1, side, side]], device=device).expand(batch, 3)

    def _positions_of(
        self, vlm: PreTrainedModel, length: int, device: torch.device
    ) -> Int64[Tensor, "3 1 length"]:
        key = (length, device)
        if key not in self._positions:
            row = torch.zeros(1, length, dtype=torch.int64)
            positions, _ = vlm.base_model.get_rope_index(
                row, mm_token_type_ids=self._is_image(row).int(), image_grid_thw=self._grid(1, row.device)
            )
            self._positions[key] = positions.to(device)
        return self._positions[key]
