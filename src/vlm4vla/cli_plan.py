"""`vlm4vla plan`: will a training fit, before a GPU is rented."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable


def add_command(add: Callable[..., argparse.ArgumentParser]) -> None:
    """`add` makes a command as the rest of the command line does."""
    made = add("plan", plan, "Memory of a training step, counted without weights. The recipe: train --plan.")
    made.add_argument("preset", nargs="?", default="calvin", metavar="PRESET", help="default: calvin")
    made.add_argument("--backbone", metavar="NAME|FOLDER", help="see vlm4vla models")
    made.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="that share a training (FSDP2); default 1"
    )
    made.add_argument(
        "--micro-batch", type=int, default=0, metavar="N", help="samples a GPU at once; default: its share"
    )
    made.add_argument(
        "--text-tokens", type=int, default=48, metavar="N", help="of prompt and instruction; default 48"
    )
    made.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="change the recipe"
    )
    made.add_argument("--head", help="action head (default: mlp)")
    for name in ("variant", "data", "weights", "seed"):
        made.set_defaults(**{name: None})


def plan(options: argparse.Namespace) -> None:
    """Print what each GPU holds, with activations kept and computed again, and the largest micro-batch."""
    from vlm4vla.core.errors import RecipeError
    from vlm4vla.reports.tables import Table
    from vlm4vla.studies.checks import check_recipe
    from vlm4vla.studies.choices import chosen_trial
    from vlm4vla.training import memory

    trial = chosen_trial(options)
    if options.gpus < 1 or options.micro_batch < 0 or options.text_tokens < 2:
        raise RecipeError("--gpus and --text-tokens must be positive, --micro-batch not negative")
    check_recipe(trial, processes=options.gpus)
    made = []
    for kept in (True, False):
        changed = memory.with_checkpointing(trial, not kept)
        found = memory.plan(
            changed, gpus=options.gpus, samples=options.micro_batch, text_tokens=options.text_tokens
        )
        most = {
            name: memory.largest_micro_batch(
                changed, size, gpus=options.gpus, text_tokens=options.text_tokens
            )
            for name, size in memory.GPUS.items()
        }
        made.append((found, most))
    if options.json:
        entries = [{**dataclasses.asdict(p), "fits": p.fits, "largest_micro_batch": most} for p, most in made]
        print(json.dumps(entries, indent=1))
        return
    names = ("parameters", "gradients", "optimizer", "gathered", "activations", "peak")
    rows = tuple(
        (
            "computed again" if found.checkpointed else "kept",
            *(f"{getattr(found, name) / 1e9:.2f}" for name in names),
        )
        for found, _ in made
    )
    first = made[0][0]
    title = (
        f"{trial.name}: GB on each of {options.gpus} GPU{'s' if options.gpus > 1 else ''}, "
        f"{first.samples} samples at once"
    )
    print(Table(title, ("activations", *names), rows).text(width=110))
    for found, most in made:
        how = "computed again (train.checkpoint_activations=true)" if found.checkpointed else "kept"
        fitting = [name for name, fits in found.fits.items() if fits]
        told = f"fits {', '.join(fitting)}" if fitting else f"fits none of {', '.join(memory.GPUS)}"
        largest = ", ".join(f"{count} on {name}" for name, count in most.items())
        print(f"\nActivations {how}: {told}. Largest micro-batch (train.micro_batch_size): {largest}.")
    print(
        f"\nCounted tensor by tensor; {1 - memory.USABLE:.0%} of a GPU is left to context, workspaces and fragments."
    )
