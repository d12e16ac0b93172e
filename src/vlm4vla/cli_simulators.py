"""`vlm4vla simulators`: install them, look at them, make demonstrations with them."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vlm4vla.core.errors import SimulatorError


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """`add` makes a command as the rest of the command line does."""
    made = add("simulators", listing, "Simulators beside Tabletop: install, check, make demonstrations.")
    inner = made.add_subparsers(metavar="")
    drawn_by = "what draws: CALVIN has egl and tiny, LIBERO egl and osmesa; default egl"
    made = add("install", install, "Into an environment of its own, with exact versions.", into=inner)
    made.add_argument("name", metavar="NAME", help="calvin, libero or simpler")
    made.add_argument(
        "--from", dest="copy", type=Path, metavar="FOLDER", help="an offline copy of its models"
    )
    made.add_argument("--url", metavar="URL", help="another place of its repository")
    made.add_argument("--here", action="store_true", help="packages into this Python, not one of its own")
    made = add("check", check, "Build, draw and solve something: does it work here?", into=inner)
    made.add_argument("name", metavar="NAME", help="calvin, libero or simpler")
    made.add_argument("--renderer", metavar="NAME", help=drawn_by)
    made = add(
        "demonstrate", demonstrate, "Scripted demonstrations in the benchmark's own format.", into=inner
    )
    made.add_argument("name", metavar="NAME", help="calvin, libero or simpler")
    made.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    made.add_argument("--episodes", type=int, default=150, metavar="N", help="default 150")
    made.add_argument("--scenes", default="ABC", help="CALVIN's; default ABC, what is evaluated is D")
    made.add_argument(
        "--tasks", default="", metavar="NAME,NAME", help="or LIBERO's suites; default: the expert's"
    )
    made.add_argument("--renderer", metavar="NAME", help=drawn_by)
    made.add_argument("--seed", type=int, default=0, metavar="N")
    made.add_argument(
        "--processes", type=int, default=0, metavar="N", help="side by side; default: a core each"
    )
    made = add("pictures", pictures, "Pictures with boxes and depths, for questions about them.", into=inner)
    made.add_argument("name", metavar="NAME", help="libero")
    made.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    made.add_argument(
        "--episodes", type=int, default=25, metavar="N", help="up to 8 pictures each; default 25"
    )
    made.add_argument("--tasks", default="", metavar="NAME,NAME", help="or suites; default: the expert's")
    made.add_argument("--renderer", metavar="NAME", help=drawn_by)
    made.add_argument("--seed", type=int, default=0, metavar="N")
    made.add_argument(
        "--processes", type=int, default=0, metavar="N", help="side by side; default: a core each"
    )


def listing(options: argparse.Namespace) -> None:
    """What is there."""
    from vlm4vla.benchmarks.simulators import SIMULATORS, state
    from vlm4vla.reports.tables import Table

    states = [state(name) for name in SIMULATORS]
    if options.json:
        print(json.dumps(states, indent=1))
        return
    rows = tuple(
        (
            s["name"],
            "here" if s["here"] else "its own" if s["installed"] else "not installed",
            "there" if s["models"] else "missing",
            s["licence"],
            s["folder"],
        )
        for s in states
    )
    print(Table("Simulators", ("name", "packages", "models", "licence", "folder"), rows).text(width=120))


def install(options: argparse.Namespace) -> None:
    """Packages and models."""
    from vlm4vla.benchmarks.installing import install as install_simulator

    def say(text: str) -> None:
        if not options.quiet:
            print(text, file=sys.stderr)

    folder = install_simulator(
        options.name, copy_from=options.copy, here=options.here, say=say, url=options.url
    )
    if options.json:
        print(json.dumps({"folder": str(folder)}))


def check(options: argparse.Namespace) -> None:
    """Raises: SimulatorError when something does not work."""
    from vlm4vla.benchmarks.simulators import differences

    found = json.loads(_in_simulator(options.name, [*_program(options.name), "--check", *_drawn(options)]))
    works = found.pop("works")
    found |= {"packages": "as pinned", "models": "the published ones"}
    found |= {other.what: f"{other.found}. {other.remedy}" for other in differences(options.name)}
    found["works"] = works
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for key, value in found.items():
            print(f"{key:<12}{value}")
    if not found["works"]:
        raise SimulatorError(f"{options.name} does not work here: see above")


def demonstrate(options: argparse.Namespace) -> None:
    """Demonstrations of the scripted expert. Raises: SimulatorError."""
    split = options.out / "training" if options.name == "calvin" else options.out
    scenes = ["--scenes", options.scenes] if options.name == "calvin" else []
    found = _made(options, split, scenes)
    if options.json:
        print(json.dumps(found))
        return
    print(
        f"{found['folder']}: {found['demonstrations']} scripted demonstrations, which are not {options.name}'s own\n"
        f"Train on them: vlm4vla train {found.get('preset', options.name)} --data {found['folder']}"
        f"{found.get('settings', '')}"
    )


def _drawn(options: argparse.Namespace) -> list[str]:
    """The renderer for the simulator's program. Raises: RecipeError for one that it has not."""
    from vlm4vla.benchmarks.registry import BENCHMARKS, make_benchmark
    from vlm4vla.benchmarks.simulators import simulator
    from vlm4vla.core.recipes import EvaluationRecipe

    if options.renderer is None:
        return []
    name = simulator(options.name).benchmark
    entry = BENCHMARKS[name]
    make_benchmark(EvaluationRecipe(benchmark=name, **{**entry.defaults, "renderer": options.renderer}))
    return ["--renderer", options.renderer] if "renderer" in entry.fields.values() else []


def pictures(options: argparse.Namespace) -> None:
    """Pictures with boxes, for questions about them. Raises: SimulatorError."""
    if options.name != "libero":
        raise SimulatorError(f"{options.name}: pictures with boxes are made of libero alone")
    found = _made(options, options.out, [], module="pictures", what="episodes")
    if options.json:
        print(json.dumps(found))
        return
    print(
        f"{found['folder']}: {found['pictures']} pictures with boxes and depths\n"
        f"Look:  vlm4vla data questions boxes {found['folder']}\n"
        f"Tune:  vlm4vla tune --task boxes {found['folder']}"
    )


def _made(
    options: argparse.Namespace,
    target: Path,
    arguments: list[str],
    *,
    module: str = "demonstrate",
    what: str = "demonstrations",
) -> Any:
    """What a simulator's own program says in the end. What it makes is kept one by one, so that the same command goes
    on where it ended. Raises: SimulatorError when `target` exists, before anything is made.
    """
    from vlm4vla import __version__
    from vlm4vla.benchmarks.machine import cores
    from vlm4vla.core.recipes import fingerprint

    if target.exists():
        raise SimulatorError(f"{target}: exists already; delete it or choose another folder")
    arguments = [
        *("--episodes", str(options.episodes), "--tasks", options.tasks, "--seed", str(options.seed)),
        *arguments,
        *_drawn(options),
    ]
    identity = fingerprint(__version__, module, options.name, arguments)
    pieces = options.out.with_name(f".{options.out.name}.pieces-{identity}")
    shares = max(1, min(options.processes or cores(), options.episodes))
    command = [*_program(options.name, module), str(options.out), *arguments, "--pieces", str(pieces)]
    told = f"{options.name}: {{}} of {options.episodes} {what}{{}}"
    _make(options.name, command, told, pieces, options.episodes, shares, quiet=options.quiet)
    found = json.loads(_in_simulator(options.name, command))
    shutil.rmtree(pieces)
    return found


def _make(
    name: str, command: list[str], told: str, pieces: Path, total: int, shares: int, *, quiet: bool
) -> None:
    """Every piece, in so many processes side by side."""
    from vlm4vla.benchmarks.pieces import count
    from vlm4vla.benchmarks.workers import ONE_THREAD
    from vlm4vla.studies.display import Display, time_left

    before = count(pieces)
    with Display(shown=not quiet) as display, ExitStack() as stack:
        running = []
        for number in range(shares):
            output = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
            share = [*command, "--share", f"{number}/{shares}"]
            job = subprocess.Popen(
                share,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **ONE_THREAD},
            )
            stack.callback(job.wait)
            stack.callback(job.kill)
            running.append((job, output))
        while True:
            codes = [job.poll() for job, _ in running]
            done, over = count(pieces), all(code is not None for code in codes)
            left = time_left(display.seconds, done - before, total - before)
            display.show([told.format(done, left)], last=over)
            for code, (_, output) in zip(codes, running, strict=True):
                if code:
                    output.seek(0)
                    raise SimulatorError(
                        f"{_told(name, output.read(), code)} ({done} of {total} are kept in {pieces}; the same command "
                        "goes on)"
                    )
            if over:
                return
            display.wait()


def _in_simulator(name: str, command: list[str]) -> str:
    """The last line that the simulator's own program prints, run by the Python that has it."""
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise SimulatorError(_told(name, done.stderr, done.returncode))
    return lines[-1]


def _program(name: str, program: str = "demonstrate") -> list[str]:
    from vlm4vla.benchmarks.simulators import interpreter
    from vlm4vla.benchmarks.workers import SOURCE_ROOT

    module = f"vlm4vla.benchmarks.{name}.{program}"
    boot = f"import sys; sys.path.append({SOURCE_ROOT!r}); from {module} import main; sys.exit(main(sys.argv[1:]))"
    return [interpreter(name) or sys.executable, "-c", boot]


def _told(name: str, output: str, code: int) -> str:
    told = [line.removeprefix("error: ") for line in output.splitlines() if line.startswith("error: ")]
    ends = output.strip().splitlines()[-1:] or [f"code {code}"]
    return told[0] if told else f"{name} ended without an answer: {ends[0]}"
