"""One tuning process as a program, alone or under torchrun:

torchrun --nproc-per-node 8 -m vlm4vla.tuning.worker TUNING.json OUT [--demonstrations 0=FOLDER] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlm4vla.core.recipes import TuneRecipe, from_json
from vlm4vla.training.worker import carry_out, shared
from vlm4vla.tuning.loop import tune
from vlm4vla.tuning.mixture import open_source


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune; errors meant for users are printed without a traceback. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m vlm4vla.tuning.worker", description=__doc__)
    parser.add_argument("recipe", type=Path, help="the TuneRecipe as JSON")
    parser.add_argument(
        "--demonstrations", action="append", default=[], metavar="TASK=FOLDER", help="of task number ..."
    )

    def work(options: argparse.Namespace) -> None:
        recipe = from_json(
            TuneRecipe, json.loads(options.recipe.read_text(encoding="utf-8")), where=str(options.recipe)
        )
        folders = dict(text.split("=", 1) for text in options.demonstrations)
        sources = [
            open_source(replace(task, path=folders.get(str(number), task.path), demonstrations=None))
            for number, task in enumerate(recipe.tasks)
        ]
        tune(recipe, options.out, sources, **shared(options))

    return carry_out(parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
