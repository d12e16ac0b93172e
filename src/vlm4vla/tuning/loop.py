"""Tuning a VLM on questions: what `training.loop` is given. The loss is on answers alone (Paper 4.2, 4.4)."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from vlm4vla.core import recipes
from vlm4vla.core.errors import DataError, RecipeError
from vlm4vla.core.recipes import TuneRecipe
from vlm4vla.demonstrations.order import Order
from vlm4vla.training import loop
from vlm4vla.training.batches import ahead
from vlm4vla.training.checkpoints import latest_checkpoint
from vlm4vla.training.distributed import Processes, Sharding
from vlm4vla.tuning.answering import AnsweringVLM
from vlm4vla.tuning.collate import DRAWING, SEED, Asked, Row, collate
from vlm4vla.tuning.examples import ConversationSource
from vlm4vla.tuning.mixture import CHECKED, Mixture, Part, WordSource, open_source
from vlm4vla.tuning.prompts import ConversationEncoder

HELD_OUT_CONVERSATIONS = 256
"""The held-out loss is measured on so many, the same ones every time."""
RESULT = "vlm"
"""The tuned VLM's folder, inside that of its tuning."""

Batch = list[Asked]
"""This process's share of a global batch, in micro-batches."""


def tune(
    recipe: TuneRecipe,
    folder: Path,
    sources: Sequence[ConversationSource] | None = None,
    *,
    device: str = "cpu",
    progress: bool = True,
    provenance: Mapping[str, Any] | None = None,
    stop_after: int | None = None,
    mirrors: Sequence[str] = (),
    sharding: Sharding = "auto",
) -> Path:
    """Tune a VLM and return the folder of its last checkpoint; `finish` makes the result of it. See `loop.run`.

    `sources`: the recipe's tasks, where they are open already.
    """
    recipes.check_tune(recipe)
    task = task_of(recipe, sources)
    task.examined = latest_checkpoint(folder / "checkpoints") is not None
    task.shown = progress
    facts = {"tuning": task.config, "tasks": [[s.name, s.fingerprint] for s in task.mixture.sources]}
    return loop.run(
        task,
        folder,
        device=device,
        progress=progress,
        provenance={**(provenance or {}), **facts},
        stop_after=stop_after,
        mirrors=mirrors,
        sharding="none" if sharding == "auto" and task.mixture.draws else sharding,
    )


def task_of(recipe: TuneRecipe, sources: Sequence[ConversationSource] | None = None) -> TuneTask:
    """With a diffusion branch where answers are drawings. Raises: RecipeError, DataError."""
    sources = sources or [open_source(part) for part in recipe.tasks]
    if Mixture(recipe.tasks, sources).draws:
        from vlm4vla.tuning.generation_loop import GenerationTask

        return GenerationTask(recipe, sources)
    if any(text.partition("=")[0] == "head" for text in recipe.train.part_rates):
        raise RecipeError("tune.train.part_rates: no task has drawings, so there is no part `head`")
    return TuneTask(recipe, sources)


def finish(
    recipe: TuneRecipe,
    checkpoint: Path,
    folder: Path,
    sources: Sequence[ConversationSource] | None = None,
    *,
    provenance: Mapping[str, Any],
) -> Path:
    """Write the tuned VLM as an ordinary Hugging Face folder, LoRA merged in, and return it."""
    result = folder / RESULT
    if not result.exists():
        tuned = AnsweringVLM.from_checkpoint(checkpoint, recipe)
        making = folder / f".{RESULT}.making"
        tuned.save(making, provenance={**provenance, "tuning": recipes.to_json(recipe)}, merge=True)
        for source in sources or [open_source(task) for task in recipe.tasks]:
            if isinstance(source, WordSource):
                source.save(making)
        making.rename(result)
    return result


class TuneTask(loop.Task[AnsweringVLM, Batch]):
    """A VLM on a mixture of tasks whose answers are words."""

    terms: ClassVar[tuple[str, ...]] = ("loss", "right")
    """Mean cross-entropy of answer tokens, and the share of them that are the likeliest ones."""
    advice: ClassVar[str] = "the answers"

    def __init__(self, recipe: TuneRecipe, sources: Sequence[ConversationSource]) -> None:
        self.tuning, self.recipe = recipe, recipe.train
        self.name = f"{Path(recipe.backbone).name} tuned on {', '.join(source.name for source in sources)}"
        self.config = recipes.to_json(recipe)
        self.identity = recipes.fingerprint(recipe, [source.fingerprint for source in sources])
        self.mixture = Mixture(recipe.tasks, sources)
        self.examined, self.shown = True, False
        """Whether conversations need not be read before the first step; whether to say so."""
        self.train_on, self.held_out = self.mixture.split(held_out=recipe.held_out, seed=recipe.train.seed)

    def begin(self) -> AnsweringVLM:
        """The recipe's VLM."""
        return AnsweringVLM.from_recipe(self.tuning, words=self.mixture.words, tail=self.mixture.tail)

    def resume(self, checkpoint: Path) -> AnsweringVLM:
        """A checkpoint's."""
        return AnsweringVLM.from_checkpoint(checkpoint, self.tuning)

    def batches(self, learner: AnsweringVLM, processes: Processes) -> tuple[TuneBatches, Batch | None]:
        """Of the training conversations, and of the held-out ones.

        Up to `CHECKED` are read before. Raises: DataError for the first that is wrong.
        """
        if not self.examined:
            chosen = list(self.train_on.spread(CHECKED))
            if self.shown and processes.is_main:
                print(
                    f"reading {len(chosen):,} conversations before the first step",
                    file=sys.stderr,
                    flush=True,
                )
            for index in chosen[processes.rank :: processes.world]:
                learner.encoder(self.train_on[index])
            self.examined = True
        made = TuneBatches(self.train_on, self.mixture.weights, learner.encoder, self.recipe, processes)
        return made, made.held_out(self.held_out) if len(self.held_out) else None

    def losses(
        self, learner: AnsweringVLM, batch: Batch, processes: Processes, *, backward: bool
    ) -> Float[Tensor, " terms"]:
        """Means over the answer tokens of the global batch."""
        asked = sum(micro.count for micro in batch)
        drawn = sum(len(micro.targets) for micro in batch if micro.drawings is not None)
        counts = torch.zeros(3, processes.world, device=processes.device)
        counts[:, processes.rank] = torch.tensor([asked, drawn, len(batch)])
        # Sharded processes go through their layers together, so those with fewer micro-batches repeat one, unasked.
        counts = processes.average(counts) * processes.world
        words, drawings = counts[0].mean(), counts[1].mean()
        if words + drawings == 0:
            raise DataError("a batch without a single answer token; are the answers empty?")
        again = [replace(batch[0], targets=torch.full_like(batch[0].targets, -1), drawings=None)]
        total = torch.zeros(len(self.terms), device=processes.device)
        for micro_batch in [*batch, *again * (int(counts[2].max()) - len(batch))]:
            micro = micro_batch.to(processes.device)
            bf16 = self.recipe.precision == "bf16"
            with torch.autocast(processes.device.type, torch.bfloat16, enabled=bf16):
                terms = self._terms(learner, micro, words, drawings)
            if backward:
                terms[0].backward()  # type: ignore[no-untyped-call]
            total += terms.detach()
        return processes.average(total)

    def _terms(
        self, learner: AnsweringVLM, micro: Asked, words: Float[Tensor, ""], drawings: Float[Tensor, ""]
    ) -> Float[Tensor, " terms"]:
        """A micro-batch's part of the terms; `words`, `drawings`: per process, how many answers of a kind there are.

        Those of micro-batches add up, those of processes are averaged.
        """
        logits, targets = learner(micro).float(), micro.targets[micro.targets >= 0]
        count = words if words > 0 else torch.ones_like(words)
        loss = functional.cross_entropy(logits, targets, reduction="sum") / count
        right = (logits.detach().argmax(-1) == targets).sum() / count
        return torch.stack([loss, right])


class TuneBatches(loop.Stream[Batch]):
    """Makes the batches of a tuning."""

    def __init__(
        self,
        part: Part,
        weights: Sequence[float],
        encoder: ConversationEncoder,
        recipe: recipes.TrainRecipe,
        processes: Processes,
    ) -> None:
        self._part, self._encoder, self._recipe = part, encoder, recipe
        self._rank, self._world = processes.rank, processes.world
        self._size = recipe.micro_batch_size or recipes.share_of(recipe.batch_size, processes.world)
        self._order = Order(recipe.seed, part.counts, weights)

    def training(self, steps: Iterable[int]) -> Generator[Batch, None, None]:
        """One batch per step."""
        return ahead(self._training, steps)

    def held_out(self, part: Part) -> Batch:
        """A fixed, evenly spread subset of held-out conversations."""
        chosen = list(part.spread(HELD_OUT_CONVERSATIONS))
        mine = chosen[self._rank :: self._world] or chosen[:1]
        return self._encoded(part, mine, step=-1)

    def _training(self, step: int) -> Batch:
        size = self._recipe.batch_size
        _, mine = self._order.batch(step=step, batch_size=size, rank=self._rank, world=self._world)
        return self._encoded(self._part, mine, step=step)

    def _encoded(
        self, part: Part, indices: Sequence[int] | Int64[np.ndarray, " share"], *, step: int
    ) -> Batch:
        made = []
        for start in range(0, len(indices), self._size):
            rows = [
                row
                for index in indices[start : start + self._size]
                for row in self._rows(part, int(index), step)
            ]
            made += collate(rows, pad_id=self._encoder.pad_id)
        return made

    def _rows(self, part: Part, index: int, step: int) -> list[tuple[Row, Int64[Tensor, "1 length"]]]:
        rows = self._encoder(part[index])
        for row, _ in rows:
            if DRAWING in row:
                row[SEED] = torch.tensor([noise_seed(self._recipe.seed, step, index)])
        return rows


def noise_seed(seed: int, step: int, index: int) -> int:
    """What the noise of a drawing follows from: the training's seed, the step (-1: held out), the conversation."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{index}".encode()).digest()[:7], "big")
