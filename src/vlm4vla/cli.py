"""The command `vlm4vla`: results go to stdout, all else to stderr; nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm4vla import __version__
from vlm4vla.cli_common import not_negative, positive, resources_of, show_report, workers
from vlm4vla.cli_data import add_commands as cli_data_commands
from vlm4vla.cli_data import data_sets
from vlm4vla.cli_doctor import doctor
from vlm4vla.cli_evaluate import add_command as add_evaluate
from vlm4vla.cli_plan import add_command as add_plan
from vlm4vla.cli_replay import add_command as add_replay
from vlm4vla.cli_serve import add_command as add_serve
from vlm4vla.cli_simulators import add_commands as add_simulators
from vlm4vla.cli_study import add_command as add_study
from vlm4vla.cli_tune import add_commands as add_tune
from vlm4vla.cli_why import add_command as add_why
from vlm4vla.core.errors import RecipeError, RunError, VLAError
from vlm4vla.core.recipes import HEADS

if TYPE_CHECKING:
    from vlm4vla.core.recipes import Trial

_AGAIN = "interrupted; the same command goes on where it stopped"
Command = Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0, 1 for an error told in one line, 2 for a wrong command line, 130 for Ctrl-C."""
    options = build_parser().parse_args(arguments)
    command: Command = options.command
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        command(options)
    except VLAError as error:
        print(f"vlm4vla: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"vlm4vla: {_AGAIN}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        print(
            f"vlm4vla: error: {error}; what was finished is kept, and the same command goes on",
            file=sys.stderr,
        )
        return 1
    return 0


def quickstart(options: argparse.Namespace) -> None:
    """Demonstrations, policies, rollouts, report."""
    from vlm4vla.studies import presets
    from vlm4vla.studies.choices import given
    from vlm4vla.studies.parallel import run_trials
    from vlm4vla.studies.runs import RunStore

    chosen = given(options, "weights", "head", "demonstrations", "steps", "episodes", "seed")
    if options.backbone:
        chosen["backbones"] = options.backbone
    trials = presets.quickstart(**chosen)
    out: Path = options.out
    resources = resources_of(options, demonstration_processes=options.processes)
    store = RunStore(out)
    try:
        run_trials(trials, store, processes=options.processes, resources=resources, notes=_notes())
    except RunError:
        if any(store.folder(trial).exists() for trial in trials):
            with contextlib.suppress(VLAError):  # what the others found; the first error is the one to tell
                show_report(out, title="Quickstart", as_json=options.json)
        raise
    show_report(out, title="Quickstart", as_json=options.json)


def models(options: argparse.Namespace) -> None:
    """What a backbone can be called."""
    from vlm4vla.policies.catalogue import cards
    from vlm4vla.reports.tables import DASH, Table

    if options.json:
        print(json.dumps([dataclasses.asdict(card) for card in cards()], indent=1))
        return

    def millions(count: int | None) -> str:
        return DASH if count is None else f"{count / 1e6:,.1f}" if count >= 1e8 else f"{count / 1e6:.2f}"

    columns = ("name", "parameters", "loaded", "paper", "head", "new", "tokens", "pixels", "where")
    rows = tuple(
        (
            card.name,
            *(millions(count) for count in (card.parameters, card.loaded)),
            DASH if card.published_millions is None else f"{card.published_millions:,}",
            millions(card.head),
            DASH if card.new_share is None else f"{card.new_share:.2%}",
            *(DASH if value is None else str(value) for value in (card.image_tokens, card.image_size)),
            card.location.partition(":")[0],
        )
        for card in cards()
    )
    print(Table("Backbones (parameters in millions)", columns, rows).text(width=120))
    print(
        "\nparameters: with the vocabulary head, as the paper's Table 9 counts; loaded: without it; head: the\n"
        "paper's, at chunk 10; new: query and head over loaded; tokens, pixels: of an image; "
        f"{DASH}: known once its checkpoint is there.\n"
        "`vlm4vla models show NAME` adds the prompt. Any other VLM: its folder or organisation/name."
    )


def show_model(options: argparse.Namespace) -> None:
    """One backbone in full."""
    from vlm4vla.core.errors import unknown_name
    from vlm4vla.policies.catalogue import cards

    known = {card.name: dataclasses.asdict(card) for card in cards()}
    if options.name not in known:
        raise unknown_name("backbone", options.name, known)
    if options.json:
        print(json.dumps(known[options.name], indent=1))
        return
    for name, value in known[options.name].items():
        text = (
            f"{value:,}" if isinstance(value, int) else f"{value:.4%}" if isinstance(value, float) else value
        )
        shown = "unknown without its checkpoint" if text is None else text.replace("\n", "\\n")
        print(f"{name.replace('_', ' '):<20}{shown}")


def check_model(options: argparse.Namespace) -> None:
    """Run the conformance battery on a backbone."""
    from vlm4vla.backbones.backbone import Backbone
    from vlm4vla.core.errors import BackboneError
    from vlm4vla.policies.conformance import examine
    from vlm4vla.reports.tables import Table

    backbone = Backbone.from_pretrained(options.name, image_size=options.image_size, weights=options.weights)
    findings = list(examine(backbone))
    if options.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        rows = tuple((f.check, "passed" if f.passed else "FAILED", f.measured) for f in findings)
        title = f"{options.name} ({type(backbone.vlm).__name__})"
        print(Table(title, ("check", "result", "measured"), rows).text(width=110))
    failed = [f"{f.check} ({f.why})" for f in findings if not f.passed]
    if failed:
        raise BackboneError(
            f"{options.name}: {len(failed)} of {len(findings)} checks failed: {'; '.join(failed)}"
        )


def export_model(options: argparse.Namespace) -> None:
    """Take the VLM out of a policy, for plain transformers."""
    from vlm4vla.policies.vla import VLA

    if options.out.exists():
        raise RecipeError(f"{options.out}: exists already; delete it or choose another folder")
    vla = VLA.from_pretrained(options.checkpoint)
    original = options.original or vla.recipe.backbone
    vla.backbone.export(options.out, original=original)
    size = sum(path.stat().st_size for path in options.out.iterdir())
    if options.json:
        print(json.dumps({"folder": str(options.out), "bytes": size}))
        return
    print(
        f"{options.out}: {size / 1e6:,.1f} MB. transformers.AutoModelForImageTextToText.from_pretrained reads it, and "
        f"so does --backbone {options.out}"
    )


def survey_models(options: argparse.Namespace) -> None:
    """Which architectures of the installed transformers carry the query token."""
    from vlm4vla.backbones import survey

    survey.report(options.names, options.markdown)


def build_tiny(options: argparse.Namespace) -> None:
    """Pretrain tiny backbones."""
    from vlm4vla.backbones.tiny import TINY_SIZES
    from vlm4vla.studies.choices import given
    from vlm4vla.tuning.pretrain import build

    _one_thread()
    names = [f"tiny-{family}" for family in TINY_SIZES] if options.name == "all" else [options.name]
    folders = []
    for name in names:
        chosen = given(options, "scenes", "steps", "seed", "processes")
        folders.append(build(name, options.out / name, progress=not options.quiet, **chosen))
    for folder in folders:
        card = json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))
        print(
            json.dumps({"folder": str(folder), **card["scores"]})
            if options.json
            else f"{folder}: {card['scores']}"
        )


def train(options: argparse.Namespace) -> None:
    """One trial: demonstrations, training, evaluation."""
    from vlm4vla.studies.choices import chosen_trial
    from vlm4vla.studies.execute import run_trial
    from vlm4vla.studies.runs import RunStore

    trial = chosen_trial(options)
    if options.plan:
        _plan(trial, options)
        return
    out: Path = options.out or Path("runs") / options.preset.rpartition(":")[2]
    resources = resources_of(
        options,
        demonstration_processes=options.processes,
        train_processes=options.processes,
        mirrors=tuple(options.mirror),
    )
    store = RunStore(out)
    _say(options, f"{trial.name}: {store.folder(trial)}")
    run_trial(trial, store, resources=resources, evaluated=not options.no_evaluate, notes=_notes())
    show_report(out, title=trial.name, as_json=options.json)


def _plan(trial: Trial, options: argparse.Namespace) -> None:
    """What a training would do, with sources for the paper's presets."""
    from vlm4vla.core import recipes
    from vlm4vla.reports.tables import Table
    from vlm4vla.studies.checks import check_recipe
    from vlm4vla.studies.paper_presets import PAPER_PRESETS
    from vlm4vla.studies.paper_settings import settings_of

    check_recipe(trial)
    if options.json:
        print(json.dumps(recipes.to_json(trial), indent=1))
        return
    title = f"{trial.name}: nothing was started"
    rows: tuple[tuple[str, ...], ...]
    if options.preset in PAPER_PRESETS:
        settings = settings_of(options.preset, trial)
        rows = tuple((s.name, s.here, s.paper, s.released, s.source) for s in settings)
        columns: tuple[str, ...] = ("setting", "this recipe", "paper", "released code", "source")
    else:
        sections = [
            ("policy", trial.policy),
            ("demonstrations", trial.demonstrations),
            ("train", trial.train),
        ]
        sections += [("evaluation", evaluation) for evaluation in trial.evaluations]
        columns = ("section", "field", "value")
        rows = tuple(
            (section, name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
            for section, recipe in sections
            for name, value in recipes.to_json(recipe).items()
        )
    print(Table(title, columns, rows).text(width=120))


def report(options: argparse.Namespace) -> None:
    """Write page, results and tables again."""
    records_of = options.folder
    show_report(records_of, title=options.title or records_of.resolve().name, as_json=options.json)
    if options.episodes is not None:
        from vlm4vla.reports.episodes import write_episodes
        from vlm4vla.reports.records import collect

        count = write_episodes(collect(records_of), records_of, options.episodes)
        print(f"{count:,} episodes: {options.episodes}", file=sys.stderr)
    if options.readme is not None:
        _write_readme(options.readme, records_of, section=options.section)


def _write_readme(readme: Path, out: Path, *, section: str) -> None:
    """Replace what stands between the section's two markers."""
    from vlm4vla.reports.records import collect
    from vlm4vla.reports.results import write_whole
    from vlm4vla.reports.tables import markdown

    text = readme.read_text(encoding="utf-8")
    begin, end = f"<!-- {section}:begin -->", f"<!-- {section}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise RecipeError(f"{readme}: needs the lines {begin} and {end}, once each and in this order")
    before, _, rest = text.partition(begin)
    write_whole(readme, f"{before}{begin}\n{markdown(collect(out))}{end}{rest.partition(end)[2]}")


def _notes() -> Mapping[str, Any]:
    return {"command": " ".join(["vlm4vla", *sys.argv[1:]])}


def _say(options: argparse.Namespace, text: str) -> None:
    if not options.quiet:
        print(text, file=sys.stderr)


def _one_thread() -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(1)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def build_parser() -> argparse.ArgumentParser:
    """Every command and option."""
    parser = argparse.ArgumentParser(
        prog="vlm4vla",
        description="Turn a vision-language model into a robot policy, train it, roll it out, report.",
        epilog="First time here: vlm4vla quickstart --out runs/quickstart",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Command, text: str, *, into: Any = commands) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = into.add_parser(name, help=text, description=text)
        made.set_defaults(command=command)
        made.add_argument("--json", action="store_true", help="the result as JSON on stdout")
        made.add_argument("--quiet", action="store_true", help="no progress")
        return made

    def work(made: argparse.ArgumentParser, *, processes: int | None = None, videos: int = 2) -> None:
        if processes is not None:
            made.add_argument(
                "--processes", type=positive, default=processes, help=f"at work (default {processes})"
            )
        made.add_argument(
            "--workers",
            type=workers,
            help="processes that step environments, or auto; 0: none beside, but one for simulators",
        )
        made.add_argument("--videos", type=not_negative, default=videos, help=f"per task (default {videos})")
        made.add_argument("--device", help="auto, cpu or cuda (default auto)")

    def size(made: argparse.ArgumentParser) -> None:
        made.add_argument("--weights", choices=("pretrained", "random"), help="where training starts from")
        made.add_argument("--head", choices=HEADS, help="action head (default: mlp, the paper's)")
        made.add_argument("--demonstrations", type=not_negative, metavar="N", help="how many to train on")
        made.add_argument("--steps", type=not_negative, metavar="N", help="training steps")
        made.add_argument("--episodes", type=not_negative, metavar="N", help="per task and evaluation")
        made.add_argument("--seed", type=not_negative, metavar="N")

    made = add("quickstart", quickstart, "The whole pipeline in minutes without a GPU: ends with a report.")
    made.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="default: runs/quickstart")
    made.add_argument("--backbone", action="append", metavar="NAME|FOLDER", help="may be repeated")
    size(made)
    work(made, processes=2)

    made = add("models", models, "Backbones that have a name.")
    inner = made.add_subparsers(metavar="")
    made = add("show", show_model, "One of them in full, with its prompt.", into=inner)
    made.add_argument("name", metavar="NAME")
    made = add("check", check_model, "Does a VLM do what a policy relies on? A table of checks.", into=inner)
    made.add_argument("name", metavar="NAME|FOLDER", help="a registered name, organisation/name or a folder")
    made.add_argument("--image-size", type=positive, default=224, metavar="N", help="pixels; default 224")
    made.add_argument("--weights", choices=("pretrained", "random"), default="pretrained")
    made = add("export", export_model, "Take the VLM out of a policy, for plain transformers.", into=inner)
    made.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a policy's folder")
    made.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    made.add_argument(
        "--original", metavar="NAME|FOLDER", help="whose vocabulary head; default: the recipe's backbone"
    )
    made = add(
        "survey", survey_models, "Try the query on every architecture that transformers knows.", into=inner
    )
    made.add_argument("names", nargs="*", metavar="ARCHITECTURE", help="default: all, half a minute")
    made.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here")
    made = add("build-tiny", build_tiny, "Pretrain a tiny backbone from random weights.", into=inner)
    made.add_argument("name", metavar="NAME|all", help="tiny-qwen3-vl, ...")
    made.add_argument("--out", type=Path, default=Path("runs/models"), help="its folder is OUT/NAME")
    made.add_argument("--scenes", type=not_negative, metavar="N", help="pictures to learn from")
    made.add_argument("--steps", type=not_negative, metavar="N", help="of each stage")
    made.add_argument("--seed", type=not_negative, metavar="N")
    made.add_argument("--processes", type=positive, metavar="N", help="that make pictures")

    made = add("train", train, "Train one policy: demonstrations, training, evaluation, report.")
    made.add_argument("preset", metavar="PRESET", help="tabletop, calvin, bridge, libero, or module:function")
    made.add_argument("--backbone", metavar="NAME|FOLDER", help="see vlm4vla models")
    made.add_argument("--out", type=Path, help="default: runs/PRESET")
    made.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="change the recipe"
    )
    made.add_argument(
        "--data", action="append", metavar="FOLDER|URL", help="where the demonstrations lie; may be repeated"
    )
    made.add_argument("--variant", choices=("paper", "released"), help="of calvin, bridge and libero")
    made.add_argument("--plan", action="store_true", help="print the recipe and its sources, start nothing")
    made.add_argument("--no-evaluate", action="store_true", help="train only")
    made.add_argument(
        "--mirror", action="append", default=[], help="copy metrics to tensorboard, trackio or wandb"
    )
    size(made)
    work(made, processes=2)

    add_plan(add)
    add_replay(add)
    add_simulators(add)
    add_study(add, work)
    add_why(add)
    add_tune(add)

    made = add("data", data_sets, "Demonstrations on disk: look at them, count them, pack them.")
    cli_data_commands(add, made)

    add("doctor", doctor, "What this machine has and lacks, each finding with its remedy.")

    add_evaluate(add, work)
    add_serve(add)

    made = add(
        "report", report, "Write report.html, results.json and results.csv of a run folder; print tables."
    )
    made.add_argument("folder", type=Path, metavar="OUT", help="where quickstart or train wrote to")
    made.add_argument("--title")
    made.add_argument(
        "--episodes",
        type=Path,
        metavar="FILE",
        help="also write every episode, with its trial, checkpoint, evaluation and versions, to a .jsonl or .parquet",
    )
    made.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="also write the tables into a Markdown file, between two markers",
    )
    made.add_argument(
        "--section",
        default="results",
        metavar="NAME",
        help="which: <!-- NAME:begin --> to <!-- NAME:end -->; default results",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
