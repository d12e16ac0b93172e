"""Flow matching against its facts: times, targets, the gripper's threshold, noise of its own for each row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vlm4vla.core.errors import RecipeError
from vlm4vla.core.recipes import PolicyRecipe, check_policy
from vlm4vla.policies.flow import FlowHead, centred, flow_time
from vlm4vla.policies.heads import Features, LossWeights


def small(seed: int = 0) -> FlowHead:
    return FlowHead(8, 3, layers=3, width=16, mlp=32, heads=2, head_width=8, seed=seed)


def features(batch: int = 4, length: int = 5) -> Features:
    generator = torch.Generator().manual_seed(0)
    layers = tuple(torch.randn(batch, length, 8, generator=generator) for _ in range(2))
    valid = torch.arange(length) < torch.arange(2, 2 + batch)[:, None]
    return Features(layers=layers, valid=valid, seeds=tuple(range(batch)))


class Constant(nn.Module):
    """A velocity that leads from anywhere to one place, as a stand-in for the last layer."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.full((*tokens.shape[:2], 7), self.value)


def test_times_are_mostly_early() -> None:
    """t = 0.999 (1 - z), z ~ Beta(1.5, 1), whose mean is 0.6."""
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    times = flow_time(uniform)
    assert times.mean().item() == pytest.approx(0.999 * 0.4, abs=0.005)
    assert times.min() >= 0
    assert times.max() <= 0.999
    beta = np.random.default_rng(0).beta(1.5, 1, 100_000)
    expected = torch.tensor(np.quantile(0.999 * (1 - beta), [0.1, 0.5, 0.9]), dtype=torch.float32)
    torch.testing.assert_close(times.quantile(torch.tensor([0.1, 0.5, 0.9])), expected, atol=0.01, rtol=0)


def test_the_gripper_is_centred_and_cut_in_the_middle() -> None:
    """A flow that ends at a closed gripper is a probability below one half, at an open one above it."""
    target = torch.zeros(1, 3, 7)
    target[0, 1, 6] = 1
    assert centred(target)[0, :, 6].tolist() == [-1, 1, -1]
    head = small()
    for value, expected in ((20.0, 1.0), (-20.0, 0.0)):
        head.action_out = Constant(value)  # type: ignore[assignment]
        assert (head.predict(features())[..., 6] == expected).all()


def test_the_loss_is_the_squared_error_of_the_velocity() -> None:
    head, seen = small(), features()
    head.action_out = Constant(0.0)  # type: ignore[assignment]
    target = torch.full((4, 3, 7), 0.5)
    valid = torch.ones(4, 3, dtype=torch.bool)
    torch.manual_seed(5)
    losses = head.loss(seen, target, valid, weights=LossWeights())
    torch.manual_seed(5)
    noise, _ = head._noise(torch.randint(2**62, (4,)).tolist(), target)
    wanted = (centred(target) - 0.999 * noise).square()
    torch.testing.assert_close(losses["loss"], wanted.mean())
    torch.testing.assert_close(losses["pose"], wanted[..., :6].mean())
    torch.testing.assert_close(losses["gripper"], wanted[..., 6].mean())


def test_padding_of_the_prompt_is_not_seen() -> None:
    head, seen = small(), features()
    before = head.predict(seen)
    assert seen.valid is not None
    changed = tuple(layer.masked_fill(~seen.valid[..., None], 9.0) for layer in seen.layers)
    after = head.predict(Features(layers=changed, valid=seen.valid, seeds=seen.seeds))
    torch.testing.assert_close(after, before)


def test_every_action_sees_every_other() -> None:
    head, seen = small(), features(1)
    actions = torch.zeros(1, 3, 7, requires_grad=True)
    prompt, mask = head._read(seen), head._mask(seen)
    for step in range(3):
        (gradient,) = torch.autograd.grad(
            head._velocity(actions, torch.zeros(1), prompt, mask)[0, step].sum(), actions
        )
        assert (gradient[0].abs().sum(-1) > 0).all()


def test_noise_belongs_to_a_row_and_not_to_the_batch() -> None:
    head = small()
    like = torch.zeros(1)
    together, _ = head._noise([7, 8, 9], like)
    assert torch.equal(head._noise([8], like)[0][0], together[1])
    assert not torch.equal(together[0], together[1])


def test_defaults_are_those_of_pi0() -> None:
    recipe = PolicyRecipe(backbone="any")
    sizes = (recipe.expert_layers, recipe.expert_width, recipe.expert_mlp)
    assert sizes == (18, 1024, 4096)


@pytest.mark.parametrize("change", [{"expert_width": 33}, {"expert_layers": 0}])
def test_sizes_nothing_can_be_built_with_are_errors(change: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match=next(iter(change))):
        check_policy(PolicyRecipe(backbone="any", **change))  # type: ignore[arg-type]
