"""`vlm4vla evaluate`: score a policy once more, in another way, or one from outside."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlm4vla.cli_common import not_negative, positive, resources_of, settings, show_report
from vlm4vla.cli_sweep import sweep
from vlm4vla.core.errors import RecipeError

if TYPE_CHECKING:
    from vlm4vla.core.recipes import EvaluationRecipe
    from vlm4vla.core.types import EpisodeResult


def add_command(add: Callable[..., argparse.ArgumentParser], work: Callable[..., None]) -> None:
    """`add` makes a command as the rest of the command line does, `work` gives it options of what works."""
    made = add("evaluate", evaluate, "Score a trained policy once more, in another way, or one from outside.")
    made.add_argument("run", nargs="?", type=Path, metavar="RUN", help="a trial's folder, or a checkpoint")
    made.add_argument(
        "--policy",
        metavar="FOLDER|CODE|URL",
        help="instead of RUN; code: module:name or file.py:name; a server: ws://HOST:PORT",
    )
    made.add_argument("--benchmark", help="tabletop-a, tabletop-d, tabletop-chain-d, ...")
    made.add_argument("--look", choices=("A", "B", "C", "D"))
    made.add_argument("--tasks", metavar="NAME,NAME", help="tasks or tiers")
    made.add_argument(
        "--execute",
        type=_numbers,
        metavar="N,N",
        help="actions of each chunk to carry out; several ways: 1,5,10",
    )
    made.add_argument(
        "--checkpoints",
        metavar="all|last|N,N",
        help="of a trial: every one, or those of these steps (default: last)",
    )
    made.add_argument("--plan", action="store_true", help="print what would be played, start nothing")
    made.add_argument("--episodes", type=not_negative, metavar="N", help="per task")
    made.add_argument("--seed", type=not_negative, metavar="N")
    made.add_argument(
        "--renderer", metavar="NAME", help="what draws: CALVIN has egl and tiny, LIBERO egl and osmesa"
    )
    made.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change any field of the evaluation"
    )
    made.add_argument(
        "--repeats", type=positive, metavar="N", help="plays of each episode, for heads that draw noise"
    )
    made.add_argument(
        "--shard", type=_shard, metavar="I/N", help="only every N-th episode, from the I-th on (0/N)"
    )
    work(made, videos=0)
    outside = made.add_argument_group("policies from outside (code or a server)")
    outside.add_argument("--out", type=Path, default=Path("runs/policies"), help="default: runs/policies")
    outside.add_argument("--name", default="", help="what reports call it; default: its address")
    outside.add_argument(
        "--protocol", default="auto", metavar="NAME", help="openpi or vla-eval; default: whatever it speaks"
    )
    outside.add_argument(
        "--wire",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="how things travel (docs/benchmarks.md)",
    )
    outside.add_argument(
        "--timeout", type=positive, default=120, metavar="SECONDS", help="for an answer; default 120"
    )
    outside.add_argument(
        "--connections",
        type=positive,
        default=1,
        metavar="N",
        help="observations asked for at a time; default 1",
    )


def evaluate(options: argparse.Namespace) -> None:
    """Score a policy once more, in another way."""
    if (options.run is None) == (options.policy is None):
        raise RecipeError("evaluate needs one of RUN and --policy")
    modes: tuple[int, ...] = options.execute or ()
    options.execute = modes[0] if modes else None
    if options.run is None and not Path(options.policy).is_dir():
        _evaluate_outside(options, modes)
        return
    from vlm4vla.studies.choices import chosen_evaluation
    from vlm4vla.studies.execute import evaluate_again, trained_for
    from vlm4vla.studies.runs import read_trial
    from vlm4vla.studies.tries import note_of

    folder: Path = Path(options.run or options.policy).resolve()
    is_trial = (folder / "trial.json").exists()
    base = read_trial(folder).evaluations if is_trial else trained_for(folder)
    recipe = chosen_evaluation(options, base)
    resources = dataclasses.replace(resources_of(options), shard=options.shard or (0, 1))
    if options.plan or options.checkpoints or len(modes) > 1:
        ways = [dataclasses.replace(recipe, execute=mode) for mode in modes or (recipe.execute,)]
        sweep(folder, ways, resources, options)
        return
    results = evaluate_again(folder, recipe, resources)
    out = folder.parents[1] if is_trial and folder.parent.name == "trials" else None
    if out is not None:
        show_report(out, title=out.name, as_json=options.json)
        return
    _print_episodes(recipe, results, note_of(folder), as_json=options.json)


def _evaluate_outside(options: argparse.Namespace, modes: Sequence[int]) -> None:
    from vlm4vla.studies.choices import chosen_evaluation
    from vlm4vla.studies.outside import OutsidePolicy, evaluate_outside
    from vlm4vla.studies.runs import RunStore

    place, _, name = options.policy.rpartition(":")
    if name.isdecimal() and "//" not in place:
        raise RecipeError(f"--policy {options.policy}: write ws://{options.policy} for a server")
    if not place:
        raise RecipeError(
            f"--policy {options.policy}: neither a folder nor module:name, file.py:name or ws://HOST:PORT"
        )
    if options.checkpoints or options.plan:
        raise RecipeError("--checkpoints and --plan are for a trial that was trained here, not for --policy")
    if not options.benchmark:
        raise RecipeError("--policy needs --benchmark too: nothing says what the policy was made for")
    policy = OutsidePolicy(
        address=options.policy,
        name=options.name,
        protocol=options.protocol,
        layout=settings(options.wire, "--wire"),
        seconds=options.timeout,
        connections=options.connections,
    )
    resources = dataclasses.replace(resources_of(options), shard=options.shard or (0, 1))
    notes = {"command": " ".join(["vlm4vla", *sys.argv[1:]])}
    recipe = chosen_evaluation(options, ())
    if recipe.shows:
        raise RecipeError(
            "--set shows: a policy from outside says itself what it is shown (its attribute `needs`, or --wire)"
        )
    for mode in modes or (recipe.execute,):
        way = dataclasses.replace(recipe, execute=mode)
        evaluate_outside(policy, way, RunStore(options.out), resources, notes=notes)
    show_report(options.out, title=options.out.resolve().name, as_json=options.json)


def _print_episodes(
    recipe: EvaluationRecipe, results: Sequence[EpisodeResult], note: str, *, as_json: bool
) -> None:
    """Rates of an evaluation that belongs to no trial, and what is told of the policy."""
    from vlm4vla.demonstrations.scripted import labelled
    from vlm4vla.reports.estimates import success_rate
    from vlm4vla.reports.tables import DASH, Table, percent

    rows = []
    for task in sorted({result.task for result in results}):
        scored = [r for r in results if r.task == task and r.error is None]
        errors = sum(r.task == task for r in results) - len(scored)
        rows.append((task, sum(r.success for r in scored), len(scored), errors))
    if as_json:
        names = ("task", "successes", "episodes", "errors")
        print(json.dumps([{**dict(zip(names, row, strict=True)), "note": note} for row in rows], indent=1))
        return
    cells = tuple(
        (task, percent(success_rate(good, count)) if count else DASH, f"{good}/{count}", str(errors))
        for task, good, count, errors in rows
    )
    title = labelled(f"{recipe.benchmark}, look {recipe.look}", note)
    print(Table(title, ("task", "success", "n", "errors"), cells).text())


def _numbers(text: str) -> tuple[int, ...]:
    """`1,5,10`."""
    return tuple(dict.fromkeys(not_negative(part) for part in text.split(",")))


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard: 0/8 to 7/8 are the eight of eight")
    return int(number), int(count)
