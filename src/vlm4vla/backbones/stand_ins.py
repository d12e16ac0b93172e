"""Native inputs for any tiny model, made from numbers: what its processor would make, told by the forward's signature.

A layout is one way of laying an image out as tensors. Which ones a forward may take is read from its parameters; the
first that the model computes with is kept, together with the number of image tokens the model says an image has.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel

from vlm4vla.backbones.shrink import FIRST_TEXT_TOKEN, IMAGE_TOKEN, PATCH, SENTINEL, SIDE
from vlm4vla.core.errors import BackboneError

MODEL_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    StrictDataclassError,
)
"""What a forward raises when it is given inputs of another layout than its own."""
TEXT_IS_ONE = frozenset({"paligemma"})
"""Architectures whose `token_type_ids` mark text, not the image, with 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sample: its words, the seed of its image, and what follows the query."""

    text: tuple[int, ...]
    image: int
    after: tuple[int, ...] = ()


def words(seed: int, length: int) -> tuple[int, ...]:
    """Random text ids, none of them special."""
    drawn = torch.randint(
        FIRST_TEXT_TOKEN, SENTINEL, (length,), generator=torch.Generator().manual_seed(seed)
    )
    return tuple(drawn.tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How an image becomes tensors: the kind, the side in pixels, and the image tokens each takes in `input_ids`."""

    kind: str
    side: int
    patch: int = PATCH
    frames: int = 1
    tokens: int = 0
    sized: bool = True
    """Whether `image_sizes` is told; one model file breaks when it is."""


def pictures(seeds: Sequence[int], side: int) -> Tensor:
    """Float pictures, batch x 3 x side x side, normally distributed, each from its seed alone."""
    return torch.stack(
        [torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


def patch_rows(images: Tensor, patch: int) -> Tensor:
    """batch x patches x 3 x patch x patch, row by row."""
    batch, channels, side, _ = images.shape
    grid = side // patch
    cut = images.reshape(batch, channels, grid, patch, grid, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, grid * grid, channels, patch, patch)


class StandInInputs:
    """Makes the keyword arguments of a model's own forward for rows of text and images, padded on the right."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises `BackboneError` when no known layout is accepted, with what the last one met."""
        self.names = frozenset(inspect.signature(model.forward).parameters)
        self.model_type = model.config.model_type
        self.encoder_decoder = "decoder_input_ids" in self.names and (
            bool(model.config.is_encoder_decoder) or "input_ids" not in self.names
        )
        self.image_token = next(
            (
                token
                for name in ("image_token_id", "image_token_index", "image_patch_id", "video_token_id")
                if isinstance(token := getattr(model.config, name, None), int)
            ),
            IMAGE_TOKEN,
        )
        self.first_token = getattr(model.config, "vision_start_token_id", None) or 1
        if not self.names & {"pixel_values", "flattened_patches"}:
            raise BackboneError("its forward takes no image")
        self.layout = self._find_layout(model)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Arguments for a batch; the sentinel follows each row's text (encoder-decoders: in the decoder)."""
        return self._arguments(rows, self.layout)

    def _arguments(self, rows: Sequence[Row], layout: Layout) -> dict[str, Any]:
        head = [self.first_token, *[self.image_token] * layout.tokens]
        tail = [[SENTINEL, *row.after] for row in rows]
        ids = [
            [*head, *row.text, *([] if self.encoder_decoder else end)]
            for row, end in zip(rows, tail, strict=True)
        ]
        made: dict[str, Any] = {}
        made["input_ids"], made["attention_mask"] = _padded(ids)
        if "input_ids" not in self.names:
            ends = [[3, *row.text, *end] for row, end in zip(rows, tail, strict=True)]
            made = dict(zip(("decoder_input_ids", "decoder_attention_mask"), _padded(ends), strict=True))
            return made | self._pixels([row.image for row in rows], layout)
        if self.encoder_decoder:
            made["decoder_input_ids"], made["decoder_attention_mask"] = _padded([[3, *end] for end in tail])
        is_image = torch.zeros_like(made["input_ids"])
        is_image[:, 1 : 1 + layout.tokens] = 1
        shape = made["input_ids"].shape
        extra = {
            "mm_token_type_ids": is_image,
            "token_type_ids": 1 - is_image if self.model_type in TEXT_IS_ONE else is_image,
            "image_embeds_position_mask": is_image,
            "bbox": torch.zeros(*shape, 4),
            "image_attention_mask": torch.ones(*shape, 1, dtype=torch.int64),
            "cross_attention_mask": torch.ones(*shape, 1, layout.frames, dtype=torch.int64),
        }
        made |= {name: value for name, value in extra.items() if name in self.names}
        if "qformer_input_ids" in self.names:
            made["qformer_input_ids"], made["qformer_attention_mask"] = _padded(
                [[1, *row.text] for row in rows]
            )
        made |= self._pixels([row.image for row in rows], layout)
        return made

    def _pixels(self, seeds: Sequence[int], layout: Layout) -> dict[str, Tensor]:
        batch, side, patch = len(seeds), layout.side, layout.patch
        images = pictures(seeds, side)
        grid = side // patch
        flat = patch_rows(images, patch)
        sides = torch.tensor([[side, side]] * batch)
        sized = {
            "image_sizes": sides,
            "pixel_attention_mask": torch.ones(batch, 1, side, side, dtype=torch.int64),
        }
        sized = {name: value for name, value in sized.items() if name in self.names and layout.sized}
        match layout.kind:
            case "rows":
                rows = (
                    flat.unsqueeze(3)
                    .expand(-1, -1, -1, layout.frames, -1, -1)
                    .reshape(batch * grid * grid, -1)
                )
                return {"pixel_values": rows, **self._grids(batch, grid)}
            case "patches":
                return {"pixel_values": flat.flatten(0, 1), **self._grids(batch, grid)}
            case "navit":
                counts = torch.tensor([[grid, grid]] * batch)
                packed = flat.flatten(0, 1).permute(1, 2, 0, 3).reshape(1, 3, patch, -1)
                return {"pixel_values": packed, "target_sizes": counts}
            case "sequence":
                places = torch.cartesian_prod(torch.arange(grid), torch.arange(grid)).expand(batch, -1, 2)
                extra = {
                    "spatial_shapes": torch.tensor([[grid, grid]] * batch),
                    "pixel_attention_mask": torch.ones(batch, grid * grid, dtype=torch.int64),
                    "image_position_ids": places,
                    "pixel_position_ids": places,
                }
                rows = flat.permute(0, 1, 3, 4, 2).flatten(2)
                return {"pixel_values": rows, **{name: extra[name] for name in extra if name in self.names}}
            case "numbered":
                places = 1 + torch.cartesian_prod(torch.arange(grid), torch.arange(grid)).expand(batch, -1, 2)
                ones = torch.full((batch,), grid)
                extra = {"width": ones, "height": ones}
                rows = torch.cat([places.float(), flat.flatten(2)], dim=-1)
                return {
                    "flattened_patches": rows,
                    **{name: extra[name] for name in extra if name in self.names},
                }
            case "tiles":
                tiles = images[:, None, None].repeat(1, 1, layout.frames, 1, 1, 1)
                ids = torch.ones(batch, 1, dtype=torch.int64)
                mask = torch.ones(batch, 1, layout.frames, dtype=torch.int64)
                return {"pixel_values": tiles, "aspect_ratio_ids": ids, "aspect_ratio_mask": mask}
            case "crops":
                return {"pixel_values": images[:, None].repeat(1, layout.frames, 1, 1, 1), **sized}
            case "packed":
                return {"pixel_values": flat.flatten(2).flatten(0, 1)[None], **sized}
        high = {"high_res_pixel_values": images} if "high_res_pixel_values" in self.names else {}
        return {"pixel_values": images, **sized, **high}

    def _grids(self, batch: int, grid: int) -> dict[str, Tensor]:
        made = {
            "image_grid_thw": torch.tensor([[1, grid, grid]] * batch),
            "image_grid_hw": torch.tensor([[grid, grid]] * batch),
            "image_merge_sizes": torch.ones(batch, dtype=torch.int64),
        }
        return {name: made[name] for name in made if name in self.names}

    def _layouts(self, model: PreTrainedModel) -> Iterator[Layout]:
        vision = getattr(model.config, "vision_config", None) or model.config
        side = _first(getattr(vision, "image_size", None)) or SIDE
        patch = (
            _first(getattr(vision, "patch_size", None))
            or _first(getattr(model.config, "patch_size", None))
            or PATCH
        )
        side = max(side, 2 * patch)
        if self.names & {"image_grid_thw", "image_grid_hw"}:
            for frames in (
                _first(getattr(vision, "temporal_patch_size", None))
                or _first(getattr(vision, "patch_temporal", None))
                or 1,
                1,
                2,
            ):
                yield Layout(kind="rows", side=4 * patch, patch=patch, frames=frames)
            yield Layout(kind="patches", side=4 * patch, patch=patch)
        elif "target_sizes" in self.names:
            for grid in (4, 8):
                yield Layout(kind="navit", side=grid * patch, patch=patch)
        elif "flattened_patches" in self.names:
            yield Layout(kind="numbered", side=4 * patch, patch=patch)
        elif "aspect_ratio_ids" in self.names:
            yield Layout(kind="tiles", side=side, frames=vision.max_num_tiles)
        elif self.names & {"spatial_shapes", "image_position_ids", "pixel_position_ids"}:
            for factor in (1, 2, 3):
                yield Layout(kind="sequence", side=4 * patch * factor, patch=patch)
            yield Layout(kind="sequence", side=12 * patch, patch=3 * patch)
        else:
            yield Layout(kind="picture", side=side)
            yield Layout(kind="picture", side=side, sized=False)
            yield Layout(kind="crops", side=side)
            yield Layout(kind="crops", side=side, frames=2)
            yield Layout(kind="crops", side=side, frames=5)
            yield Layout(kind="picture", side=8 * side)
            yield Layout(kind="packed", side=4 * patch, patch=patch)

    def _find_layout(self, model: PreTrainedModel) -> Layout:
        seen = ""
        for layout in self._layouts(model):
            counts = self._token_counts(model, layout)
            for tokens in counts:
                tried = replace(layout, tokens=tokens)
                try:
                    with torch.no_grad():
                        model(**self._arguments([Row(text=words(0, 4), image=0)], tried))
                except MODEL_ERRORS as error:
                    if told := re.search(r"tokens: 0, features:? (\d+)", str(error)):
                        counts.append(int(told[1]))
                    said = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
                    seen = seen or f"{layout.kind}, {tokens} image tokens: {said}"
                else:
                    return tried
        raise BackboneError(f"no stand-in input is accepted ({seen})")

    def _token_counts(self, model: PreTrainedModel, layout: Layout) -> list[int]:
        counts = [0, 1, 4, 16]
        for name in ("num_query_tokens", "latent_query_num"):
            if latents := getattr(model.config, name, None):
                return [latents * layout.frames]
        if not hasattr(model, "get_image_features"):
            return counts
        pixels = self._pixels([0], layout)
        wanted = inspect.signature(model.get_image_features).parameters
        try:
            with torch.no_grad():
                features = model.get_image_features(
                    **{name: pixels[name] for name in pixels if name in wanted or name == "pixel_values"}
                )
        except MODEL_ERRORS:
            return counts
        found = getattr(features, "pooler_output", features)
        parts = found if isinstance(found, list | tuple) else [found]
        if not all(isinstance(part, Tensor) for part in parts):
            return counts
        return [sum(part.numel() // part.shape[-1] for part in parts), *counts]


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return ids, mask


def _first(value: Any) -> int | None:
    if isinstance(value, list | tuple):
        return value[0] if value and isinstance(value[0], int) else None
    return value if isinstance(value, int) else None
