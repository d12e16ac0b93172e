"""What the VLMs answer that a study's policies were made of: every one is asked the same held-out questions.

A VLM is asked as its policy's training started from it: pretrained, drawn, or tuned before. What it scored lies beside
the run, named by what was asked, and is not asked twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from vlm4vla.core.errors import RunError
from vlm4vla.core.recipes import Trial, fingerprint, to_json
from vlm4vla.studies.answers import FOLDER, Asked
from vlm4vla.studies.checks import Resources, is_trained
from vlm4vla.studies.runs import RunStore, read_status, write_json
from vlm4vla.studies.study import Questions, Study
from vlm4vla.tuning.scoring import VERSION, WORST, Answer


def ask(
    study: Study,
    store: RunStore,
    questions: Questions,
    *,
    resources: Resources | None = None,
    told: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[Trial, Path]]:
    """Ask the VLM of every trial that is done, as far as it was not; trials and the files of their scores.

    Raises: RunError when no trial is done; RecipeError, BackboneError, DataError as `vlm4vla score` does.
    """
    from vlm4vla.studies.tunings import answers_of, chosen
    from vlm4vla.tuning.mixture import open_source

    resources = resources or Resources()
    trials = [trial for trial in study.trials if is_trained(trial) and _is_done(trial, store)]
    if not trials:
        raise RunError(
            f"study {study.name!r}: none of its trials under {store.root} is done; `--run` does them"
        )
    for task in questions.tasks:
        source = open_source(task).fingerprint
        identity = fingerprint(VERSION, source, task.task, task.options, questions.prompt, questions.count)
        conversations = None
        for trial in trials:
            path = store.folder(trial) / FOLDER / f"{identity}.json"
            if not path.exists():
                conversations = conversations or chosen(task, questions=questions.count)
                told(f"{trial.name}: asking {task.task}")
                answers = answers_of(
                    _vlm(trial, store),
                    conversations,
                    prompt=questions.prompt,
                    weights="pretrained" if trial.tuning else trial.policy.weights,
                    seed=trial.train.seed,
                    resources=resources,
                    folder=store.root / "answers",
                )
                path.parent.mkdir(exist_ok=True)
                write_json(path, to_json(_scored(task.task, identity, answers)))
            yield trial, path


def _is_done(trial: Trial, store: RunStore) -> bool:
    status = read_status(store.folder(trial))
    return status is not None and status.state == "done"


def _vlm(trial: Trial, store: RunStore) -> str | Path:
    from vlm4vla.tuning.loop import RESULT

    return trial.policy.backbone if trial.tuning is None else store.folder(trial.tuning) / RESULT


def _scored(task: str, identity: str, answers: list[Answer]) -> Asked:
    return Asked(
        task=task,
        questions=identity,
        values=tuple(round(1 - a.value if WORST[a.measure] else a.value, 4) for a in answers),
        unreadable=sum(not a.readable for a in answers),
    )
