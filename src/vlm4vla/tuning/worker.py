"""One tuning process as a program, alone or under torchrun:

torchrun --nproc-per-node 8 -m vlm4vla.tuning.worker TUNING.json OUT [--source 0=FOLDER] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from vlm4vla.core.errors import VLAError
from vlm4vla.core.recipes import TuneRecipe, from_json
from vlm4vla.training.mirrors import MIRRORS
from vlm4vla.tuning.loop import tune
from vlm4vla.tuning.mixture import open_source


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune; errors meant for users are printed without a traceback. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m vlm4vla.tuning.worker", description=__doc__)
    parser.add_argument("recipe", type=Path, help="the TuneRecipe as JSON")
    parser.add_argument("out", type=Path, help="the tuning's folder: metrics and checkpoints")
    parser.add_argument(
        "--demonstrations", action="append", default=[], metavar="TASK=FOLDER", help="of task number ..."
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--sharding", default="auto", choices=["auto", "full", "none"])
    parser.add_argument("--provenance", type=Path, help="a JSON object to keep in every checkpoint")
    parser.add_argument("--mirror", action="append", default=[], choices=MIRRORS)
    parser.add_argument("--stop-after", type=int, help="stop, with a checkpoint, after so many steps in all")
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    options = parser.parse_args(arguments)
    if options.device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # at these sizes a second thread costs more than it brings
    try:
        recipe = from_json(
            TuneRecipe, json.loads(options.recipe.read_text(encoding="utf-8")), where=str(options.recipe)
        )
        folders = dict(text.split("=", 1) for text in options.demonstrations)
        sources = [
            open_source(replace(task, path=folders.get(str(number), task.path), demonstrations=None))
            for number, task in enumerate(recipe.tasks)
        ]
        tune(
            recipe,
            options.out,
            sources,
            device=options.device,
            progress=not options.quiet,
            provenance=json.loads(options.provenance.read_text()) if options.provenance else None,
            stop_after=options.stop_after,
            mirrors=options.mirror,
            sharding=options.sharding,
        )
    except VLAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
