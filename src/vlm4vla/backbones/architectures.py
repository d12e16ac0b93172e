"""Full architectures of the registered VLMs, as data: what can be built on the meta device without any download.

Values are those of the published configurations; what is not named is Hugging Face's default for the class. That
they are right is shown by the parameter counts, which equal Table 9 of the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from vlm4vla.backbones.registry import ARCHITECTURE_OF
from vlm4vla.core.errors import unknown_name

_QWEN2_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_QWEN3_VISION_SMALL = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
}
_QWEN3_VISION_LARGE = {
    **_QWEN3_VISION_SMALL,
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "vision_use_head": False,
}
_CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
}


def _text(
    width: int, mlp: int, layers: int, heads: int, key_value_heads: int, vocabulary: int
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "vocab_size": vocabulary,
    }


def _qwen(
    model_type: str, text: dict[str, Any], vision: dict[str, Any], *, tied: bool
) -> tuple[str, dict[str, Any]]:
    if model_type != "qwen2_5_vl":
        text = {**text, "head_dim": 128}
    vision = {**vision, "out_hidden_size": text["hidden_size"]}
    return model_type, {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


def _paligemma(text: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return "paligemma", {
        "text_config": {**text, "head_dim": 256},
        "vision_config": {**_SIGLIP, "projection_dim": text["hidden_size"]},
        "projection_dim": text["hidden_size"],
        "hidden_size": text["hidden_size"],
        "tie_word_embeddings": True,
    }


_EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
_MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "qwen2.5-vl-3b": _qwen("qwen2_5_vl", _text(2048, 11008, 36, 16, 2, 151936), _QWEN2_VISION, tied=True),
    "qwen2.5-vl-7b": _qwen("qwen2_5_vl", _text(3584, 18944, 28, 28, 4, 152064), _QWEN2_VISION, tied=False),
    "qwen3-vl-2b": _qwen("qwen3_vl", _text(2048, 6144, 28, 16, 8, 151936), _QWEN3_VISION_SMALL, tied=True),
    "qwen3-vl-4b": _qwen("qwen3_vl", _text(2560, 9728, 36, 32, 8, 151936), _QWEN3_VISION_SMALL, tied=True),
    "qwen3-vl-8b": _qwen("qwen3_vl", _text(4096, 12288, 36, 32, 8, 151936), _QWEN3_VISION_LARGE, tied=False),
    "qwen3-vl-30b-a3b": _qwen(
        "qwen3_vl_moe", _text(2048, 6144, 48, 32, 4, 151936) | _EXPERTS, _QWEN3_VISION_LARGE, tied=False
    ),
    "paligemma-1-3b": _paligemma(_text(2048, 16384, 18, 8, 1, 257216) | {"model_type": "gemma"}),
    "paligemma-2-3b": _paligemma(_text(2304, 9216, 26, 8, 4, 257216) | {"model_type": "gemma2"}),
    "kosmos-2": (
        "kosmos-2",
        {
            "text_config": {
                "vocab_size": 65037,
                "embed_dim": 2048,
                "layers": 24,
                "ffn_dim": 8192,
                "attention_heads": 32,
            },
            "vision_config": _CLIP_L,
            "latent_query_num": 64,
        },
    ),
    "openvla-7b": ("openvla", {"text_config": _text(4096, 11008, 32, 32, 32, 32064)}),
}

ARCHITECTURE_NAMES = tuple(_MODELS)
"""Registered names whose architecture is known."""
PUBLISHED_MILLIONS = {
    "qwen2.5-vl-3b": 3755,
    "qwen2.5-vl-7b": 8292,
    "qwen3-vl-2b": 2128,
    "qwen3-vl-4b": 4437,
    "qwen3-vl-8b": 8767,
    "qwen3-vl-30b-a3b": 31071,
    "paligemma-1-3b": 2923,
    "paligemma-2-3b": 3032,
    "kosmos-2": 1664,
}
"""Parameters with the vocabulary head (Paper Table 9). 4437 is truncated: the count is 4437.8."""


MOST_PIXELS = 1280 * 28 * 28
"""Of an image for VLMs of any image size, as the released code passes it; 224 and 448 are far below."""


def config_of(name: str) -> PreTrainedConfig:
    """The configuration of a registered VLM. Raises: RecipeError when its architecture is not written down."""
    name = ARCHITECTURE_OF.get(name, name)
    if name not in _MODELS:
        raise unknown_name("backbone with a known architecture", name, _MODELS)
    model_type, values = _MODELS[name]
    return AutoConfig.for_model(model_type, **values)


def skeleton(config: PreTrainedConfig, *, vocabulary_head: bool = False) -> PreTrainedModel:
    """A VLM on the meta device: all shapes, no memory. Without the vocabulary head it is what a policy loads."""
    kind = AutoModelForImageTextToText if vocabulary_head else AutoModel
    with torch.device("meta"):
        model = kind.from_config(config)
    model.tie_weights()
    return model


def has_vocabulary_head(config: PreTrainedConfig) -> bool:
    """Whether there is a class with one: not for OpenVLA, of which only the base is written here."""
    return type(config) in AutoModelForImageTextToText._model_mapping


def parameter_count(model: PreTrainedModel) -> int:
    """Parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
