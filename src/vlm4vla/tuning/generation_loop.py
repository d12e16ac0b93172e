"""Training words and drawings together, and how good the drawings of what was held out are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vlm4vla.core.errors import RunError
from vlm4vla.core.recipes import TuneRecipe
from vlm4vla.training.distributed import Processes
from vlm4vla.tuning.answering import AnsweringVLM
from vlm4vla.tuning.collate import DRAWING, SEED, Asked, collate
from vlm4vla.tuning.drawings import measured, to_tensor
from vlm4vla.tuning.examples import Conversation, ConversationSource
from vlm4vla.tuning.generation import DrawingVLM
from vlm4vla.tuning.generation_sheet import Shown, drawing_sheet
from vlm4vla.tuning.loop import Batch, TuneBatches, TuneTask, noise_seed, task_of
from vlm4vla.tuning.mixture import Part

SCORED = 64
"""Held-out drawings of every kind that are scored, at most; the numbers in `DRAWINGS`, some of them on `SHEET`."""
DRAWINGS, SHEET = "drawings.json", "drawings.png"
_READ = 2000
"""Conversations, evenly spread, of which the mean of the training drawings is made."""


class GenerationTask(TuneTask):
    """A VLM and its branch on a mixture of tasks, some of whose answers are drawings."""

    terms: ClassVar[tuple[str, ...]] = ("loss", "right", "answers", "drawings")
    """Both losses, the second times `generation_weight`; the share of answer tokens that are the likeliest ones; the
    mean cross-entropy of answer tokens; the mean diffusion loss of drawings."""
    advice: ClassVar[str] = "the answers and drawings"

    def begin(self) -> DrawingVLM:
        """The recipe's VLM with a branch that knows nothing."""
        return DrawingVLM.from_recipe(self.tuning, words=self.mixture.words, tail=self.mixture.tail)

    def resume(self, checkpoint: Path) -> DrawingVLM:
        """A checkpoint's."""
        return DrawingVLM.from_checkpoint(checkpoint, self.tuning)

    def batches(self, learner: AnsweringVLM, processes: Processes) -> tuple[TuneBatches, Batch | None]:
        """As without drawings. Raises: RunError where weights are split over processes."""
        if processes.sharded:
            raise RunError("a diffusion branch is not split over processes; train with sharding `none`")
        return super().batches(learner, processes)

    def _terms(
        self, learner: AnsweringVLM, micro: Asked, words: Float[Tensor, ""], drawings: Float[Tensor, ""]
    ) -> Float[Tensor, " terms"]:
        if micro.drawings is None:
            loss, right = super()._terms(learner, micro, words, drawings)
            return torch.stack([loss, right, loss, torch.zeros_like(loss)])
        drawn = learner(micro).sum() / drawings
        nothing = torch.zeros_like(drawn)
        return torch.stack([self.tuning.generation_weight * drawn, nothing, nothing, drawn])


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnScore:
    """One measure of one held-out drawing."""

    id: str
    kind: str
    measure: str
    value: float
    mean_picture: float
    """The same measure of what ignores the picture: the mean of the training drawings of that kind."""


@torch.no_grad()
def draw_held_out(
    recipe: TuneRecipe,
    checkpoint: Path,
    folder: Path,
    sources: Sequence[ConversationSource] | None = None,
    *,
    device: str = "cpu",
) -> None:
    """Write what a checkpoint draws of held-out pictures, beside the truth, and how near it is, into `folder`.

    Nothing where no task has drawings, or where that is written already. Raises: RunError for a damaged checkpoint.
    """
    task = task_of(recipe, sources)
    if not isinstance(task, GenerationTask) or (folder / DRAWINGS).exists():
        return
    learner = task.resume(checkpoint).to(device).eval()
    side = recipe.generation_size
    means = {
        kind: torch.stack([_truth(talk, side) for _, talk in found]).mean(dim=0)
        for kind, found in _by_kind(task.train_on, _READ).items()
    }
    scores: list[DrawnScore] = []
    shown: list[Shown] = []
    for kind, found in _by_kind(task.held_out, SCORED).items():
        for start in range(0, len(found), task.recipe.batch_size):
            part = found[start : start + task.recipe.batch_size]
            for (_, talk), drawn in zip(part, _draw(learner, part, recipe, device), strict=True):
                truth, asked = _truth(talk, side), talk.drawing
                assert asked is not None
                mine, theirs = measured(drawn, truth, asked), measured(means[kind], truth, asked)
                scores += [
                    DrawnScore(
                        id=talk.id, kind=kind, measure=name, value=mine[name], mean_picture=theirs[name]
                    )
                    for name in mine
                ]
                shown.append(Shown(talk, truth, drawn, means[kind]))
    Image.fromarray(drawing_sheet(shown)).save(folder / SHEET)
    lines = json.dumps([asdict(score) for score in scores], indent=1)
    partial = folder / f".{DRAWINGS}.partial"
    partial.write_text(lines + "\n", encoding="utf-8")
    partial.replace(folder / DRAWINGS)


def read_drawings(folder: Path) -> list[DrawnScore]:
    """What `draw_held_out` wrote; nothing where there was nothing to draw. Raises: RunError for a damaged file."""
    path = folder / DRAWINGS
    if not path.exists():
        return []
    try:
        return [DrawnScore(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise RunError(f"{path}: damaged ({error}); delete it and run the same command again") from error


def _by_kind(part: Part, most: int) -> dict[str, list[tuple[int, Conversation]]]:
    """Up to so many drawings of every kind, with their places, among conversations that are evenly spread."""
    found: dict[str, list[tuple[int, Conversation]]] = {}
    for index in part.spread(_READ):
        if (asked := part[index].drawing) is not None:
            found.setdefault(asked.kind, []).append((index, part[index]))
    return {kind: found[kind][:most] for kind in sorted(found)}


def _draw(
    learner: DrawingVLM, part: Sequence[tuple[int, Conversation]], recipe: TuneRecipe, device: str
) -> list[Float[Tensor, "3 side side"]]:
    """Drawings in the order of `part`."""
    drawn = []
    for index, talk in part:
        (row,) = learner.encoder(talk)
        del row[0][DRAWING]
        row[0][SEED] = torch.tensor([noise_seed(recipe.train.seed, -1, index)])
        (batch,) = collate([row], pad_id=learner.encoder.pad_id)
        drawn += list(learner.draw(batch.to(torch.device(device)), steps=recipe.generation_steps))
    return drawn


def _truth(talk: Conversation, side: int) -> Float[Tensor, "3 side side"]:
    assert talk.drawing is not None
    return to_tensor(talk.drawing, side)
