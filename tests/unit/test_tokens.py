"""Bins, and that training and prediction see the same: one forward over all tokens, one for each."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_trials
import torch

from vlm4vla.backbones.backbone import Backbone
from vlm4vla.backbones.families import FAMILIES
from vlm4vla.core.types import Observation
from vlm4vla.policies.tokens import from_bins, to_bins


def test_bins_are_uniform_and_invert() -> None:
    actions = torch.linspace(-1.2, 1.2, 70).reshape(1, 10, 7)
    actions[..., 6] = (actions[..., 6] > 0).float()
    tokens = to_bins(actions)
    assert (int(tokens.min()), int(tokens.max())) == (0, 255)
    found = from_bins(tokens)
    assert (found[..., :6] - actions[..., :6].clamp(-1, 1)).abs().max() <= 1 / 256 + 1e-6
    assert torch.equal(found[..., 6] > 0.5, actions[..., 6] > 0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_sees_only_what_stands_before_it(family: str, tmp_path: Path) -> None:
    """So what is trained in one forward is what is predicted one token at a time; the query's feature is the usual."""
    side = tiny_trials.SIDE
    backbone = Backbone.from_pretrained(tiny_trials.tiny_vlm(tmp_path / "vlm", family), image_size=side)
    picture = torch.randint(256, (side, side, 3), dtype=torch.uint8).numpy()
    inputs = backbone.encode([Observation(picture, saying) for saying in tiny_trials.SAYINGS])
    embeddings = torch.randn(2, 4, backbone.hidden_size)
    with torch.no_grad():
        whole = backbone.follow(inputs, embeddings)
        assert whole.shape == (2, 5, backbone.hidden_size)
        torch.testing.assert_close(whole[:, :1], backbone(inputs), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            whole[:, :3], backbone.follow(inputs, embeddings[:, :2]), rtol=1e-4, atol=1e-5
        )
        assert (backbone.follow(inputs, -embeddings)[:, 1:] - whole[:, 1:]).abs().max() > 1e-3
