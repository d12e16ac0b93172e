"""The training loop, whatever is trained: a policy (`train`) or a VLM (`tuning.loop`). Read it from the top.

The same code runs alone or as one of many processes under torchrun, and goes on by itself from the newest checkpoint.
What a step does follows from (recipe, step) alone: which samples it sees, its learning rate, its random numbers.
"""

from __future__ import annotations

import hashlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlm4vla.core import recipes
from vlm4vla.core.errors import RunError
from vlm4vla.core.recipes import TrainRecipe
from vlm4vla.policies.learner import Learner
from vlm4vla.training import distributed, optimization
from vlm4vla.training.checkpoints import Checkpoints, how_to_go_on, latest_checkpoint
from vlm4vla.training.distributed import Processes, Sharding
from vlm4vla.training.progress import RunState, TrainingLog

Trained = TypeVar("Trained", bound=Learner)
Item = TypeVar("Item")


class Task(ABC, Generic[Trained, Item]):
    """What is trained, on what, and what counts as a loss. `Item` is a batch on the CPU."""

    name: str
    """What a mirror of the metrics calls it."""
    recipe: TrainRecipe
    config: Mapping[str, Any]
    """The whole recipe as JSON, for mirrors."""
    identity: str
    """Fingerprint of everything that decides the weights: a checkpoint with another one is refused."""
    terms: ClassVar[tuple[str, ...]]
    """Names of the losses; the first is `loss`, the one that is followed."""
    advice: ClassVar[str]
    """What to look at when a training diverges."""

    @abstractmethod
    def begin(self) -> Trained:
        """What is trained, before its first step."""

    @abstractmethod
    def resume(self, checkpoint: Path) -> Trained:
        """The same as it was when the checkpoint was written. Raises: RunError when that is damaged."""

    @abstractmethod
    def batches(self, learner: Trained, processes: Processes) -> tuple[Stream[Item], Item | None]:
        """What makes the batches of given steps, and the one on which nothing is trained (None: there is none)."""

    @abstractmethod
    def losses(
        self, learner: Trained, batch: Item, processes: Processes, *, backward: bool
    ) -> Float[Tensor, " terms"]:
        """The terms of a global batch, equal however it is split; with gradients left behind if `backward`."""


class Stream(ABC, Generic[Item]):
    """Makes batches."""

    @abstractmethod
    def training(self, steps: Iterable[int]) -> Generator[Item, None, None]:
        """This process's share of one batch per step."""


def run(
    task: Task[Trained, Item],
    folder: Path,
    *,
    device: str = "cpu",
    progress: bool = True,
    provenance: Mapping[str, Any] | None = None,
    stop_after: int | None = None,
    mirrors: Sequence[str] = (),
    sharding: Sharding = "auto",
) -> Path:
    """Train and return the folder of the last checkpoint.

    Writes `metrics.jsonl` and `checkpoints/` into `folder`, and goes on from what it finds there. `provenance` is
    kept in every checkpoint; `stop_after` stops early, with a checkpoint, after so many steps in all.

    Raises: RecipeError, DataError, BackboneError; RunError when the training diverges or a checkpoint is damaged.
    """
    recipe = task.recipe
    recipes.check_train(recipe)
    checkpoints = Checkpoints(
        folder / "checkpoints",
        identity=task.identity,
        provenance=dict(provenance or {}),
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
        learner = _resumed(task, latest) if latest else task.begin()
        learner.train()
        processes.share(learner, sharding=sharding, precision=recipe.precision)
        parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        optimizer = optimization.make_optimizer(learner.learners(), recipe)
        if latest:
            checkpoints.restore(latest, learner, optimizer, processes)
        batches, held_out = task.batches(learner, processes)
        log = TrainingLog(
            recipe,
            folder,
            state,
            name=task.name,
            config=task.config,
            enabled=processes.is_main,
            progress=progress,
            mirrors=mirrors,
        )
        stack.callback(log.close)

        checkpoint, mark = latest, time.perf_counter()
        stream = stack.enter_context(closing(batches.training(range(state.step, last))))
        for batch in stream:
            rate = optimization.learning_rate(recipe, state.step)
            optimization.set_rate(optimizer, rate)
            torch.manual_seed(_random_seed(recipe.seed, state.step, processes.rank))
            losses = task.losses(learner, batch, processes, backward=True)
            processes.average_gradients(parameters)
            norm = processes.whole(nn.utils.clip_grad_norm_(parameters, recipe.clip_norm or math.inf))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            terms = dict(zip(task.terms, losses.tolist(), strict=True))
            wrong = optimization.what_is_wrong(terms["loss"], norm.item(), state.recent, state.first)
            now = time.perf_counter()
            state.add({**terms, "gradient_norm": norm.item()}, seconds=now - mark)
            if wrong or state.step % recipe.log_every == 0 or state.step == recipe.steps:
                log.train(state, learning_rate=rate)
            if wrong:
                raise _stopped(wrong, state.step, task, checkpoint)
            if held_out and (state.step % recipe.validate_every == 0 or state.step == recipe.steps):
                learner.eval()
                with torch.no_grad():
                    terms_held_out = task.losses(learner, held_out, processes, backward=False)
                log.held_out(state, dict(zip(task.terms, terms_held_out.tolist(), strict=True)))
                learner.train()
            if state.step % recipe.checkpoint_every == 0 or state.step == last:
                checkpoint = checkpoints.save(learner, optimizer, state, processes)
            log.show(state, terms["loss"])
            mark = time.perf_counter()
            state.seconds += mark - now
    assert checkpoint is not None
    return checkpoint


def _resumed(task: Task[Trained, Item], latest: Path) -> Trained:
    try:
        return task.resume(latest)
    except RunError as error:
        raise RunError(f"{error} {how_to_go_on(latest)}") from error


def _random_seed(seed: int, step: int, rank: int) -> int:
    """For whatever a forward pass draws (dropout), so that no generator's state needs to be saved."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:7], "big")


def _stopped(wrong: str, step: int, task: Task[Any, Any], checkpoint: Path | None) -> RunError:
    kept = f" {checkpoint.name} is the last checkpoint, from before." if checkpoint else ""
    recipe = task.recipe
    return RunError(
        f"training stopped at step {step}: {wrong}. Try a lower train.learning_rate (it is {recipe.learning_rate:g}), "
        f"a longer train.warmup_steps ({recipe.warmup_steps}) or a smaller train.clip_norm ({recipe.clip_norm:g}), "
        f"and look at {task.advice}.{kept}"
    )
