"""What cannot be found out about a VLM, as data: prompts, image statistics, inputs its forward needs.

A family is a value, not a class: `Backbone` is one piece of code that reads these facts. Prompts are the paper's
(A.2.3); `{image}` is where the image tokens stand and `{instruction}` the stripped instruction; the query follows
directly after the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from vlm4vla.core.errors import BackboneError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

ExtraInput = Literal["image_grid_thw", "token_type_ids", "image_embeds_position_mask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Facts about one family of VLMs."""

    name: str
    model_type: str
    """`model_type` of the checkpoint's config."""
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
    attention: Literal["sdpa", "eager"] = "sdpa"
    experts: bool = False
    """A mixture of experts."""
    unit_norm_inputs: tuple[str, ...] = ()
    """Name endings of layers fed with vectors of length one, for the random initialisation."""
    location_token: str | None = None
    """Format of the family's own tokens for places in an image, e.g. `<loc{:04d}>`."""


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


def _qwen(
    name: str, model_type: str, *, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Family:
    return Family(
        name=name,
        model_type=model_type,
        prompts=_QWEN_PROMPTS,
        image_token="<|image_pad|>",
        query_token="<|fim_pad|>",
        extra_inputs=("image_grid_thw",),
        image_mean=mean,
        image_std=std,
        least_pixels=28 * 28 * 256,
    )


def _paligemma(name: str, text_model_type: str, *, attention: Literal["sdpa", "eager"]) -> Family:
    return Family(
        name=name,
        model_type="paligemma",
        text_model_type=text_model_type,
        prompts={"long": _PALIGEMMA_PROMPT, "short": _PALIGEMMA_PROMPT},
        image_token="<image>",
        query_token="<unused0>",
        extra_inputs=("token_type_ids",),
        image_mean=HALF,
        image_std=HALF,
        attention=attention,
        location_token="<loc{:04d}>",
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
            extra_inputs=("image_embeds_position_mask",),
            image_mean=CLIP_MEAN,
            image_std=CLIP_STD,
            unit_norm_inputs=("image_to_text_projection.dense",),
            location_token="<patch_index_{:04d}>",
        ),
    )
}


def family_of(config: Any, *, where: str) -> Family:
    """The family of a Hugging Face config.

    Raises: BackboneError for an architecture whose facts are not known; `where` names the checkpoint.
    """
    for family in FAMILIES.values():
        if config.model_type == family.model_type and family.text_model_type in (
            None,
            getattr(config.get_text_config(), "model_type", None),
        ):
            return family
    raise BackboneError(
        f"{where}: architecture {config.model_type!r} is of no known family ({', '.join(FAMILIES)}). "
        "Add its facts to vlm4vla/backbones/families.py."
    )
