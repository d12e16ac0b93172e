"""LoRA on parts of a VLM, through peft: their own weights stay, low-rank matrices beside their linear layers learn.

Which layers those are is found by walking the VLM; names of families or layers play no role. Experts that
transformers keeps as one three-dimensional parameter are no linear layers: they stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlm4vla.backbones.discover import find_parts
from vlm4vla.backbones.families import Architecture
from vlm4vla.core.errors import RecipeError
from vlm4vla.core.recipes import PolicyRecipe, TuneRecipe, check_lora

_ADAPTER = "default"
_OWN = ".base_layer."
"""Stands in the names of the weights that an adapted layer had before."""


def add_adapters(
    vlm: PreTrainedModel, architecture: Architecture, recipe: PolicyRecipe | TuneRecipe, *, seed: int
) -> None:
    """Freeze the recipe's `lora_parts` and put adapters on their linear layers, which change no output yet.

    The adapters are drawn from `seed` and belong to the part they stand in. Other parts learn as before.

    Raises: RecipeError for settings out of range, without peft, or for a part without linear layers.
    """
    check_lora(recipe)
    import peft

    parts = find_parts(vlm, architecture)
    targets = []
    for part in recipe.lora_parts:
        own = {id(parameter) for parameter in parts[part].values()}
        layers = [name for name, layer in _linear_layers(vlm).items() if id(layer.weight) in own]
        if not layers:
            raise RecipeError(
                f"lora_parts: the {part} part of {architecture.name} has no linear layers; leave it out, "
                "so that it learns as a whole, or freeze it"
            )
        targets += layers
    adapted = {id(parameter) for part in recipe.lora_parts for parameter in parts[part].values()}
    learning = [p for p in vlm.parameters() if p.requires_grad and id(p) not in adapted]
    # Inside a module without a config peft adapts what it is told: knowing a mixture of experts, it would take its
    # dense layers for the experts of older versions. It also freezes all that is not its own.
    shell = nn.ModuleDict({"vlm": vlm})
    config = peft.LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_rank if recipe.lora_alpha is None else recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=[f"vlm.{name}" for name in targets],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, shell, adapter_name=_ADAPTER)
    for parameter in learning:
        parameter.requires_grad_(True)
    assert _adapted_layers(vlm.state_dict()) == set(targets)


def is_adapter(name: str) -> bool:
    """Whether a weight of this name belongs to an adapter."""
    return f".lora_A.{_ADAPTER}." in name or f".lora_B.{_ADAPTER}." in name


def own_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VLM's weights without adapters, under the names they have without adapters."""
    return {name.replace(_OWN, "."): value for name, value in state.items() if not is_adapter(name)}


def merged_weights(vlm: PreTrainedModel) -> dict[str, Tensor]:
    """The same with adapters added to the weights they stand beside: a VLM that computes alike, to rounding."""
    state = vlm.state_dict()
    for name in _adapted_layers(state):
        weight = state[f"{name}{_OWN}weight"]
        state[f"{name}{_OWN}weight"] = weight + vlm.get_submodule(name).get_delta_weight(_ADAPTER).to(
            weight.dtype
        )
    return own_weights(state)


def _linear_layers(vlm: PreTrainedModel) -> dict[str, nn.Linear]:
    """By name, without the vocabulary head, which no policy uses.

    Subclasses are something else: routers that return two tensors (Llama-4), weights that another module reads (torch's
    own attention).
    """
    head = vlm.get_output_embeddings()
    layers = {name: module for name, module in vlm.named_modules() if type(module) is nn.Linear}
    return {name: layer for name, layer in layers.items() if layer is not head}


def _adapted_layers(state: Mapping[str, Tensor]) -> set[str]:
    end = f".lora_B.{_ADAPTER}.weight"
    return {name.removesuffix(end) for name in state if name.endswith(end)}
