"""The processes that train together, and the only file that knows torch.distributed.

One process is the same code with nothing to talk to. Under torchrun there are two ways to share the work:

* `full`: FSDP2. Parameters, gradients and optimizer state are split over the processes; the way for real VLMs.
* `none`: every process keeps everything, and one flat buffer of gradients is averaged per step; less talk for models
  of a few million parameters on CPUs.

Either way gradients are *averaged* over processes, so each scales its share of the loss by their number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from vlm4vla.core.errors import RunError

Sharding = Literal["auto", "full", "none"]
"""`auto`: `full` on CUDA, `none` on CPU."""


class Processes:
    """This process among those that train together. Made by `join`."""

    def __init__(self, rank: int, world: int, device: torch.device) -> None:
        self.rank, self.world, self.device = rank, world, device
        self.sharded = False

    @property
    def is_main(self) -> bool:
        """The one that writes files and talks."""
        return self.rank == 0

    def share(self, module: nn.Module, *, sharding: Sharding, precision: Literal["fp32", "bf16"]) -> None:
        """Bring a module, built alike in every process, onto the device, split in `full` sharding.

        Raises: RunError when the processes have built different weights.
        """
        self._check_alike(module)
        self.sharded = self.world > 1 and (
            sharding == "full" or (sharding == "auto" and self.device.type == "cuda")
        )
        if not self.sharded:
            module.to(self.device)
            return
        mesh = init_device_mesh(self.device.type, (self.world,))
        bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        policy = bf16 if precision == "bf16" else MixedPrecisionPolicy()
        # The repeated blocks of every Hugging Face model, vision and text, have this base class.
        for block in [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(module, mesh=mesh, mp_policy=policy)
        module.to(self.device)  # what is no parameter

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average over processes; a parameter that no process used keeps no gradient. FSDP2 has done it already."""
        if self.world == 1 or self.sharded:
            return
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([used, *(g.reshape(-1) for g in gradients)])
        dist.all_reduce(flat)
        counts, flat = flat[: len(parameters)].tolist(), flat[len(parameters) :].div_(self.world)
        pieces = torch.split(flat, [p.numel() for p in parameters])
        for parameter, count, piece in zip(parameters, counts, pieces, strict=True):
            parameter.grad = piece.view_as(parameter) if count else None

    def average(self, values: Tensor) -> Tensor:
        """The mean over processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def settle(self, module: nn.Module) -> None:
        """Make `module.parameters()` the ones that the optimizer knows.

        FSDP2 leaves the root's parameters gathered after a forward without backward.
        """
        if isinstance(module, FSDPModule):
            module.reshard()

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor as one process would have it; every process must ask."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def like(self, whole: Tensor, template: Tensor) -> Tensor:
        """This process's part of a whole tensor that every process has, placed as `template` is."""
        if not isinstance(template, DTensor):
            return whole.to(template.device)
        # No source rank: every process cuts out its own part, nothing is sent.
        return distribute_tensor(
            whole.to(self.device), template.device_mesh, template.placements, src_data_rank=None
        )

    def barrier(self) -> None:
        """Wait for the others."""
        if self.world > 1:
            self.average(torch.zeros(1, device=self.device))

    def _check_alike(self, module: nn.Module) -> None:
        """Refuse to train on parts of different models, which nothing later would notice."""
        if self.world == 1:
            return
        total = torch.zeros((), dtype=torch.float64)
        for parameter in module.parameters():
            total += parameter.detach().double().abs().sum().cpu()
        extremes = torch.stack([total, -total]).to(self.device)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        if extremes[0] != -extremes[1]:
            raise RunError(
                f"process {self.rank}: the processes start from different weights; "
                "do all machines see the same checkpoint and run the same versions?"
            )


@contextmanager
def join(device: str) -> Iterator[Processes]:
    """Join the group that torchrun announces in the environment, or be alone; leave it at the end.

    Raises: RunError when the device is not there.
    """
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise RunError(f"device {device!r}: this machine has no usable CUDA device; use --device cpu")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(0, 1, torch.device(device))
        return
    place = torch.device(device)
    if kind == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", device_id=place if kind == "cuda" else None)
    try:
        yield Processes(dist.get_rank(), world, place)
    finally:
        dist.destroy_process_group()
