"""Random weights that a narrow model can learn from.

Hugging Face draws every matrix with standard deviation 0.02, which suits a width of thousands: at a width of 64 the
signal dies within two layers. Here the deviation follows the fan-in; VLMs of `NARROW` or more keep their own.
Building a tiny VLM and `weights="random"` share this function, so pretrained against random compares the pretraining
and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from transformers import PreTrainedModel

NARROW = 512
"""Hidden sizes below this are redrawn; a wider VLM from scratch has its architecture's own initialisation."""
GAIN = 0.7
"""Standard deviation of a matrix times the square root of its fan-in."""
POSITION_STD = 0.5
"""Learned positions must be loud against the patches, else places are learned slowly (measured on Tabletop)."""


@torch.no_grad()
def scaled_init_(model: PreTrainedModel, *, seed: int, unit_norm_inputs: Collection[str] = ()) -> None:
    """Redraw all matrices, convolutions and embeddings in place; norms, latents and class tokens stay as they are.

    `unit_norm_inputs` are name endings of layers whose input vector has length one, so that its fan-in counts once.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(parameter: torch.Tensor, std: float) -> None:
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * std
        parameter.copy_(values.to(parameter.dtype))

    words = model.get_input_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            draw(module.weight, module.embedding_dim**-0.5 if module is words else POSITION_STD)
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            fan_in = 1 if name.endswith(tuple(unit_norm_inputs)) else module.weight[0].numel()
            if module.weight is not words.weight:  # a tied head is drawn once, as an embedding
                draw(module.weight, GAIN * fan_in**-0.5)
            if module.bias is not None:
                module.bias.zero_()
        else:
            # Routers and experts keep bare matrices, all with the fan-in last.
            for kind, parameter in module.named_parameters(recurse=False):
                if parameter.ndim >= 2 and (kind == "weight" or kind.endswith("_proj")):
                    draw(parameter, GAIN * parameter.shape[-1] ** -0.5)
                elif parameter.ndim >= 2 and not parameter.any():
                    # A projection that begins at zero would hide the image until it has learned.
                    draw(parameter, GAIN * max(parameter.shape) ** -0.5)
