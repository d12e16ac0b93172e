"""What cannot be found out about a VLM, as data.

A family is a value, not a class: `Backbone` is one piece of code that reads these facts. Of the paper's families
everything is known, so that their images are prepared on the device; of any other architecture that Hugging Face
knows a few facts suffice, or none (`discover.py`). `{image}` in a prompt is where the image tokens stand and
`{instruction}` the stripped instruction; the query follows directly after the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vlm4vla.core.errors import BackboneError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

ExtraInput = Literal["image_grid_thw", "token_type_ids", "image_embeds_position_mask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What is known of a VLM beforehand; the rest is asked of its config, its model and its processor."""

    name: str
    model_type: str
    """`model_type` of the checkpoint's config."""
    attention: Literal["sdpa", "eager"] | None = None
    """None: what Hugging Face picks for the class."""
    experts: bool = False
    """A mixture of experts whose results shall not depend on the other rows of a batch."""
    unit_norm_inputs: tuple[str, ...] = ()
    """Name endings of layers fed with vectors of length one, for the random initialisation."""
    prompt: str | None = None
    """None: the processor's chat template, asking what the paper asks Qwen."""
    question: str = "{image}{instruction}\n"
    """What its processor is given for a bare question, with its own image token for `{image}`."""
    vision: tuple[str, ...] = ()
    """Prefixes of the vision part's parameters, where the model cannot tell them."""
    whole: bool = False
    """There is no base model that returns hidden states: they are taken from what enters the vocabulary head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family(Architecture):
    """Everything about one family of VLMs whose inputs are made here, without its processor."""

    text_model_type: str | None = None
    """`model_type` of its text config, where that tells families apart (PaliGemma-1 and -2)."""
    prompts: Mapping[str, str]
    """By name (`long`, `short`); a family with one prompt names it twice."""
    image_token: str
    """Stands in every image slot of the prompt."""
    query_token: str
    """A special token of every checkpoint of the family whose id marks the query. Its row in the embedding table is
    never read: a hook writes the query vector there. It must be neither padding nor an image token."""
    extra_inputs: tuple[ExtraInput, ...]
    """What the native forward needs beside ids and pixels. `image_grid_thw` also means pixels as rows of patches
    and positions in three axes (M-RoPE)."""
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    least_pixels: int = 0
    """For VLMs of any image size: smaller images are enlarged to this many pixels, but never beyond the checkpoint's
    own maximum. The reference passes 28 * 28 * 256 for Qwen, so that 224 becomes 448 (Paper A.2.1, released code)."""
    first_position: int = 0
    """Number of a row's first token, where the VLM counts in one axis."""


_QWEN_PROMPTS = {
    "long": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>"
        "What action should the robotic arm take to {instruction}<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "short": "<|im_start|><|vision_start|>{image}<|vision_end|>{instruction}\n",
}
_PALIGEMMA_PROMPT = "{image}<bos>{instruction}\n"
# The paper prints <p>...</p>, which Kosmos-2's tokenizer does not know: its tag for a phrase is <phrase>.
_KOSMOS_PROMPT = "<s><image>{image}</image><phrase>{instruction}\n</phrase>"

# OpenVLA's own question; its image stands behind the start token.
_OPENVLA_PROMPT = "<s>{image}In: What action should the robot take to {instruction}?\nOut:"


def _qwen(
    name: str, model_type: str, *, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Family:
    return Family(
        name=name,
        model_type=model_type,
        prompts=_QWEN_PROMPTS,
        image_token="<|image_pad|>",
        query_token="<|fim_pad|>",
        question=_QWEN_PROMPTS["short"],
        extra_inputs=("image_grid_thw",),
        image_mean=mean,
        image_std=std,
        least_pixels=28 * 28 * 256,
        attention="sdpa",
    )


def _paligemma(name: str, text_model_type: str, *, attention: Literal["sdpa", "eager"]) -> Family:
    return Family(
        name=name,
        model_type="paligemma",
        text_model_type=text_model_type,
        prompts={"long": _PALIGEMMA_PROMPT, "short": _PALIGEMMA_PROMPT},
        image_token="<image>",
        query_token="<unused0>",
        question="{image}{instruction}",  # its processor adds <bos> and the line's end
        extra_inputs=("token_type_ids",),
        image_mean=HALF,
        image_std=HALF,
        attention=attention,
        first_position=1,
    )


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _qwen("qwen2.5-vl", "qwen2_5_vl", mean=CLIP_MEAN, std=CLIP_STD),
        _qwen("qwen3-vl", "qwen3_vl", mean=HALF, std=HALF),
        replace(_qwen("qwen3-vl-moe", "qwen3_vl_moe", mean=HALF, std=HALF), experts=True),
        _paligemma("paligemma-1", "gemma", attention="sdpa"),
        # Gemma-2 caps its attention logits, which scaled_dot_product_attention cannot do.
        _paligemma("paligemma-2", "gemma2", attention="eager"),
        Family(
            name="kosmos-2",
            model_type="kosmos-2",
            prompts={"long": _KOSMOS_PROMPT, "short": _KOSMOS_PROMPT},
            image_token="<image>",
            query_token="</chunk>",
            question="<phrase>{instruction}\n</phrase>",  # its processor puts the image before
            extra_inputs=("image_embeds_position_mask",),
            image_mean=CLIP_MEAN,
            image_std=CLIP_STD,
            attention="sdpa",
            unit_norm_inputs=("image_to_text_projection.dense",),
            first_position=2,
        ),
        Family(
            name="prismatic",
            model_type="openvla",
            prompts={"long": _OPENVLA_PROMPT, "short": _OPENVLA_PROMPT},
            image_token="<0xFE>",
            query_token="<0xFF>",
            extra_inputs=(),
            image_mean=HALF,
            image_std=HALF,
            attention="sdpa",
        ),
    )
}


INSTRUCTION = "What action should the robotic arm take to {instruction}"
"""What a VLM is asked whose prompt is its own chat template: the question of the paper's long scheme (A.2.3)."""

_INTERNVL_PROMPT = _QWEN_PROMPTS["long"].replace("<|vision_start|>{image}<|vision_end|>", "{image}")

ARCHITECTURES: dict[str, Architecture] = {
    architecture.model_type: architecture
    for architecture in (
        # The reference's configurations for it have scheme 1; its processor adds <img> and </img>.
        Architecture(name="internvl", model_type="internvl", prompt=_INTERNVL_PROMPT),
        Architecture(name="smolvlm", model_type="smolvlm"),
        Architecture(name="gemma3", model_type="gemma3"),
        Architecture(name="gemma4", model_type="gemma4"),
        Architecture(name="llava_onevision", model_type="llava_onevision"),
        Architecture(name="qwen3_5", model_type="qwen3_5"),
        Architecture(name="blip-2", model_type="blip-2", whole=True),
        Architecture(name="instructblip", model_type="instructblip", whole=True),
        Architecture(name="instructblipvideo", model_type="instructblipvideo", whole=True),
    )
}
"""By `model_type`: facts about architectures that are otherwise discovered."""


def architecture_of(config: Any, *, where: str) -> Architecture:
    """The family of a Hugging Face config, or what is known of its architecture.

    Raises: BackboneError for what reads no images or is unknown to transformers; `where` names the checkpoint.
    """
    for family in FAMILIES.values():
        if config.model_type == family.model_type and family.text_model_type in (
            None,
            getattr(config.get_text_config(), "model_type", None),
        ):
            return family
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise BackboneError(
            f"{where}: {config.model_type!r} is no architecture that reads images and text, as far as transformers "
            f"{transformers.__version__} knows; a policy has to see. Take a VLM, or a newer transformers."
        )
    return ARCHITECTURES.get(
        config.model_type, Architecture(name=config.model_type, model_type=config.model_type)
    )
