"""What is computed otherwise than in transformers' model files gives the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vlm4vla.backbones.backbone import Backbone
from vlm4vla.backbones.tiny import TinySize, build_tiny
from vlm4vla.core.types import Observation

SIZE = TinySize(
    hidden=32, layers=2, mlp=64, vision_hidden=32, vision_layers=2, vision_mlp=64, image_size=64, latents=4
)


def run(backbone: Backbone) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(3)]
    features = backbone(backbone.encode([Observation(picture, "press the button") for picture in pictures]))
    backbone.zero_grad()
    features.square().sum().backward()
    return features.detach(), {
        name: parameter.grad.clone()
        for name, parameter in backbone.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl", "qwen3-vl-moe"])
def test_images_attended_to_as_a_batch_change_no_bit(family: str, tmp_path: Path) -> None:
    folder = build_tiny(family, SIZE, tmp_path / family, texts=["press the button"], seed=0)
    backbone = Backbone.from_pretrained(folder, image_size=64)
    features, gradients = run(backbone)
    patched = [m for m in backbone.vlm.modules() if type(m).__name__.endswith("VisionAttention")]
    assert len(patched) == SIZE.vision_layers
    for module in patched:
        del module.forward  # the class's own again
    expected, expected_gradients = run(backbone)
    assert torch.equal(features, expected)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected_gradients[name]), name


def test_images_of_different_sizes_go_the_models_own_way(tmp_path: Path) -> None:
    folder = build_tiny("qwen3-vl", SIZE, tmp_path / "vlm", texts=["press the button"], seed=0)
    attention = Backbone.from_pretrained(folder, image_size=64).vlm.visual.blocks[0].attn
    states, cos = torch.randn(12, 32), torch.ones(12, 8)
    segments = torch.tensor([0, 4, 12])
    mixed = attention(states, segments, position_embeddings=(cos, torch.zeros_like(cos)))
    alone = attention(states[:4], torch.tensor([0, 4]), position_embeddings=(cos[:4], torch.zeros(4, 8)))
    assert torch.allclose(mixed[:4], alone, atol=1e-6)
