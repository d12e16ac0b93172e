"""A VLM seen as: images and words in, one feature per query token out.

The VLM runs natively (its own image merge, positions, masks). A hook on its input embedding writes the learned query
vector where the query token stands, and the feature is the base model's last hidden state there: no vocabulary logits
are computed, and no `inputs_embeds` are built by hand, which would silently lose Qwen's image positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedConfig

from vlm4vla.backbones import loading, lora
from vlm4vla.backbones.continuation import Cached, Numbering, Rereading, numbering_of
from vlm4vla.backbones.discover import PARTS, HeadInput, Part, find_parts, image_token_id_of, query_id_of
from vlm4vla.backbones.encoding import BackboneInputs, Encoder
from vlm4vla.backbones.families import Family
from vlm4vla.backbones.images import ImagePath, PatchLayout, nearest_allowed_size
from vlm4vla.backbones.native import NativeInputs
from vlm4vla.backbones.processed import ProcessorEncoder, load_processor
from vlm4vla.core.errors import BackboneError, unknown_name
from vlm4vla.core.types import Observation


class Backbone(nn.Module):
    """A pretrained (or random) VLM with one learned query token behind the instruction."""

    query: nn.Parameter
    """`[1, hidden]`, in the space of the embedding module's output."""

    def __init__(
        self,
        checkpoint: loading.Checkpoint,
        native: NativeInputs | None,
        encoder: Encoder | ProcessorEncoder,
        query: Float[Tensor, "1 hidden"],
        *,
        enlarge: bool,
    ) -> None:
        """Use `from_pretrained`."""
        super().__init__()
        self.vlm = checkpoint.vlm
        self.family = checkpoint.family
        self.encoder = encoder
        self.native = native
        self.query = nn.Parameter(query)
        self.hidden_size = query.shape[-1]
        self._checkpoint = checkpoint
        self._enlarge = enlarge
        self._head_input = HeadInput(self.vlm) if self.family.whole else None
        self._written: Float[Tensor, "batch count hidden"] | None = None
        self.vlm.get_input_embeddings().register_forward_hook(self._write_query, with_kwargs=True)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        weights: Literal["pretrained", "random"] = "pretrained",
        prompt: Literal["long", "short"] = "long",
        image_size: int = 224,
        enlarge: bool = True,
        query_init: Literal["normal", "zeros"] = "normal",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Backbone:
        """Load a registered name, a hub id or a checkpoint folder.

        `weights="random"` keeps architecture and tokenizer and redraws every weight from `seed`; `image_size` is the
        standard size every frame is brought to before the VLM's own; without `enlarge` Qwen keeps it.

        Raises: RecipeError for an unknown name; BackboneError when the checkpoint is missing, damaged, reads no
        images, or its processor takes none.
        """
        checkpoint = loading.load(name_or_folder, weights=weights, seed=seed, dtype=dtype)
        native, encoder = (
            _inputs(checkpoint, checkpoint.family, prompt, image_size, enlarge)
            if isinstance(checkpoint.family, Family)
            else (None, _discovered(checkpoint, image_size))
        )
        hidden = checkpoint.vlm.get_input_embeddings().embedding_dim
        generator = torch.Generator().manual_seed(seed)
        # Zeros, as in the reference, let an RMSNorm amplify the query's gradient a thousandfold.
        query = torch.randn(1, hidden, generator=generator) * 0.02
        if query_init == "zeros":
            query = torch.zeros(1, hidden)
        return cls(checkpoint, native, encoder, query.to(dtype), enlarge=enlarge)

    def like_this(self, folder: Path) -> Backbone:
        """A checkpoint folder loaded with this backbone's prompt and image size."""
        short = isinstance(self.family, Family) and self.encoder.prompt != self.family.prompts["long"]
        return Backbone.from_pretrained(
            folder,
            prompt="short" if short else "long",
            image_size=self.encoder.image_size,
            enlarge=self._enlarge,
            dtype=self.query.dtype,
        )

    def encode(self, observations: Sequence[Observation], *, length: int | None = None) -> BackboneInputs:
        """A batch on the CPU, picklable; rows are padded to the longest, or to `length` tokens."""
        return self.encoder(observations, length=length)

    def forward(self, inputs: BackboneInputs) -> Float[Tensor, "batch query hidden"]:
        """The last hidden state (after the final norm) at the query token."""
        states = self.states(inputs)
        rows = torch.arange(len(inputs), device=states.device)
        return states[rows, self.query_places(inputs, states)].unsqueeze(1)

    def states(self, inputs: BackboneInputs) -> Float[Tensor, "batch length hidden"]:
        """The last hidden states of all tokens (of an encoder-decoder: the decoder's)."""
        output = self.vlm(**self.arguments(inputs), use_cache=False)
        states: Tensor = self._head_input.take() if self._head_input else output.last_hidden_state
        return states

    def query_places(
        self, inputs: BackboneInputs, states: Float[Tensor, "batch length hidden"]
    ) -> Int64[Tensor, " batch"]:
        """Where the query stands in every row of `states`."""
        before = states.shape[1] - inputs.query_ids.shape[1]  # image tokens that have no id
        return inputs.lengths + (before - 1)

    def layers(self, inputs: BackboneInputs) -> tuple[Float[Tensor, "batch length hidden"], ...]:
        """The output of every layer of the language model at every token; the last one after the final norm.

        Raises: BackboneError for a VLM that does not return them, or has image tokens without ids.
        """
        outputs = self.vlm(**self.arguments(inputs), use_cache=False, output_hidden_states=True)
        states = getattr(outputs, "hidden_states", None)
        if states is None or self._head_input or states[0].shape[:2] != inputs.input_ids.shape:
            raise BackboneError(
                f"{self.family.name}: does not return the states of its layers token by token, which this action head "
                "reads; take another head"
            )
        return (*states[1:-1], outputs.last_hidden_state)

    def follow(
        self, inputs: BackboneInputs, embeddings: Float[Tensor, "batch count hidden"] | None
    ) -> Float[Tensor, "batch more hidden"]:
        """The last hidden states at the query and at `embeddings`, which stand behind it (`more` is 1 + count)."""
        count = 0 if embeddings is None else embeddings.shape[1]
        longer = inputs.longer(count, pad_id=self.encoder.pad_id)
        if embeddings is None:
            states = self.states(longer)
        else:
            with self.writing(torch.cat([self.query.expand(len(inputs), 1, -1), embeddings], dim=1)):
                states = self.states(longer)
        places = self.query_places(longer, states)[:, None] + torch.arange(1 + count, device=states.device)
        return states[torch.arange(len(inputs), device=states.device)[:, None], places]

    def continuation(self, inputs: BackboneInputs) -> Cached | Rereading:
        """Called with None: the last hidden state at the query; then with an embedding at a time: the state there.

        What `follow` returns, one token after the other and without reading the prompt again where the VLM can.
        """
        if self._numbering is None:
            return Rereading(self, inputs)
        return Cached(self, inputs, self._numbering)

    @cached_property
    def _numbering(self) -> Numbering | None:
        return numbering_of(self)

    @contextmanager
    def writing(self, vectors: Float[Tensor, "batch count hidden"]) -> Iterator[None]:
        """Let the hook write these, in order, where the query's id stands, instead of the query alone."""
        self._written = vectors
        try:
            yield
        finally:
            self._written = None

    def arguments(self, inputs: BackboneInputs) -> Mapping[str, Any]:
        """What the VLM's own forward takes."""
        if self.native:
            return self.native(self.vlm, inputs.input_ids, inputs.images)
        return {"input_ids": inputs.input_ids, **inputs.arguments}

    def part(self, name: Part | Literal["released_vision"]) -> list[nn.Parameter]:
        """Parameters of one part; the four parts and the query make up the backbone, without overlap.

        Qwen's mergers, which Hugging Face keeps inside the vision tower, belong to the projector; `released_vision` is
        the vision tower with them, which the released code freezes as vision.
        """
        if name == "released_vision":
            parts = find_parts(self.vlm, self.family)
            tower = {id(p) for p in self.vlm.get_encoder(modality="image").parameters()}
            inside = [p for p in parts["projector"].values() if id(p) in tower]
            return [*parts["vision"].values(), *inside]
        if name not in PARTS:
            raise unknown_name("part", name, PARTS)
        return list(find_parts(self.vlm, self.family)[name].values())

    def checkpoint_activations(self) -> None:
        """Compute activations of every block again in the backward pass instead of keeping them.

        Raises: BackboneError for a VLM whose class cannot.
        """
        if not self.vlm.supports_gradient_checkpointing:
            raise BackboneError(
                f"{self._checkpoint.where}: {type(self.vlm).__name__} cannot compute activations again; leave "
                "train.checkpoint_activations off"
            )
        self.vlm.activation_checkpointing_enable({"use_reentrant": False})

    def save(self, folder: Path, *, state: Mapping[str, Tensor] | None = None) -> None:
        """Write an ordinary Hugging Face checkpoint (without the query, which is the policy's), LoRA merged in.

        `state`: weights of `vlm` to write instead of its own, when those are sharded or shall not be merged.
        """
        loading.save(
            self._checkpoint, folder, state=lora.merged_weights(self.vlm) if state is None else state
        )

    def export(self, folder: Path, *, original: str | Path) -> None:
        """Write the whole VLM for other programs: as `save`, with the vocabulary head of the `original` checkpoint.

        Raises: BackboneError when that cannot be loaded, or transformers has no such class.
        """
        loading.export(self._checkpoint, folder, state=lora.merged_weights(self.vlm), original=original)

    def _write_query(
        self,
        module: nn.Module,
        arguments: tuple[Any, ...],
        keywords: Mapping[str, Any],
        output: Float[Tensor, "batch length hidden"],
    ) -> Float[Tensor, "batch length hidden"]:
        ids: Tensor = arguments[0] if arguments else next(iter(keywords.values()))
        is_query = (ids == self.encoder.query_id).unsqueeze(-1)
        if self._written is None:
            return torch.where(is_query, self.query.to(output.dtype), output)
        written = self._written.to(output.dtype)
        place = (is_query.cumsum(1) - 1).clamp(0, written.shape[1] - 1)
        return torch.where(is_query, written.gather(1, place.expand_as(output)), output)


def image_layout(
    config: PreTrainedConfig, family: Family, image_size: int, most_pixels: int, *, enlarge: bool = True
) -> tuple[PatchLayout | None, int, int]:
    """How a family lays out pixels, the side of its input image in pixels, and how many tokens that becomes.

    `most_pixels`: the bound of the checkpoint's own preprocessing, kept where `enlarge` leaves the size to that.
    """
    vision = config.vision_config
    if "image_grid_thw" not in family.extra_inputs:
        size = vision.image_size
        return None, size, getattr(config, "latent_query_num", (size // vision.patch_size) ** 2)
    merge = vision.spatial_merge_size
    size = nearest_allowed_size(
        image_size,
        multiple=vision.patch_size * merge,
        least_pixels=min(family.least_pixels, most_pixels) if enlarge else 0,
        most_pixels=most_pixels if enlarge else max(most_pixels, image_size**2),
    )
    layout = PatchLayout(patch=vision.patch_size, merge=merge, temporal=vision.temporal_patch_size)
    return layout, size, (size // vision.patch_size // merge) ** 2


def _inputs(
    checkpoint: loading.Checkpoint, family: Family, prompt: str, image_size: int, enlarge: bool
) -> tuple[NativeInputs, Encoder]:
    most = loading.most_pixels(checkpoint.processor_files) if "image_grid_thw" in family.extra_inputs else 0
    layout, size, tokens = image_layout(checkpoint.vlm.config, family, image_size, most, enlarge=enlarge)
    encoder = Encoder(
        checkpoint.tokenizer,
        prompt=family.prompts[prompt],
        image_token=family.image_token,
        image_tokens=tokens,
        query_token=family.query_token,
        image_size=image_size,
    )
    images = ImagePath(
        standard=image_size, size=size, mean=family.image_mean, std=family.image_std, patches=layout
    )
    native = NativeInputs(family=family, images=images, image_start=encoder.image_start, image_tokens=tokens)
    return native, encoder


def _discovered(checkpoint: loading.Checkpoint, image_size: int) -> ProcessorEncoder:
    vlm = checkpoint.vlm
    start = None
    if vlm.config.is_encoder_decoder:
        text = vlm.config.get_text_config()
        candidates = [
            getattr(config, name, None)
            for config in (vlm.config, text)
            for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id")
        ]
        start = next((value for value in candidates if isinstance(value, int)), 0)
    return ProcessorEncoder(
        load_processor(checkpoint.location, where=checkpoint.where),
        checkpoint.family,
        query_id=query_id_of(checkpoint.tokenizer, vlm),
        image_id=image_token_id_of(vlm),
        image_size=image_size,
        start_id=start,
        where=checkpoint.where,
    )
