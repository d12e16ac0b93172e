"""From samples to what a forward pass takes, made in one background thread, in the order the recipe fixes."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from vlm4vla.backbones.encoding import BackboneInputs, stack
from vlm4vla.core.recipes import TrainRecipe, share_of
from vlm4vla.core.types import Observation
from vlm4vla.demonstrations.chunks import ChunkDataset
from vlm4vla.demonstrations.order import Order
from vlm4vla.policies.vla import VLA
from vlm4vla.training import augmentation
from vlm4vla.training.loop import Stream

Item = TypeVar("Item")
Change = Callable[[UInt8[Tensor, "batch height width 3"]], UInt8[Tensor, "batch side side 3"]]

HELD_OUT_SAMPLES = 512
"""The held-out loss is measured on so many samples, the same ones every time."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward pass takes, on the CPU; targets are normalised."""

    inputs: BackboneInputs
    target: Float[Tensor, "batch horizon 7"]
    valid: Bool[Tensor, "batch horizon"]
    change: Change | None = None
    """Of the images, once they are on the device: their augmentation."""

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device, images augmented."""
        inputs = self.inputs.to(device)
        if self.change is not None:
            inputs = replace(inputs, images=self.change(inputs.images))
        return MicroBatch(
            inputs, self.target.to(device, non_blocking=True), self.valid.to(device, non_blocking=True)
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """This process's share of a global batch."""

    micro_batches: list[MicroBatch]
    valid_steps: int
    """Of the whole global batch: what its loss is a mean over, however it is split."""


class Batches(Stream[Batch]):
    """Makes the batches of a training."""

    def __init__(
        self, dataset: ChunkDataset, vla: VLA, recipe: TrainRecipe, *, rank: int, world: int
    ) -> None:
        self._dataset, self._vla, self._recipe = dataset, vla, recipe
        self._rank, self._world = rank, world
        self._size = recipe.micro_batch_size or share_of(recipe.batch_size, world)
        self._order = Order(recipe.seed, dataset.counts, dataset.weights)

    def training(self, steps: Iterable[int]) -> Generator[Batch, None, None]:
        """One batch per step."""
        return ahead(self._training, steps)

    def held_out(self, dataset: ChunkDataset) -> Batch:
        """A fixed, evenly spread subset of held-out samples, in as many micro-batches in every process.

        Rows that only fill up are nowhere valid.
        """
        chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), HELD_OUT_SAMPLES)).astype(np.int64)
        share = -(-len(chosen) // self._world)
        mine = np.arange(self._rank * share, (self._rank + 1) * share)
        micro_batches = self._encode(dataset, chosen[np.minimum(mine, len(chosen) - 1)])
        real = torch.split(torch.from_numpy(mine < len(chosen)), self._size)
        return Batch(
            [replace(m, valid=m.valid & rows[:, None]) for m, rows in zip(micro_batches, real, strict=True)],
            dataset.valid_steps(chosen),
        )

    def _training(self, step: int) -> Batch:
        recipe, dataset = self._recipe, self._dataset
        size = recipe.batch_size
        epochs, mine = self._order.batch(step=step, batch_size=size, rank=self._rank, world=self._world)
        drawn = None
        if recipe.augmentation != "none":
            drawn = torch.from_numpy(augmentation.draws(recipe.seed, epochs, mine))
        _, everyones = self._order.batch(step=step, batch_size=size)
        return Batch(self._encode(dataset, mine, drawn), dataset.valid_steps(everyones))

    def _encode(
        self,
        dataset: ChunkDataset,
        indices: Int64[np.ndarray, " samples"],
        drawn: Float[Tensor, "samples draws"] | None = None,
    ) -> list[MicroBatch]:
        micro_batches = []
        for start in range(0, len(indices), self._size):
            rows = slice(start, start + self._size)
            chunk = dataset.fetch(indices[rows])
            target = torch.from_numpy(self._vla.normalization.normalize(chunk.actions))
            observations, change = chunk.observations, None
            if drawn is not None:
                kind, side = self._recipe.augmentation, self._vla.backbone.encoder.image_size
                change = functools.partial(augmentation.augment, drawn=drawn[rows], kind=kind, size=side)
                if self._vla.backbone.native is None:  # its processor wants the pixels on the CPU
                    observations, change = _changed(observations, change, side), None
            inputs = self._vla.encode(observations)
            micro_batches.append(MicroBatch(inputs, target, torch.from_numpy(chunk.valid), change))
        return micro_batches


def _changed(observations: Sequence[Observation], change: Change, size: int) -> list[Observation]:
    images = change(stack(observations, size=size))
    return [replace(o, image=image) for o, image in zip(observations, images.numpy(), strict=True)]


def ahead(make: Callable[[int], Item], steps: Iterable[int], count: int = 2) -> Generator[Item, None, None]:
    """`make(step)` for every step, in order, up to `count` of them made early in one background thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        pending: deque[Future[Item]] = deque()
        try:
            for step in steps:
                pending.append(thread.submit(make, step))
                if len(pending) > count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
