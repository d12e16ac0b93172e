"""The training loop. Read it from top to bottom.

The same code runs alone or as one of many processes under torchrun, and goes on by itself from the newest checkpoint.
What a step does follows from (recipe, step) alone: which samples it sees, its learning rate, its random numbers.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlm4vla.core import recipes
from vlm4vla.core.errors import RunError
from vlm4vla.core.interfaces import DemonstrationSource
from vlm4vla.core.recipes import TrainRecipe, Trial
from vlm4vla.demonstrations.chunks import ChunkDataset, ids_of, split_episodes
from vlm4vla.demonstrations.statistics import fit_normalization
from vlm4vla.policies.heads import LossWeights
from vlm4vla.policies.vla import VLA
from vlm4vla.training import distributed, optimization
from vlm4vla.training.batches import Batch, Batches
from vlm4vla.training.checkpoints import Checkpoints, how_to_go_on, latest_checkpoint
from vlm4vla.training.distributed import Processes, Sharding
from vlm4vla.training.progress import TERMS, RunState, TrainingLog

FITTED_CHUNKS = 100_000
"""The most chunks that a head is fitted to."""


def train(
    trial: Trial,
    source: DemonstrationSource,
    folder: Path,
    *,
    device: str = "cpu",
    progress: bool = True,
    provenance: Mapping[str, Any] | None = None,
    stop_after: int | None = None,
    mirrors: Sequence[str] = (),
    sharding: Sharding = "auto",
) -> Path:
    """Train a trial's policy and return the folder of its last checkpoint.

    Writes `metrics.jsonl` and `checkpoints/` into `folder`, and goes on from what it finds there. `provenance` is
    kept in every checkpoint; `stop_after` stops early, with a checkpoint, after so many steps in all.

    Raises: RecipeError, DataError, BackboneError; RunError when the training diverges or a checkpoint is damaged.
    """
    recipe = trial.train
    recipes.check_train(recipe)
    identity = recipes.fingerprint(trial.policy, trial.demonstrations, recipe, source.fingerprint)
    facts = {"trial": recipes.to_json(trial), "demonstrations": [source.name, source.fingerprint]}
    checkpoints = Checkpoints(
        folder / "checkpoints",
        identity=identity,
        provenance={**(provenance or {}), **facts},
        keep_every=recipe.keep_every,
    )
    latest = latest_checkpoint(checkpoints.folder)
    state = checkpoints.read(latest) if latest else RunState()
    last = min(recipe.steps, stop_after or recipe.steps)
    if latest and state.step >= last:
        return latest

    with ExitStack() as stack:
        processes = stack.enter_context(distributed.join(device))
        recipes.share_of(recipe.batch_size, processes.world)
        samples, held_out_samples = _samples(trial, source)
        vla = _policy(trial, source, samples, latest).train()
        if recipe.checkpoint_activations:
            vla.backbone.checkpoint_activations()
        processes.share(vla, sharding=sharding, precision=recipe.precision)
        parameters = [parameter for parameter in vla.parameters() if parameter.requires_grad]
        optimizer = optimization.make_optimizer(vla.learners(), recipe)
        if latest:
            checkpoints.restore(latest, vla, optimizer, processes)
        batches = Batches(samples, vla, recipe, rank=processes.rank, world=processes.world)
        held_out = batches.held_out(held_out_samples) if held_out_samples else None
        log = TrainingLog(trial, folder, state, enabled=processes.is_main, progress=progress, mirrors=mirrors)
        stack.callback(log.close)

        checkpoint, mark = latest, time.perf_counter()
        stream = stack.enter_context(closing(batches.training(range(state.step, last))))
        for batch in stream:
            rate = optimization.learning_rate(recipe, state.step)
            optimization.set_rate(optimizer, rate)
            torch.manual_seed(_random_seed(recipe.seed, state.step, processes.rank))
            losses = losses_of(vla, batch, recipe, processes, backward=True)
            processes.average_gradients(parameters)
            norm = processes.whole(nn.utils.clip_grad_norm_(parameters, recipe.clip_norm or math.inf))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            terms = dict(zip(TERMS, losses.tolist(), strict=True))
            wrong = optimization.what_is_wrong(terms["loss"], norm.item(), state.recent, state.first)
            now = time.perf_counter()
            state.add({**terms, "gradient_norm": norm.item()}, seconds=now - mark)
            if wrong or state.step % recipe.log_every == 0 or state.step == recipe.steps:
                log.train(state, learning_rate=rate)
            if wrong:
                raise _stopped(wrong, state.step, recipe, checkpoint)
            if held_out and (state.step % recipe.validate_every == 0 or state.step == recipe.steps):
                vla.eval()
                with torch.no_grad():
                    terms_held_out = losses_of(vla, held_out, recipe, processes, backward=False)
                log.held_out(state, dict(zip(TERMS, terms_held_out.tolist(), strict=True)))
                vla.train()
            if state.step % recipe.checkpoint_every == 0 or state.step == last:
                checkpoint = checkpoints.save(vla, optimizer, state, processes)
            log.show(state, terms["loss"])
            mark = time.perf_counter()
            state.seconds += mark - now
    assert checkpoint is not None
    return checkpoint


def _samples(trial: Trial, source: DemonstrationSource) -> tuple[ChunkDataset, ChunkDataset | None]:
    """What is trained on, and what is held out (None: nothing)."""
    recipe, horizon = trial.demonstrations, trial.policy.horizon
    train_on, aside = split_episodes(ids_of(source), held_out=recipe.held_out, seed=recipe.seed)
    return ChunkDataset(source, train_on, horizon), ChunkDataset(source, aside, horizon) if aside else None


def _policy(trial: Trial, source: DemonstrationSource, samples: ChunkDataset, latest: Path | None) -> VLA:
    if latest is None:
        vla = VLA.from_recipe(
            trial.policy,
            action_spec=source.action_spec,
            normalization=fit_normalization(trial.policy.normalization, samples.all_actions()),
            seed=trial.train.seed,
        )
        vla.head.fit(lambda: vla.normalization.normalize(samples.all_chunks(FITTED_CHUNKS)))
        return vla
    try:
        return VLA.from_pretrained(latest)
    except RunError as error:
        raise RunError(f"{error} {how_to_go_on(latest)}") from error


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


def _random_seed(seed: int, step: int, rank: int) -> int:
    """For whatever a forward pass draws (dropout), so that no generator's state needs to be saved."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:7], "big")


def _stopped(wrong: str, step: int, recipe: TrainRecipe, checkpoint: Path | None) -> RunError:
    kept = f" {checkpoint.name} is the last checkpoint, from before." if checkpoint else ""
    return RunError(
        f"training stopped at step {step}: {wrong}. Try a lower train.learning_rate (it is {recipe.learning_rate:g}), "
        f"a longer train.warmup_steps ({recipe.warmup_steps}) or a smaller train.clip_norm ({recipe.clip_norm:g}), "
        f"and look at the demonstrations' actions.{kept}"
    )
