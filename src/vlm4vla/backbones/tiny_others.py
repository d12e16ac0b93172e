"""Tiny members of curated VLMs whose inputs their own processor makes: configs, tokens and processor files.

Sizes follow `TinySize`; what is fixed here (scale factors, pooling) is as in the large members, in proportion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vlm4vla.backbones.families import HALF

if TYPE_CHECKING:
    from vlm4vla.backbones.tiny import TinySize

Ids = Callable[[str], int]
Config = dict[str, Any]
Processor = dict[str, Any]

_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_HALVES = (list(HALF), list(HALF))

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""With IMAGE for the VLM's image token."""
CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_ROLES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}

INTERNVL_TOKENS = (*CHAT_TOKENS, "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
INTERNVL_ROLES = {
    "extra_special_tokens": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
}
SMOLVLM_TOKENS = (
    *CHAT_TOKENS, "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>",
)  # fmt: skip
GEMMA_TOKENS = (
    "<pad>", "<eos>", "<bos>", "<unk>", "<image_soft_token>", "<start_of_image>", "<end_of_image>", "<|im_start|>",
    "<|im_end|>",
)  # fmt: skip
GEMMA4_TOKENS = (*GEMMA_TOKENS, "<|audio|>", "<audio>", "</audio>", "<|video|>")
GEMMA_ROLES = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "extra_special_tokens": {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    },
}
GEMMA4_ROLES = GEMMA_ROLES | {
    "extra_special_tokens": {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "audio_token": "<|audio|>",
        "boa_token": "<audio>",
        "eoa_token": "</audio>",
    }
}
LLAVA_TOKENS = (*CHAT_TOKENS, "<image>", "<video>")


def internvl(size: TinySize, text: Config, vision: Config, ids: Ids) -> Config:
    """InternVL3.5: an InternViT, pixel unshuffle by 2, Qwen3."""
    return {
        "text_config": {**text, "model_type": "qwen3", "head_dim": size.hidden // size.heads},
        "vision_config": {**vision, "image_size": [size.image_size] * 2, "patch_size": [size.patch] * 2},
        "image_token_id": ids("<IMG_CONTEXT>"),
        "image_seq_length": (size.image_size // size.patch // 2) ** 2,
        "tie_word_embeddings": True,
    }


def internvl_processor(size: TinySize) -> Processor:
    """One tile, as for any image no larger than one."""
    image = _image("GotOcr2ImageProcessor", size, _IMAGENET) | {"crop_to_patches": False}
    return {
        "processor_class": "InternVLProcessor",
        "image_processor": image,
        "image_seq_length": (size.image_size // size.patch // 2) ** 2,
    }


def smolvlm(size: TinySize, text: Config, vision: Config, ids: Ids) -> Config:
    """SmolVLM2: SigLIP, pixel unshuffle by 2 here (4 in the large ones), Llama."""
    return {
        "text_config": {**text, "model_type": "llama", "pad_token_id": ids("<|endoftext|>")},
        "vision_config": vision,
        "image_token_id": ids("<image>"),
        "scale_factor": 2,
        "pad_token_id": ids("<|endoftext|>"),
    }


def smolvlm_processor(size: TinySize) -> Processor:
    """The global image only: a square no larger than a tile is not split."""
    image = _image("SmolVLMImageProcessor", size, _HALVES) | {
        "do_image_splitting": False,
        "do_pad": True,
        "size": {"longest_edge": size.image_size},
        "max_image_size": {"longest_edge": size.image_size},
    }
    return {
        "processor_class": "SmolVLMProcessor",
        "image_processor": image,
        "image_seq_len": (size.image_size // size.patch // 2) ** 2,
    }


def gemma3(size: TinySize, text: Config, vision: Config, ids: Ids) -> Config:
    """Gemma-3: SigLIP, averaged over 2 x 2 patches, sliding and full attention in turn."""
    return {
        "text_config": {
            **text,
            "head_dim": size.hidden // size.heads,
            "query_pre_attn_scalar": size.hidden // size.heads,
            "sliding_window": 512,
            **_gemma_roles(ids),
        },
        "vision_config": {**vision, "vision_use_head": False},
        "mm_tokens_per_image": (size.image_size // size.patch // 2) ** 2,
        "image_token_index": ids("<image_soft_token>"),
        "boi_token_index": ids("<start_of_image>"),
        "eoi_token_index": ids("<end_of_image>"),
    }


def gemma3_processor(size: TinySize) -> Processor:
    """No pan and scan, as by default."""
    return {
        "processor_class": "Gemma3Processor",
        "image_processor": _image("Gemma3ImageProcessor", size, _HALVES),
        "image_seq_length": (size.image_size // size.patch // 2) ** 2,
    }


def gemma4(size: TinySize, text: Config, vision: Config, ids: Ids) -> Config:
    """Gemma-4: patches with their places, averaged over 3 x 3, embeddings per layer; no audio."""
    head = size.hidden // size.heads
    return {
        "text_config": {
            **text,
            "head_dim": head,
            "global_head_dim": head,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": text["vocab_size"],
            "layer_types": ["sliding_attention"] * (size.layers - 1) + ["full_attention"],
            "sliding_window": 512,
            "num_kv_shared_layers": 0,
            **_gemma_roles(ids),
        },
        "vision_config": {
            **{name: value for name, value in vision.items() if name != "image_size"},
            "num_key_value_heads": size.vision_heads,
            "head_dim": size.vision_hidden // size.vision_heads,
            "pooling_kernel_size": 3,
            "position_embedding_size": 64,
        },
        "audio_config": None,
        "image_token_id": ids("<image_soft_token>"),
        "boi_token_id": ids("<start_of_image>"),
        "eoi_token_id": ids("<end_of_image>"),
    }


def gemma4_processor(size: TinySize) -> Processor:
    """70 tokens, the least its processor allows, whatever the image's size."""
    image = _image("Gemma4ImageProcessor", size, ([0.0] * 3, [1.0] * 3))
    image |= {"patch_size": size.patch, "pooling_kernel_size": 3, "max_soft_tokens": 70}
    return {
        "processor_class": "Gemma4Processor",
        "image_processor": image,
        "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
        "image_seq_length": 70,
    }


def llava_onevision(size: TinySize, text: Config, vision: Config, ids: Ids) -> Config:
    """LLaVA-OneVision: SigLIP without its last layer, an MLP, Qwen2."""
    return {
        "text_config": {**text, "model_type": "qwen2"},
        "vision_config": {**vision, "model_type": "siglip_vision_model", "vision_use_head": False},
        "image_token_index": ids("<image>"),
        "video_token_index": ids("<video>"),
        "image_grid_pinpoints": [[size.image_size, size.image_size]],
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


def llava_onevision_processor(size: TinySize) -> Processor:
    """The whole image and the same as one tile, as for any image that fits one."""
    image = _image("LlavaOnevisionImageProcessor", size, _HALVES) | {
        "image_grid_pinpoints": [[size.image_size, size.image_size]]
    }
    return {
        "processor_class": "LlavaOnevisionProcessor",
        "image_processor": image,
        "num_image_tokens": (size.image_size // size.patch) ** 2,
        "vision_feature_select_strategy": "full",
    }


PRISMATIC_TOKENS = ("<unk>", "<s>", "</s>", "<0xFE>", "<0xFF>", "<PAD>")
PRISMATIC_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<PAD>", "unk_token": "<unk>"}


def prismatic(size: TinySize, text: Config, vision: Config, ids: Ids) -> Config:
    """OpenVLA's backbone: two towers of the same size here."""
    tower = {
        "width": size.vision_hidden,
        "depth": size.vision_layers + 1,
        "heads": size.vision_heads,
        "mlp": size.vision_mlp,
    }
    return {
        "text_config": {**text, "pad_token_id": ids("<PAD>")},
        "vision_config": {
            "image_size": size.image_size,
            "patch_size": size.patch,
            "dino": {**tower, "registers": 2},
            "siglip": {**tower, "registers": 0},
        },
        "image_token_id": ids("<0xFE>"),
        "pad_token_id": ids("<PAD>"),
    }


def qwen35_text(size: TinySize) -> Config:
    """Qwen3.5: gated delta nets in two of three layers here (three of four in the large ones)."""
    return {
        "layer_types": ["linear_attention"] * (size.layers - 1) + ["full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    }


def _gemma_roles(ids: Ids) -> Config:
    return {"pad_token_id": ids("<pad>"), "bos_token_id": ids("<bos>"), "eos_token_id": ids("<eos>")}


def _image(kind: str, size: TinySize, statistics: tuple[list[float], list[float]]) -> Processor:
    mean, std = statistics
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": mean,
        "image_std": std,
        "resample": 3,
        "size": {"height": size.image_size, "width": size.image_size},
    }
