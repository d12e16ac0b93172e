"""Carrying a tuning out: training, the finished VLM, and what it scores beside the one that it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm4vla.backbones.registry import resolve
from vlm4vla.core.errors import RecipeError, RunError, VLAError
from vlm4vla.core.recipes import TaskRecipe, TuneRecipe, check_tune, fingerprint
from vlm4vla.studies.checks import Resources, digest_of
from vlm4vla.studies.display import Display, time_left
from vlm4vla.studies.execute import device_named, in_processes, make_demonstrations, settled
from vlm4vla.studies.runs import RunStore, TrialRun, read_json
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
    patience: float = 10.0,
) -> Path:
    """Do whatever of a tuning is not done yet, and return the folder of the tuned VLM: a backbone as any other.

    `patience`: seconds to wait for another process that works on it.

    Raises: RecipeError, DataError before anything is done; later RunError naming the folder. The same call goes on.
    """
    from vlm4vla.tuning.loop import RESULT, finish, task_of, tune

    resources = resources or Resources()
    check_tune(recipe, processes=resources.train_processes)
    check_mirrors(resources.mirrors)
    resolve(recipe.backbone)
    sources = opened(recipe, store, resources)
    tasks = [[source.name, source.fingerprint] for source in sources]
    facts = {"tasks": tasks, "backbone": digest_of(recipe.backbone)}
    try:
        with store.open(recipe, facts=facts, notes=notes, patience=patience) as run:
            if run.status.state == "done" and (run.folder / RESULT).is_dir():
                return run.folder / RESULT
            run.begin()
            with run.phase("train"):
                device, resources = settled(run, resources)
                told = read_json(run.folder / "provenance.json")
                if resources.train_processes > 1:
                    _tune_in_processes(recipe, store, run, resources, device)
                checkpoint = tune(  # with nothing left to do where other processes did it
                    recipe,
                    run.folder,
                    sources,
                    device=device,
                    progress=resources.progress,
                    provenance=told,
                    mirrors=resources.mirrors,
                )
                result = finish(recipe, checkpoint, run.folder, sources, provenance=told)
                if task_of(recipe, sources).mixture.draws:
                    from vlm4vla.tuning.generation_loop import draw_held_out

                    draw_held_out(recipe, checkpoint, run.folder, sources, device=device)
            run.update(state="done")
            return result
    except VLAError as error:
        where = store.folder(recipe)
        text = str(error) if str(where) in str(error) else f"{error} (in {where})"
        raise RunError(f"tuning {recipe.backbone}: {text}") from error


def opened(recipe: TuneRecipe, store: RunStore, resources: Resources) -> list[ConversationSource]:
    """A tuning's tasks; demonstrations that they ask about are made unless they are there."""
    from vlm4vla.tuning.mixture import open_source

    found = []
    for task in recipe.tasks:
        if task.demonstrations is not None:
            made = make_demonstrations(task.demonstrations, store, resources)
            task = replace(task, path=str(made), demonstrations=None)
        found.append(open_source(task))
    return found


def _tune_in_processes(
    recipe: TuneRecipe, store: RunStore, run: TrialRun, resources: Resources, device: str
) -> None:
    from vlm4vla.training.worker import launch_command

    arguments = [str(run.folder / "tuning.json"), str(run.folder), "--device", device, "--quiet"]
    arguments += ["--provenance", str(run.folder / "provenance.json")]
    for number, task in enumerate(recipe.tasks):
        if task.demonstrations is not None:
            folder = make_demonstrations(task.demonstrations, store, resources)
            arguments += ["--demonstrations", f"{number}={folder}"]
    arguments += [part for mirror in resources.mirrors for part in ("--mirror", mirror)]
    command = launch_command(resources.train_processes, arguments, program="vlm4vla.tuning.worker")
    in_processes(
        command, run, resources, lambda: f"tuning in {resources.train_processes} processes: {run.folder}"
    )


def held_out(
    recipe: TuneRecipe, sources: Sequence[ConversationSource], *, questions: int = QUESTIONS
) -> list[Conversation]:
    """Conversations that a tuning does not train on, up to so many of every task, evenly spread; no drawings."""
    from vlm4vla.tuning.loop import TuneTask

    part = TuneTask(recipe, sources).held_out
    found = (part[index] for index in part.spread_over_sources(questions))
    return [conversation for conversation in found if conversation.drawing is None]


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
    seed: int = 0,
    folder: Path | None = None,
    label: str = "",
) -> list[Answer]:
    """What a VLM answers, kept in `folder` under what was asked of whom: the same question is asked once.

    `seed`: of `random` weights.

    Raises: BackboneError, DataError; RecipeError when none of the questions has a measure.
    """
    from vlm4vla.tuning.answering import AnsweringVLM
    from vlm4vla.tuning.scoring import VERSION, read_answers, score, write_answers

    asked = [[c.id, [[e.question, e.answer, e.measure] for e in c.exchanges]] for c in conversations]
    drawn = [seed] if weights == "random" and seed else []
    identity = fingerprint(VERSION, digest_of(str(vlm)), prompt, weights, asked, *drawn)
    kept = folder / f"{identity}.jsonl" if folder else None
    if kept and kept.exists():
        return read_answers(kept)
    if prompt not in ("chat", "short") or weights not in ("pretrained", "random"):
        raise RecipeError(f"prompt {prompt!r}, weights {weights!r}: chat or short, pretrained or random")
    model = AnsweringVLM.from_pretrained(vlm, prompt=prompt, weights=weights, seed=seed)  # type: ignore[arg-type]  # checked
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
