"""What a trial needs, found out before any work is done. Never imports torch."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from vlm4vla.backbones.registry import resolve
from vlm4vla.benchmarks.registry import BENCHMARKS, make_benchmark
from vlm4vla.core.errors import RecipeError, SimulatorError
from vlm4vla.core.interfaces import Isolated
from vlm4vla.core.recipes import (
    DemonstrationRecipe,
    Trial,
    check_policy,
    check_train,
    check_tune,
    normalization_step,
)
from vlm4vla.demonstrations import sources
from vlm4vla.demonstrations.statistics import published
from vlm4vla.studies.paper_presets import PAPER_BENCHMARKS
from vlm4vla.studies.presets import RANDOM_POLICY
from vlm4vla.training.mirrors import check_mirrors

AUTO = -1
"""Number of workers: as many as there are cores and memory for."""
_DIGESTED_BYTES = 1 << 22
_DIGESTED_PIECES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """How work is spread over this machine: kept in the provenance, in no recipe.

    Rollouts and demonstrations do not depend on it at all. Training on another device or number of processes adds
    floating-point numbers up in another order.
    """

    demonstration_processes: int = 2
    train_processes: int = 1
    """More than one: under torchrun."""
    workers: int = 2
    """Processes that step environments; AUTO: as many as there are cores and memory for; 0: the one that predicts, and
    one beside it for simulators."""
    videos: int = 0
    """Episodes of each task and evaluation that are recorded."""
    device: str = "auto"
    """`auto`: cuda where there is one."""
    mirrors: tuple[str, ...] = ()
    checkpoints: tuple[int, ...] = ()
    """Steps of a trial's training after which it is evaluated too, beside the last."""
    shard: tuple[int, int] = (0, 1)
    """Of an evaluation's episodes: (i, n) plays every n-th, from the i-th on; 0-based."""
    progress: bool = True


def is_trained(trial: Trial) -> bool:
    """False for the random policy."""
    return trial.policy.backbone != RANDOM_POLICY


def check(trial: Trial, resources: Resources, *, evaluated: bool = True) -> None:
    """Find what is wrong with a recipe before any work is done; of evaluations only when they are to be `evaluated`.

    Raises: RecipeError for unknown names and impossible combinations, BackboneError for a backbone and DataError for
    demonstrations and SimulatorError for a simulator that are not there.
    """
    if is_trained(trial):
        check_recipe(trial, processes=resources.train_processes)
        check_mirrors(resources.mirrors)
        check_kept(trial, resources.checkpoints if evaluated else ())
        for demonstrations in demonstrations_of(trial):
            maker_of(demonstrations).check(demonstrations)
        backbone = resolve(trial.policy.backbone)
        if Path(backbone.location).is_absolute() and not Path(backbone.location).is_dir():
            raise RecipeError(
                f"backbone {backbone.name!r}: its weights are not in this installation ({backbone.location}). "
                "Make some with `vlm4vla models build-tiny` and name their folder."
            )
    for recipe in trial.evaluations if evaluated else ():
        if recipe.benchmark in PAPER_BENCHMARKS.values() and recipe.benchmark not in BENCHMARKS:
            raise RecipeError(
                f"the benchmark {recipe.benchmark!r} cannot be played by this version: `--no-evaluate` trains, "
                "`--plan` prints the recipe, and `vlm4vla train tabletop` does both on a benchmark that is here"
            )
        benchmark = make_benchmark(recipe)
        python = benchmark.python if isinstance(benchmark, Isolated) else None
        if python is not None and shutil.which(python) is None:
            raise SimulatorError(
                f"{benchmark.name} is played by {python}, which is no program that can be run"
            )
        if not 1 <= recipe.execute <= trial.policy.horizon:
            raise RecipeError(
                f"an evaluation of {trial.name!r} executes {recipe.execute} actions of each chunk, but the policy "
                f"predicts {trial.policy.horizon}; choose 1 to {trial.policy.horizon}"
            )
        seen = trial.demonstrations
        if is_trained(trial) and seen.source == "tabletop" and recipe.benchmark.startswith("tabletop"):
            for name in ("image_size", "renderer"):
                shown, learned = getattr(recipe, name), getattr(seen, name)
                if shown != learned:
                    raise RecipeError(
                        f"an evaluation of {trial.name!r} shows pictures with {name} {shown!r}, but the demonstrations "
                        f"have {learned!r}; set evaluation.{name} and demonstrations.{name} alike"
                    )


def check_kept(trial: Trial, checkpoints: tuple[int, ...]) -> None:
    """Raises: RecipeError unless a trial's training writes and keeps the checkpoints of these steps."""
    train = trial.train
    kept = range(0, train.steps, train.keep_every) if train.keep_every else ()
    written = range(0, train.steps, train.checkpoint_every)
    lost = [step for step in checkpoints if step != train.steps and not (step in kept and step in written)]
    if lost:
        raise RecipeError(
            f"{trial.name}: checkpoints of step {', '.join(map(str, lost))} are to be evaluated, but its training of "
            f"{train.steps} steps writes one every {train.checkpoint_every} and keeps those of every "
            f"{train.keep_every or 'none'}; set train.keep_every"
        )


def check_recipe(trial: Trial, *, processes: int = 1) -> None:
    """The part of `check` that looks at nothing but the recipe. Raises: RecipeError."""
    check_policy(trial.policy)
    if trial.tuning is not None:
        check_tune(trial.tuning)
        ours, tuned = ((r.backbone, r.weights) for r in (trial.policy, trial.tuning))
        if ours != tuned:
            raise RecipeError(
                f"{trial.name}: tunes the VLM {tuned}, but the policy's is {ours}; name one in both"
            )
    check_train(trial.train, processes=processes)
    resolve(trial.policy.backbone)
    for step in trial.policy.normalization:
        kind, name = normalization_step(step)
        if kind == "quantiles" and name:
            published(name)


def facts_of(trial: Trial) -> dict[str, Any]:
    """What a trial's result depends on beside its recipe: the demonstrations' and the backbone's content."""
    if not is_trained(trial):
        return {"demonstrations": None, "backbone": None}
    return {
        "demonstrations": maker_of(trial.demonstrations).demonstrations_fingerprint(trial.demonstrations),
        "backbone": digest_of(trial.policy.backbone),
    }


def demonstrations_of(trial: Trial) -> list[DemonstrationRecipe]:
    """What the policy is trained on, and what its VLM is asked about before."""
    asked = [task.demonstrations for task in trial.tuning.tasks] if trial.tuning else []
    return [trial.demonstrations, *(recipe for recipe in asked if recipe is not None)]


def maker_of(recipe: DemonstrationRecipe) -> ModuleType:
    """The module that makes a source's demonstrations: `check(recipe)`, `demonstrations_fingerprint(recipe)`."""
    if recipe.source != "tabletop":
        return sources
    from vlm4vla.benchmarks.tabletop import generate

    return generate


def digest_of(backbone: str) -> str:
    """Of the content of a backbone's folder; of one on the hub, its address."""
    location = resolve(backbone).location
    folder = Path(location).expanduser()
    return _digest(folder) if folder.is_dir() else location


def _digest(folder: Path) -> str:
    """Changes when other weights are put into a checkpoint folder: small files whole, of large ones many pieces."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        size = path.stat().st_size
        piece = _DIGESTED_BYTES if size <= _DIGESTED_BYTES else _DIGESTED_BYTES // _DIGESTED_PIECES
        with path.open("rb") as file:
            digest.update(f"{path.name} {size} ".encode())
            for start in range(0, size, max(piece, size // _DIGESTED_PIECES)):
                file.seek(start)
                digest.update(file.read(piece))
    return digest.hexdigest()[:12]
