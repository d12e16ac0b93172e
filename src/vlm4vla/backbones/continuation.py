"""Tokens that come one at a time behind the query, for heads that write: what the VLM says at each of them.

`Cached` reads the prompt once and then one token at a time, with the keys and values that Hugging Face's cache keeps.
Rows stay padded on the right: padding behind a prompt is masked, and positions count on from the row's own end.
`Rereading` reads everything anew for every token, which is slow and right for every VLM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vlm4vla.backbones.encoding import BackboneInputs
from vlm4vla.core.types import Observation

if TYPE_CHECKING:
    from vlm4vla.backbones.backbone import Backbone

Numbering = Callable[[Any, Tensor], Tensor | None]
"""From a VLM that has read the prompt, and how many tokens `[batch, 1]` stand before each row's query: the query's
position id, to which every token behind it adds one; None: the VLM counts for itself."""
_NUMBERINGS: tuple[Numbering, ...] = (
    lambda vlm, before: before,
    lambda vlm, before: (before + vlm.rope_deltas).expand(3, -1, -1),  # M-RoPE
    lambda vlm, before: None,
)
_REFUSALS = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError)
_TOLERANCE = 1e-3


class Rereading:
    """Reads the prompt and all tokens so far for every new one."""

    def __init__(self, backbone: Backbone, inputs: BackboneInputs) -> None:
        self._backbone, self._inputs = backbone, inputs
        self._read: Float[Tensor, "batch count hidden"] | None = None

    def __call__(self, embedding: Float[Tensor, "batch 1 hidden"] | None) -> Float[Tensor, "batch 1 hidden"]:
        """The last hidden state at the query (None, first of all), then at each embedding."""
        if embedding is not None:
            self._read = embedding if self._read is None else torch.cat([self._read, embedding], dim=1)
        return self._backbone.follow(self._inputs, self._read)[:, -1:]


class Cached:
    """Reads the prompt once and every token once."""

    _cache: Any
    _seen: Int64[Tensor, "batch length"]
    """1 at what a new token may look at, 0 at padding."""
    _position: Tensor | None
    """Of the query."""
    _arguments: dict[str, Any]
    """The same for every new token."""

    def __init__(self, backbone: Backbone, inputs: BackboneInputs, numbering: Numbering) -> None:
        self._backbone, self._inputs, self._numbering = backbone, inputs, numbering
        self._count = 0

    def __call__(self, embedding: Float[Tensor, "batch 1 hidden"] | None) -> Float[Tensor, "batch 1 hidden"]:
        """The last hidden state at the query (None, first of all), then at each embedding."""
        if embedding is None:
            return self._prompt()
        self._count += 1
        self._seen = torch.cat([self._seen, self._seen.new_ones(len(embedding), 1)], dim=1)
        arguments = {**self._arguments, "attention_mask": self._seen, "past_key_values": self._cache}
        if self._position is not None:
            arguments["position_ids"] = self._position + self._count
        with self._backbone.writing(embedding):
            states: Tensor = self._backbone.vlm(**arguments, use_cache=True).last_hidden_state
        return states

    def _prompt(self) -> Float[Tensor, "batch 1 hidden"]:
        backbone, inputs = self._backbone, self._inputs
        outputs = backbone.vlm(**backbone.arguments(inputs), use_cache=True)
        states, self._cache = outputs.last_hidden_state, outputs.past_key_values
        places = backbone.query_places(inputs, states)
        self._seen = (torch.arange(states.shape[1], device=states.device) <= places[:, None]).long()
        self._position = self._numbering(backbone.vlm, places[:, None])
        self._arguments = {"input_ids": torch.full_like(inputs.input_ids[:, :1], backbone.encoder.query_id)}
        if backbone.native:
            self._arguments |= backbone.native.without_image()
        found: Tensor = states[torch.arange(len(inputs), device=states.device), places]
        return found.unsqueeze(1)


def numbering_of(backbone: Backbone) -> Numbering | None:
    """How a VLM numbers the tokens behind a prompt in its cache; None: it has to read everything anew.

    Known of families. Of others it is tried, with prompts of different length, which numbering gives the states
    of `Rereading`. None does where layers carry a state over the padding (linear attention, convolutions), where
    tokens see what follows them, where an encoder reads the prompt, or where the image is wanted again.
    """
    if backbone.native:
        return backbone.native.position
    if backbone.family.whole or backbone.vlm.config.is_encoder_decoder:
        return None
    side = backbone.encoder.image_size
    grey = np.full((side, side, 3), 127, dtype=np.uint8)
    sayings = ("lift", "lift the red block from the table")
    inputs = backbone.encode([Observation(grey, saying) for saying in sayings]).to(backbone.query.device)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, 3, backbone.hidden_size, generator=generator).to(backbone.query) * 0.02
    with torch.no_grad():
        expected = backbone.follow(inputs, embeddings)
        for numbering in _NUMBERINGS:
            read = Cached(backbone, inputs, numbering)
            try:
                found = torch.cat(
                    [read(None), *(read(part) for part in torch.split(embeddings, 1, dim=1))], dim=1
                )
            except _REFUSALS:
                continue
            if (found - expected).abs().max() <= _TOLERANCE * expected.abs().max():
                return numbering
    return None
