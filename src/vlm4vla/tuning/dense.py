"""Dense grounding: every cell of the picture says which things have their centre in it, where exactly, and how high.

A language-model loss alone teaches a vision tower drawn at random very slowly where things are: some bits per picture,
through a language model that does not know anything either. Here every cell is told directly. The layer that
reads the answers is thrown away afterwards; what stays is an ordinary vision tower.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from vlm4vla.backbones.native import NativeInputs
from vlm4vla.benchmarks.tabletop.scenes import THINGS, VISIBLE, SceneBatch
from vlm4vla.core.errors import BackboneError

_HEIGHT = 0.2
"""Metres that count as one."""
_OFFSETS = 3


@dataclass(frozen=True, slots=True)
class DenseErrors:
    """How well things are found."""

    found: float
    """Share of visible things whose most confident cell is the right one."""
    place: float
    """Mean absolute error along one axis, as a share of the picture's side, read off the right cell."""
    height: float
    """Mean absolute error in metres."""


class DenseProbe(nn.Module):
    """Reads the features of cells: per cell and thing a presence logit, two offsets and a height."""

    def __init__(self, hidden: int, image_tokens: int, *, seed: int) -> None:
        """Raises: BackboneError when the image tokens do not make a square grid."""
        super().__init__()
        self.side = round(image_tokens**0.5)
        if self.side**2 != image_tokens:
            raise BackboneError(
                f"{image_tokens} image tokens make no square grid, which dense grounding needs"
            )
        self.read = nn.Linear(hidden, len(THINGS) * (1 + _OFFSETS))
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.read.weight, std=0.3 * hidden**-0.5, generator=generator)
        nn.init.zeros_(self.read.bias)

    def forward(
        self,
        features: Float[Tensor, "batch cells hidden"],
        scenes: SceneBatch,
        rows: Int64[np.ndarray, " batch"],
    ) -> Float[Tensor, ""]:
        """Cross-entropy of presence and a smooth absolute error of offsets and heights where a thing is."""
        answers, (batch, cells, things), values = self._read(features, scenes, rows)
        present = torch.zeros(answers.shape[:-1])
        present[batch, cells, things] = 1
        presence = functional.binary_cross_entropy_with_logits(answers[..., 0], present, reduction="none")
        offsets = functional.smooth_l1_loss(answers[batch, cells, things, 1:], values, beta=0.1)
        # A quarter: about one nat per visible thing at the start, as for the offsets.
        return presence.sum((1, 2)).mean() / 4 + offsets

    @torch.no_grad()
    def errors(
        self,
        features: Float[Tensor, "batch cells hidden"],
        scenes: SceneBatch,
        rows: Int64[np.ndarray, " batch"],
    ) -> DenseErrors:
        """How far off the answers are."""
        answers, (batch, cells, things), values = self._read(features, scenes, rows)
        found = (answers[batch, :, things, 0].argmax(1) == cells).float().mean()
        off = (answers[batch, cells, things, 1:] - values).abs().mean(0)
        return DenseErrors(found.item(), off[:2].mean().item() / 2 / self.side, off[2].item() * _HEIGHT)

    def _read(
        self,
        features: Float[Tensor, "batch cells hidden"],
        scenes: SceneBatch,
        rows: Int64[np.ndarray, " batch"],
    ) -> tuple[
        Float[Tensor, "batch cells things values"],
        tuple[Int64[Tensor, " seen"], Int64[Tensor, " seen"], Int64[Tensor, " seen"]],
        Float[Tensor, "seen 3"],
    ]:
        """Every answer; row, cell and thing of everything visible; and the right values there."""
        places = scenes.places[rows]
        inside = ((places >= 0) & (places < 1)).all(-1) & (scenes.visible[rows] > VISIBLE)
        batch, things = np.nonzero(inside)
        scaled = places[batch, things] * self.side
        corners = np.floor(scaled).astype(np.int64)
        # Offsets from the cell's centre reach from -1 to 1.
        values = np.concatenate(
            [2 * (scaled - corners) - 1, scenes.positions[rows][batch, things, 2:] / _HEIGHT], axis=1
        )
        cells = corners[:, 1] * self.side + corners[:, 0]
        answers = self.read(features).unflatten(-1, (len(THINGS), 1 + _OFFSETS))
        index = (torch.from_numpy(batch), torch.from_numpy(cells), torch.from_numpy(things))
        return answers, index, torch.from_numpy(values.astype(np.float32))


class DenseGrounding(nn.Module):
    """The losses on a VLM's image tokens and, where these are latents without a place, on the patches they look at.

    Latent image tokens (Kosmos-2) are given cells too, so that each learns to look somewhere; the patches' own loss
    gives them something to see.
    """

    def __init__(self, vlm: PreTrainedModel, native: NativeInputs, *, seed: int) -> None:
        super().__init__()
        self._vlm, self._native = [vlm], native  # in a list: the VLM's parameters are not this module's
        self.tokens = DenseProbe(vlm.get_input_embeddings().embedding_dim, native.image_tokens, seed=seed)
        self.patches: DenseProbe | None = None
        self._seen: Tensor | None = None
        if hasattr(vlm.config, "latent_query_num"):
            vision = vlm.config.vision_config
            self.patches = DenseProbe(
                vision.hidden_size, (vision.image_size // vision.patch_size) ** 2, seed=seed
            )
            vlm.vision_model.model.post_layernorm.register_forward_hook(self._keep)

    def forward(
        self,
        image_states: Float[Tensor, "batch tokens hidden"],
        scenes: SceneBatch,
        rows: Int64[np.ndarray, " batch"],
    ) -> Float[Tensor, ""]:
        """The loss after a forward of vision tower and projector; `image_states`: any features of the image tokens."""
        loss: Tensor = self.tokens(image_states, scenes, rows)
        if self.patches is not None:
            assert self._seen is not None
            loss = loss + self.patches(self._seen, scenes, rows)
            self._seen = None
        return loss

    def image_features(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch tokens hidden"]:
        """What vision tower and projector make of pictures, without the language model."""
        vlm, native = self._vlm[0], self._native
        row = torch.zeros(len(images), native.image_start + native.image_tokens, dtype=torch.int64)
        arguments = native(vlm, row, images)
        wanted = {name: arguments[name] for name in ("pixel_values", "image_grid_thw") if name in arguments}
        features = vlm.get_image_features(**wanted).pooler_output
        if isinstance(features, list | tuple):
            features = torch.cat(list(features))
        return features.reshape(len(images), native.image_tokens, -1)

    def _keep(self, module: nn.Module, arguments: object, output: Tensor) -> None:
        if output.ndim == 3:  # the pooled output is normalised by the same module
            self._seen = output[:, 1:]
