"""One training process as a program, alone or under torchrun:

python -m vlm4vla.training.worker TRIAL.json DEMONSTRATIONS OUT [--device cuda]
torchrun --nproc-per-node 2 -m vlm4vla.training.worker TRIAL.json DEMONSTRATIONS OUT
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vlm4vla.core.errors import VLAError
from vlm4vla.core.recipes import Trial, from_json
from vlm4vla.demonstrations.sources import open_demonstrations
from vlm4vla.training.mirrors import MIRRORS
from vlm4vla.training.train import train


def launch_command(
    processes: int, arguments: Sequence[str], *, program: str = "vlm4vla.training.worker"
) -> list[str]:
    """The command that runs a program, this one, in so many processes on this machine, with these `arguments`."""
    module = ["-m", program, *arguments]
    if processes == 1:
        return [sys.executable, *module]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *torchrun, *module]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; errors meant for users are printed without a traceback. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m vlm4vla.training.worker", description=__doc__)
    parser.add_argument("trial", type=Path, help="the Trial as JSON")
    parser.add_argument("demonstrations", type=Path, help="a folder of demonstrations")
    parser.add_argument("--vlm", type=Path, help="the tuned VLM to start from; else the recipe's backbone")

    def work(options: argparse.Namespace) -> None:
        train(
            from_json(Trial, json.loads(options.trial.read_text(encoding="utf-8")), where=str(options.trial)),
            open_demonstrations(options.demonstrations),
            options.out,
            vlm=options.vlm,
            **shared(options),
        )

    return carry_out(parser, work, arguments)


def carry_out(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None,
) -> int:
    """Read the command line, with what all trainings take added, and work; the exit status."""
    parser.add_argument("out", type=Path, help="the run's folder: metrics and checkpoints")
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
        work(options)
    except VLAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def shared(options: argparse.Namespace) -> dict[str, Any]:
    """What `carry_out` reads for every training, as its arguments."""
    return {
        "device": options.device,
        "progress": not options.quiet,
        "provenance": json.loads(options.provenance.read_text()) if options.provenance else None,
        "stop_after": options.stop_after,
        "mirrors": options.mirror,
        "sharding": options.sharding,
    }


if __name__ == "__main__":
    sys.exit(main())
