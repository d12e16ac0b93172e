"""Checkpoints of a trial times ways to execute their chunks: which there are, and what of each is played already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm4vla.benchmarks.records import logs, read_log
from vlm4vla.benchmarks.registry import make_benchmark
from vlm4vla.benchmarks.rollout import play_id, plays_of
from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.core.recipes import EvaluationRecipe, Trial, fingerprint
from vlm4vla.core.types import EpisodeResult
from vlm4vla.demonstrations.scripted import told_of
from vlm4vla.studies.runs import read_json, read_trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One checkpoint, evaluated in one way."""

    checkpoint: Path | None
    """None: a policy that was not trained, which has none."""
    step: int | None
    """Of its training; None where that is not known."""
    recipe: EvaluationRecipe
    folder: Path
    """In whose `evaluations` it is recorded: the trial's for the last step of a training, else the checkpoint's own."""

    @property
    def name(self) -> str:
        """How it is called while it is played."""
        of = "" if self.step is None else f"step {self.step:,}, "
        return f"{of}{self.recipe.execute} executed"


def plan(folder: Path, recipes: Sequence[EvaluationRecipe], checkpoints: str = "last") -> list[Try]:
    """Every try, checkpoint by checkpoint: `checkpoints` is `all`, `last` or steps, as `10000,20000`.

    `folder` is a trial's, or a checkpoint's, which then is the only one. Raises: RunError when the folder is neither or
    has no such checkpoint, RecipeError for a choice that is none of the three or a way that the policy cannot execute.
    """
    if not (folder / "trial.json").exists():
        if not (folder / "policy.json").exists():
            raise RunError(f"{folder}: neither a trial's folder (trial.json) nor a checkpoint (policy.json)")
        if checkpoints != "last":
            raise RecipeError(
                f"{folder}: is one checkpoint; --checkpoints chooses among those of a trial's folder"
            )
        return [Try(checkpoint=folder, step=None, recipe=recipe, folder=folder) for recipe in recipes]
    trial = read_trial(folder)
    for recipe in recipes:
        if not 1 <= recipe.execute <= trial.policy.horizon:
            raise RecipeError(
                f"the policy predicts {trial.policy.horizon} actions, so it cannot execute {recipe.execute} of them; "
                f"choose 1 to {trial.policy.horizon}"
            )
    if trial.train.steps == 0:
        if checkpoints != "last":
            raise RecipeError(
                f"{folder}: its policy was not trained here and has no checkpoints; leave --checkpoints out"
            )
        return [Try(checkpoint=None, step=None, recipe=recipe, folder=folder) for recipe in recipes]
    return at_steps(folder, trial, recipes, _chosen(folder, checkpoints, trial))


def at_steps(
    folder: Path, trial: Trial, recipes: Sequence[EvaluationRecipe], steps: Sequence[int]
) -> list[Try]:
    """Every try of a trial's checkpoints of these steps, whether they are there or not; of no training: none."""
    tries = []
    for step in steps if trial.train.steps else ():
        path = folder / "checkpoints" / f"step-{step:06d}"
        where = folder if step == trial.train.steps else path
        tries += [Try(checkpoint=path, step=step, recipe=recipe, folder=where) for recipe in recipes]
    return tries


def complete(tries: Sequence[Try], shard: tuple[int, int] = (0, 1)) -> list[bool]:
    """Of each: whether every episode of it was played."""
    return [len(done) == len(names) for names, done in recorded(tries, shard)]


def note_of(folder: Path) -> str:
    """What is told beside scores of a trial's folder or a checkpoint: that it saw scripted demonstrations."""
    kept, policy = folder / "provenance.json", folder / "policy.json"
    if policy.exists():
        return told_of(read_json(policy).get("provenance", {}))
    return told_of(read_json(kept)) if kept.exists() else ""


def _chosen(folder: Path, checkpoints: str, trial: Trial) -> list[int]:
    found = {
        int(path.name.removeprefix("step-"))
        for path in (folder / "checkpoints").glob("step-*")
        if (path / "policy.json").exists()
    }
    if not found:
        raise RunError(f"{folder}: no checkpoint, so there is nothing to evaluate; train it first")
    if checkpoints == "all":
        steps = sorted(found)
    elif checkpoints == "last":
        steps = [max(found)]
    elif all(part.isdecimal() for part in checkpoints.split(",")):
        steps = sorted({int(part) for part in checkpoints.split(",")})
    else:
        raise RecipeError(f"--checkpoints {checkpoints!r}: write all, last or steps, as 10000,20000")
    missing = [step for step in steps if step not in found]
    if missing:
        raise RunError(
            f"{folder}: no checkpoint of step {', '.join(map(str, missing))}; there are those of "
            f"{', '.join(map(str, sorted(found)))}. A training keeps its last two, and those of every train.keep_every "
            f"steps (here {trial.train.keep_every or 'none'})"
        )
    return steps


def recorded(
    tries: Sequence[Try], shard: tuple[int, int]
) -> list[tuple[list[str], dict[str, EpisodeResult]]]:
    """For every try: the names of its plays in this shard, and those results of them that are there already."""
    found = []
    episodes = {
        recipe: make_benchmark(recipe).episodes() for recipe in dict.fromkeys(t.recipe for t in tries)
    }
    for each in tries:
        plays = plays_of(episodes[each.recipe], repeats=each.recipe.repeats, shard=shard)
        names = [play_id(spec, repeat) for spec, repeat in plays]
        where = each.folder / "evaluations" / fingerprint(each.recipe)
        results = {result.episode: result for path in logs(where) for result in read_log(path)[0]}
        found.append((names, {name: results[name] for name in names if name in results}))
    return found
