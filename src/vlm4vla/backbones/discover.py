"""What can be found out about a VLM from its own config, tokenizer and modules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vlm4vla.backbones.families import Architecture
from vlm4vla.core.errors import BackboneError

Part = Literal["vision", "projector", "word_embedding", "language"]
PARTS: tuple[Part, ...] = ("vision", "projector", "word_embedding", "language")

_SPARE = re.compile(r"unused|reserved|extra_id|<\|?pad_?\d|placeholder", re.IGNORECASE)
_NEVER = re.compile(r"^(<0xF[5-9A-F]>|[\xf5-\xff])$")
_BETWEEN = re.compile(
    r"merger|projector|connector|multi_modal_proj|aligner|resampler|perceiver", re.IGNORECASE
)


def query_id_of(tokenizer: PreTrainedTokenizerBase, vlm: PreTrainedModel) -> int:
    """An id inside the embedding table that no instruction and nothing else in the model uses.

    A row without a token if there is one, else a token reserved for later use, else a byte that UTF-8 never has, else
    the tokenizer's last one, which is a rare word: an encoder refuses an instruction that contains it.
    """
    rows = vlm.get_input_embeddings().weight.shape[0]
    text_config = vlm.config.get_text_config()
    rows = min(rows, getattr(text_config, "vocab_size_per_layer_input", None) or rows)
    taken = set(_ids_in(vlm.config.to_dict())) | set(tokenizer.all_special_ids)
    vocabulary = tokenizer.get_vocab()
    used = set(vocabulary.values())
    for index in reversed(range(rows)):
        if index not in used and index not in taken:
            return index
    free = {token: i for token, i in vocabulary.items() if i < rows and i not in taken}
    for kind in (_SPARE, _NEVER):
        if found := [i for token, i in free.items() if kind.search(token)]:
            return max(found)
    return max(i for i in free.values() if i not in tokenizer.added_tokens_decoder)


def _ids_in(config: Mapping[str, Any]) -> Iterator[int]:
    """Token ids named anywhere in a config."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _ids_in(value)
        elif re.search(r"(_id|_index|_token)$", str(name)) and isinstance(value, int):
            yield value
        elif re.search(r"_(ids|indices)$", str(name)) and isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, int))


def image_token_id_of(vlm: PreTrainedModel) -> int | None:
    """The id that stands where the image goes, or None for VLMs that put images elsewhere."""
    for name in ("image_token_id", "image_token_index", "media_placeholder_token_id", "im_patch_id"):
        value = getattr(vlm.config, name, None)
        if isinstance(value, int) and value >= 0:
            return value
    return None


def find_parts(vlm: PreTrainedModel, architecture: Architecture) -> Mapping[Part, dict[str, nn.Parameter]]:
    """The four parts, which hold every parameter once.

    What Hugging Face keeps inside the vision tower but maps into the language model's space (Qwen's mergers) is
    projector. Raises: BackboneError when the parts cannot be told apart.
    """
    words = {id(p) for p in vlm.get_input_embeddings().parameters()}
    vision = _vision(vlm, architecture, words)
    decoder = vlm.get_decoder()
    language = {id(p) for p in decoder.parameters()} - words - vision if decoder is not None else set()
    head = vlm.get_output_embeddings()
    language |= {id(p) for p in head.parameters()} - words if head is not None else set()
    separate = (
        decoder is not None and decoder is not vlm and not vision & {id(p) for p in decoder.parameters()}
    )
    if not vision or not words or not language:
        raise BackboneError(
            f"{architecture.name}: vision tower, word embedding and language model of {type(vlm).__name__} "
            "could not be told apart; name the vision part's parameters in vlm4vla/backbones/families.py"
        )
    parts: dict[Part, dict[str, nn.Parameter]] = {name: {} for name in PARTS}
    for name, parameter in vlm.named_parameters():
        key = id(parameter)
        part: Part = "projector"
        if key in words:
            part = "word_embedding"
        elif key in vision:
            part = "vision"
        elif key in language and (separate or not _BETWEEN.search(name)):
            part = "language"
        elif vlm.config.is_encoder_decoder and not _BETWEEN.search(name):
            part = "language"  # the text encoder beside the decoder
        parts[part][name] = parameter
    return parts


def _vision(vlm: PreTrainedModel, architecture: Architecture, words: set[int]) -> set[int]:
    """Parameters of the vision tower without what projects into the language model."""
    if architecture.vision:
        return {id(p) for name, p in vlm.named_parameters() if name.startswith(architecture.vision)}
    tower = vlm.get_encoder(modality="image")
    if tower is None or tower is vlm or any(id(p) in words for p in tower.parameters()):
        return set()
    return {id(p) for name, p in tower.named_parameters() if "merger" not in name}


class HeadInput:
    """What enters the vocabulary head of a VLM without a base model, which then computes no logits."""

    def __init__(self, vlm: PreTrainedModel) -> None:
        """Hooks the head of `vlm`."""
        self._states: Tensor | None = None
        vlm.get_output_embeddings().register_forward_pre_hook(self._keep)

    def take(self) -> Float[Tensor, "batch length hidden"]:
        """Of the last forward pass."""
        states, self._states = self._states, None
        assert states is not None
        return states

    def _keep(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
        self._states = arguments[0]
        return (arguments[0][:, :0],)
