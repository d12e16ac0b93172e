"""Several checkpoints of a trial times several ways to execute their chunks, as one evaluation that continues."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from vlm4vla.benchmarks.progress import Progress
from vlm4vla.benchmarks.registry import make_benchmark
from vlm4vla.core.interfaces import ChunkPredictor
from vlm4vla.core.recipes import Trial
from vlm4vla.core.types import EpisodeResult
from vlm4vla.demonstrations.scripted import labelled
from vlm4vla.studies.checks import Resources
from vlm4vla.studies.execute import load_policy, planned, predictor_of, run_evaluation
from vlm4vla.studies.runs import locked, read_trial
from vlm4vla.studies.tries import Try, note_of, recorded


def sweep(folder: Path, tries: Sequence[Try], resources: Resources) -> list[list[EpisodeResult]]:
    """Play what is missing of every try; all results of each. Interrupted, the same call goes on.

    A policy is loaded once for all its ways, and not at all where nothing of it is missing.
    """
    with ExitStack() as stack:
        if (folder / "trial.json").exists():
            part = "" if resources.shard[1] == 1 else "-{}-of-{}".format(*resources.shard)
            what = f"the trial {read_trial(folder).name!r}"
            stack.enter_context(locked(folder / f".lock{part}", what=what))
        return play(folder, tries, resources)


def play(folder: Path, tries: Sequence[Try], resources: Resources) -> list[list[EpisodeResult]]:
    """`sweep` of a trial's folder that this process has locked, or of a checkpoint."""
    trial = read_trial(folder) if (folder / "trial.json").exists() else None
    there = recorded(tries, resources.shard)
    open_ = [len(names) - len(done) for names, done in there]
    if any(open_):
        resources = planned([each.recipe for each in tries], tries[0].checkpoint, resources)
    note = note_of(folder)
    display = Progress("sweep", sum(len(names) for names, _ in there), [], shown=resources.progress)
    policies: dict[Path | None, ChunkPredictor] = {}
    results = []
    for index, (each, (names, done)) in enumerate(zip(tries, there, strict=True)):
        display.part(
            labelled(f"{each.name} ({index + 1} of {len(tries)})", note),
            len(names),
            rest=sum(open_[index + 1 :]),
        )
        if not open_[index] and not any(result.error for result in done.values()):
            results.append([done[name] for name in names])
            continue
        if each.checkpoint not in policies:
            policies.clear()  # one in memory at a time
            policies[each.checkpoint] = _policy(each, trial, resources)
        played = run_evaluation(
            policies[each.checkpoint], each.recipe, each.folder, resources, display=display
        )
        results.append(played)
    display.finish()
    return results


def _policy(each: Try, trial: Trial | None, resources: Resources) -> ChunkPredictor:
    if trial is None:
        assert each.checkpoint is not None
        return load_policy(each.checkpoint, resources)
    spec = make_benchmark(each.recipe).action_spec
    return predictor_of(trial, each.folder, each.checkpoint, spec, resources)
