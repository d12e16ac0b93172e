"""A VLM that also draws: a diffusion branch behind its last hidden states (Paper 4.2 and A.6, Omni-Generation).

The branch is diffusers' PixArt transformer. It removes noise from a small picture and looks, by cross-attention, at
every token of the prompt. Its loss reaches the VLM through these states. The paper tells neither branch nor loss.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.core.recipes import TuneRecipe
from vlm4vla.tuning.answering import AnsweringVLM
from vlm4vla.tuning.collate import Asked

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

BRANCH = "branch.safetensors"
"""The branch's weights, in a checkpoint's folder."""
_PREFIX = "branch."
_PATCH = 4
"""Pixels along a side that one token of the branch stands for."""
_HEAD = 32
_TIMES = 1000


class DrawingVLM(AnsweringVLM):
    """Conversations in; logits, words or pictures out."""

    branch: nn.Module
    scheduler: DDIMScheduler
    _seen: Tensor | None = None

    @classmethod
    def from_checkpoint(cls, folder: Path, recipe: TuneRecipe) -> Self:
        """As a training left it in `folder`. Raises: RunError when that is damaged."""
        vlm = super().from_checkpoint(folder, recipe)
        try:
            vlm.branch.load_state_dict(load_file(folder / BRANCH))
        except (SafetensorError, FileNotFoundError, RuntimeError) as error:
            raise RunError(f"{folder / BRANCH}: damaged ({error}).") from error
        return vlm

    def forward(self, batch: Asked) -> Float[Tensor, "asked rows"] | Float[Tensor, " batch"]:
        """Logits of the tokens that are asked for; of a batch of drawings the diffusion loss of each instead.

        That is the squared error of the clean picture which the branch makes of a noisy one, a mean over pixels, at one
        noise level drawn uniformly; level and noise follow from the batch's seeds.
        """
        if batch.drawings is None:
            return super().forward(batch)
        assert batch.seeds is not None
        states = self._states(batch)
        times, noise = _drawn(batch.seeds, batch.drawings.shape[-1])
        times, noise = times.to(states.device), noise.to(states.device)
        noisy = self.scheduler.add_noise(batch.drawings, noise, times)
        found = self._cleaned(noisy, times, states, batch.arguments["attention_mask"])
        return functional.mse_loss(found.float(), batch.drawings, reduction="none").mean(dim=(1, 2, 3))

    @torch.no_grad()
    def draw(self, batch: Asked, *, steps: int) -> Float[Tensor, "batch 3 side side"]:
        """What the branch makes of noise that follows from the batch's seeds, by DDIM; in -1..1, on the CPU."""
        assert batch.seeds is not None
        states, mask = self._states(batch), batch.arguments["attention_mask"]
        pictures = _drawn(batch.seeds, self.encoder.drawing_side)[1].to(states.device)
        self.scheduler.set_timesteps(steps)
        for time in self.scheduler.timesteps.tolist():
            times = torch.full((len(pictures),), time, device=states.device)
            found = self._cleaned(pictures, times, states, mask).float()
            pictures = self.scheduler.step(found, time, pictures).prev_sample
        return pictures.clamp(-1, 1).cpu()

    def learners(self) -> Mapping[str, list[nn.Parameter]]:
        """The four parts, and the branch as `head`."""
        return {**super().learners(), "head": list(self.branch.parameters())}

    def save(
        self,
        folder: Path,
        *,
        provenance: Mapping[str, Any] | None = None,
        state: Mapping[str, Tensor] | None = None,
        merge: bool = False,
    ) -> None:
        """As `AnsweringVLM.save`, the branch in a file beside, which neither transformers nor a policy reads."""
        whole = self.state_dict() if state is None else state
        own = {name: value for name, value in whole.items() if not name.startswith(_PREFIX)}
        super().save(folder, provenance=provenance, state=own, merge=merge)
        rest = {name.removeprefix(_PREFIX): whole[name].contiguous() for name in whole if name not in own}
        save_file(rest, folder / BRANCH)

    def _prepared(self, recipe: TuneRecipe) -> Self:
        if importlib.util.find_spec("diffusers") is None:
            raise RecipeError(
                "a task with drawings needs the package diffusers; pip install 'vlm4vla[generation]'"
            )
        from diffusers import DDIMScheduler, PixArtTransformer2DModel

        head = self.vlm.get_output_embeddings()
        with torch.random.fork_rng():
            torch.manual_seed(recipe.train.seed)
            self.branch = PixArtTransformer2DModel(
                num_attention_heads=recipe.generation_width // _HEAD,
                attention_head_dim=_HEAD,
                in_channels=3,
                out_channels=3,
                num_layers=recipe.generation_layers,
                cross_attention_dim=recipe.generation_width,
                caption_channels=head.weight.shape[1],
                sample_size=recipe.generation_size,
                patch_size=_PATCH,
                use_additional_conditions=False,
            )
        # The last noise level is noise alone, so that drawing begins where training ends. A branch that says the clean
        # picture learns faster than one that says velocities, which hold the noise (docs/log.md).
        self.scheduler = DDIMScheduler(
            num_train_timesteps=_TIMES,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="sample",
            timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
        )
        self.encoder.drawing_side = recipe.generation_size
        return super()._prepared(recipe)

    def _states(self, batch: Asked) -> Float[Tensor, "batch length hidden"]:
        """The last hidden states of all tokens, normalised, with their places in the prompt."""
        super().forward(batch)
        states, self._seen = self._seen, None
        assert states is not None
        return functional.layer_norm(states, states.shape[-1:]) + _places(states)

    def _cleaned(
        self,
        pictures: Float[Tensor, "batch 3 side side"],
        times: Int64[Tensor, " batch"],
        states: Float[Tensor, "batch length hidden"],
        mask: Int64[Tensor, "batch length"],
    ) -> Float[Tensor, "batch 3 side side"]:
        # Scaled by the signal's share, noise alone becomes nothing and need not be learned to be ignored.
        share = self.scheduler.alphas_cumprod.to(times.device)[times].sqrt()[:, None, None, None]
        found: Tensor = self.branch(
            share * pictures,
            encoder_hidden_states=states,
            timestep=times,
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]
        return found

    def _select(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
        self._seen = arguments[0] if self._asked is not None else None
        return super()._select(module, arguments)


def _drawn(
    seeds: Int64[Tensor, " batch"], side: int
) -> tuple[Int64[Tensor, " batch"], Float[Tensor, "batch 3 side side"]]:
    """A noise level and the noise of every picture, the same on every device and however a batch is split."""
    times, noise = [], []
    for seed in seeds.tolist():
        generator = torch.Generator().manual_seed(seed)
        times.append(torch.randint(_TIMES, (), generator=generator))
        noise.append(torch.randn(3, side, side, generator=generator))
    return torch.stack(times), torch.stack(noise)


def _places(states: Float[Tensor, "batch length hidden"]) -> Float[Tensor, "length hidden"]:
    """Sines and cosines of a token's number in the prompt: its place in a picture, of which states tell little."""
    length, width = states.shape[1:]
    rates = torch.exp(torch.arange(0, width, 2, device=states.device) * (-math.log(1e4) / width))
    angles = torch.arange(length, device=states.device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width].to(states.dtype)
