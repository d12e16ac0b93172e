"""Carrying a tuning out: training, the finished VLM, and what it scores beside the one that it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm4vla.backbones.registry import resolve
from vlm4vla.core.errors import RecipeError, RunError, VLAError
from vlm4vla.core.recipes import TaskRecipe, TuneRecipe, check_tune, fingerprint
from vlm4vla.studies.checks import Resources, digest_of
from vlm4vla.studies.display import Display, time_left
from vlm4vla.studies.execute import device_named
from vlm4vla.studies.runs import RunStore, read_json
from vlm4vla.training.mirrors import check_mirrors

if TYPE_CHECKING:
    from vlm4vla.tuning.examples import Conversation, ConversationSource
    from vlm4vla.tuning.scoring import Answer

QUESTIONS = 500
"""Of every task, at most, that a score is measured on."""


def run_tuning(
    recipe: TuneRecipe,
    store: RunStore,
    *,
    resources: Resources | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Do whatever of a tuning is not done yet, and return the folder of the tuned VLM: a backbone as any other.

    Raises: RecipeError, DataError before anything is done; later RunError naming the folder. The same call goes on.
    """
    from vlm4vla.tuning.loop import RESULT, finish, tune
    from vlm4vla.tuning.mixture import open_source

    resources = resources or Resources()
    check_tune(recipe)
    check_mirrors(resources.mirrors)
    resolve(recipe.backbone)
    tasks = [[source.name, source.fingerprint] for source in map(open_source, recipe.tasks)]
    facts = {"tasks": tasks, "backbone": digest_of(recipe.backbone)}
    try:
        with store.open(recipe, facts=facts, notes=notes) as run:
            if run.status.state == "done" and (run.folder / RESULT).is_dir():
                return run.folder / RESULT
            run.begin()
            with run.phase("train"):
                told = read_json(run.folder / "provenance.json")
                checkpoint = tune(
                    recipe,
                    run.folder,
                    device=device_named(resources.device),
                    progress=resources.progress,
                    provenance=told,
                    mirrors=resources.mirrors,
                )
                result = finish(recipe, checkpoint, run.folder, provenance=told)
            run.update(state="done")
            return result
    except VLAError as error:
        where = store.folder(recipe)
        text = str(error) if str(where) in str(error) else f"{error} (in {where})"
        raise RunError(f"tuning {recipe.backbone}: {text}") from error


def held_out(recipe: TuneRecipe, *, questions: int = QUESTIONS) -> list[Conversation]:
    """Conversations that a tuning does not train on, up to so many of every task, evenly spread."""
    from vlm4vla.tuning.loop import TuneTask
    from vlm4vla.tuning.mixture import open_source

    task = TuneTask(recipe, [open_source(part) for part in recipe.tasks])
    return [task.held_out[index] for index in task.held_out.spread_over_sources(questions)]


def chosen(task: TaskRecipe, *, questions: int = QUESTIONS) -> list[Conversation]:
    """Up to so many of a task's conversations, evenly spread."""
    from vlm4vla.tuning.mixture import Part, open_source

    source: ConversationSource = open_source(task)
    every = Part([source], [range(len(source))])
    return [every[index] for index in every.spread(questions)]


def answers_of(
    vlm: str | Path,
    conversations: Sequence[Conversation],
    *,
    prompt: str,
    resources: Resources,
    weights: str = "pretrained",
    folder: Path | None = None,
    label: str = "",
) -> list[Answer]:
    """What a VLM answers, kept in `folder` under what was asked of whom: the same question is asked once.

    Raises: BackboneError, DataError; RecipeError when none of the questions has a measure.
    """
    from vlm4vla.tuning.answering import AnsweringVLM
    from vlm4vla.tuning.scoring import VERSION, read_answers, score, write_answers

    asked = [[c.id, [[e.question, e.answer, e.measure] for e in c.exchanges]] for c in conversations]
    identity = fingerprint(VERSION, digest_of(str(vlm)), prompt, weights, asked)
    kept = folder / f"{identity}.jsonl" if folder else None
    if kept and kept.exists():
        return read_answers(kept)
    if prompt not in ("chat", "short") or weights not in ("pretrained", "random"):
        raise RecipeError(f"prompt {prompt!r}, weights {weights!r}: chat or short, pretrained or random")
    model = AnsweringVLM.from_pretrained(vlm, prompt=prompt, weights=weights)  # type: ignore[arg-type]  # checked
    model.to(device_named(resources.device))
    total = sum(len(conversation.exchanges) for conversation in conversations)
    with Display(shown=resources.progress) as display:

        def seen(count: int) -> None:
            left = time_left(display.seconds, count, total)
            display.show([f"{label or vlm}: {count:,} of {total:,} answered{left}"], last=count == total)

        answers = score(model, conversations, seen=seen)
    if kept:
        write_answers(answers, kept)
    return answers
