"""pi0's flow matching: an action expert that reads every layer of the VLM and turns noise into a chunk (Paper A.3).

The expert reads hidden states, not the VLM's own keys and values: families differ in caches and positions, hidden
states are the same everywhere. It reads each layer's output, so that the query and the last layer learn as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from vlm4vla.core.actions import ACTION_SIZE, GRIPPER
from vlm4vla.core.recipes import PolicyRecipe
from vlm4vla.policies.heads import ActionHead, Features, LossWeights, centred, uncentred

STEPS = 10
"""Euler steps from noise to actions."""
LEFT_OVER = 0.001
"""Share of the noise that stays at time 1."""
LATEST = 0.999
"""The latest time that is trained on."""
LONGEST_PERIOD = 100.0
"""Of the sinusoids that tell the time."""


class ExpertLayer(nn.Module):
    """Action tokens attend to a layer's prompt and to each other, then pass a gated MLP."""

    def __init__(self, hidden_size: int, *, width: int, mlp: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.before_attention, self.before_mlp = nn.RMSNorm(width), nn.RMSNorm(width)
        self.of_prompt = nn.RMSNorm(hidden_size)
        self.own = nn.Linear(width, 3 * inner, bias=False)
        self.prompt = nn.Linear(hidden_size, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * mlp, bias=False)
        self.down = nn.Linear(mlp, width, bias=False)

    def read(
        self, states: Float[Tensor, "batch length hidden"]
    ) -> tuple[Float[Tensor, "batch heads length size"], Float[Tensor, "batch heads length size"]]:
        """Keys and values of the prompt; the same for every Euler step."""
        keys, values = self.prompt(self.of_prompt(states)).chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def forward(
        self,
        tokens: Float[Tensor, "batch horizon width"],
        prompt: tuple[Float[Tensor, "batch heads length size"], Float[Tensor, "batch heads length size"]],
        mask: Bool[Tensor, "batch 1 1 total"],
    ) -> Float[Tensor, "batch horizon width"]:
        """The tokens after this layer; `mask` is false at padding, `total` is the prompt's length and the horizon."""
        own = self.own(self.before_attention(tokens)).chunk(3, dim=-1)
        queries, keys, values = (self._split(part) for part in own)
        keys, values = torch.cat([prompt[0], keys], dim=2), torch.cat([prompt[1], values], dim=2)
        seen = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        tokens = tokens + self.out(seen.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.before_mlp(tokens)).chunk(2, dim=-1)
        return tokens + self.down(functional.gelu(gate, approximate="tanh") * up)

    def _split(self, rows: Float[Tensor, "batch length inner"]) -> Float[Tensor, "batch heads length size"]:
        return rows.reshape(*rows.shape[:2], self.heads, -1).transpose(1, 2)


class FlowHead(ActionHead):
    """Predicts the velocity from noise at time 0 to actions at time 1. The gripper is the seventh dimension.

    Inside, the gripper is -1 or 1, centred like the noise: the reference trained on 0 and 1 and cut at 0.
    """

    needs = "layers"
    draws_noise = True

    def __init__(
        self,
        hidden_size: int,
        horizon: int,
        *,
        layers: int,
        width: int,
        mlp: int,
        heads: int,
        head_width: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.width = width
        self.action_in = nn.Linear(ACTION_SIZE, width)
        self.time_in = nn.Linear(2 * width, width)
        self.mixed = nn.Linear(width, width)
        self.place = nn.Parameter(torch.empty(horizon, width))
        self.layers = nn.ModuleList(
            ExpertLayer(hidden_size, width=width, mlp=mlp, heads=heads, head_width=head_width)
            for _ in range(layers)
        )
        self.norm = nn.RMSNorm(width)
        self.action_out = nn.Linear(width, ACTION_SIZE)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.place, std=0.02, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @classmethod
    def from_recipe(cls, recipe: PolicyRecipe, *, hidden_size: int, seed: int) -> FlowHead:
        """Sizes from the `expert_*` fields."""
        return cls(
            hidden_size,
            recipe.horizon,
            layers=recipe.expert_layers,
            width=recipe.expert_width,
            mlp=recipe.expert_mlp,
            heads=recipe.expert_heads,
            head_width=recipe.expert_head_width,
            seed=seed,
        )

    def loss(
        self,
        features: Features,
        target: Float[Tensor, "batch horizon 7"],
        valid: Bool[Tensor, "batch horizon"],
        *,
        weights: LossWeights,
        count: Tensor | float | None = None,
    ) -> Mapping[str, Tensor]:
        """Squared error of the velocity; with both weights 1 `loss` is the mean over all seven dimensions.

        Noise and times follow from torch's global generator, one draw a row: micro-batches draw what the
        whole batch would. Steps that are not valid are hidden from the others, whose input they would be otherwise.
        """
        seeds = torch.randint(2**62, (len(target),)).tolist()
        noise, uniform = self._noise(seeds, target)
        time = flow_time(uniform)
        actions = centred(target)
        at = time[:, None, None]
        point = (1 - (1 - LEFT_OVER) * at) * noise + at * actions
        velocity = self._velocity(point, time, self._read(features), self._mask(features, valid))
        mask = valid.to(target.dtype)
        steps = mask.sum() if count is None else count
        error = (velocity - (actions - (1 - LEFT_OVER) * noise)).square()
        pose = (error[..., :GRIPPER].mean(-1) * mask).sum() / steps
        gripper = (error[..., GRIPPER] * mask).sum() / steps
        total = (weights.pose * GRIPPER * pose + weights.gripper * gripper) / ACTION_SIZE
        return {"loss": total, "pose": pose.detach(), "gripper": gripper.detach()}

    def predict(self, features: Features) -> Float[Tensor, "batch horizon 7"]:
        """Ten Euler steps from each row's own noise, clipped to [-1, 1]; the gripper is brought to [0, 1]."""
        prompt, mask = self._read(features), self._mask(features)
        actions, _ = self._noise(features.seeds, features.layers[0])
        for step in range(STEPS):
            time = torch.full((len(actions),), step / STEPS, device=actions.device)
            actions = actions + self._velocity(actions, time, prompt, mask) / STEPS
        return uncentred(actions.clamp(-1, 1))

    def _noise(
        self, seeds: Sequence[int], like: Tensor
    ) -> tuple[Float[Tensor, "batch horizon 7"], Float[Tensor, " batch"]]:
        """Per row, from its seed and on the CPU so that devices agree: normal noise and a number in [0, 1)."""
        noise, uniform = torch.empty(len(seeds), self.horizon, ACTION_SIZE), torch.empty(len(seeds))
        for row, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            noise[row] = torch.randn(self.horizon, ACTION_SIZE, generator=generator)
            uniform[row] = torch.rand((), generator=generator)
        return noise.to(like.device), uniform.to(like.device)

    def _read(self, features: Features) -> list[tuple[Tensor, Tensor]]:
        """Keys and values by expert layer; with another number of layers than the VLM's, spread evenly over them."""
        depth, own = len(features.layers), len(self.layers)
        chosen = [-(-(index + 1) * depth // own) - 1 for index in range(own)]
        return [layer.read(features.layers[i]) for layer, i in zip(self.layers, chosen, strict=True)]  # type: ignore[operator]

    def _mask(
        self, features: Features, actions: Bool[Tensor, "batch horizon"] | None = None
    ) -> Bool[Tensor, "batch 1 1 total"]:
        """What may be looked at: the prompt without its padding, and those `actions` (default: all) that are valid."""
        assert features.valid is not None
        if actions is None:
            actions = features.valid.new_ones(len(features.valid), self.horizon)
        return torch.cat([features.valid, actions], dim=1)[:, None, None]

    def _velocity(
        self,
        actions: Float[Tensor, "batch horizon 7"],
        time: Float[Tensor, " batch"],
        prompt: list[tuple[Tensor, Tensor]],
        mask: Bool[Tensor, "batch 1 1 total"],
    ) -> Float[Tensor, "batch horizon 7"]:
        moment = sinusoids(time, self.width)[:, None].expand(-1, self.horizon, -1)
        mixed = self.time_in(torch.cat([self.action_in(actions), moment], dim=-1))
        tokens = self.mixed(functional.silu(mixed)) + self.place
        for layer, seen in zip(self.layers, prompt, strict=True):
            tokens = layer(tokens, seen, mask)
        velocity: Tensor = self.action_out(self.norm(tokens)).float()
        return velocity


def flow_time(uniform: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Uniform numbers in [0, 1) -> times 0.999 (1 - z) with z ~ Beta(1.5, 1): mostly early, where noise prevails."""
    return LATEST * (1 - uniform ** (1 / 1.5))


def sinusoids(time: Float[Tensor, " batch"], width: int) -> Float[Tensor, "batch width"]:
    """Sines and cosines of the time; `width` is even."""
    rates = torch.arange(width // 2, device=time.device) * (
        -math.log(LONGEST_PERIOD) / max(width // 2 - 1, 1)
    )
    angles = time[:, None] * rates.exp()
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
