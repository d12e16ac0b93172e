"""`vlm4vla why`: what training did to a policy's layers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path


def add_command(add: Callable[..., argparse.ArgumentParser]) -> None:
    """`add` makes a command as the rest of the command line does."""
    text = "What training did to a policy's layers: how far they moved, what can be read off them."
    made = add("why", why, text)
    made.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a trial's folder, or one that holds trials"
    )
    made.add_argument(
        "--look", action="append", choices=("A", "B", "C", "D"), help="default: of its evaluations"
    )
    made.add_argument("--scenes", type=int, metavar="N", help="held-out scenes to look at; default 100")
    made.add_argument(
        "--every",
        action="store_true",
        help="every checkpoint that was kept (train.keep_every), not the last alone",
    )
    made.add_argument("--device", help="auto, cpu or cuda (default auto)")


def why(options: argparse.Namespace) -> None:
    """Measure trials as far as that is not done, and print what was found."""
    from vlm4vla.core.recipes import to_json
    from vlm4vla.reports.why import layers_table
    from vlm4vla.studies.choices import given
    from vlm4vla.studies.runs import read_trial
    from vlm4vla.studies.why import runs_in
    from vlm4vla.studies.why import why as measure

    say = (lambda text: None) if options.quiet else (lambda text: print(text, file=sys.stderr))
    chosen = given(options, "scenes", "device", "every")
    found = []
    for folder in [folder for run in options.runs for folder in runs_in(run)]:
        made = measure(folder, looks=options.look or (), told=say, **chosen)
        found += [(read_trial(folder).name, path, measured) for path, measured in made]
    if options.json:
        print(json.dumps([{"name": n, "file": str(p), **to_json(m)} for n, p, m in found], indent=1))
        return
    for name, path, measured in found:
        print(layers_table(name, measured).text(width=140), f"\n{path}\n")
