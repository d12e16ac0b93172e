"""The action head against the reference's sizes and against losses worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from vlm4vla.core.recipes import PolicyRecipe
from vlm4vla.policies.heads import Features, LossWeights, MLPHead
from vlm4vla.policies.registry import make_head

# Hidden size and horizon of the paper's models -> parameters of its head without the query (facts of the reference).
HIDDEN = {"paligemma": 2048, "qwen2.5-vl-7b": 3584}


def count(hidden: int, horizon: int) -> int:
    head = make_head(PolicyRecipe(backbone="any", horizon=horizon), hidden_size=hidden, seed=0)
    return sum(parameter.numel() for parameter in head.parameters())


@pytest.mark.parametrize("hidden", HIDDEN.values())
def test_parameters_follow_the_reference_layers(hidden: int) -> None:
    """Trunk hidden -> hidden/2 -> 1024, bodies 1024 -> 1024 -> 512 -> 256 -> out, all with biases."""

    def linear(before: int, after: int) -> int:
        return before * after + after

    body = linear(1024, 1024) + linear(1024, 512) + linear(512, 256)
    expected = linear(hidden, hidden // 2) + linear(hidden // 2, 1024) + 2 * body
    expected += linear(256, 6 * 10) + linear(256, 10)
    assert count(hidden, 10) == expected


def test_loss_is_huber_and_cross_entropy_over_valid_steps() -> None:
    head = MLPHead(4, 2, trunk=4, width=4, body=(4,), seed=0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()  # pose 0, logits 0
    target = torch.zeros(1, 2, 7)
    target[0, 0, 0] = 0.6  # quadratic part
    target[0, 0, 6] = 1.0
    target[0, 1, :6] = 100.0  # not valid
    valid = torch.tensor([[True, False]])
    losses = head.loss(
        Features(query=torch.zeros(1, 1, 4)), target, valid, weights=LossWeights(pose=2.0, gripper=0.01)
    )
    assert losses["pose"].item() == pytest.approx(0.5 * 0.36 / 6)
    assert losses["gripper"].item() == pytest.approx(math.log(2))
    assert losses["loss"].item() == pytest.approx(2 * 0.5 * 0.36 / 6 + 0.01 * math.log(2))


def test_losses_of_micro_batches_add_up() -> None:
    head = MLPHead(8, 3, trunk=8, width=8, body=(8,), seed=1)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 1, 8, generator=generator)
    target = torch.rand(4, 3, 7, generator=generator)
    valid = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    whole = head.loss(Features(query=features), target, valid, weights=LossWeights())["loss"]
    steps = float(valid.sum())
    parts = [
        head.loss(
            Features(query=features[i : i + 2]),
            target[i : i + 2],
            valid[i : i + 2],
            weights=LossWeights(),
            count=steps,
        )["loss"]
        for i in (0, 2)
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_predictions_are_normalised() -> None:
    head = MLPHead(8, 3, trunk=8, width=8, body=(8,), seed=1)
    found = head.predict(
        Features(query=100 * torch.randn(5, 1, 8, generator=torch.Generator().manual_seed(0)))
    )
    assert found.shape == (5, 3, 7)
    assert found[..., :6].abs().max() <= 1
    assert (found[..., 6] >= 0).all()
    assert (found[..., 6] <= 1).all()
