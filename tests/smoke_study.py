"""A study that runs in half a minute: named `smoke_study:make` on a command line."""

from __future__ import annotations

from dataclasses import replace

from vlm4vla.studies.mini import mini
from vlm4vla.studies.paper import figure_4, table_4
from vlm4vla.studies.study import Scale, Study, StudyRow, with_checkpoints


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


def checkpoints(scale: Scale) -> Study:
    """Figure 4 in very small: its first row, three checkpoints."""
    whole = figure_4("mini")
    ((name, trial),) = whole.rows[0].trials.items()
    shorter = {"steps": 6, "batch_size": 8, "warmup_steps": 2, "checkpoint_every": 2, "keep_every": 0}
    trial = replace(
        trial,
        demonstrations=replace(trial.demonstrations, episodes=24),
        train=replace(trial.train, validate_every=6, **shorter),
        evaluations=(replace(trial.evaluations[0], tasks=("press",), episodes_per_task=2),),
    )
    rows = (replace(whole.rows[0], trials={name: trial}),)
    return with_checkpoints(replace(whole, name="smoke-checkpoints", rows=rows, columns=whole.columns[:1]))


def tuned(scale: Scale) -> Study:
    """Table 4's six cells in very small: actions injected or not, vision frozen or trained, twice."""
    whole = table_4("tabletop")
    rows = []
    for row in whole.rows:
        trials = {}
        for name, trial in row.trials.items():
            demonstrations = replace(trial.demonstrations, episodes=24)
            train = replace(
                trial.train, steps=6, batch_size=8, warmup_steps=2, checkpoint_every=6, validate_every=6
            )
            evaluations = tuple(
                replace(e, tasks=("press",), episodes_per_task=1) for e in trial.evaluations[:1]
            )
            tuning = trial.tuning
            if tuning is not None:
                asked = replace(tuning.tasks[0], demonstrations=demonstrations)
                shorter = replace(tuning.train, steps=4, batch_size=4, warmup_steps=1)
                tuning = replace(tuning, tasks=(asked,), train=shorter)
            trials[name] = replace(
                trial, demonstrations=demonstrations, train=train, evaluations=evaluations, tuning=tuning
            )
        rows.append(replace(row, trials=trials))
    return replace(whole, name="smoke-tuned", rows=tuple(rows))


def interrupted(scale: Scale) -> Study:
    """One row of the smoke study, and the same with a VLM that is tuned before."""
    whole = make(scale)
    ((name, trial),) = whole.rows[0].trials.items()
    tuning = next(t.tuning for t in tuned(scale).trials if t.tuning is not None)
    task = replace(tuning.tasks[0], demonstrations=trial.demonstrations)
    tuning = replace(tuning, backbone=trial.policy.backbone, tasks=(task,))
    row = StudyRow(name="tuned", trials={name: replace(trial, name="tuned", tuning=tuning)})
    return replace(whole, name="interrupted", rows=(whole.rows[0], row))
