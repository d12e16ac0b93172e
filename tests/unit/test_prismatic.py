"""OpenVLA's backbone: its towers against Hugging Face's classes, its published layout against our loader."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from vlm4vla.backbones.backbone import Backbone
from vlm4vla.backbones.prismatic import PrismaticConfig, PrismaticModel
from vlm4vla.backbones.tiny import TinySize, build_tiny
from vlm4vla.core.errors import BackboneError
from vlm4vla.core.types import Observation

SIDE, PATCH, WIDTH, DEPTH, HEADS, MLP = 28, 7, 16, 3, 2, 32
SIZE = TinySize(
    hidden=32,
    layers=2,
    heads=2,
    mlp=64,
    vision_hidden=16,
    vision_layers=2,
    vision_heads=2,
    vision_mlp=32,
    image_size=16,
)


@pytest.fixture
def model() -> PrismaticModel:
    torch.manual_seed(0)
    tower = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "mlp": MLP}
    vision = {
        "image_size": SIDE,
        "patch_size": PATCH,
        "dino": {**tower, "mlp": 4 * WIDTH, "registers": 4},
        "siglip": {**tower, "registers": 0},
    }
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 300,
    }
    model = PrismaticModel(PrismaticConfig(text_config=text, vision_config=vision)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def copy_block(ours: nn.Module, attention: nn.Module, names: tuple[str, str, str, str]) -> None:
    """Split our joint projection into theirs."""
    for name, weight, bias in zip(
        names, ours.attn.qkv.weight.chunk(3), ours.attn.qkv.bias.chunk(3), strict=False
    ):
        getattr(attention, name).weight.copy_(weight)
        getattr(attention, name).bias.copy_(bias)
    getattr(attention, names[3]).load_state_dict(ours.attn.proj.state_dict())


@torch.no_grad()
def test_dino_is_hugging_faces_before_the_last_block(model: PrismaticModel) -> None:
    ours = model.vision_backbone.featurizer
    config = Dinov2WithRegistersConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
    )
    theirs = Dinov2WithRegistersModel(config).eval()
    embeddings = theirs.embeddings
    embeddings.cls_token.copy_(ours.cls_token)
    embeddings.register_tokens.copy_(ours.reg_token)
    embeddings.position_embeddings.zero_()[:, 1:].copy_(ours.pos_embed)
    embeddings.patch_embeddings.projection.load_state_dict(ours.patch_embed.proj.state_dict())
    for block, layer in zip(ours.blocks, theirs.encoder.layer, strict=False):
        copy_block(block, layer.attention, ("q_proj", "k_proj", "v_proj", "o_proj"))
        for name in ("norm1", "norm2", "mlp"):
            getattr(layer, name).load_state_dict(getattr(block, name).state_dict())
        layer.layer_scale1.lambda1.copy_(block.ls1.scale_factor)
        layer.layer_scale2.lambda1.copy_(block.ls2.scale_factor)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    expected = theirs(pixels, output_hidden_states=True).hidden_states[-2][:, 5:]
    torch.testing.assert_close(ours(pixels), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_siglip_is_hugging_faces_before_the_last_block(model: PrismaticModel) -> None:
    ours = model.vision_backbone.fused_featurizer
    config = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
        hidden_act="gelu",
        vision_use_head=False,
    )
    theirs = SiglipVisionModel(config).eval()
    theirs.embeddings.patch_embedding.load_state_dict(ours.patch_embed.proj.state_dict())
    theirs.embeddings.position_embedding.weight.copy_(ours.pos_embed[0])
    for block, layer in zip(ours.blocks, theirs.encoder.layers, strict=False):
        copy_block(block, layer.self_attn, ("q_proj", "k_proj", "v_proj", "out_proj"))
        layer.layer_norm1.load_state_dict(block.norm1.state_dict())
        layer.layer_norm2.load_state_dict(block.norm2.state_dict())
        layer.mlp.load_state_dict(block.mlp.state_dict())
    pixels = torch.randn(2, 3, SIDE, SIDE)
    expected = theirs(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(ours(pixels), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_each_tower_has_its_own_normalisation(model: PrismaticModel) -> None:
    seen: dict[str, Tensor] = {}
    for name in ("featurizer", "fused_featurizer"):
        tower = getattr(model.vision_backbone, name)
        tower.register_forward_pre_hook(lambda module, given, name=name: seen.update({name: given[0]}))
    raw = torch.rand(1, 3, SIDE, SIDE)
    model.vision_backbone((raw - 0.5) / 0.5)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(seen["featurizer"], (raw - mean) / std, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["fused_featurizer"], 2 * raw - 1)


@torch.no_grad()
def test_pixels_follow_weights_that_are_sharded_in_half_precision(model: PrismaticModel) -> None:
    pixels = 2 * torch.rand(2, 3, SIDE, SIDE) - 1
    whole = model.vision_backbone(pixels)
    half = model.to(torch.bfloat16).vision_backbone(pixels)
    assert half.dtype == torch.bfloat16
    assert nn.functional.cosine_similarity(half.float().flatten(), whole.flatten(), dim=0) > 0.99


def published(folder: Path) -> Path:
    """A checkpoint as its authors lay it out: unused blocks, a head, remote code and statistics beside."""
    build_tiny("prismatic", SIZE, folder, texts=("lift the red block",), seed=0)
    state = load_file(folder / "model.safetensors")
    last = SIZE.vision_layers
    for tower in ("featurizer", "fused_featurizer"):
        prefix = f"vision_backbone.{tower}"
        for name, value in list(state.items()):
            if name.startswith(f"{prefix}.blocks.0."):
                state[name.replace("blocks.0", f"blocks.{last}")] = value.clone()
        state[f"{prefix}.norm.weight"] = torch.ones(SIZE.vision_hidden)
    state["vision_backbone.fused_featurizer.attn_pool.latent"] = torch.ones(1, 1, SIZE.vision_hidden)
    state["language_model.lm_head.weight"] = state["language_model.model.embed_tokens.weight"].clone()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "configuration_prismatic.OpenVLAConfig"}
    config |= {"norm_stats": {"bridge_orig": {"action": {"q01": [0.0]}}}, "n_action_bins": 256}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_prismatic.py").write_text("raise SystemExit('remote code ran')\n")
    return folder


def test_the_published_layout_loads_without_its_code(tmp_path: Path) -> None:
    backbone = Backbone.from_pretrained(published(tmp_path / "openvla"), image_size=16)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        feature = backbone(backbone.encode([Observation(image=image, instruction="lift the red block")]))
    assert feature.isfinite().all()
    assert len(backbone.vlm.vision_backbone.featurizer.blocks) == SIZE.vision_layers


def test_a_missing_tower_is_told(tmp_path: Path) -> None:
    folder = published(tmp_path / "openvla")
    state = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in state.items() if "fused_featurizer.blocks.0" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"weights missing .*fused_featurizer\.blocks\.0"):
        Backbone.from_pretrained(folder, image_size=16)
