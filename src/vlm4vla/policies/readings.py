"""What a backbone's layers hold for observations, as numpy: the input of measurements, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32

from vlm4vla.backbones.backbone import Backbone
from vlm4vla.core.errors import BackboneError
from vlm4vla.core.types import Observation


@torch.no_grad()
def read_layers(
    backbone: Backbone, observations: Sequence[Observation], *, batch_size: int = 16
) -> dict[str, Float32[np.ndarray, "rows hidden"]]:
    """By place, a row per observation: `layer 1 query`, `layer 1 image` (mean over image tokens), `layer 2 query`, ...

    The states are those that action heads read (`Backbone.layers`). Raises: BackboneError for a VLM that does not
    return them or whose image tokens are not known.
    """
    if backbone.native is None:
        raise BackboneError(
            f"{backbone.family.name}: where its image tokens stand is not known; take another family"
        )
    image = slice(backbone.native.image_start, backbone.native.image_start + backbone.native.image_tokens)
    found: dict[str, list[Float32[np.ndarray, "batch hidden"]]] = {}
    device = backbone.query.device
    for start in range(0, len(observations), batch_size):
        inputs = backbone.encode(observations[start : start + batch_size]).to(device)
        rows = torch.arange(len(inputs), device=device)
        for number, states in enumerate(backbone.layers(inputs), start=1):
            query = states[rows, backbone.query_places(inputs, states)]
            for place, value in (("query", query), ("image", states[:, image].mean(dim=1))):
                found.setdefault(f"layer {number} {place}", []).append(value.float().cpu().numpy())
    return {place: np.concatenate(parts) for place, parts in found.items()}
