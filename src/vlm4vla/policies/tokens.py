"""OpenVLA's scheme: every number of a chunk is one of 256 tokens, and the VLM writes them one after the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from vlm4vla.core.actions import ACTION_SIZE, GRIPPER
from vlm4vla.core.recipes import PolicyRecipe
from vlm4vla.policies.heads import ActionHead, Features, LossWeights, centred, uncentred

BINS = 256


class WritingHead(ActionHead):
    """An embedding for each token, which the VLM reads behind the query, and a linear layer that reads its answer."""

    needs = "follow"

    def __init__(self, hidden_size: int, horizon: int, *, tokens: int, seed: int) -> None:
        super().__init__()
        self.horizon = horizon
        self.words = nn.Embedding(tokens, hidden_size)
        self.answer = nn.Linear(hidden_size, tokens)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.words.weight, std=0.02, generator=generator)
        nn.init.xavier_uniform_(self.answer.weight, generator=generator)
        nn.init.zeros_(self.answer.bias)


class TokensHead(WritingHead):
    """A token for each bin, action by action: six pose dimensions and the gripper (0 and 1 are the outermost bins)."""

    @classmethod
    def from_recipe(cls, recipe: PolicyRecipe, *, hidden_size: int, seed: int) -> TokensHead:
        """It has no sizes of its own."""
        return cls(hidden_size, recipe.horizon, tokens=BINS, seed=seed)

    def loss(
        self,
        features: Features,
        target: Float[Tensor, "batch horizon 7"],
        valid: Bool[Tensor, "batch horizon"],
        *,
        weights: LossWeights,
        count: Tensor | float | None = None,
    ) -> Mapping[str, Tensor]:
        """Cross-entropy of each token after the true ones before it; with both weights 1 the mean over all seven."""
        assert features.follow is not None
        tokens = to_bins(target)
        logits = self.answer(features.follow(self.words(tokens.flatten(1)[:, :-1]))).float()
        entropy = functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        entropy = entropy.reshape(target.shape)
        mask = valid.to(entropy.dtype)
        steps = mask.sum() if count is None else count
        pose = (entropy[..., :GRIPPER].mean(-1) * mask).sum() / steps
        gripper = (entropy[..., GRIPPER] * mask).sum() / steps
        total = (weights.pose * GRIPPER * pose + weights.gripper * gripper) / ACTION_SIZE
        return {"loss": total, "pose": pose.detach(), "gripper": gripper.detach()}

    def predict(self, features: Features) -> Float[Tensor, "batch horizon 7"]:
        """The likeliest token each time."""
        assert features.read_on is not None
        tokens = [self.answer(features.read_on(None)).argmax(-1)]
        while len(tokens) < self.horizon * ACTION_SIZE:
            tokens.append(self.answer(features.read_on(self.words(tokens[-1]))).argmax(-1))
        return from_bins(torch.cat(tokens, dim=1).reshape(-1, self.horizon, ACTION_SIZE))


def to_bins(actions: Float[Tensor, "batch horizon 7"]) -> Int64[Tensor, "batch horizon 7"]:
    """Normalised actions as indices of 256 equal bins of [-1, 1]; what lies outside goes to the outermost."""
    return ((centred(actions) + 1) / 2 * BINS).floor().clamp(0, BINS - 1).long()


def from_bins(tokens: Int64[Tensor, "batch horizon 7"]) -> Float[Tensor, "batch horizon 7"]:
    """The middles of bins: pose in [-1, 1], gripper in [0, 1]."""
    return uncentred((tokens.float() + 0.5) / BINS * 2 - 1)
