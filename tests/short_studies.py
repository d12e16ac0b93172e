"""A study on CALVIN that takes seconds: what `vlm4vla study short_studies:calvin` plays in tests."""

from __future__ import annotations

import os
from dataclasses import replace

from vlm4vla.studies.scripted import scripted
from vlm4vla.studies.study import Scale, Study


def calvin(scale: Scale) -> Study:
    """One task, one episode; demonstrations lie where SHORT_STUDY says."""
    study = scripted("calvin", scale, steps=2, folder=os.environ["SHORT_STUDY"])
    rows = []
    for row in study.rows:
        (trial,) = row.trials.values()
        evaluation = replace(trial.evaluations[0], tasks=("turn_on_led",), episodes_per_task=1, execute=5)
        rows.append(replace(row, trials={"seed 0": replace(trial, evaluations=(evaluation,))}))
    return replace(study, rows=tuple(rows), columns=study.columns[1:])
