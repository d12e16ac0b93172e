"""What a VLM's layers hold for observations, as numpy: the input of measurements, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn

from vlm4vla.backbones.backbone import Backbone
from vlm4vla.backbones.discover import find_parts, image_token_id_of
from vlm4vla.backbones.encoding import BackboneInputs
from vlm4vla.core.errors import BackboneError
from vlm4vla.core.types import Observation

NUMBERS = 1 << 15
"""The most that is kept of a layer for an observation: the tokens of a tiny VLM as they are, of a large one means of
neighbouring ones, so that all layers fit into memory."""


@torch.no_grad()
def read_layers(
    backbone: Backbone, observations: Sequence[Observation], *, batch_size: int = 16
) -> dict[str, Float32[np.ndarray, "rows numbers"]]:
    """By place, a row per observation: `vision 1`, `vision 2`, ..., `language 1 image`, `language 1 query`, ...

    What a block of the vision tower or of the language model puts out: at the image's tokens side by side (means of
    neighbours where that would be more than `NUMBERS`) and at the query. Places that a VLM does not have are absent:
    its image tokens where they have no ids, vision where it has no blocks. Raises: BackboneError when it has none.
    """
    found: dict[str, list[Float32[np.ndarray, "batch numbers"]]] = {}
    device = backbone.query.device
    vision, language = blocks_of(backbone, "vision"), blocks_of(backbone, "language")
    for start in range(0, len(observations), batch_size):
        inputs = backbone.encode(observations[start : start + batch_size]).to(device)
        with _watched([*vision, *language]) as states:
            backbone(inputs)
        for place, value in _places(backbone, inputs, vision, language, states):
            found.setdefault(place, []).append(value.float().flatten(1).cpu().numpy())
    if not found:
        raise BackboneError(f"{backbone.family.name}: has no blocks whose outputs could be read")
    return {place: np.concatenate(parts) for place, parts in found.items()}


def blocks_of(backbone: Backbone, part: str) -> list[nn.Module]:
    """The blocks of `vision` or `language`, in order: the members of the outermost module lists that hold nothing else.

    Of an encoder-decoder's language: the decoder's, where the query stands.
    """
    vlm = backbone.vlm
    own = {id(p) for p in find_parts(vlm, backbone.family)[part].values()}  # type: ignore[index]
    root = vlm.get_decoder() if part == "language" and vlm.config.is_encoder_decoder else vlm
    found: list[nn.Module] = []
    inside: set[int] = set()
    for module in root.modules():
        if isinstance(module, nn.ModuleList) and id(module) not in inside:
            parameters = [id(p) for p in module.parameters()]
            if parameters and own.issuperset(parameters):
                inside.update(id(m) for m in module.modules())
                found += module
    return found


def _places(
    backbone: Backbone,
    inputs: BackboneInputs,
    vision: Sequence[nn.Module],
    language: Sequence[nn.Module],
    states: dict[int, Tensor],
) -> Iterator[tuple[str, Float[Tensor, "batch groups hidden"]]]:
    rows = len(inputs)
    for number, block in enumerate((b for b in vision if id(b) in states), start=1):
        state = states[id(block)]
        if state.numel() % (rows * state.shape[-1]):
            raise BackboneError(
                f"{backbone.family.name}: its vision tower puts out {tuple(state.shape)} for {rows} images, which "
                "cannot be told apart"
            )
        # Qwen's towers have the patches of all images in one row, others the tiles of an image in several.
        yield f"vision {number}", _grouped(state.reshape(rows, -1, state.shape[-1]))
    for number, block in enumerate((b for b in language if id(b) in states), start=1):
        state = states[id(block)]
        image = _image_tokens(backbone, inputs)
        if image is not None and state.shape[:2] == image.shape:
            yield (
                f"language {number} image",
                _grouped(torch.stack([s[m] for s, m in zip(state, image, strict=True)])),
            )
        places = backbone.query_places(inputs, state)
        yield f"language {number} query", state[torch.arange(rows, device=state.device), places][:, None]


def _image_tokens(backbone: Backbone, inputs: BackboneInputs) -> Bool[Tensor, "batch length"] | None:
    """Where the image's tokens stand; None where no ids say so or rows have different numbers of them."""
    ids = inputs.input_ids
    if backbone.native is not None:
        start = backbone.native.image_start
        places = torch.arange(ids.shape[1], device=ids.device)
        return ((places >= start) & (places < start + backbone.native.image_tokens)).expand(ids.shape)
    image = image_token_id_of(backbone.vlm)
    if image is None:
        return None
    mask = ids == image
    counts = mask.sum(1)
    return mask if bool(counts[0]) and bool((counts == counts[0]).all()) else None


def _grouped(tokens: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch groups hidden"]:
    groups = max(1, NUMBERS // tokens.shape[2])
    if tokens.shape[1] <= groups:
        return tokens
    return torch.stack([part.mean(dim=1) for part in tokens.tensor_split(groups, dim=1)], dim=1)


@contextmanager
def _watched(blocks: Sequence[nn.Module]) -> Iterator[dict[int, Tensor]]:
    """What each block puts out, by its id, while the VLM runs; of a block that runs several times, the last."""
    states: dict[int, Tensor] = {}

    def keep(block: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if isinstance(value, Tensor):
            states[id(block)] = value

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
