"""A VLM without weights that still runs: shapes on the meta device, small whole numbers for real.

Positions, masks and image grids are whole numbers that the models' own code looks into; what is computed from weights
is never looked into. So every tensor of floats is hollow, every tensor of integers real, and a training step goes
through forward and backward as it would on a GPU, in seconds and without memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import AutoConfig, PreTrainedConfig

from vlm4vla.backbones import architectures
from vlm4vla.backbones.backbone import Backbone, image_layout
from vlm4vla.backbones.encoding import BackboneInputs
from vlm4vla.backbones.families import Family, architecture_of
from vlm4vla.backbones.images import ImagePath
from vlm4vla.backbones.kernels import ROW_STABLE_EXPERTS, images_as_batch_, patches_as_rows_
from vlm4vla.backbones.loading import Checkpoint, most_pixels, processor_files
from vlm4vla.backbones.native import NativeInputs
from vlm4vla.backbones.registry import resolve
from vlm4vla.core.errors import BackboneError

_META, _CPU = torch.device("meta"), torch.device("cpu")
_aten = torch.ops.aten
_COUNTING = (_aten.arange.default, _aten.arange.start, _aten.arange.start_step)
_IMAGE_START = 4
"""Where the image's tokens begin, about."""


class Hollow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets meta tensors meet real ones: whole numbers stay on the CPU, and join what is hollow when they must."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        hollow = any(tensor.device == _META for tensor in tensors)
        device = kwargs.get("device")
        if device is not None and torch.device(device) == _META and not hollow:
            dtype = kwargs.get("dtype") or (tensors[0].dtype if tensors else None)
            if dtype is None and func in _COUNTING:
                dtype = torch.int64
            if dtype is not None and not dtype.is_floating_point:
                kwargs["device"] = _CPU
        if hollow and device is not None:
            kwargs["device"] = _META  # nothing can be taken out of what is hollow
        if hollow and func is _aten.index.Tensor:
            args = (args[0], _places(args[1]))
        if hollow and func is _aten._grouped_mm.default:
            return _grouped(*args, **kwargs)
        if hollow and func is not _aten._to_copy.default:
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to(_META), (args, kwargs))
        return func(*args, **kwargs)


@contextmanager
def hollow() -> Iterator[None]:
    """Within it hollow models run, forward and backward.

    Attention keeps what fused kernels keep: on the meta device torch would keep the matrix of weights. It is replaced
    by name, since modes do not reach what a backward pass computes again.
    """
    with mock.patch.object(functional, "scaled_dot_product_attention", _attention), Hollow():  # type: ignore[no-untyped-call]
        yield


_torch_attention = functional.scaled_dot_product_attention


def _attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return (_fused if query.device == _META else _torch_attention)(query, *args, **kwargs)


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    mask = None if attn_mask is None else attn_mask.to(_META)
    result: Tensor = _aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=mask, scale=scale
    )[0]
    return result


def _grouped(first: Tensor, second: Tensor, offs: Tensor, *_: Any, **__: Any) -> Tensor:
    """One product per expert; on the meta device torch has it for bf16 alone."""
    match first.ndim, second.ndim:
        case 2, 3:
            shape: tuple[int, ...] = (first.shape[0], second.shape[2])
        case 3, 2:
            shape = (first.shape[1], second.shape[1])
        case _:
            shape = (offs.shape[0], first.shape[0], second.shape[1])
    return first.new_empty(shape)


def _places(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Masks as the places they name: how many there are cannot be seen on the meta device."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and index.device == _CPU:
            found += list(index.nonzero(as_tuple=True))
        else:
            found.append(index)
    return found


def hollow_backbone(name: str, *, image_size: int = 224, enlarge: bool = True) -> Backbone:
    """A registered VLM whose architecture is written down, or a folder's, without weights. Needs no network.

    Raises: BackboneError for an architecture that is not one of the families.
    """
    entry = resolve(name)
    folder = Path(entry.location).expanduser()
    config: PreTrainedConfig
    if folder.is_dir():
        config, most = AutoConfig.from_pretrained(folder, trust_remote_code=False), 0
        if hasattr(config.get_text_config(), "rope_parameters") and hasattr(config, "vision_start_token_id"):
            most = most_pixels(processor_files(str(folder)))
    else:
        config, most = architectures.config_of(entry.name), architectures.MOST_PIXELS
    family = architecture_of(config, where=entry.name)
    if not isinstance(family, Family):
        raise BackboneError(
            f"{entry.name}: what its inputs are is not known without its processor, so a training step cannot be "
            "predicted; load it, and measure"
        )
    # As it is loaded for training, kernels included.
    config._attn_implementation = family.attention
    vlm = architectures.skeleton(config).float()
    patches_as_rows_(vlm)
    images_as_batch_(vlm)
    if family.experts:
        vlm.set_experts_implementation(ROW_STABLE_EXPERTS)
    layout, size, tokens = image_layout(config, family, image_size, most, enlarge=enlarge)
    path = ImagePath(
        standard=image_size, size=size, mean=family.image_mean, std=family.image_std, patches=layout
    )
    native = NativeInputs(family=family, images=path, image_start=_IMAGE_START, image_tokens=tokens)
    query_id = vlm.get_input_embeddings().weight.shape[0] - 1
    stub = SimpleNamespace(query_id=query_id, pad_id=0, image_size=image_size, prompt="")
    checkpoint = Checkpoint(
        vlm=vlm,
        tokenizer=cast(Any, None),
        family=family,
        location=entry.location,
        where=entry.name,
        processor_files={},
    )
    query = torch.empty(1, vlm.get_input_embeddings().weight.shape[1], device=_META)
    return Backbone(checkpoint, native, cast(Any, stub), query, enlarge=enlarge)


def hollow_inputs(backbone: Backbone, *, batch: int, text_tokens: int) -> BackboneInputs:
    """Rows of the length that an instruction of `text_tokens` (the prompt and the query included) makes."""
    native = backbone.native
    assert native is not None
    ids = torch.ones(batch, native.image_tokens + text_tokens, dtype=torch.int64)
    image_id = getattr(backbone.vlm.config, "image_token_id", None)
    if image_id is not None:
        ids[:, native.image_start : native.image_start + native.image_tokens] = image_id
    ids[:, -1] = backbone.encoder.query_id
    size = native.images.standard
    images = torch.zeros(batch, size, size, 3, dtype=torch.uint8, device=_META)
    return BackboneInputs(images, ids, torch.full((batch,), ids.shape[1]))


def module_bytes(module: nn.Module) -> int:
    """Of all parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
