"""`vlm4vla data`: look at demonstrations, check them, count them, pack and convert them."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm4vla.core.errors import DataError, RecipeError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float32

    from vlm4vla.core.types import Demonstration
    from vlm4vla.demonstrations.indexed import Place
    from vlm4vla.demonstrations.recordings import Reader

_JPEG_QUALITY = 95


def add_commands(add: Callable[..., argparse.ArgumentParser], made: argparse.ArgumentParser) -> None:
    """The commands under `vlm4vla data`; `add` makes one as the rest of the command line does."""
    inner = made.add_subparsers(metavar="")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        parser = add(name, run, text, into=inner)
        parser.add_argument("source", metavar="SOURCE", help="what they are: see vlm4vla data")
        parser.add_argument("folder", metavar="FOLDER|URL", help="where they lie")
        parser.add_argument("--camera", default="", help="whose frames; default: the source's")
        parser.add_argument("--format", default="", help="of the files; default: the source's")
        parser.add_argument("--transforms", metavar="NAME,NAME", help="instead of the source's; '' for none")
        parser.add_argument(
            "--actions", default="", metavar="SOURCE", help="whose convention the actions have"
        )
        parser.add_argument(
            "--episodes", type=int, default=0, metavar="N", help="spread over the files; 0: all"
        )
        return parser

    def faulty(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--faulty",
            choices=("error", "drop"),
            default="error",
            help="an episode with a fault: stop (default), or leave it out and say so",
        )

    command("stats", stats, "Exact statistics of the actions, and how they differ from published ones.")
    parser = command("view", view, "A picture of frames and histograms: wrong cameras and flips are seen.")
    parser.add_argument(
        "--out", type=Path, default=Path("demonstrations.png"), help="default: demonstrations.png"
    )
    parser.add_argument(
        "--shown", type=int, default=5, metavar="N", help="episodes on the picture; default 5"
    )
    parser = command("check", check, "What is wrong: damaged frames, numbers that are none, missing words.")
    parser.add_argument(
        "--decode",
        choices=("none", "sample", "all"),
        default="sample",
        help="which frames; default: three an episode",
    )
    parser.add_argument("--bound", type=float, metavar="X", help="largest magnitude an action may have")
    parser = command("convert", convert, "Write a LeRobotDataset v3.0, which LeRobot opens too.")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    faulty(parser)
    parser.add_argument("--video", action="store_true", help="H.264 instead of JPEGs: a tenth of the size")
    parser.add_argument("--fps", type=int, metavar="N", help="steps a second, where the files do not say")
    parser = add("make", make, "Demonstrations of the embedded benchmark, packed.", into=inner)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument("--episodes", type=int, default=100, metavar="N", help="default 100")
    parser.add_argument("--image-size", type=int, metavar="N", help="pixels; default 64")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="default 2")
    parser = add("questions", questions, "A picture of what a VLM can be tuned on.", into=inner)
    parser.add_argument("task", nargs="?", metavar="TASK", help="default: list them")
    parser.add_argument(
        "folder", nargs="?", type=Path, metavar="FOLDER", help="of its files, where it has any"
    )
    parser.add_argument("--out", type=Path, default=Path("questions.png"), help="default: questions.png")
    parser.add_argument("--shown", type=int, default=12, metavar="N", help="conversations; default 12")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="split=test, seed=1, ..."
    )
    parser = command("pack", pack, "Copy columns and frames into a folder that is read fastest.")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    faulty(parser)
    parser.add_argument(
        "--jpeg-quality", type=int, metavar="N", help="make JPEGs of raw frames; without it nothing is lost"
    )


def make(options: argparse.Namespace) -> None:
    """Demonstrations of the embedded benchmark's expert, packed."""
    from vlm4vla.benchmarks.tabletop import generate
    from vlm4vla.core.recipes import DemonstrationRecipe
    from vlm4vla.demonstrations.packed import write_packed
    from vlm4vla.studies.choices import given

    recipe = DemonstrationRecipe(**given(options, "episodes", "image_size", "seed"))
    packed = write_packed(
        generate.generate_demonstrations(recipe, processes=options.processes),
        options.out,
        name=generate.NAME,
        action_spec=generate.SPEC,
        fingerprint=generate.demonstrations_fingerprint(recipe),
    )
    counts = packed.manifest["counts"]
    print(
        json.dumps({"folder": str(packed.folder), **counts}) if options.json else f"{packed.folder}: {counts}"
    )


def convert(options: argparse.Namespace) -> None:
    """A LeRobotDataset v3.0."""
    from vlm4vla.demonstrations.datasets import data_set
    from vlm4vla.demonstrations.lerobot_writer import write_lerobot

    place, reader = _find(options)
    fps = options.fps or data_set(place.source).fps or getattr(reader, "info", {}).get("fps")
    if not fps:
        raise RecipeError(
            f"{place.folder}: its files do not say how many steps a second they have; give --fps"
        )
    written = write_lerobot(
        (made for _, made in _made(options, place, reader)),
        options.out,
        name=place.source,
        action_spec=place.action_spec,
        fps=int(fps),
        video=options.video,
        scripted=reader.scripted,
    )
    info = json.loads((written / "meta" / "info.json").read_text(encoding="utf-8"))
    counts = {"episodes": info["total_episodes"], "frames": info["total_frames"]}
    size = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
    if options.json:
        print(json.dumps({"folder": str(written), **counts, "bytes": size}))
        return
    print(
        f"{written}: {counts['episodes']:,} episodes, {counts['frames']:,} frames, {size / 1e6:,.1f} MB\n"
        f"Train on it: vlm4vla train PRESET --set demonstrations.source=lerobot --data {written}"
    )


def data_sets(options: argparse.Namespace) -> None:
    """The sources that have a name."""
    from vlm4vla.demonstrations.datasets import DATA_SETS
    from vlm4vla.reports.tables import DASH, Table

    if options.json:
        print(json.dumps({name: dataclasses.asdict(facts) for name, facts in DATA_SETS.items()}, indent=1))
        return
    rows = tuple(
        (name, facts.format, ", ".join(facts.transforms) or DASH, facts.about)
        for name, facts in DATA_SETS.items()
    )
    print(Table("Demonstrations on disk", ("source", "files", "transforms", "what"), rows).text(width=120))


def stats(options: argparse.Namespace) -> None:
    """Exact quantiles behind the transforms, before any normalisation."""
    from vlm4vla.demonstrations.statistics import PUBLISHED, describe
    from vlm4vla.reports.tables import DASH, Table

    place, reader = _find(options)
    actions, counts = _actions(options, place, reader)
    columns = describe(actions)
    known = PUBLISHED.get(place.source)
    if options.json:
        result: dict[str, Any] = {"source": place.source, **counts, "missing": dict(reader.missing)}
        result["columns"] = [dataclasses.asdict(column) for column in columns]
        result["published"] = None if known is None else dataclasses.asdict(known)
        print(json.dumps(result, indent=1))
        return
    rows = []
    for index, column in enumerate(columns):
        numbers = (
            column.least,
            column.q01,
            column.median,
            column.q99,
            column.most,
            column.mean,
            column.deviation,
        )
        against = (DASH, DASH)
        if known is not None and index < len(known.q01):
            against = (f"{column.q01 - known.q01[index]:+.3g}", f"{column.q99 - known.q99[index]:+.3g}")
        rows.append((column.name, *(f"{number:.4g}" for number in numbers), *against))
    names: tuple[str, ...] = ("dimension", "least", "1 %", "median", "99 %", "most", "mean", "deviation")
    if known is not None:
        names = (*names, "1 % - published", "99 % - published")
    title = f"{place.source}: {counts['episodes']:,} episodes, {counts['steps']:,} steps"
    print(Table(title, names, tuple(row[: len(names)] for row in rows)).text(width=120))
    print(f"\n{_told(reader, counts)}")
    if known is not None:
        print(
            f"Published statistics are of {known.trajectories:,} episodes, {known.transitions:,} steps: you have "
            f"{counts['episodes'] / known.trajectories:.1%} of the episodes."
        )


def check(options: argparse.Namespace) -> None:
    """Every fault with its place and remedy; an error of the command when there is one that spoils training."""
    from vlm4vla.demonstrations.quality import examine

    place, reader = _find(options)
    report = examine(reader, decode=options.decode, bound=options.bound)
    if options.json:
        shown = {**dataclasses.asdict(report), "missing": dict(reader.missing)}
        print(json.dumps({**shown, "counts": dict(report.counts)}, indent=1))
    else:
        for line in report.lines():
            print(line)
    if report.total("error"):
        raise DataError(
            f"{place.folder}: {report.total('error'):,} errors; `data pack ... --faulty drop` leaves such episodes "
            "out"
        )


def view(options: argparse.Namespace) -> None:
    """A contact sheet."""
    from PIL import Image

    from vlm4vla.demonstrations.view import contact_sheet

    place, reader = _find(options)
    actions, counts = _actions(options, place, reader)
    few = argparse.Namespace(**{**vars(options), "episodes": min(options.shown, counts["episodes"])})
    shown = [made for _, made in _made(few, place, reader)]
    Image.fromarray(contact_sheet(shown, actions, place.action_spec)).save(options.out)
    print(
        json.dumps({"picture": str(options.out)})
        if options.json
        else f"{options.out}\n{_told(reader, counts)}"
    )


def questions(options: argparse.Namespace) -> None:
    """The tasks that have a name, or a contact sheet of one."""
    from PIL import Image

    from vlm4vla.reports.tables import Table
    from vlm4vla.tuning.sheet import question_sheet, spread
    from vlm4vla.tuning.tasks import TASKS, open_task

    if options.task is None:
        if options.json:
            print(json.dumps({name: dataclasses.asdict(facts) for name, facts in TASKS.items()}, indent=1))
            return
        rows = tuple((name, facts.about, "" if facts.verified else "partly") for name, facts in TASKS.items())
        print(Table("What a VLM can be tuned on", ("task", "what", "guessed"), rows).text(width=120))
        return
    if options.shown < 1:
        raise RecipeError(f"--shown {options.shown}: at least one conversation makes a picture")
    given = [text.partition("=") for text in options.option]
    source = open_task(options.task, options.folder, **{name: value for name, _, value in given})
    Image.fromarray(question_sheet(spread(source, options.shown))).save(options.out)
    told = {"picture": str(options.out), "conversations": len(source), "fingerprint": source.fingerprint}
    print(json.dumps(told) if options.json else f"{options.out}\n{len(source):,} conversations")


def pack(options: argparse.Namespace) -> None:
    """A packed folder."""
    from vlm4vla.core.recipes import fingerprint
    from vlm4vla.demonstrations.packed import write_packed

    place, reader = _find(options)
    identity = fingerprint(
        reader.fingerprint,
        list(place.transforms),
        place.action_spec.to_json(),
        options.episodes,
        options.jpeg_quality,
    )
    packed = write_packed(
        (made for _, made in _made(options, place, reader)),
        options.out,
        name=place.source,
        action_spec=place.action_spec,
        fingerprint=identity,
        scripted=reader.scripted,
        jpeg_quality=options.jpeg_quality,
    )
    counts = packed.manifest["counts"]
    size = sum(facts["bytes"] for facts in packed.manifest["files"].values())
    if options.json:
        print(json.dumps({"folder": str(packed.folder), **counts, "bytes": size}))
        return
    print(
        f"{packed.folder}: {counts['episodes']:,} episodes, {counts['frames']:,} frames, {size / 1e6:,.1f} MB\n"
        f"Train on it: vlm4vla train PRESET --set demonstrations.source=packed --data {packed.folder}"
    )


def _find(options: argparse.Namespace) -> tuple[Place, Reader]:
    from vlm4vla.demonstrations.indexed import find
    from vlm4vla.demonstrations.remote import local

    chosen = None
    if options.transforms is not None:
        chosen = tuple(name for name in options.transforms.split(",") if name)
    return find(
        options.source,
        str(local(options.folder)),
        format=options.format,
        camera=options.camera,
        transforms=chosen,
        actions=options.actions,
    )


def _made(options: argparse.Namespace, place: Place, reader: Reader) -> Iterator[tuple[int, Demonstration]]:
    from vlm4vla.demonstrations.indexed import demonstrations_of

    def show(count: int, total: int) -> None:
        if not options.quiet and sys.stderr.isatty() and (count % 50 == 0 or count == total):
            print(f"\r{count:,} of {total:,} read", end="\n" if count == total else "", file=sys.stderr)

    def drop(error: DataError) -> None:
        print(f"left out: {error}", file=sys.stderr)

    on_fault = drop if getattr(options, "faulty", "error") == "drop" else None
    return demonstrations_of(place, reader, episodes=options.episodes, progress=show, on_fault=on_fault)


def _actions(
    options: argparse.Namespace, place: Place, reader: Reader
) -> tuple[Float32[np.ndarray, "steps 7"], dict[str, int]]:
    """Of all episodes, and how many they are."""
    import numpy as np

    kept = [made.actions for _, made in _made(options, place, reader)]
    if not kept:
        raise DataError(f"{place.folder}: none of {len(reader)} recordings is left after the transforms")
    actions = np.concatenate(kept)
    return actions, {"read": len(reader), "episodes": len(kept), "steps": len(actions)}


def _told(reader: Reader, counts: dict[str, int]) -> str:
    """How many recordings there are, which are missing, which were left out."""
    parts = [
        f"{counts['read']:,} recordings, {counts['read'] - counts['episodes']:,} left out or not asked for"
    ]
    parts += [f"{count:,} {what} missing" for what, count in itertools.islice(reader.missing.items(), 9)]
    parts += [reader.scripted] if reader.scripted else []
    return "; ".join(parts) + "."
