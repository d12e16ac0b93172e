"""`vlm4vla study`: the paper's tables and figures, or one's own, as a plan, as a run, as a status."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from vlm4vla.core.errors import RecipeError


def add_command(add: Callable[..., argparse.ArgumentParser], work: Callable[..., None]) -> None:
    """`add` makes a command as the rest of the command line does, `work` gives it options of what works."""
    made = add("study", study, "Every table and figure of the paper: plan it, run it, see how far it is.")
    made.add_argument("name", nargs="?", metavar="NAME", help="table-1, figure-3, ..., or module:function")
    made.add_argument("--list", action="store_true", help="which there are")
    made.add_argument("--plan", action="store_true", help="its rows and what is missing; starts nothing")
    made.add_argument("--run", action="store_true", help="do what is missing, then report")
    made.add_argument(
        "--report", action="store_true", help="write the report of what there is; starts nothing"
    )
    made.add_argument("--status", action="store_true", help="the same as --plan")
    made.add_argument(
        "--why", action="store_true", help="measure what its trained policies' layers hold, then report"
    )
    made.add_argument(
        "--ask",
        nargs="*",
        action="append",
        metavar="TASK [FOLDER] [OPTION=VALUE ...]",
        help="ask the VLMs that its finished trials started from: the study's questions, or these tasks'; then report",
    )
    made.add_argument(
        "--scale",
        choices=("paper", "tabletop", "mini"),
        default="paper",
        help="tabletop: the same matrix in small; mini: that with the quickstart's short trainings",
    )
    made.add_argument(
        "--out", type=Path, default=Path("runs/studies"), help="runs of all studies; default: runs/studies"
    )
    made.add_argument(
        "--reproduction", action="store_true", help="print the page that tells how it is reproduced"
    )
    made.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="SOURCE=FOLDER",
        help="where demonstrations lie (calvin, bridge, libero_10); kept in --out",
    )
    made.add_argument(
        "--renderer",
        metavar="NAME",
        help="of simulators that have it (CALVIN: tiny, LIBERO: osmesa); part of the study's name then",
    )
    made.add_argument("--gpus", type=int, metavar="N", help="that share each training, one trial at a time")
    work(made, processes=2)


def study(options: argparse.Namespace) -> None:
    """List, plan or run."""
    from vlm4vla.benchmarks.registry import load
    from vlm4vla.cli_study_plan import print_plan
    from vlm4vla.studies.mini import OWN_STUDIES
    from vlm4vla.studies.paper import STUDIES
    from vlm4vla.studies.study import study_named, with_renderer

    if options.list or options.name is None:
        _list(options)
        return
    asks = options.ask is not None
    if options.plan + options.run + options.status + options.report + options.why + asks > 1:
        raise RecipeError("choose one of --plan, --run, --report, --status, --ask and --why")
    name: str = options.name
    made = (
        load(name)(options.scale)
        if ":" in name
        else study_named(name, {**STUDIES, **OWN_STUDIES}, options.scale)
    )
    if options.reproduction:
        if name not in STUDIES or options.scale != "paper":
            raise RecipeError(
                f"study {made.name!r}: is no table or figure of the paper at its scale, so that there is nothing to "
                "reproduce; leave --scale away"
            )
        from vlm4vla.studies.reproduce import reproduction

        print(reproduction(made), end="")
        return
    made = _with_data(made, options)
    if options.renderer is not None:
        made = with_renderer(made, options.renderer)
    if options.run:
        _run(made, options)
    elif options.why:
        _why(made, options)
    elif asks:
        _ask(made, options)
    elif options.report:
        _report(made, options)
    else:
        print_plan(made, options)


def _with_data(made: Any, options: argparse.Namespace) -> Any:
    """Folders given now or before under the same --out, those that this study reads."""
    from vlm4vla.studies.runs import read_json, write_json
    from vlm4vla.studies.study import sources_of, with_data

    kept = options.out / "data.json"
    folders: dict[str, str] = read_json(kept) if kept.exists() else {}
    for text in options.data:
        source, equals, folder = text.partition("=")
        if not (source and equals and folder):
            raise RecipeError(f"--data {text!r}: SOURCE=FOLDER is expected, e.g. calvin=/data/calvin")
        with_data(made, {source: folder})
        folders[source] = folder
    if options.data:
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(kept, folders)
    read = sources_of(made)
    return with_data(made, {source: folder for source, folder in folders.items() if source in read})


def _list(options: argparse.Namespace) -> None:
    from vlm4vla.reports.tables import Table
    from vlm4vla.studies.mini import OWN_STUDIES
    from vlm4vla.studies.paper import STUDIES

    makers = {**STUDIES, **OWN_STUDIES}
    made = [make(options.scale) for make in makers.values()]
    if options.json:
        entries = [
            {
                "name": name,
                "title": s.title,
                "question": s.question,
                "rows": len(s.rows),
                "trials": len(s.trials),
            }
            for name, s in zip(makers, made, strict=True)
        ]
        print(json.dumps(entries, indent=1))
        return
    rows = tuple(
        (name, s.title, str(len(s.rows)), str(len(s.trials)), s.question)
        for name, s in zip(makers, made, strict=True)
    )
    columns = ("name", "in the paper", "rows", "trials", "question")
    print(Table("Studies", columns, rows).text(width=120))
    print(
        "\n`vlm4vla study NAME --plan` prints its rows. `--scale tabletop` is the same matrix in small on the\n"
        "embedded benchmark, one seed each, some 40 minutes a trial on two idle cores: frozen parts are table-3,\n"
        "learning rates table-5, prompts table-6, image sizes table-7. `--scale mini` takes the quickstart's short\n"
        "trainings of four easy tasks instead, some seven minutes a trial."
    )


def _run(made: Any, options: argparse.Namespace) -> None:
    from vlm4vla.cli_study_plan import left_out_of
    from vlm4vla.studies.checks import Resources
    from vlm4vla.studies.choices import given
    from vlm4vla.studies.parallel import run_trials
    from vlm4vla.studies.runs import RunStore
    from vlm4vla.studies.study import runnable

    trials = runnable(made)
    told = left_out_of(made)
    if not trials:
        raise RecipeError("\n".join([f"study {made.name!r}: none of its trials can be run yet", *told]))
    if not options.quiet:
        print(*told, sep="\n", end="\n" if told else "", file=sys.stderr)
    processes = 1 if options.gpus else options.processes
    resources = Resources(
        progress=not options.quiet,
        demonstration_processes=options.processes,
        train_processes=options.gpus or 1,
        checkpoints=made.checkpoints,
        **given(options, "workers", "videos", "device"),
    )
    notes = {"command": " ".join(["vlm4vla", *sys.argv[1:]]), "study": made.name}
    try:
        run_trials(trials, RunStore(options.out), processes=processes, resources=resources, notes=notes)
    finally:  # what failed is told in the report too
        _report(made, options)


def _why(made: Any, options: argparse.Namespace) -> None:
    from vlm4vla.studies.choices import given
    from vlm4vla.studies.runs import RunStore
    from vlm4vla.studies.why import finished, why

    say = (lambda text: None) if options.quiet else (lambda text: print(text, file=sys.stderr))
    for folder in finished(made, RunStore(options.out)):
        for _ in why(folder, told=say, **given(options, "device")):
            pass
    _report(made, options)


def _ask(made: Any, options: argparse.Namespace) -> None:
    from vlm4vla.cli_tune import task_recipe
    from vlm4vla.studies.asking import ask
    from vlm4vla.studies.checks import Resources
    from vlm4vla.studies.choices import given
    from vlm4vla.studies.runs import RunStore
    from vlm4vla.studies.study import Questions

    named = [task_recipe(words) for words in options.ask if words]
    questions = made.asked
    if named:
        prompts = {trial.tuning.prompt for trial in made.trials if trial.tuning is not None}
        prompt: Literal["chat", "short"] = "short" if prompts == {"short"} else "chat"
        prompt = questions.prompt if questions else prompt
        questions = Questions(tasks=tuple(named), prompt=prompt)
    if questions is None:
        raise RecipeError(
            f"study {made.name!r}: has no questions of its own; name some: --ask TASK [FOLDER] [OPTION=VALUE ...]; "
            "`vlm4vla data questions` lists tasks"
        )
    say = (lambda text: None) if options.quiet else (lambda text: print(text, file=sys.stderr))
    resources = Resources(progress=not options.quiet, **given(options, "device"))
    for _ in ask(made, RunStore(options.out), questions, resources=resources, told=say):
        pass
    _report(made, options)


def _report(made: Any, options: argparse.Namespace) -> None:
    from vlm4vla.reports import asked
    from vlm4vla.reports.ability import ability_tables
    from vlm4vla.reports.findings import findings, incomplete
    from vlm4vla.reports.scores import score
    from vlm4vla.reports.study_page import main_table, write_index, write_study_report
    from vlm4vla.studies.mini import OWN_STUDIES
    from vlm4vla.studies.paper import STUDIES

    out = options.out / "reports"
    path = write_study_report(made, options.out, out / made.name)
    scores = score(made, options.out)
    answered, unreadable = asked.read(scores, options.out)
    told, lacking = findings(scores, answered), incomplete([*scores.problems, *unreadable])
    if options.json:
        print(json.dumps({"report": str(path), "findings": told, "incomplete": lacking}, indent=1))
    else:
        for table in (main_table(scores), *ability_tables(scores)):
            print(table.text(width=120), end="\n\n")
        for sentence in [*told, *lacking]:
            print(textwrap.fill(sentence, 118, initial_indent="- ", subsequent_indent="  "))
    studies = [make(options.scale) for make in (*STUDIES.values(), *OWN_STUDIES.values())]
    write_index([*studies, *([made] if made not in studies else [])], options.out, out)
    if not options.json:
        print(f"Report: {path}\nAll studies: {out / 'index.html'}")
