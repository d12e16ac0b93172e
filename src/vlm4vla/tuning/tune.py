"""Tuning a VLM as a language model: the loss is on answers only, several questions to one picture.

A conversation is one row: the image, then question and answer in turn. The picture's cost is paid once, and the
vocabulary's matrix meets answer positions only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from vlm4vla.backbones.encoding import Encoder
from vlm4vla.backbones.native import NativeInputs
from vlm4vla.tuning.questions import Turn


@dataclass(frozen=True, slots=True)
class Conversations:
    """A batch: rows padded on the right; `targets` is -1 where nothing is asked."""

    images: UInt8[Tensor, "batch height width 3"]
    input_ids: Int64[Tensor, "batch length"]
    targets: Int64[Tensor, "batch length"]
    """The token that should follow each position."""


class ConversationEncoder:
    """Turns -> token rows in the family's own prompt."""

    def __init__(self, encoder: Encoder, *, end: int) -> None:
        """`end`: id of the token that ends an answer."""
        self._encoder = encoder
        self._end = end
        self._known: dict[tuple[str, bool], list[int]] = {}

    def __call__(
        self, images: UInt8[np.ndarray, "batch height width 3"], turns: Sequence[Sequence[Turn]]
    ) -> Conversations:
        """Encode one conversation per image."""
        rows = [self._row(conversation) for conversation in turns]
        length = max(len(ids) for ids, _ in rows)
        input_ids = np.full((len(rows), length), self._encoder.pad_id, dtype=np.int64)
        targets = np.full((len(rows), length), -1, dtype=np.int64)
        for index, (ids, asked) in enumerate(rows):
            input_ids[index, : len(ids)] = ids
            following = np.array([*ids[1:], self._end])
            targets[index, : len(ids)] = np.where(asked, following, -1)
        return Conversations(torch.from_numpy(images), torch.from_numpy(input_ids), torch.from_numpy(targets))

    def _row(self, conversation: Sequence[Turn]) -> tuple[list[int], list[bool]]:
        ids = self._encoder.prefix_ids()
        asked = [False] * len(ids)
        for index, turn in enumerate(conversation):
            question = self._ids(turn.question, question=True)
            if index > 0:
                question = question[1:]  # the token that closes the image stands once
            answer = self._ids(turn.answer, question=False)
            ids += [*question, *answer, self._end]
            # A position is asked when the token after it belongs to the answer or ends it.
            asked += [False] * (len(question) - 1) + [True] * (len(answer) + 1) + [False]
        return ids, asked

    def _ids(self, text: str, *, question: bool) -> list[int]:
        key = (text, question)
        if key not in self._known:
            self._known[key] = self._encoder.turn_ids(text) if question else self._encoder.text_ids(text)
        return self._known[key]


def neighbour_targets(
    rows: int, groups: Sequence[Sequence[int]], *, deviation: float = 0.8
) -> Float[Tensor, "rows rows"]:
    """One row of target probabilities per token: itself, or for ordered tokens a bell over its neighbours.

    An exact place is a number: the token beside the right one is almost right, and the loss says so.
    """
    table = torch.eye(rows)
    for group in groups:
        index = torch.tensor(list(group))
        steps = torch.arange(len(group), dtype=torch.float32)
        bell = torch.exp(-0.5 * ((steps[:, None] - steps[None]) / deviation) ** 2)
        table[index[:, None], index[None]] = bell / bell.sum(dim=1, keepdim=True)
    return table


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model says where it is asked."""

    logits: Float[Tensor, "asked rows"]
    targets: Int64[Tensor, " asked"]
    image_states: Float[Tensor, "batch tokens hidden"]
    """The last hidden states of the image tokens."""

    def loss(self, target_table: Float[Tensor, "rows rows"]) -> Float[Tensor, ""]:
        """Mean cross-entropy over answer tokens against the soft targets of `neighbour_targets`."""
        log_probabilities = torch.log_softmax(self.logits.float(), dim=-1)
        return -(target_table[self.targets] * log_probabilities).sum(dim=-1).mean()


def answer(vlm: PreTrainedModel, native: NativeInputs, batch: Conversations) -> Answers:
    """What a base model whose head is its word embedding answers, each token given those before it.

    Logits are computed at these positions alone.
    """
    states = vlm(**native(vlm, batch.input_ids, batch.images), use_cache=False).last_hidden_state
    asked = batch.targets >= 0
    image = slice(native.image_start, native.image_start + native.image_tokens)
    logits = functional.linear(states[asked], vlm.get_input_embeddings().weight)
    return Answers(logits, batch.targets[asked], states[:, image])


def cosine_rate(step: int, *, steps: int, warmup: int, peak: float, stable: float = 0.0) -> float:
    """Linear warm-up to `peak`, which is kept for the share `stable` of all steps; then a cosine to a twentieth."""
    if step < warmup:
        return peak * (step + 1) / warmup
    begin = max(warmup, round(stable * steps))
    share = max(0, step - begin) / max(1, steps - begin)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))


def shuffled(
    count: int, batch_size: int, *, seed: int, start: int = 0
) -> Iterator[Int64[np.ndarray, " batch"]]:
    """Endless batches of row numbers from batch `start` on; every row at most once per epoch.

    A pure function of the arguments.
    """
    epoch, first = divmod(start, count // batch_size)
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(count)
        for index in range(first, count // batch_size):
            yield order[index * batch_size : (index + 1) * batch_size]
        epoch, first = epoch + 1, 0
