"""Training a policy: what `loop.run` is given for a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vlm4vla.core import recipes
from vlm4vla.core.errors import RecipeError
from vlm4vla.core.interfaces import DemonstrationSource
from vlm4vla.core.recipes import TrainRecipe, Trial
from vlm4vla.demonstrations.chunks import ChunkDataset, ids_of, split_episodes
from vlm4vla.demonstrations.scripted import together
from vlm4vla.demonstrations.statistics import fit_normalization
from vlm4vla.policies.heads import LossWeights
from vlm4vla.policies.vla import VLA
from vlm4vla.training import loop
from vlm4vla.training.batches import Batch, Batches
from vlm4vla.training.distributed import Processes, Sharding
from vlm4vla.training.progress import TERMS

FITTED_CHUNKS = 100_000
"""The most chunks that a head is fitted to."""


def train(
    trial: Trial,
    source: DemonstrationSource,
    folder: Path,
    *,
    vlm: Path | None = None,
    device: str = "cpu",
    progress: bool = True,
    provenance: Mapping[str, Any] | None = None,
    stop_after: int | None = None,
    mirrors: Sequence[str] = (),
    sharding: Sharding = "auto",
) -> Path:
    """Train a trial's policy and return the folder of its last checkpoint; see `loop.run`.

    `vlm`: the folder of its backbone after the trial's tuning.
    """
    task = PolicyTask(trial, source, vlm)
    facts: dict[str, Any] = {"trial": task.config, "demonstrations": [source.name, source.fingerprint]}
    told = together((provenance or {}).get("scripted", ""), source.scripted)
    facts |= {"scripted": told} if told else {}
    return loop.run(
        task,
        folder,
        device=device,
        progress=progress,
        provenance={**(provenance or {}), **facts},
        stop_after=stop_after,
        mirrors=mirrors,
        sharding=sharding,
    )


class PolicyTask(loop.Task[VLA, Batch]):
    """A trial's policy on its demonstrations."""

    terms: ClassVar[tuple[str, ...]] = TERMS
    advice: ClassVar[str] = "the demonstrations' actions"

    def __init__(self, trial: Trial, source: DemonstrationSource, vlm: Path | None = None) -> None:
        if trial.tuning is not None and vlm is None:
            raise RecipeError(f"{trial.name}: its VLM is tuned before; name the tuned one's folder")
        self.trial, self.source = trial, source
        self._policy = (
            trial.policy if vlm is None else replace(trial.policy, backbone=str(vlm), weights="pretrained")
        )
        self.name, self.recipe, self.config = trial.name, trial.train, recipes.to_json(trial)
        self.identity = recipes.fingerprint(
            trial.policy,
            trial.demonstrations,
            trial.train,
            source.fingerprint,
            *([] if trial.tuning is None else [trial.tuning]),
        )
        self._data: tuple[ChunkDataset, ChunkDataset | None] | None = None

    def begin(self) -> VLA:
        """A new policy; its head is fitted to the training chunks."""
        trial, (samples, _) = self.trial, self._samples()
        vla = VLA.from_recipe(
            self._policy,
            action_spec=self.source.action_spec,
            normalization=fit_normalization(trial.policy.normalization, samples.all_actions()),
            seed=trial.train.seed,
        )
        vla.head.fit(lambda: vla.normalization.normalize(samples.all_chunks(FITTED_CHUNKS)))
        return self._prepared(vla)

    def resume(self, checkpoint: Path) -> VLA:
        """A checkpoint's policy."""
        return self._prepared(VLA.from_pretrained(checkpoint))

    def batches(self, learner: VLA, processes: Processes) -> tuple[Batches, Batch | None]:
        """Of the training samples, and of the held-out ones."""
        samples, held_out = self._samples()
        batches = Batches(samples, learner, self.recipe, rank=processes.rank, world=processes.world)
        return batches, batches.held_out(held_out) if held_out else None

    def losses(
        self, learner: VLA, batch: Batch, processes: Processes, *, backward: bool
    ) -> Float[Tensor, " terms"]:
        """Loss, pose and gripper."""
        return losses_of(learner, batch, self.recipe, processes, backward=backward)

    def _prepared(self, vla: VLA) -> VLA:
        if self.recipe.checkpoint_activations:
            vla.backbone.checkpoint_activations()
        return vla

    def _samples(self) -> tuple[ChunkDataset, ChunkDataset | None]:
        """What is trained on, and what is held out (None: nothing)."""
        if self._data is None:
            recipe, horizon, source = self.trial.demonstrations, self.trial.policy.horizon, self.source
            train_on, aside = split_episodes(ids_of(source), held_out=recipe.held_out, seed=recipe.seed)
            held_out = ChunkDataset(source, aside, horizon) if aside else None
            self._data = ChunkDataset(source, train_on, horizon), held_out
        return self._data


def losses_of(
    vla: VLA, batch: Batch, recipe: TrainRecipe, processes: Processes, *, backward: bool
) -> Float[Tensor, " terms"]:
    """Loss, pose and gripper terms of a global batch, equal however it is split into micro-batches and processes."""
    total = torch.zeros(len(TERMS), device=processes.device)
    weights = LossWeights.from_recipe(recipe)
    for micro_batch in batch.micro_batches:
        micro = micro_batch.to(processes.device)
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            # Losses of micro-batches add up, those of processes are averaged.
            count = batch.valid_steps / processes.world
            losses = vla(micro.inputs, micro.target, micro.valid, weights, count)
        if backward:
            losses["loss"].backward()
        total += torch.stack([losses[term].detach() for term in TERMS])
    return processes.average(total)
