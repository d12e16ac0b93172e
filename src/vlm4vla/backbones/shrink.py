"""A tiny random-weight member of any image-text-to-text architecture that transformers knows; nothing is downloaded.

One rule serves all: walk the default configuration, give every width, depth, count and token id the same small value
wherever it stands, and repair the fields that depend on them. Since all widths are equal, they fit each other. What the
rule cannot know stands in `OVERRIDES`, as data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from vlm4vla.core.errors import unknown_name

WIDTH, HEADS, KEY_VALUE_HEADS, HEAD_DIM = 64, 4, 2, 16
LAYERS, VOCABULARY, POSITIONS, EXPERTS = 2, 256, 512, 4
PATCH, SIDE = 4, 16
IMAGE_TOKEN, VIDEO_TOKEN = 11, 12
FIRST_TEXT_TOKEN, SENTINEL = 100, 250
"""Text ids of stand-in inputs lie from the first up to, not including, the sentinel; special tokens lie below."""

_SIZES: tuple[tuple[str, int], ...] = (
    (r"patch_embed_hidden_size", 3 * PATCH**2),
    (r"num_embeddings", 8),
    (
        r"(swa_)?(num_key_value_heads|num_kv_heads|linear_num_key_heads|num_global_key_value_heads)",
        KEY_VALUE_HEADS,
    ),
    (r"(n_group|topk_group|n_groups|num_nextn_predict_layers|num_kv_shared_layers)", 1),
    (r"(num_experts_per_tok|num_experts_per_token|moe_topk|moe_k|top_k_experts)", 2),
    (r"(num_local_experts|n_routed_experts|num_experts|moe_num_experts)", EXPERTS),
    (r"(n_shared_experts|moe_num_shared_experts|first_k_dense_replace)", 1),
    (
        r"(\w+_)?(num_attention_heads|num_heads|attention_heads|n_heads|linear_num_value_heads|resampler_heads)",
        HEADS,
    ),
    (r"(\w+_)?(head_dim|dim_head|d_kv|kv_channels|query_pre_attn_scalar)", HEAD_DIM),
    (r"(qk_nope_head_dim|qk_rope_head_dim|v_head_dim)", HEAD_DIM),
    (r"qk_head_dim", 2 * HEAD_DIM),
    (r"(\w+_)?(lora_rank)", 16),
    (
        r"(\w+_)?(hidden_size|intermediate_size|ffn_dim|embed_dim|d_model|d_ff|projection_dim|mlp_dim|adapter_(in|out)_dim|adapter_input_size)",
        WIDTH,
    ),
    (
        r"(word_embed_proj_dim|output_channels|downsample_channels|vision_output_dim|output_dim|output_proj_dims|projector_(input|output)_dim)",
        WIDTH,
    ),
    (
        r"(\w+_)?(intermediate_size_mlp|hidden_dim|share_expert_dim|hidden_size_per_layer_input|embedding_size)",
        WIDTH,
    ),
    (
        r"(num_hidden_layers|depth|num_layers|encoder_layers|decoder_layers|n_layers|layers|num_decoder_layers)",
        LAYERS,
    ),
    (r"(resampler_depth|max_window_layers|num_global_layers|\w+_num_hidden_layers)", LAYERS),
    (r"(vocab_size|vocab_size_per_layer_input|unpadded_vocab_size)", VOCABULARY),
    (r"(\w*max_position_embeddings|max_2d_position_embeddings)", POSITIONS),
    (r"(patch_size|spatial_patch_size)", PATCH),
    (r"(image_size|max_image_size|max_img_size|window_size)", SIDE),
    (r"(sliding_window|sliding_window_size|attention_chunk_size|chunk_size)", 128),
    (r"(num_query_tokens|resampler_n_latents|resampler_num_latents|latent_query_num)", 4),
    (
        r"(num_position_embeddings|num_image_tokens|image_seq_length|mm_tokens_per_image|num_patches)",
        (SIDE // PATCH) ** 2,
    ),
    (r"(vision_feature_layer|vision_feature_select_layer)", -1),
    (r"(mamba_num_heads)", HEADS),
    (r"(ssm_state_size|ple_embed_dim)", 16),
    (r"(insert_layer_id)", 1),
    (r"(base_channels|latent_channels)", 32),
    (r"(ngram_vocab_size_base)", 64),
)

_INDEX_LISTS = (
    "fullatt_block_indexes",
    "deepstack_visual_indexes",
    "global_attn_indexes",
    "full_attn_idxs",
    "cross_attention_layers",
    "intermediate_layers_indices",
)
"""Lists of layer numbers; they become the last layer alone."""
_ABSENT = {
    "image_token_id": IMAGE_TOKEN,
    "image_token_index": IMAGE_TOKEN,
    "video_token_id": VIDEO_TOKEN,
    "head_dim": HEAD_DIM,
    "sliding_window": 128,
    "image_grid_pinpoints": [[SIDE, SIDE]],
}
"""Fields that checkpoints set and default configurations leave empty."""
_KEPT = ("id2label", "label2id", "projector_patch_to_query_dict")
_CODES = range(8)

OVERRIDES: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {16: 4}, "max_value_projector_patch_to_query_dict": 4},
    "chameleon": {
        "vocabulary_map": {"<image>": IMAGE_TOKEN}
        | {f"IMGIMG{'ABCDEFGH'[code]}Z": 30 + code for code in _CODES}
    },
    "dots3_note": {"text_config.head_dim": 2 * HEAD_DIM},
    "emu3": {
        "vq_config.hidden_size": 2 * WIDTH,
        "vq_config.codebook_size": len(_CODES),
        "vocabulary_map": {"<image>": IMAGE_TOKEN, "<|extra_200|>": 50}
        | {f"<|visual token {code:06d}|>": 30 + code for code in _CODES},
    },
    "llama4": {"vision_config.intermediate_size": 4 * WIDTH},
    "muse_glimmer": {"out_hidden_size": 4 * WIDTH},
    "muse_spark": {"out_hidden_size": 4 * WIDTH},
    "qwen4_exp": {
        "text_config.indexer_n_heads": 2,
        "text_config.indexer_kv_heads": 1,
        "text_config.indexer_head_dim": HEAD_DIM,
        "text_config.indexer_budget": 64,
        "text_config.indexer_compress_ratio": 4,
    },
    "cohere_compass": {
        "text_config.rope_parameters.full_attention": {"rope_type": "default", "rope_theta": 1e4}
    },
    "deepseek_ocr2": {
        "text_config.mlp_layer_types": ["dense", "sparse"],
        "text_config.num_experts_per_tok": 2,
    },
    "granite4_vision": {
        "deepstack_layer_map": [[-1, 0]],
        "spatial_target_layers": [1],
        "downsample_rate": "1/2",
    },
    "mllama": {"vision_config.vision_output_dim": 2 * WIDTH},
    "unlimited_ocr": {"text_config.num_key_value_heads": HEADS},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 60, "vision_end_token_id": 61},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 60, "vision_end_token_id": 61},
    "ernie4_5_vl_moe": {"text_config.rope_parameters.mrope_section": [3, 3, 2]},
    "glm5_next": {"text_config.num_key_value_heads": HEADS},
    "mistral_large4": {"text_config.kv_source_layers": [0, 1]},
}
"""architecture -> {dotted field: value}: what the generic rule cannot know."""


def architectures() -> tuple[str, ...]:
    """Names of all image-text-to-text architectures of the installed transformers, sorted."""
    return tuple(sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES))


def shrunk_config(model_type: str) -> PretrainedConfig:
    """The architecture's default configuration at tiny size.

    Raises `RecipeError` for a name that transformers does not list as image-text-to-text.
    """
    if model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise unknown_name("architecture", model_type, architectures())
    default = AutoConfig.for_model(model_type)
    full = default.to_dict()
    if "vision_config" in full and full["vision_config"] is None:
        full["vision_config"] = default.sub_configs["vision_config"]().to_dict()
    fields = _shrink(full, _token_numbers(full))
    for path, value in OVERRIDES.get(model_type, {}).items():
        *parents, last = path.split(".")
        where = fields
        for parent in parents:
            where = where.setdefault(parent, {})
        where[last] = value
    config = type(default).from_dict(fields)
    config._attn_implementation = "eager"
    return config


def tiny_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """The base model as loading a checkpoint gives it, random, in evaluation mode, float32 on the CPU.

    Base means: what `AutoModel` makes, else the full model's `.model`, else the full model itself. Every weight carries
    a little noise, because some architectures start with gates and projectors at zero that hide the image.
    """
    config = shrunk_config(model_type)
    torch.manual_seed(seed)
    if type(config) in AutoModel._model_mapping:
        model = AutoModel.from_config(config)
    else:
        full = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config)
        model = getattr(full, "model", full)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.float().eval()


def _token_numbers(fields: Mapping[str, Any]) -> dict[str, int]:
    """Every special token's name -> a small id, the same wherever the name occurs."""
    names: list[str] = []

    def collect(inner: Mapping[str, Any]) -> None:
        for name, value in inner.items():
            if isinstance(value, Mapping) and name not in _KEPT:
                collect(value)
            elif isinstance(value, int) and re.fullmatch(r"\w+_(token_id|token_index)|im(age)?_\w*id", name):
                names.append(name)

    collect(fields)
    numbers = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    numbers |= dict.fromkeys(("image_token_id", "image_token_index", "image_patch_id"), IMAGE_TOKEN)
    numbers |= dict.fromkeys(("video_token_id", "video_token_index"), VIDEO_TOKEN)
    others = sorted(set(names) - set(numbers))
    return numbers | {name: 20 + place for place, name in enumerate(others)}


def _shrink(fields: Mapping[str, Any], tokens: Mapping[str, int]) -> dict[str, Any]:
    small: dict[str, Any] = {}
    count = fields.get("num_hidden_layers")
    kept = _kept_layers(fields) if isinstance(count, int) and count > 0 else []
    for name, value in fields.items():
        if name == "per_layer_config" and value:
            layers = {int(layer): _shrink(inner, tokens) for layer, inner in value.items()}
            small[name] = {new: layers[old] for new, old in enumerate(kept) if old in layers}
        elif isinstance(value, Mapping):
            small[name] = value if name in _KEPT else _shrink(value, tokens)
        elif name in _INDEX_LISTS and value:
            small[name] = [LAYERS - 1]
        elif name in _ABSENT and value is None:
            small[name] = _ABSENT[name]
        elif name in tokens and value is not None:
            small[name] = [tokens[name]] if isinstance(value, list) else tokens[name]
        elif isinstance(value, list | tuple) and len(value) == count:
            small[name] = [_small(name, value[old]) for old in kept]
        elif name == "num_hidden_layers" and kept:
            small[name] = len(kept)
        else:
            small[name] = _small(name, value)
    if small.get("kv_lora_rank"):  # latent attention has as many key-value heads as heads
        small["num_key_value_heads"] = HEADS
    _repair_rotary(small)
    return small


def _kept_layers(fields: Mapping[str, Any]) -> list[int]:
    """The first layer of each kind, filled up to `LAYERS` from the front, in order."""
    lists = [fields[name] for name in ("layer_types", "mlp_layer_types") if fields.get(name)]
    kinds = list(zip(*lists, strict=False)) if lists else []
    first = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    spare = [layer for layer in range(max(LAYERS, len(kinds))) if layer not in first]
    return sorted(first + spare[: max(0, LAYERS - len(first))])


def _small(name: str, value: Any) -> Any:
    if name == "image_grid_pinpoints":
        return [[SIDE, SIDE]]
    size = next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), None)
    if size is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and (value > 0 or size < 0):
        return size
    if isinstance(value, list | tuple) and value and all(isinstance(item, int) for item in value):
        return [size] * (1 if size < 0 else len(value))
    return value


def _repair_rotary(fields: dict[str, Any]) -> None:
    """Small sections of multimodal positions, half the rotary width in all; model files assume big ones."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = fields.get(name)
        if not isinstance(rope, dict) or "vocab_size" not in fields:
            continue
        for inner in (rope, *rope.values()):
            if isinstance(inner, dict) and "rope_type" in inner:
                factor = inner.get("partial_rotary_factor") or fields.get("partial_rotary_factor") or 1.0
                half = math.floor(HEAD_DIM * factor) // 2
                inner["mrope_section"] = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
