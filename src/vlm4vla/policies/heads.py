"""Action heads: from the query's feature to an action chunk. A head owns its loss and its prediction together."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn
from torch.nn import functional

from vlm4vla.core.actions import ACTION_SIZE, GRIPPER
from vlm4vla.core.recipes import PolicyRecipe, TrainRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """How the terms of the loss are weighed. Defaults: Paper Eq. 1 (the released code weighs the gripper 0.01)."""

    pose: float = 1.0
    gripper: float = 1.0
    huber_delta: float = 1.0

    @classmethod
    def from_recipe(cls, recipe: TrainRecipe) -> Self:
        """The weights a training recipe names."""
        return cls(pose=recipe.pose_weight, gripper=recipe.gripper_weight, huber_delta=recipe.huber_delta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What a head sees of a batch. Only what its `needs` names is there."""

    query: Float[Tensor, "batch query hidden"] | None = None
    """The last hidden state at the query."""
    layers: tuple[Float[Tensor, "batch length hidden"], ...] = ()
    """The output of every layer of the language model at every token, the last one after the final norm."""
    valid: Bool[Tensor, "batch length"] | None = None
    """False at padding."""
    follow: Callable[[Tensor | None], Tensor] | None = None
    """Embeddings `[batch, count, hidden]` that the VLM reads behind the query -> its last hidden states
    `[batch, 1 + count, hidden]` at the query and at each of them; None: no embeddings."""
    read_on: Callable[[Tensor | None], Tensor] | None = None
    """The same one token at a time, there in evaluation mode: None -> the state `[batch, 1, hidden]` at the query, then
    each embedding `[batch, 1, hidden]` -> the state there."""
    seeds: tuple[int, ...] = ()
    """A number per row that follows from its picture and words alone, for heads that draw; there in evaluation mode."""


class ActionHead(nn.Module, ABC):
    """What every head offers. Targets and predictions are normalised: pose in [-1, 1], gripper in [0, 1]."""

    horizon: int
    """Actions per chunk."""
    needs: ClassVar[Literal["query", "layers", "follow"]] = "query"
    """What `Features` holds for it."""
    draws_noise: ClassVar[bool] = False
    """Whether two predictions from other seeds differ."""

    @classmethod
    @abstractmethod
    def from_recipe(cls, recipe: PolicyRecipe, *, hidden_size: int, seed: int) -> ActionHead:
        """The head a recipe describes, on features of `hidden_size`, initialised from `seed`."""

    def fit(self, chunks: Callable[[], Float32[np.ndarray, "count horizon 7"]]) -> None:
        """Learn before training what is no parameter, from normalised training chunks; most heads need nothing."""
        return None

    def save(self, folder: Path) -> None:
        """Write what `fit` learned; a head that learned nothing makes no folder."""
        return None

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. Raises: DataError."""
        return None

    @abstractmethod
    def loss(
        self,
        features: Features,
        target: Float[Tensor, "batch horizon 7"],
        valid: Bool[Tensor, "batch horizon"],
        *,
        weights: LossWeights,
        count: Tensor | float | None = None,
    ) -> Mapping[str, Tensor]:
        """Terms of the loss and their weighted sum `loss`, as means over valid steps.

        `count`: valid steps to divide by, when this is one micro-batch of a larger batch (default: its own).
        """

    @abstractmethod
    def predict(self, features: Features) -> Float[Tensor, "batch horizon 7"]:
        """Normalised pose and the probability that the gripper command is positive."""


class MLPHead(ActionHead):
    """The paper's head: a trunk and two bodies, one for the pose (Tanh) and one for the gripper (logits).

    Sizes are the released code's, whose Table 9 counts include both bodies. Xavier-uniform weights, zero biases.
    """

    def __init__(
        self, hidden_size: int, horizon: int, *, trunk: int, width: int, body: Sequence[int], seed: int
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.trunk = _stack([hidden_size, trunk, width])
        self.pose = _stack([width, *body, (ACTION_SIZE - 1) * horizon])
        self.gripper = _stack([width, *body, horizon])
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)

    @classmethod
    def from_recipe(cls, recipe: PolicyRecipe, *, hidden_size: int, seed: int) -> MLPHead:
        """Widths from `head_trunk` (half the hidden size by default), `head_width` and `head_body`."""
        trunk = recipe.head_trunk if recipe.head_trunk is not None else hidden_size // 2
        return cls(
            hidden_size,
            recipe.horizon,
            trunk=trunk,
            width=recipe.head_width,
            body=recipe.head_body,
            seed=seed,
        )

    def forward(
        self, features: Float[Tensor, "batch 1 hidden"]
    ) -> tuple[Float[Tensor, "batch horizon 6"], Float[Tensor, "batch horizon"]]:
        """Pose in [-1, 1] and gripper logits, in float32."""
        trunk = self.trunk(features.squeeze(1))
        pose = self.pose(trunk).float().tanh().unflatten(1, (self.horizon, ACTION_SIZE - 1))
        return pose, self.gripper(trunk).float()

    def loss(
        self,
        features: Features,
        target: Float[Tensor, "batch horizon 7"],
        valid: Bool[Tensor, "batch horizon"],
        *,
        weights: LossWeights,
        count: Tensor | float | None = None,
    ) -> Mapping[str, Tensor]:
        """Huber on the pose (mean over valid steps and 6 dimensions), BCE on the gripper (Paper Eq. 1)."""
        assert features.query is not None
        pose, logits = self(features.query)
        mask = valid.to(pose.dtype)
        steps = mask.sum() if count is None else count
        huber = functional.huber_loss(
            pose, target[..., :GRIPPER], reduction="none", delta=weights.huber_delta
        )
        entropy = functional.binary_cross_entropy_with_logits(logits, target[..., GRIPPER], reduction="none")
        pose_loss = (huber.mean(-1) * mask).sum() / steps
        gripper_loss = (entropy * mask).sum() / steps
        total = weights.pose * pose_loss + weights.gripper * gripper_loss
        return {"loss": total, "pose": pose_loss.detach(), "gripper": gripper_loss.detach()}

    def predict(self, features: Features) -> Float[Tensor, "batch horizon 7"]:
        """Pose and sigmoid of the gripper logits."""
        assert features.query is not None
        pose, logits = self(features.query)
        return torch.cat([pose, logits.sigmoid().unsqueeze(-1)], dim=-1)


def centred(actions: Float[Tensor, "*batch 7"]) -> Float[Tensor, "*batch 7"]:
    """Normalised actions with the gripper's 0 and 1 as -1 and 1."""
    return torch.cat([actions[..., :GRIPPER], 2 * actions[..., GRIPPER:] - 1], dim=-1)


def uncentred(actions: Float[Tensor, "*batch 7"]) -> Float[Tensor, "*batch 7"]:
    """The inverse of `centred`."""
    return torch.cat([actions[..., :GRIPPER], (actions[..., GRIPPER:] + 1) / 2], dim=-1)


def _stack(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
