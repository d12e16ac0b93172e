"""A study that runs in half a minute: named `smoke_study:make` on a command line."""

from __future__ import annotations

from dataclasses import replace

from vlm4vla.studies.mini import mini
from vlm4vla.studies.study import Scale, Study


def make(scale: Scale) -> Study:
    """One backbone, pretrained and from scratch; a few steps of training and one task."""
    whole = mini(scale, steps=12, demonstrations=24)
    rows = []
    for row in (whole.rows[0], whole.rows[2]):
        trials = {}
        for name, trial in list(row.trials.items())[:1]:
            shorter = replace(trial.train, batch_size=8, checkpoint_every=4, validate_every=4)
            evaluations = tuple(replace(e, tasks=("press",), episodes_per_task=2) for e in trial.evaluations)
            trials[name] = replace(trial, train=shorter, evaluations=evaluations)
        rows.append(replace(row, trials=trials))
    return replace(whole, name="smoke", rows=tuple(rows))
