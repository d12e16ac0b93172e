"""Random-weight members of every family with their own tokenizer, saved like a checkpoint from the hub.

Real Hugging Face classes at about a million parameters: everything that works with them works with a 7B. The class is
the one with the language-model head, so that they can be pretrained; `AutoModel` loads their base.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
)

from vlm4vla.backbones import tiny_others as others
from vlm4vla.backbones.architectures import has_vocabulary_head
from vlm4vla.backbones.families import ARCHITECTURES, FAMILIES, INSTRUCTION, Architecture, Family
from vlm4vla.backbones.initialization import scaled_init_
from vlm4vla.backbones.loading import quiet
from vlm4vla.core.errors import BackboneError, unknown_name


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySize:
    """Sizes of a tiny VLM; the defaults make about a million parameters."""

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    key_value_heads: int = 2
    mlp: int = 256
    vision_hidden: int = 96
    vision_layers: int = 2
    vision_heads: int = 4
    vision_mlp: int = 256
    image_size: int = 64
    """Side of its input images in pixels; Qwen accepts smaller ones too."""
    patch: int = 8
    vocabulary: int = 576
    """Rows of the tokenizer before extra tokens: 256 bytes, special tokens, merges."""
    latents: int = 16
    """Kosmos-2: image tokens that the language model sees."""
    experts: int = 4
    active_experts: int = 2
    """Qwen3-VL-MoE."""


TINY_SIZES: dict[str, TinySize] = {
    "qwen2.5-vl": TinySize(),
    "qwen3-vl": TinySize(),
    "qwen3-vl-moe": TinySize(mlp=128),
    "paligemma-1": TinySize(key_value_heads=1),
    "paligemma-2": TinySize(),
    "kosmos-2": TinySize(),
}
MERGE = 2
"""Qwen joins 2 x 2 patches into one token."""
_TEMPORAL = 2

_QWEN_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<|fim_pad|>", "<|box_start|>", "<|box_end|>",
)  # fmt: skip
_PALIGEMMA_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<unused0>", "<image>")
_KOSMOS_TOKENS = (
    "<s>", "<pad>", "</s>", "<unk>", "</doc>", "<image>", "</image>", "</chunk>", "</line>", "<phrase>", "</phrase>",
    "<object>", "</object>", "</delimiter_of_multi_objects/>", "<grounding>",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How a family's tiny member is written down."""

    tokens: tuple[str, ...]
    roles: dict[str, Any]
    config: Callable[[TinySize, Callable[[str], int], int], dict[str, Any]]
    processor: Callable[[TinySize, Any], dict[str, dict[str, Any]]]
    chat_template: str | None = None


def build_tiny(
    family: str,
    size: TinySize | None,
    folder: Path,
    *,
    texts: Iterable[str],
    seed: int,
    extra_tokens: Sequence[str] = (),
) -> Path:
    """Write a random-weight checkpoint and return its folder.

    The tokenizer is byte-level BPE learned from `texts`, so their common words become one token each;
    `extra_tokens` (location tokens, say) are added behind. The same arguments write the same bytes.
    """
    if family not in _KINDS:
        raise unknown_name("family", family, _KINDS)
    facts = FAMILIES.get(family) or ARCHITECTURES[family]
    kind, size = _KINDS[family], size or TINY_SIZES.get(family, TinySize())
    if size.image_size % (size.patch * MERGE):
        raise BackboneError(
            f"tiny {family}: image_size {size.image_size} must be a multiple of patch x {MERGE} = {size.patch * MERGE}"
        )
    tokenizer = _train_tokenizer(kind, facts, size, texts, extra_tokens)
    config_values = kind.config(size, tokenizer.convert_tokens_to_ids, len(tokenizer))
    config = AutoConfig.for_model(facts.model_type, **config_values)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        auto = AutoModelForImageTextToText if has_vocabulary_head(config) else AutoModel
        model = auto.from_config(config, attn_implementation="eager")
    scaled_init_(model, seed=seed, unit_norm_inputs=facts.unit_norm_inputs)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for name, content in kind.processor(size, facts).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if kind.chat_template is not None:
        (folder / "chat_template.jinja").write_text(kind.chat_template, encoding="utf-8")
    return folder


def _train_tokenizer(
    kind: _Kind, facts: Architecture, size: TinySize, texts: Iterable[str], extra_tokens: Sequence[str]
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=list(kind.tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_in_prompts(texts, facts), trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in extra_tokens])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="right", **kind.roles)


def _in_prompts(texts: Iterable[str], facts: Architecture) -> Iterator[str]:
    """Every text as it will stand: at the start of a segment and after a space; and the prompts themselves."""
    for text in texts:
        yield f"{text}\n"
        yield f" {text}"
    prompts = facts.prompts.values() if isinstance(facts, Family) else [facts.prompt or INSTRUCTION]
    for prompt in set(prompts):
        segments = prompt.format(image="<|>", instruction="<|>").replace("|>", "<|").split("<|")
        yield from (segment.strip("<>") for segment in segments for _ in range(20))


def _rope(size: TinySize, share: float, **extra: Any) -> dict[str, Any]:
    """Three-axis rotary positions; `share` of the frequencies belongs to time, as in the family's large members."""
    half = size.hidden // size.heads // 2
    time = round(half * share)
    height = (half - time + 1) // 2
    sections = [time, height, half - time - height]
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections, **extra}


def _text(size: TinySize, rows: int) -> dict[str, Any]:
    return {
        "vocab_size": rows,
        "hidden_size": size.hidden,
        "intermediate_size": size.mlp,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.key_value_heads,
        "max_position_embeddings": 2048,
    }


def _vision(size: TinySize) -> dict[str, Any]:
    return {
        "hidden_size": size.vision_hidden,
        "intermediate_size": size.vision_mlp,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": size.vision_heads,
        "image_size": size.image_size,
        "patch_size": size.patch,
    }


def _qwen_vision(size: TinySize) -> dict[str, Any]:
    return {
        "depth": size.vision_layers,
        "hidden_size": size.vision_hidden,
        "intermediate_size": size.vision_mlp,
        "num_heads": size.vision_heads,
        "patch_size": size.patch,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": _TEMPORAL,
        "out_hidden_size": size.hidden,
    }


def _qwen_ids(ids: Callable[[str], int]) -> dict[str, int]:
    return {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


def _qwen25_config(size: TinySize, ids: Callable[[str], int], rows: int) -> dict[str, Any]:
    roles = {"bos_token_id": ids("<|endoftext|>"), "eos_token_id": ids("<|im_end|>")}
    return {
        "text_config": {**_text(size, rows), **roles, "rope_parameters": _rope(size, 1 / 4)},
        "vision_config": {
            **_qwen_vision(size),
            # Windows of half the image's side in all blocks but the last, as 3 of 4 blocks of the large ones.
            "window_size": size.image_size // 2,
            "fullatt_block_indexes": [size.vision_layers - 1],
        },
        "tie_word_embeddings": True,
        **_qwen_ids(ids),
    }


def _qwen3_config(size: TinySize, ids: Callable[[str], int], rows: int) -> dict[str, Any]:
    return {
        "text_config": {
            **_text(size, rows),
            "head_dim": size.hidden // size.heads,
            "rope_parameters": _rope(size, 3 / 8, mrope_interleaved=True),
        },
        "vision_config": {
            **_qwen_vision(size),
            "num_position_embeddings": (size.image_size // size.patch) ** 2,
            "deepstack_visual_indexes": [0],
        },
        "tie_word_embeddings": True,
        **_qwen_ids(ids),
    }


def _qwen3_moe_config(size: TinySize, ids: Callable[[str], int], rows: int) -> dict[str, Any]:
    config = _qwen3_config(size, ids, rows)
    config["text_config"] |= {
        "num_experts": size.experts,
        "num_experts_per_tok": size.active_experts,
        "moe_intermediate_size": size.mlp,
    }
    return config


def _paligemma_config(size: TinySize, ids: Callable[[str], int], rows: int) -> dict[str, Any]:
    return {
        "text_config": {
            **_text(size, rows),
            "model_type": "gemma",
            "head_dim": size.hidden // size.heads,
            "pad_token_id": ids("<pad>"),
            "bos_token_id": ids("<bos>"),
            "eos_token_id": ids("<eos>"),
        },
        "vision_config": {**_vision(size), "model_type": "siglip_vision_model", "vision_use_head": False},
        "image_token_index": ids("<image>"),
        "projection_dim": size.hidden,
        "hidden_size": size.hidden,
        "vocab_size": rows,
        "tie_word_embeddings": True,
    }


def _paligemma2_config(size: TinySize, ids: Callable[[str], int], rows: int) -> dict[str, Any]:
    config = _paligemma_config(size, ids, rows)
    config["text_config"] |= {"model_type": "gemma2", "query_pre_attn_scalar": size.hidden // size.heads}
    return config


def _kosmos_config(size: TinySize, ids: Callable[[str], int], rows: int) -> dict[str, Any]:
    return {
        "text_config": {
            "vocab_size": rows,
            "embed_dim": size.hidden,
            "layers": size.layers,
            "ffn_dim": size.mlp,
            "attention_heads": size.heads,
            "max_position_embeddings": 2048,
            # The large one has 0.1: a tiny one learns too little to be held back, and training stays repeatable.
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "pad_token_id": ids("<pad>"),
            "bos_token_id": ids("<s>"),
            "eos_token_id": ids("</s>"),
        },
        "vision_config": _vision(size),
        "latent_query_num": size.latents,
    }


def _qwen_processor(name: str) -> Callable[[TinySize, Family], dict[str, dict[str, Any]]]:
    def files(size: TinySize, facts: Family) -> dict[str, dict[str, Any]]:
        shared = {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(facts.image_mean),
            "image_std": list(facts.image_std),
            "merge_size": MERGE,
            "patch_size": size.patch,
            "temporal_patch_size": _TEMPORAL,
            "size": {"shortest_edge": (size.patch * MERGE) ** 2, "longest_edge": size.image_size**2},
            "processor_class": name,
        }
        video = "Qwen3VLVideoProcessor" if name.startswith("Qwen3") else "Qwen2VLVideoProcessor"
        return {
            "preprocessor_config.json": {**shared, "image_processor_type": "Qwen2VLImageProcessor"},
            "video_preprocessor_config.json": {**shared, "video_processor_type": video},
        }

    return files


def _fixed_processor(
    name: str, image_processor: str
) -> Callable[[TinySize, Family], dict[str, dict[str, Any]]]:
    def files(size: TinySize, facts: Family) -> dict[str, dict[str, Any]]:
        square = {"height": size.image_size, "width": size.image_size}
        image = {
            "image_processor_type": image_processor,
            "processor_class": name,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "do_center_crop": False,
            "image_mean": list(facts.image_mean),
            "image_std": list(facts.image_std),
            "resample": 3,
            "size": square,
        }
        if name == "PaliGemmaProcessor":
            image["image_seq_length"] = (size.image_size // size.patch) ** 2
        return {"preprocessor_config.json": image}

    return files


_QWEN_CHAT = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN_ROLES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_QWEN25 = _Kind(
    tokens=_QWEN_TOKENS,
    roles=_QWEN_ROLES,
    config=_qwen25_config,
    processor=_qwen_processor("Qwen2_5_VLProcessor"),
    chat_template=_QWEN_CHAT,
)
_QWEN3 = replace(_QWEN25, config=_qwen3_config, processor=_qwen_processor("Qwen3VLProcessor"))
_PALIGEMMA = _Kind(
    tokens=_PALIGEMMA_TOKENS,
    roles={"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
    config=_paligemma_config,
    processor=_fixed_processor("PaliGemmaProcessor", "SiglipImageProcessor"),
)
_KOSMOS = _Kind(
    tokens=_KOSMOS_TOKENS,
    roles={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    config=_kosmos_config,
    processor=_fixed_processor("Kosmos2Processor", "CLIPImageProcessor"),
)


def _other(
    tokens: tuple[str, ...],
    roles: dict[str, Any],
    config: Callable[[TinySize, dict[str, Any], dict[str, Any], Callable[[str], int]], dict[str, Any]],
    processor: Callable[[TinySize], dict[str, Any]],
    image_token: str,
) -> _Kind:
    return _Kind(
        tokens=tokens,
        roles=roles,
        config=lambda size, ids, rows: config(size, _text(size, rows), _vision(size), ids),
        processor=lambda size, facts: {"processor_config.json": processor(size)},
        chat_template=others.CHAT.replace("IMAGE", image_token),
    )


def _qwen35_config(size: TinySize, ids: Callable[[str], int], rows: int) -> dict[str, Any]:
    config = _qwen3_config(size, ids, rows)
    config["text_config"] |= others.qwen35_text(size)
    config["vision_config"].pop("deepstack_visual_indexes")
    return config


_KINDS: dict[str, _Kind] = {
    "internvl": _other(
        others.INTERNVL_TOKENS,
        others.CHAT_ROLES | others.INTERNVL_ROLES,
        others.internvl,
        others.internvl_processor,
        "<IMG_CONTEXT>",
    ),
    "smolvlm": _other(
        others.SMOLVLM_TOKENS, others.CHAT_ROLES, others.smolvlm, others.smolvlm_processor, "<image>"
    ),
    "gemma3": _other(
        others.GEMMA_TOKENS, others.GEMMA_ROLES, others.gemma3, others.gemma3_processor, "<start_of_image>"
    ),
    "gemma4": _other(
        others.GEMMA4_TOKENS,
        others.GEMMA4_ROLES,
        others.gemma4,
        others.gemma4_processor,
        "<image_soft_token>",
    ),
    "llava_onevision": _other(
        others.LLAVA_TOKENS,
        others.CHAT_ROLES,
        others.llava_onevision,
        others.llava_onevision_processor,
        "<image>",
    ),
    "prismatic": _Kind(
        tokens=others.PRISMATIC_TOKENS,
        roles=others.PRISMATIC_ROLES,
        config=lambda size, ids, rows: others.prismatic(size, _text(size, rows), {}, ids),
        processor=_fixed_processor("PrismaticProcessor", "SiglipImageProcessor"),
    ),
    "qwen3_5": replace(
        _QWEN3,
        config=_qwen35_config,
        processor=lambda size, facts: _QWEN3.processor(size, FAMILIES["qwen3-vl"]),
    ),
    "qwen2.5-vl": _QWEN25,
    "qwen3-vl": _QWEN3,
    "qwen3-vl-moe": replace(_QWEN3, config=_qwen3_moe_config),
    "paligemma-1": _PALIGEMMA,
    "paligemma-2": replace(_PALIGEMMA, config=_paligemma2_config),
    "kosmos-2": _KOSMOS,
}
