"""`vlm4vla tune` and `vlm4vla score`: a VLM learns to answer questions, and how good it is at them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm4vla.cli_common import positive
from vlm4vla.core.errors import RecipeError
from vlm4vla.core.recipes import TaskRecipe, TrainRecipe, TuneRecipe, override, to_json

if TYPE_CHECKING:
    from vlm4vla.studies.checks import Resources
    from vlm4vla.tuning.scoring import Answer

_TASK = "NAME [FOLDER] [OPTION=VALUE ...]"
Columns = Mapping[str, Sequence["Answer"]]
"""Answers of every VLM to the same questions."""


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """`add` makes a command as the rest of the command line does."""
    made = add(
        "tune", tune, "Tune a VLM on questions; the result is a backbone. Ends with scores before and after."
    )
    made.add_argument("--backbone", metavar="NAME|FOLDER", help="see vlm4vla models; default: tiny-qwen3-vl")
    _task(
        made, "--task", "what it is tuned on, weight=NUMBER among the options in a mixture; may be repeated"
    )
    _task(made, "--also-score", "what it is scored on besides, to see what it forgets; may be repeated")
    made.add_argument("--out", type=Path, default=Path("runs/tune"), help="default: runs/tune")
    made.add_argument("--freeze", metavar="PART,PART", help="of vision, projector, word_embedding, language")
    made.add_argument("--steps", type=int, metavar="N", help="training steps")
    made.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="train.FIELD for training"
    )
    made.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="that share the training (FSDP2); default 1"
    )
    made.add_argument("--plan", action="store_true", help="print the recipe, start nothing")
    made.add_argument(
        "--mirror", action="append", default=[], help="copy metrics to tensorboard, trackio or wandb"
    )
    _common(made)

    made = add("score", score, "Ask VLMs questions and count right answers: greedy, the same every time.")
    made.add_argument(
        "vlm", nargs="+", metavar="NAME|FOLDER", help="one, or several to compare with the first"
    )
    _task(made, "--task", "what is asked; may be repeated", required=True)
    made.add_argument("--out", type=Path, metavar="FOLDER", help="keep every answer there")
    made.add_argument("--prompt", choices=("chat", "short"), default="chat", help="default: chat")
    made.add_argument("--weights", choices=("pretrained", "random"), default="pretrained")
    _common(made)


def tune(options: argparse.Namespace) -> None:
    """Training, finished folder, scores."""
    from vlm4vla.studies.runs import RunStore
    from vlm4vla.studies.tunings import answers_of, chosen, held_out, opened, run_tuning

    recipe = chosen_tuning(options)
    if options.plan:
        print(json.dumps(to_json(recipe), indent=1))
        return
    resources = _resources(options)
    store = RunStore(options.out)
    folder = store.folder(recipe)
    if not options.quiet:
        print(f"{recipe.backbone}: {folder}", file=sys.stderr)
    # What else is asked is looked for now: a mistake in it costs no training.
    also = [
        talk
        for task in map(task_recipe, options.also_score or ())
        for talk in chosen(task, questions=options.questions)
    ]
    result = run_tuning(
        recipe, store, resources=resources, notes={"command": " ".join(["vlm4vla", *sys.argv[1:]])}
    )
    sources = opened(recipe, store, resources)
    asked = [*(held_out(recipe, sources, questions=options.questions) if recipe.held_out else ()), *also]
    asked = [talk for talk in asked if any(exchange.measure != "text" for exchange in talk.exchanges)]
    columns = {
        label: answers_of(
            vlm,
            asked,
            prompt=recipe.prompt,
            weights=weights,
            resources=resources,
            folder=folder / "answers",
            label=f"{label} tuning",
        )
        for label, vlm, weights in (
            ("before", recipe.backbone, recipe.weights),
            ("after", result, "pretrained"),
        )
        if asked
    }
    (folder / "scores.json").write_text(json.dumps(scores(columns), indent=1) + "\n", encoding="utf-8")
    drawn = drawing_scores(folder)
    facts = {"folder": str(result), **({"drawings": drawn} if drawn else {})}
    _print(columns, facts, title=f"{recipe.backbone}, tuned", as_json=options.json)
    if not options.json:
        if drawn:
            _print_drawings(drawn, folder)
        print(f"\nTuned:  {result}\nPolicy: vlm4vla train tabletop --backbone {result}")


def score(options: argparse.Namespace) -> None:
    """Every VLM on every task."""
    from vlm4vla.studies.tunings import answers_of, chosen

    asked = [c for task in options.task for c in chosen(task_recipe(task), questions=options.questions)]
    columns = {
        vlm: answers_of(
            vlm,
            asked,
            prompt=options.prompt,
            weights=options.weights,
            resources=_resources(options),
            folder=options.out,
        )
        for vlm in options.vlm
    }
    _print(columns, {}, title="Scores", as_json=options.json)


def chosen_tuning(options: argparse.Namespace) -> TuneRecipe:
    """The recipe of a command line. Raises: RecipeError."""
    named = tuple(map(task_recipe, options.task or ()))
    if not named:
        raise RecipeError(
            "name what to tune on: --task NAME [FOLDER] [OPTION=VALUE ...]; `vlm4vla data questions` lists names"
        )
    recipe = TuneRecipe(backbone=options.backbone or "tiny-qwen3-vl", tasks=named)
    train: dict[str, str] = {} if options.steps is None else {"steps": str(options.steps)}
    own: dict[str, str] = {} if options.freeze is None else {"freeze": options.freeze}
    for setting in options.set:
        name, equals, value = setting.partition("=")
        if not equals or name in ("tasks", "train", "backbone"):
            raise RecipeError(f"--set {setting!r}: write FIELD=VALUE, or train.FIELD=VALUE for training")
        (train if name.startswith("train.") else own)[name.removeprefix("train.")] = value
    changed: TrainRecipe = override(recipe.train, train, where="train")
    return dataclasses.replace(override(recipe, own, where="tune"), train=changed)


def scores(columns: Columns) -> list[dict[str, str | int | float]]:
    """A row per VLM, task and measure: mean, 95 % interval, questions, and answers in which nothing was found."""
    from vlm4vla.reports.estimates import success_rate

    rows: list[dict[str, str | int | float]] = []
    for vlm, answers in columns.items():
        for task, measure in dict.fromkeys((a.task, a.measure) for a in answers):
            mine = [a for a in answers if (a.task, a.measure) == (task, measure)]
            # Wilson's interval is wide enough for any quantity in 0..1: none varies more than a coin of its mean.
            found = success_rate(sum(a.value for a in mine), len(mine))
            assert found is not None
            facts = {"value": found.value, "low": found.low, "high": found.high, "n": len(mine)}
            unreadable = sum(not a.readable for a in mine)
            rows.append({"vlm": vlm, "task": task, "measure": measure, **facts, "unreadable": unreadable})
    return rows


def drawing_scores(folder: Path) -> list[dict[str, str | int | float]]:
    """A row per measure of held-out drawings: mean, half of its 95 % interval, the mean picture's, and how many."""
    from vlm4vla.tuning.generation_loop import read_drawings

    drawn = read_drawings(folder)
    rows: list[dict[str, str | int | float]] = []
    for kind, measure in dict.fromkeys((one.kind, one.measure) for one in drawn):
        mine = [one for one in drawn if (one.kind, one.measure) == (kind, measure)]
        values = [one.value for one in mine]
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        facts = {"value": statistics.fmean(values), "half_width": 1.96 * spread / math.sqrt(len(values))}
        means = statistics.fmean(one.mean_picture for one in mine)
        rows.append({"kind": kind, "measure": measure, **facts, "mean_picture": means, "n": len(mine)})
    return rows


def _print_drawings(rows: Sequence[Mapping[str, str | int | float]], folder: Path) -> None:
    from vlm4vla.reports.tables import Table
    from vlm4vla.tuning.generation_loop import SHEET

    cells = tuple(
        (
            f"{row['kind']}: {row['measure']}",
            f"{row['value']:.3g} \N{PLUS-MINUS SIGN} {row['half_width']:.2g}",
            f"{row['mean_picture']:.3g}",
            str(row["n"]),
        )
        for row in rows
    )
    print(
        "\n"
        + Table("Held-out drawings", ("kind: measure", "drawn", "mean picture", "n"), cells).text(width=150)
    )
    print(f"Drawn:  {folder / SHEET}")


def _print(columns: Columns, facts: Mapping[str, Any], *, title: str, as_json: bool) -> None:
    from vlm4vla.reports.estimates import Estimate
    from vlm4vla.reports.tables import Table, percent
    from vlm4vla.tuning.scoring import WORST

    rows = scores(columns)
    if as_json:
        print(json.dumps({**facts, "scores": rows}))
        return
    cells = []
    for task, measure in dict.fromkeys((row["task"], row["measure"]) for row in rows):
        mine = [row for row in rows if (row["task"], row["measure"]) == (task, measure)]
        texts = []
        for row in mine:
            shown = percent(Estimate(float(row["value"]), float(row["low"]), float(row["high"])))
            texts.append(shown + (f", {row['unreadable']} unreadable" if row["unreadable"] else ""))
        less = " (less is better)" if WORST[measure] else ""  # type: ignore[index]  # a measure, as answers have it
        cells.append((f"{task}: {measure}{less}", *texts, str(mine[0]["n"])))
    print(Table(title, ("task: measure", *columns, "n"), tuple(cells)).text(width=150))


def _task(made: argparse.ArgumentParser, name: str, text: str, *, required: bool = False) -> None:
    made.add_argument(name, nargs="+", action="append", metavar=_TASK, help=text, required=required)


def _common(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--questions", type=positive, default=500, metavar="N", help="scored of every task; default 500"
    )
    made.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")


def task_recipe(words: Sequence[str]) -> TaskRecipe:
    """A task as it is written on a command line. Raises: RecipeError."""
    name, *rest = words
    settings = [word for word in rest if "=" in word]
    folders = [word for word in rest if "=" not in word]
    if len(folders) > 1:
        raise RecipeError(f"task {name}: one folder, not {' and '.join(folders)}")
    weights = [word.partition("=")[2] for word in settings if word.startswith("weight=")]
    try:
        weight = float(weights[-1]) if weights else 0.0
    except ValueError as error:
        raise RecipeError(f"task {name}: weight={weights[-1]} is no number") from error
    kept = tuple(word for word in settings if not word.startswith("weight="))
    return TaskRecipe(task=name, path=folders[0] if folders else "", options=kept, weight=weight)


def _resources(options: argparse.Namespace) -> Resources:
    from vlm4vla.studies.checks import Resources

    mirrors = tuple(getattr(options, "mirror", ()))
    processes = getattr(options, "gpus", 1)
    return Resources(
        progress=not options.quiet, device=options.device, mirrors=mirrors, train_processes=processes
    )
