"""The same mathematics as the model files of transformers, computed otherwise where that pays."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

ROW_STABLE_EXPERTS = "vlm4vla_row_stable"


def patches_as_rows_(vlm: PreTrainedModel) -> None:
    """Let patch embeddings written as 3-D convolutions of a single position run as the matrix product they are.

    Convolutions of one output position are 2.6 times slower on a CPU, and much slower in bf16 on a GPU.
    """
    for module in vlm.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size == module.stride:
            module.forward = partial(_convolve_one_position, module)  # type: ignore[method-assign]


def _convolve_one_position(
    convolution: nn.Conv3d, patches: Float[Tensor, "patches channel time height width"]
) -> Float[Tensor, "patches out 1 1 1"]:
    assert patches.shape[2:] == convolution.kernel_size
    rows = functional.linear(patches.flatten(1), convolution.weight.flatten(1), convolution.bias)
    return rows[:, :, None, None, None]


def images_as_batch_(vlm: PreTrainedModel) -> None:
    """Let Qwen's vision attention treat segments of one length as a batch instead of one after the other in Python.

    Bit-identical, forward and backward; segments are images, or the windows of Qwen2.5-VL.
    """
    for module in vlm.modules():
        if type(module).__name__ in _SEGMENTED and module.config._attn_implementation == "sdpa":
            module.forward = partial(_attend, module, module.forward)


_SEGMENTED = ("Qwen2_5_VLVisionAttention", "Qwen3VLVisionAttention", "Qwen3VLMoeVisionAttention")


def _attend(
    attention: Any,
    one_by_one: Callable[..., Tensor],
    hidden_states: Float[Tensor, "patches hidden"],
    cu_seqlens: Int64[Tensor, " segments"],
    position_embeddings: tuple[Tensor, Tensor],
    **rest: Any,
) -> Float[Tensor, "patches hidden"]:
    lengths = cu_seqlens.diff()
    if (lengths != lengths[0]).any():
        return one_by_one(hidden_states, cu_seqlens, position_embeddings=position_embeddings, **rest)
    patches = len(hidden_states)
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision
    query, key, value = attention.qkv(hidden_states).reshape(patches, 3, attention.num_heads, -1).unbind(1)
    query, key = rotate(query, key, *position_embeddings)
    query, key, value = (
        x.unflatten(0, (len(lengths), patches // len(lengths))).transpose(1, 2) for x in (query, key, value)
    )
    mixed = functional.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
    out: Tensor = attention.proj(mixed.transpose(1, 2).reshape(patches, -1))
    return out


def row_stable_experts(
    experts: Any,
    hidden_states: Float[Tensor, "tokens hidden"],
    top_k_index: Int64[Tensor, "tokens chosen"],
    top_k_weights: Float[Tensor, "tokens chosen"],
) -> Float[Tensor, "tokens hidden"]:
    """Experts whose result for one token does not depend on which other tokens chose the same expert.

    CPU matrix products round differently for one to three rows than for more, so inference there sends every token
    through every expert and weighs those not chosen with zero. Training and GPUs group tokens by expert as usual.
    """
    if torch.is_grad_enabled() or hidden_states.device.type != "cpu":
        grouped: Tensor = grouped_mm_experts_forward(experts, hidden_states, top_k_index, top_k_weights)
        return grouped
    shares = torch.zeros(len(hidden_states), experts.num_experts, dtype=top_k_weights.dtype)
    shares.scatter_(1, top_k_index, top_k_weights)
    total = torch.zeros_like(hidden_states)
    for expert in range(experts.num_experts):
        gated = experts._apply_gate(functional.linear(hidden_states, experts.gate_up_proj[expert]))
        total += functional.linear(gated, experts.down_proj[expert]) * shares[:, expert, None]
    return total


ALL_EXPERTS_FUNCTIONS.register(ROW_STABLE_EXPERTS, row_stable_experts)
