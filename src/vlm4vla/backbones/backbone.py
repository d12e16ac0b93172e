"""A VLM seen as: images and words in, one feature per query token out.

The VLM runs natively (its own image merge, positions, masks). A hook on its input embedding writes the learned query
vector where the query token stands, and the feature is the base model's last hidden state there: no vocabulary logits
are computed, and no `inputs_embeds` are built by hand, which would silently lose Qwen's image positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlm4vla.backbones import loading
from vlm4vla.backbones.encoding import BackboneInputs, Encoder
from vlm4vla.backbones.images import ImagePath, PatchLayout, nearest_allowed_size
from vlm4vla.backbones.native import NativeInputs
from vlm4vla.core.errors import BackboneError, unknown_name
from vlm4vla.core.types import Observation

Part = Literal["vision", "projector", "word_embedding", "language"]
PARTS: tuple[Part, ...] = ("vision", "projector", "word_embedding", "language")


class Backbone(nn.Module):
    """A pretrained (or random) VLM with one learned query token behind the instruction."""

    query: nn.Parameter
    """`[1, hidden]`, in the space of the embedding module's output."""

    def __init__(
        self,
        checkpoint: loading.Checkpoint,
        native: NativeInputs,
        encoder: Encoder,
        query: Float[Tensor, "1 hidden"],
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
        self._following: Float[Tensor, "batch count hidden"] | None = None
        self.vlm.get_input_embeddings().register_forward_hook(self._write_query)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        weights: Literal["pretrained", "random"] = "pretrained",
        prompt: Literal["long", "short"] = "long",
        image_size: int = 224,
        query_init: Literal["normal", "zeros"] = "normal",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Backbone:
        """Load a registered name, a hub id or a checkpoint folder.

        `weights="random"` keeps architecture and tokenizer and redraws every weight from `seed`; `image_size` is the
        standard size every frame is brought to before the VLM's own.

        Raises: RecipeError for an unknown name; BackboneError when the checkpoint is missing, damaged or of an
        unknown family.
        """
        checkpoint = loading.load(name_or_folder, weights=weights, seed=seed, dtype=dtype)
        native, encoder = _inputs(checkpoint, prompt, image_size)
        hidden = checkpoint.vlm.get_input_embeddings().embedding_dim
        generator = torch.Generator().manual_seed(seed)
        # Zeros, as in the reference, let an RMSNorm amplify the query's gradient a thousandfold.
        query = torch.randn(1, hidden, generator=generator) * 0.02
        if query_init == "zeros":
            query = torch.zeros(1, hidden)
        return cls(checkpoint, native, encoder, query.to(dtype))

    def encode(self, observations: Sequence[Observation], *, length: int | None = None) -> BackboneInputs:
        """A batch on the CPU, picklable; rows are padded to the longest, or to `length` tokens."""
        return self.encoder(observations, length=length)

    def forward(self, inputs: BackboneInputs) -> Float[Tensor, "batch query hidden"]:
        """The last hidden state (after the final norm) at the query token."""
        arguments = self.native(self.vlm, inputs.input_ids, inputs.images)
        states: Tensor = self.vlm(**arguments, use_cache=False).last_hidden_state
        rows = torch.arange(len(inputs), device=states.device)
        return states[rows, inputs.lengths - 1].unsqueeze(1)

    def layers(self, inputs: BackboneInputs) -> tuple[Float[Tensor, "batch length hidden"], ...]:
        """The output of every layer of the language model at every token; the last one after the final norm."""
        arguments = self.native(self.vlm, inputs.input_ids, inputs.images)
        outputs = self.vlm(**arguments, use_cache=False, output_hidden_states=True)
        return (*outputs.hidden_states[1:-1], outputs.last_hidden_state)

    def follow(
        self, inputs: BackboneInputs, embeddings: Float[Tensor, "batch count hidden"] | None
    ) -> Float[Tensor, "batch more hidden"]:
        """The last hidden states at the query and at `embeddings`, which stand behind it (`more` is 1 + count)."""
        count = 0 if embeddings is None else embeddings.shape[1]
        ids = nn.functional.pad(inputs.input_ids, (0, count), value=self.encoder.pad_id)
        rows = torch.arange(len(inputs), device=ids.device)[:, None]
        places = inputs.lengths[:, None] - 1 + torch.arange(1 + count, device=ids.device)
        ids[rows, places] = self.encoder.query_id
        self._following = embeddings
        try:
            arguments = self.native(self.vlm, ids, inputs.images)
            states: Tensor = self.vlm(**arguments, use_cache=False).last_hidden_state
        finally:
            self._following = None
        return states[rows, places]

    def part(self, name: Part) -> list[nn.Parameter]:
        """Parameters of one part; the four parts and the query make up the backbone, without overlap.

        Qwen's mergers, which Hugging Face keeps inside the vision tower, belong to the projector.
        """
        if name not in PARTS:
            raise unknown_name("part", name, PARTS)
        return list(self._parts()[name].values())

    def save(self, folder: Path, *, state: Mapping[str, Tensor] | None = None) -> None:
        """Write an ordinary Hugging Face checkpoint (without the query, which is the policy's).

        `state`: weights of `vlm` to write instead of its own, when those are sharded.
        """
        loading.save(self._checkpoint, folder, state=state)

    def _parts(self) -> Mapping[Part, dict[str, nn.Parameter]]:
        vision_tower = self.vlm.get_encoder(modality="image")
        vision = {id(p) for name, p in vision_tower.named_parameters() if "merger" not in name}
        words = {id(p) for p in self.vlm.get_input_embeddings().parameters()}
        language = {id(p) for p in self.vlm.get_decoder().parameters()} - words
        overlap = (vision & words) | (vision & language)
        if not vision or not words or not language or overlap:
            raise BackboneError(
                f"{self.family.name}: vision tower, word embedding and language model of {type(self.vlm).__name__} "
                "could not be told apart"
            )
        parts: dict[Part, dict[str, nn.Parameter]] = {name: {} for name in PARTS}
        for name, parameter in self.vlm.named_parameters():
            key = id(parameter)
            part: Part = (
                "vision"
                if key in vision
                else "word_embedding"
                if key in words
                else "language"
                if key in language
                else "projector"
            )
            parts[part][name] = parameter
        return parts

    def _write_query(
        self, module: nn.Module, arguments: tuple[Any, ...], output: Float[Tensor, "batch length hidden"]
    ) -> Float[Tensor, "batch length hidden"]:
        is_query = (arguments[0] == self.encoder.query_id).unsqueeze(-1)
        if self._following is None:
            return torch.where(is_query, self.query.to(output.dtype), output)
        written = torch.cat([self.query.expand(len(output), 1, -1), self._following], dim=1).to(output.dtype)
        place = (is_query.cumsum(1) - 1).clamp(0, written.shape[1] - 1)
        return torch.where(is_query, written.gather(1, place.expand_as(output)), output)


def _inputs(checkpoint: loading.Checkpoint, prompt: str, image_size: int) -> tuple[NativeInputs, Encoder]:
    family, config = checkpoint.family, checkpoint.vlm.config
    vision = config.vision_config
    if "image_grid_thw" in family.extra_inputs:
        merge = vision.spatial_merge_size
        layout = PatchLayout(patch=vision.patch_size, merge=merge, temporal=vision.temporal_patch_size)
        size = nearest_allowed_size(
            image_size,
            multiple=vision.patch_size * merge,
            least_pixels=min(family.least_pixels, checkpoint.most_pixels),
            most_pixels=checkpoint.most_pixels,
        )
        tokens = (size // vision.patch_size // merge) ** 2
    else:
        layout, size = None, vision.image_size
        tokens = getattr(config, "latent_query_num", (size // vision.patch_size) ** 2)
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
