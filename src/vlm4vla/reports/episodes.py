"""Every recorded episode as a row of one table, with what tells it from those of other runs: for tools of one's own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vlm4vla.benchmarks.records import kept_software
from vlm4vla.core.errors import RecipeError
from vlm4vla.reports.records import EvaluationRecord, TrialRecord
from vlm4vla.reports.results import write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRow:
    """An episode of one checkpoint, evaluated in one way."""

    trial: str
    """Fingerprint of its recipe, the name of its folder."""
    name: str
    backbone: str
    weights: str
    seed: int
    """Of the training."""
    checkpoint: int
    """Step; 0 for a policy that was not trained here."""
    evaluation: str
    """Fingerprint of its recipe, the name of its folder."""
    benchmark: str
    look: str
    execute: int
    """Actions of a chunk that were carried out."""
    episode: str
    task: str
    tier: str
    goals: int
    goals_completed: int
    steps: int
    seconds: float
    actions: str
    last_image: str
    error: str | None
    """Why the program broke; such a row is in no rate."""
    commit: str | None
    """Of the checkout that began the trial."""
    versions: str
    """JSON: package to version, of the training, and `played with` those of the simulator's side."""


_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "str | None": pa.string()}


def write_episodes(records: Sequence[TrialRecord], out: Path, path: Path) -> int:
    """Write the episodes of a run folder's trials to a .jsonl or .parquet file; how many.

    Raises: RecipeError for another kind of file, RunError for damaged versions of an evaluation.
    """
    if path.suffix not in (".jsonl", ".parquet"):
        raise RecipeError(f"{path}: name a file that ends in .jsonl or .parquet")
    rows = [row for record in records for row in _rows(record, out / "trials" / record.fingerprint)]
    if path.suffix == ".jsonl":
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        schema = pa.schema([(field.name, _TYPES[str(field.type)]) for field in fields(EpisodeRow)])
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return len(rows)


def _rows(record: TrialRecord, folder: Path) -> Iterator[dict[str, object]]:
    steps = record.trial.train.steps if record.trial else 0
    for evaluation in record.evaluations:
        yield from _of_evaluation(record, evaluation, steps, folder)
    for step, evaluation in record.earlier:
        yield from _of_evaluation(record, evaluation, step, folder / "checkpoints" / f"step-{step:06d}")


def _of_evaluation(
    record: TrialRecord, evaluation: EvaluationRecord, step: int, folder: Path
) -> Iterator[dict[str, object]]:
    where, recipe = folder / "evaluations" / evaluation.fingerprint, evaluation.recipe
    software: dict[str, dict[str, str]] = {}
    for result in evaluation.episodes:
        if result.software not in software:
            software[result.software] = kept_software(where, result)
        played = asdict(result)
        del played["software"]
        yield asdict(
            EpisodeRow(
                trial=record.fingerprint,
                name=record.trial.name if record.trial else "",
                backbone=record.backbone,
                weights=record.weights,
                seed=record.trial.train.seed if record.trial else 0,
                checkpoint=step,
                evaluation=evaluation.fingerprint,
                benchmark=recipe.benchmark,
                look=recipe.look,
                execute=recipe.execute,
                commit=record.provenance.get("commit"),
                versions=json.dumps(
                    {**record.provenance.get("versions", {}), "played with": software[result.software]}
                ),
                **played,
            )
        )
