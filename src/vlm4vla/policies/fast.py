"""FAST as a head: the VLM writes a chunk as few tokens, frequencies of its movement, low ones first (arXiv 2501.09747).

The tokenizer is fitted on the training chunks and travels with the checkpoint, in a folder of the published layout.
Frequencies belong to a whole chunk and not to its steps, so the valid mask cannot be a mask of tokens. Steps behind
an episode's end are filled with its last action, the tokens of the filled chunk are the target, and the chunk counts by
the share of its steps that are valid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from torch.nn import functional

from vlm4vla.core.actions import ACTION_SIZE
from vlm4vla.core.errors import DataError
from vlm4vla.core.recipes import PolicyRecipe
from vlm4vla.policies.action_tokens import FastTokenizer
from vlm4vla.policies.heads import Features, LossWeights, centred, uncentred
from vlm4vla.policies.tokens import WritingHead


class FastHead(WritingHead):
    """Tokens below `vocabulary`, of which the fitted tokenizer may use fewer, and one more, which ends a chunk."""

    def __init__(self, hidden_size: int, horizon: int, *, vocabulary: int, seed: int) -> None:
        super().__init__(hidden_size, horizon, tokens=vocabulary + 1, seed=seed)
        self.end = vocabulary
        self.predicted = 0
        """Chunks written so far, those included that only fill a batch."""
        self.malformed = 0
        """Of these, how many did not end with exactly as many frequencies as a chunk has."""
        self._tokenizer: FastTokenizer | None = None

    @classmethod
    def from_recipe(cls, recipe: PolicyRecipe, *, hidden_size: int, seed: int) -> FastHead:
        """Size from `fast_vocabulary`."""
        return cls(hidden_size, recipe.horizon, vocabulary=recipe.fast_vocabulary, seed=seed)

    @property
    def tokenizer(self) -> FastTokenizer:
        """Raises: DataError before `fit` or `load`."""
        if self._tokenizer is None:
            raise DataError(
                "the head `fast` has no tokenizer yet; call its `fit` with normalised training chunks before it is used"
            )
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: FastTokenizer) -> None:
        used, shape = len(tokenizer.widths()), (tokenizer.horizon, tokenizer.size)
        if tokenizer.order != "frequencies":
            raise DataError("the head `fast` writes frequencies first; fit its tokenizer in that order")
        if used > self.end or shape != (self.horizon, ACTION_SIZE):
            raise DataError(
                f"the tokenizer has {used} tokens for chunks of {shape}, the head {self.end} for "
                f"{(self.horizon, ACTION_SIZE)}; it belongs to another policy"
            )
        self._tokenizer = tokenizer
        self._widths = torch.zeros(self.end + 1, dtype=torch.int64)
        self._widths[:used] = torch.tensor(tokenizer.widths())

    def fit(self, chunks: Callable[[], Float32[np.ndarray, "count horizon 7"]]) -> None:
        """Learn the tokens. Raises: DataError for a vocabulary that is smaller than the frequencies' range."""
        actions = centred(torch.from_numpy(chunks())).numpy()
        self.tokenizer = FastTokenizer.fit(actions, vocabulary=self.end)

    def save(self, folder: Path) -> None:
        """Write the tokenizer's two files."""
        self.tokenizer.save(folder)

    def load(self, folder: Path) -> None:
        """Read them. Raises: DataError."""
        self.tokenizer = FastTokenizer.load(folder)

    def loss(
        self,
        features: Features,
        target: Float[Tensor, "batch horizon 7"],
        valid: Bool[Tensor, "batch horizon"],
        *,
        weights: LossWeights,
        count: Tensor | float | None = None,
    ) -> Mapping[str, Tensor]:
        """Cross-entropy of the chunk's tokens and its end, per number of the chunk (as the `tokens` head's).

        A token counts to the pose and to the gripper by the share that each has in its frequencies.
        """
        assert features.follow is not None
        tokens, gripper_share = self._written(target, valid)
        logits = self._logits(features.follow(self.words(tokens[:, :-1].clamp(min=0))))
        entropy = functional.cross_entropy(
            logits.flatten(0, 1), tokens.flatten(), ignore_index=-1, reduction="none"
        )
        entropy = entropy.reshape(tokens.shape) / (self.horizon * ACTION_SIZE)
        mask = valid.sum(1).to(entropy.dtype)
        steps = mask.sum() if count is None else count
        pose = ((entropy * (1 - gripper_share)).sum(1) * mask).sum() / steps
        gripper = ((entropy * gripper_share).sum(1) * mask).sum() / steps
        total = weights.pose * pose + weights.gripper * gripper
        return {"loss": total, "pose": pose.detach(), "gripper": gripper.detach()}

    def predict(self, features: Features) -> Float[Tensor, "batch horizon 7"]:
        """The likeliest token each time, until a row ends or has as many frequencies as a chunk.

        Decoding is relaxed: too many frequencies are cut, missing ones, which are the high ones, are zero.
        """
        assert features.read_on is not None
        state = features.read_on(None)
        whole, rows = self.horizon * ACTION_SIZE, len(state)
        written: list[Int64[Tensor, "batch 1"]] = []
        widths = torch.zeros(rows, 1, dtype=torch.int64)
        done = torch.zeros(rows, 1, dtype=torch.bool)
        while True:
            token = self._logits(state).argmax(-1).cpu().masked_fill(done, self.end)
            written.append(token)
            widths += self._widths[token]
            done |= (token == self.end) | (widths >= whole)
            if bool(done.all()):
                break
            state = features.read_on(self.words(token.to(state.device)))
        self.predicted += rows
        self.malformed += int((widths != whole).sum())
        ids = [[token for token in row if token != self.end] for row in torch.cat(written, dim=1).tolist()]
        actions = torch.from_numpy(self.tokenizer.decode(ids, relaxed=True)).to(state.device)
        return uncentred(actions.clamp(-1, 1))

    def _logits(self, states: Float[Tensor, "batch count hidden"]) -> Float[Tensor, "batch count tokens"]:
        """In float32; tokens that the tokenizer does not use are impossible."""
        logits: Tensor = self.answer(states).float()
        unused = (self._widths == 0).to(logits.device)
        unused[self.end] = False
        return logits.masked_fill(unused, -torch.inf)

    def _written(
        self, target: Float[Tensor, "batch horizon 7"], valid: Bool[Tensor, "batch horizon"]
    ) -> tuple[Int64[Tensor, "batch longest"], Float[Tensor, "batch longest"]]:
        """The chunks' tokens with their end, -1 behind it, and the gripper's share in each token."""
        places = torch.arange(self.horizon, device=target.device)
        last = (valid.sum(1, keepdim=True) - 1).clamp(min=0)
        filled = target.gather(1, torch.minimum(places, last).unsqueeze(-1).expand_as(target))
        rows = self.tokenizer.encode(centred(filled).cpu().numpy())
        longest = max(map(len, rows)) + 1
        tokens = torch.tensor([[*row, self.end, *[-1] * (longest - 1 - len(row))] for row in rows])
        widths = self._widths[tokens.clamp(min=0)]
        upto = widths.cumsum(1)
        # Frequency j belongs to dimension j modulo 7.
        grippers = torch.div(upto, ACTION_SIZE, rounding_mode="floor")
        grippers -= torch.div(upto - widths, ACTION_SIZE, rounding_mode="floor")
        share = torch.where(widths > 0, grippers / widths.clamp(min=1), 1 / ACTION_SIZE)
        return tokens.to(target.device), share.to(target.device)
