"""Will it fit? The memory of a training step, counted tensor by tensor before a GPU is rented.

The step that is counted is the one that trains (`train.losses_of`), on a policy without weights (`backbones.hollow`).
What no tensor tells stays outside: the allocator's fragmentation, kernels' workspaces, the CUDA context (about 1 GB).
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from transformers.modeling_layers import GradientCheckpointingLayer

from vlm4vla.backbones import lora
from vlm4vla.backbones.hollow import hollow, hollow_backbone, hollow_inputs, module_bytes
from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.normalization import Normalization
from vlm4vla.core.recipes import DemonstrationRecipe, PolicyRecipe, TrainRecipe, Trial, share_of
from vlm4vla.policies.registry import make_head
from vlm4vla.policies.vla import VLA
from vlm4vla.training.batches import Batch, MicroBatch
from vlm4vla.training.distributed import Processes
from vlm4vla.training.train import losses_of

GPUS = {"24 GB": 24e9, "40 GB": 40e9, "80 GB": 80e9, "141 GB": 141e9}
USABLE = 0.92
"""Of a GPU's memory: the rest is context, workspaces and fragments."""
TEXT_TOKENS = 48
"""Prompt, instruction and query, about as many as the longest prompt has."""
_SPEC = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="controller")
_MOMENTS = 2
_LINEAR = (256, 512)
"""Samples at which activations are more than anything else, so that the peak grows in proportion."""


_aten = torch.ops.aten
_FLOPS: dict[Any, Any] = {  # what torch's own table leaves out
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query.shape, key.shape, value.shape
    ),  # type: ignore[no-untyped-call]
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, query, key, value, *_, **__: (
        sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)  # type: ignore[no-untyped-call]
    ),
    # Every row meets one expert.
    _aten._grouped_mm: lambda first, second, *_, **__: (
        2 * first.shape[-2] * first.shape[-1] * second.shape[-1]
    ),
}


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that are alive, now and at the peak, those seen since it was entered; and operations.

    Every storage counts once, however many tensors look at it, from the operation that made it until nobody holds it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.working = 0
        self.flops = 0
        """Of matrix products, attention and convolutions, a multiplication and an addition counted as two."""
        self.lasting = 0
        """Bytes of parameters and of the gradients that are complete; `working` is the most beside them."""
        self._seen: dict[int, weakref.finalize[Any, Any]] = {}

    def hold(self, tensors: Sequence[Tensor]) -> None:
        """Count tensors that were made before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._seen:
                size = storage.nbytes()
                self.now += size
                self._seen[key] = weakref.finalize(storage, self._free, key, size)
        self.peak = max(self.peak, self.now)
        self.working = max(self.working, self.now - self.lasting)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if (count := _FLOPS.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        self.hold([leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)])
        return result

    def _free(self, key: int, size: int) -> None:
        del self._seen[key]
        self.now -= size


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a training step holds, in bytes."""

    parameters: int
    gradients: int
    optimizer: int
    """AdamW's two moments of what learns."""
    activations: int
    """The most beside the three: what is kept for the backward pass, the batch included, or a block at work."""
    peak: int
    """The most at any moment; gradients grow as activations go, so it is less than their sum."""
    flops: int
    """Operations, not bytes: of forward and backward pass."""


def count_step(vla: VLA, batch: Batch, trial: Trial, *, processes: Processes | None = None) -> Step:
    """Run one forward and backward pass and count. Gradients are left in the policy's parameters.

    The optimizer's moments are counted as AdamW keeps them from the first step on.
    """
    processes = processes or Processes(0, 1, torch.device("cpu"))
    parameters = list(vla.parameters())
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    moments = _MOMENTS * sum(parameter.numel() * parameter.element_size() for parameter in learning)
    alive = Alive()

    def complete(parameter: Tensor) -> None:
        alive.lasting += parameter.numel() * parameter.element_size()

    handles = [p.register_post_accumulate_grad_hook(complete) for p in learning]  # type: ignore[no-untyped-call]
    try:
        with alive:
            alive.lasting = 1 << 62  # what is there before does not work
            alive.hold([*parameters, *vla.buffers()])
            own = alive.lasting = alive.now
            losses_of(vla, batch, trial.train, processes, backward=True)
            gradients = sum(p.grad.numel() * p.grad.element_size() for p in learning if p.grad is not None)
    finally:
        for handle in handles:
            handle.remove()
    return Step(
        parameters=own,
        gradients=gradients,
        optimizer=moments,
        activations=alive.working,
        peak=alive.peak + moments,
        flops=alive.flops,
    )


def hollow_policy(trial: Trial) -> VLA:
    """The trial's policy without weights. Raises: RecipeError, BackboneError as `hollow_backbone`."""
    recipe = trial.policy
    backbone = hollow_backbone(recipe.backbone, image_size=recipe.image_size, enlarge=recipe.enlarge)
    if recipe.lora_rank:
        lora.add_adapters(backbone.vlm, backbone.family, recipe, seed=0)
    with torch.device("meta"):
        head = make_head(recipe, hidden_size=backbone.hidden_size, seed=0)
    head.fit(lambda: smooth_chunks(4096, recipe.horizon))
    return VLA(backbone, head, recipe=recipe, action_spec=_SPEC, normalization=Normalization(())).train()


@functools.lru_cache(maxsize=8)
def hollow_step(trial: Trial, *, samples: int, text_tokens: int = TEXT_TOKENS, sharded: bool = False) -> Step:
    """A step of one micro-batch of `samples`; `sharded`: as FSDP2 runs it, parameters in the training's precision."""
    vla = hollow_policy(trial)
    if trial.train.checkpoint_activations:
        vla.backbone.checkpoint_activations()
    if sharded and trial.train.precision == "bf16":
        vla = vla.to(torch.bfloat16)
    horizon = trial.policy.horizon
    inputs = hollow_inputs(vla.backbone, batch=samples, text_tokens=text_tokens)
    target = torch.from_numpy(smooth_chunks(samples, horizon))
    micro = MicroBatch(inputs, target, torch.ones(samples, horizon, dtype=torch.bool))
    with hollow(), warnings.catch_warnings():
        # Nothing is computed, so that a slower kernel is no matter here.
        warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
        return count_step(vla, Batch([micro], samples * horizon), trial)


@functools.lru_cache(maxsize=8)
def rollout(recipe: PolicyRecipe, *, samples: int, text_tokens: int = TEXT_TOKENS) -> tuple[int, int]:
    """Bytes of a policy's parameters, and the most beside them while the features of `samples` observations are made.

    Raises: BackboneError for a VLM whose inputs are not known without its processor.
    """
    trial = Trial(
        name="",
        policy=recipe,
        demonstrations=DemonstrationRecipe(),
        train=TrainRecipe(),
        evaluations=(),
    )
    vla = hollow_policy(trial).eval()
    inputs = hollow_inputs(vla.backbone, batch=samples, text_tokens=text_tokens)
    alive = Alive()
    with hollow(), torch.no_grad(), alive:
        alive.hold([*vla.parameters(), *vla.buffers()])
        own = alive.now
        vla.backbone(inputs)
    return own, alive.peak - own


def smooth_chunks(count: int, horizon: int) -> Float32[np.ndarray, "count horizon 7"]:
    """Like a demonstration's, normalised: how many tokens `fast` makes of a chunk depends on its content."""
    rng = np.random.default_rng(0)
    start, slope, bend = rng.normal(scale=(0.4, 0.4, 0.2), size=(count, 6, 3)).transpose(2, 0, 1)[..., None]
    time = np.linspace(-1, 1, horizon)
    pose = np.clip(start + slope * time + bend * time**2, -1, 1).transpose(0, 2, 1)
    closing = rng.uniform(-4, 4, size=(count, 1)) > time
    return np.concatenate([pose, closing[..., None]], axis=2).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one GPU of a training holds, in bytes."""

    backbone: str
    gpus: int
    samples: int
    """Of a micro-batch on one GPU."""
    checkpointed: bool
    """Activations are computed again in the backward pass."""
    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    """Whole blocks that FSDP2 holds beside its share: the one at work, the next, and what belongs to no block."""
    activations: int
    peak: int

    @property
    def fits(self) -> dict[str, bool]:
        """By size of GPU."""
        return {name: self.peak <= USABLE * size for name, size in GPUS.items()}


def plan(trial: Trial, *, gpus: int = 1, samples: int = 0, text_tokens: int = TEXT_TOKENS) -> Plan:
    """Predict; `samples` a GPU and micro-batch (0: the recipe's). Raises: RecipeError, BackboneError."""
    share = share_of(trial.train.batch_size, gpus)
    samples = samples or trial.train.micro_batch_size or share
    step = hollow_step(trial, samples=samples, text_tokens=text_tokens, sharded=gpus > 1)
    if gpus == 1:
        return Plan(
            backbone=trial.policy.backbone,
            gpus=1,
            samples=samples,
            checkpointed=trial.train.checkpoint_activations,
            parameters=step.parameters,
            gradients=step.gradients,
            optimizer=step.optimizer,
            gathered=0,
            activations=step.activations,
            peak=step.peak,
        )
    whole, learning, gathered = _sizes(trial)
    shares = [-(-size // gpus) for size in (whole, learning, _MOMENTS * learning)]
    return Plan(
        backbone=trial.policy.backbone,
        gpus=gpus,
        samples=samples,
        checkpointed=trial.train.checkpoint_activations,
        parameters=shares[0],
        gradients=shares[1],
        optimizer=shares[2],
        gathered=gathered,
        activations=step.activations,
        # A bound: gradients are complete when activations are gone.
        peak=sum(shares) + gathered + step.activations,
    )


def largest_micro_batch(trial: Trial, memory: float, *, gpus: int = 1, text_tokens: int = TEXT_TOKENS) -> int:
    """Samples a GPU of `memory` bytes can take at once; 0 when not even one."""
    sizes = (1, *_LINEAR)
    peaks = [plan(trial, gpus=gpus, samples=n, text_tokens=text_tokens).peak for n in sizes]
    room = USABLE * memory
    if peaks[0] > room:
        return 0
    slope = (peaks[2] - peaks[1]) / (sizes[2] - sizes[1])
    return max(1, int(sizes[1] + (room - peaks[1]) / slope))


def with_checkpointing(trial: Trial, on: bool) -> Trial:
    """The trial with activations kept or computed again."""
    return dataclasses.replace(trial, train=dataclasses.replace(trial.train, checkpoint_activations=on))


@functools.lru_cache(maxsize=8)
def _sizes(trial: Trial) -> tuple[int, int, int]:
    """Bytes of all parameters, of those that learn, and of what FSDP2 gathers."""
    vla = hollow_policy(trial)
    learning = sum(p.numel() * p.element_size() for p in vla.parameters() if p.requires_grad)
    return module_bytes(vla), learning, _gathered(vla, 2 if trial.train.precision == "bf16" else 4)


def _gathered(vla: VLA, width: int) -> int:
    """Bytes of two blocks, the one at work and the next, of one's whole gradient, and of what belongs to no block."""
    blocks = [m for m in vla.modules() if isinstance(m, GradientCheckpointingLayer)]
    inside = {id(p) for block in blocks for p in block.parameters()}
    loose = sum(p.numel() for p in vla.parameters() if id(p) not in inside)
    largest = max((sum(p.numel() for p in block.parameters()) for block in blocks), default=0)
    return width * (loose + 3 * largest)
