"""Observations -> tensors a worker process can make and send: uint8 images and padded token ids.

Knows nothing of the VLM's weights, so it pickles cheaply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vlm4vla.backbones.images import resize
from vlm4vla.core.errors import BackboneError
from vlm4vla.core.types import Observation


@dataclass(frozen=True, slots=True)
class BackboneInputs:
    """A batch for `Backbone.forward`. Rows are right-padded; the query is the last token before the padding."""

    images: UInt8[Tensor, "batch height width 3"]
    input_ids: Int64[Tensor, "batch length"]
    lengths: Int64[Tensor, " batch"]
    """Tokens per row, the query included (of an encoder-decoder: tokens of the decoder)."""
    arguments: Mapping[str, Tensor] = field(default_factory=dict)
    """What a processor made beside the ids; `images` is then empty."""

    def __len__(self) -> int:
        """Rows."""
        return len(self.lengths)

    @property
    def query_ids(self) -> Int64[Tensor, "batch length"]:
        """The ids among which the query stands: the prompt's, or the decoder's of an encoder-decoder."""
        return self.arguments.get("decoder_input_ids", self.input_ids)

    def longer(self, count: int, *, pad_id: int) -> BackboneInputs:
        """With the query's id `count` more times behind it; what a processor said of the query holds there too."""
        ids = self.query_ids
        rows = torch.arange(len(self), device=ids.device)[:, None]
        places = self.lengths[:, None] - 1 + torch.arange(1 + count, device=ids.device)

        def extended(value: Tensor, fill: int) -> Tensor:
            room = value.new_full((len(value), count, *value.shape[2:]), fill)
            wide = torch.cat([value, room], dim=1)
            wide[rows, places] = value[rows, places[:, :1]]
            return wide

        if "decoder_input_ids" in self.arguments:
            return replace(self, arguments={**self.arguments, "decoder_input_ids": extended(ids, pad_id)})
        per_token = {
            name: extended(value, 0)
            for name, value in self.arguments.items()
            if value.shape[:2] == ids.shape and not value.is_floating_point()
        }
        return replace(self, input_ids=extended(ids, pad_id), arguments={**self.arguments, **per_token})

    def to(self, device: torch.device | str) -> BackboneInputs:
        """The same batch on another device."""
        return BackboneInputs(
            self.images.to(device, non_blocking=True),
            self.input_ids.to(device, non_blocking=True),
            self.lengths.to(device, non_blocking=True),
            {name: value.to(device, non_blocking=True) for name, value in self.arguments.items()},
        )


def stack(observations: Sequence[Observation], *, size: int) -> UInt8[Tensor, "batch height width 3"]:
    """The images of a batch, brought to the square `size` only where they are not all of one size."""
    if len({observation.image.shape for observation in observations}) == 1:
        return torch.from_numpy(np.stack([observation.image for observation in observations]))
    images = [torch.from_numpy(np.ascontiguousarray(observation.image)) for observation in observations]
    return torch.cat([resize(image[None], size) for image in images])


class Encoder:
    """Tokenizes every distinct instruction once and stacks images."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt: str,
        image_token: str,
        image_tokens: int,
        query_token: str,
        image_size: int,
    ) -> None:
        """`prompt` holds `{image}` and `{instruction}`; `image_tokens` slots replace the image; sizes in pixels."""
        self.image_size = image_size
        self.image_tokens = image_tokens
        self.tokenizer = tokenizer
        self.prompt = prompt
        before, self._after = prompt.split("{image}")
        self.image_id = self._special_id(image_token)
        self.query_id = self._special_id(query_token)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if self.query_id in (self.pad_id, self.image_id):
            raise BackboneError(f"the query token {query_token!r} is also the padding or image token")
        self._before = self.text_ids(before)
        self.image_start = len(self._before)
        self._known: dict[str, Int64[np.ndarray, " length"]] = {}

    def text_ids(self, text: str) -> list[int]:
        """Ids of a piece of prompt, special tokens recognised, none added."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids) if text else []

    def prefix_ids(self) -> list[int]:
        """What stands before any text: the prompt's start and the image tokens."""
        return [*self._before, *[self.image_id] * self.image_tokens]

    def turn_ids(self, text: str) -> list[int]:
        """The text in the prompt's words, from the token that closes the image up to where an answer begins."""
        return self.text_ids(self._after.format(instruction=text.strip()))

    def tokens(self, instruction: str) -> Int64[np.ndarray, " length"]:
        """The whole row of one instruction, from the prompt's first token to the query."""
        known = self._known.get(instruction)
        if known is None:
            text = self.turn_ids(instruction)
            if self.query_id in text or self.image_id in text:
                raise BackboneError(
                    f"the instruction {instruction!r} contains the query's or the image's special token; reword it"
                )
            row = [*self.prefix_ids(), *text, self.query_id]
            known = self._known[instruction] = np.array(row, dtype=np.int64)
        return known

    def __call__(self, observations: Sequence[Observation], *, length: int | None = None) -> BackboneInputs:
        """Encode a batch, padded to its longest row or to `length` tokens."""
        rows = [self.tokens(observation.instruction) for observation in observations]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        longest = int(lengths.max())
        if length is not None and longest > length:
            raise ValueError(f"a prompt of {longest} tokens does not fit into {length}")
        ids = np.full((len(rows), length or longest), self.pad_id, dtype=np.int64)
        for row, target in zip(rows, ids, strict=True):
            target[: len(row)] = row
        images = stack(observations, size=self.image_size)
        return BackboneInputs(images, torch.from_numpy(ids), torch.from_numpy(lengths))

    def _special_id(self, token: str) -> int:
        index = self.tokenizer.convert_tokens_to_ids(token)
        if not isinstance(index, int) or index == self.tokenizer.unk_token_id:
            raise BackboneError(
                f"{self.tokenizer.name_or_path}: its tokenizer lacks the token {token!r}, which this family needs. "
                "Is this a checkpoint of another family, or are tokenizer files missing?"
            )
        return index
