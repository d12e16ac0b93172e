"""`vlm4vla study NAME --plan`: rows, what is missing, and what it will take."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any


def print_plan(made: Any, options: argparse.Namespace) -> None:
    """The matrix, how far it is, what is left out and why, and what the rest will take; or all that as JSON."""
    from vlm4vla.reports.tables import DASH, Table
    from vlm4vla.studies.forecast import forecast
    from vlm4vla.studies.runs import RunStore
    from vlm4vla.studies.study import counts, state_of, tries_played

    store = RunStore(options.out)
    states = counts(made, store)
    played, tries = tries_played(made, store)
    expected = forecast(made, store, gpus=options.gpus)
    if options.json:
        rows = [
            {
                "name": row.name,
                "published": dict(row.published),
                "tuned_on": row.tuned_on,
                "trials": {
                    cell: {"name": t.name, "folder": str(store.folder(t)), "state": state_of(t, row, store)}
                    for cell, t in row.trials.items()
                },
            }
            for row in made.rows
        ]
        plan = {
            "name": made.name,
            "title": made.title,
            "question": made.question,
            "columns": made.column_names,
        }
        if made.checkpoints:
            plan["checkpoints"] = {"steps": made.checkpoints, "evaluations": tries, "played": played}
        predicted = {**dataclasses.asdict(expected), "seconds": expected.seconds}
        more = {"states": states, "forecast": predicted, "left_out": left_out_of(made), "notes": made.notes}
        print(json.dumps({**plan, "rows": rows, **more}, indent=1))
        return
    cells = tuple(
        (
            row.name,
            *(f"{row.published[c]:g}" if c in row.published else DASH for c in made.column_names),
            "; ".join(sorted({state_of(t, row, store) for t in row.trials.values()}) or ["published only"]),
        )
        for row in made.rows
    )
    heading = "published" if any(row.published for row in made.rows) else "nothing published at this scale"
    title = f"{made.title}: {made.question} ({heading})"
    print(Table(title, ("row", *made.column_names, "ours"), cells).text(width=120))
    told = ", ".join(f"{count} {state}" for state, count in states.items()) or "nothing to train"
    print(f"\nTrials: {told}. Runs: {store.root}")
    if made.checkpoints:
        print(f"Checkpoints: {played} of {tries} evaluations played.")
    for text in left_out_of(made):
        print(text)
    _print_forecast(expected)
    for note in made.notes:
        print(f"Note: {note}.")


def _about(seconds: float) -> str:
    for size, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} seconds"


def _print_forecast(expected: Any) -> None:
    """Time, then the largest training of every backbone, head and image size."""
    from vlm4vla.reports.tables import DASH, Table

    if expected.seconds:
        parts = ", ".join(
            f"{_about(seconds)} of {word}"
            for word, seconds in (
                ("tuning", expected.tune),
                ("training", expected.train),
                ("evaluation", expected.evaluate),
            )
            if seconds
        )
        print(f"\nTime left, one trial after the other, an estimate: {_about(expected.seconds)} ({parts}).")
        print(f"It assumes: {expected.assumption}.")
    if expected.unknown:
        print(f"Not in it, nothing being known of them yet: {', '.join(expected.unknown)}.")
    if not expected.memory:
        return
    rows = tuple(
        (
            need.backbone,
            need.head,
            str(need.image_size),
            str(need.samples),
            *(DASH if peak is None else f"{peak / 1e9:.1f}" for peak in (need.kept, need.again)),
        )
        for need in expected.memory
    )
    columns = ("backbone", "head", "image", "samples at once", "activations kept", "computed again")
    gpus = expected.memory[0].gpus
    where = f"each of {gpus} GPUs" if gpus > 1 else "one GPU (several: --gpus N)"
    print("\n" + Table(f"GB on {where}, an estimate", columns, rows).text(width=120))
    told = "Counted from the architecture; train.micro_batch_size takes fewer samples at once"
    if any(need.kept is None for need in expected.memory):
        told += f"; {DASH}: not known yet, `vlm4vla plan` counts it, in minutes"
    print(f"\n{told}.")


def left_out_of(made: Any) -> list[str]:
    """Why trials cannot be run yet, and what to do."""
    from vlm4vla.studies.study import impossible, left_out, runnable
    from vlm4vla.tuning.tasks import TASKS

    told = []
    never = impossible(made)
    waiting = len(made.trials) - len(runnable(made)) - len(never)
    if waiting:
        folders = " ".join(f"--data {name}=FOLDER" for name in left_out(made))
        told.append(
            f"{waiting} trials are left out: their VLMs are tuned on questions whose files lie in folders not named "
            f"yet; add {folders} (what each is: vlm4vla data questions; where from: vlm4vla study {made.name} "
            "--reproduction)"
        )
    for name in sorted(set(never.values())):
        trials = ", ".join(trial.name for trial, task in never.items() if task == name)
        why = f": {TASKS[name].about}" if name in TASKS else ""
        told.append(f"left out, since there is nothing to tune on: {trials}{why}")
    return told
