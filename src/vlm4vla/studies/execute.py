"""Carrying a trial out: demonstrations, training, evaluation, each done once and continued where it stopped.

torch is imported by the steps that need it, so that making demonstrations, the random policy and finding everything
done stay quick.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vlm4vla.backbones.registry import BACKBONES
from vlm4vla.benchmarks.progress import Progress
from vlm4vla.benchmarks.records import Origin
from vlm4vla.benchmarks.registry import BENCHMARKS, make_benchmark
from vlm4vla.benchmarks.rollout import RandomPredictor, evaluate
from vlm4vla.core.actions import ActionSpec, require_same
from vlm4vla.core.errors import BackboneError, RecipeError, RunError, VLAError, unknown_name
from vlm4vla.core.interfaces import ChunkPredictor
from vlm4vla.core.recipes import (
    DemonstrationRecipe,
    EvaluationRecipe,
    PolicyRecipe,
    Trial,
    TuneRecipe,
    fingerprint,
    from_json,
    to_json,
)
from vlm4vla.core.types import Demonstration, EpisodeResult
from vlm4vla.demonstrations import sources
from vlm4vla.demonstrations.packed import write_packed
from vlm4vla.demonstrations.scripted import together
from vlm4vla.demonstrations.sources import open_demonstrations
from vlm4vla.studies.checks import (
    AUTO,
    Resources,
    check,
    demonstrations_of,
    facts_of,
    is_trained,
    maker_of,
)
from vlm4vla.studies.display import Display, TrialView, time_left
from vlm4vla.studies.runs import RunStore, Status, TrialRun, locked, read_json, read_trial, write_json
from vlm4vla.studies.spread import memory_of, spread
from vlm4vla.studies.tries import at_steps, complete, note_of, plan

BATCH = 16
"""Observations per forward pass of a rollout."""
_FOREVER = float("inf")


def run_trial(
    trial: Trial,
    store: RunStore,
    *,
    resources: Resources | None = None,
    evaluated: bool = True,
    notes: Mapping[str, Any] | None = None,
) -> Status:
    """Do whatever of a trial is not done yet, with or without its evaluations.

    `notes` are recorded in the provenance of a new trial. Raises: RecipeError before anything is done, later RunError
    naming the folder, whose status.json then says `failed`; the same call tries again.
    """
    resources = resources or Resources()
    check(trial, resources, evaluated=evaluated)
    check_backbone(trial)
    if evaluated:
        spread(trial.evaluations, resources)
    try:
        with store.open(trial, facts=facts_of(trial), notes=notes) as run:
            if run.is_done(evaluated=evaluated) and (not evaluated or is_swept(trial, run.folder, resources)):
                return run.status
            run.begin()
            if is_trained(trial):
                with run.phase("demonstrations"):
                    demonstrations = make_demonstrations(trial.demonstrations, store, resources)
                    asked = [
                        make_demonstrations(each, store, resources) for each in demonstrations_of(trial)[1:]
                    ]
                    seen = [open_demonstrations(folder).scripted for folder in (demonstrations, *asked)]
                    _note_scripted(run.folder / "provenance.json", together(*seen))
                vlm = None if trial.tuning is None else _tuned(trial.tuning, store, resources, notes)
                with run.phase("train"):
                    _train(trial, run, demonstrations, resources, vlm)
            if evaluated:
                with run.phase("evaluate"):
                    run_evaluations(trial, run, resources)
                    _sweep(trial, run, resources)
            run.update(state="done")
            return run.status
    except VLAError as error:
        where = store.folder(trial)
        text = str(error) if str(where) in str(error) else f"{error} (in {where})"
        raise RunError(f"{trial.name}: {text}") from error


def check_backbone(trial: Trial) -> None:
    """Find out before demonstrations are made whether a VLM can be loaded; those of this package can.

    Raises: BackboneError.
    """
    if is_trained(trial) and trial.policy.backbone not in BACKBONES:
        from vlm4vla.backbones.loading import inspect

        inspect(trial.policy.backbone)


def make_demonstrations(recipe: DemonstrationRecipe, store: RunStore, resources: Resources) -> Path:
    """The folder of a recipe's demonstrations, for `open_demonstrations`; made unless it is there."""
    maker = maker_of(recipe)
    identity: str = maker.demonstrations_fingerprint(recipe)
    folder = store.demonstrations(identity)
    with locked(folder.with_name(f".{identity}.lock"), what="these demonstrations", patience=_FOREVER):
        if not folder.exists():
            for leftover in folder.parent.glob(f".{identity}.partial-*"):
                shutil.rmtree(leftover)
        if maker is sources:
            with Display(shown=resources.progress) as display:
                return sources.make(recipe, folder, progress=_read(display))
        made = maker.generate_demonstrations(recipe, processes=resources.demonstration_processes)
        counted = _counted(made, recipe.episodes, shown=resources.progress)
        return write_packed(
            counted, folder, name=maker.NAME, action_spec=maker.SPEC, fingerprint=identity
        ).folder


def run_evaluations(
    trial: Trial, run: TrialRun, resources: Resources, *, checkpoint: Path | None = None
) -> None:
    """Play what is missing of a trial's evaluations, with its last checkpoint or the given one."""
    resources = planned(trial.evaluations, _checkpoint_of(trial, run.folder, checkpoint), resources)
    benchmarks = [make_benchmark(recipe) for recipe in trial.evaluations]
    run.update(episodes=sum(len(benchmark.episodes()) for benchmark in benchmarks))
    spec = benchmarks[0].action_spec if benchmarks else None
    if spec is not None:
        predictor = predictor_of(trial, run.folder, checkpoint, spec, resources)
        for recipe in trial.evaluations:
            run_evaluation(predictor, recipe, run.folder, resources)


def is_swept(trial: Trial, folder: Path, resources: Resources) -> bool:
    """Whether the further checkpoints that are asked for were evaluated."""
    return all(complete(at_steps(folder, trial, trial.evaluations, resources.checkpoints)))


def _sweep(trial: Trial, run: TrialRun, resources: Resources) -> None:
    """Play what is missing of the further checkpoints. Raises: RunError where one is not there."""
    steps = {*resources.checkpoints} - {trial.train.steps}
    if steps and trial.train.steps and trial.evaluations:
        from vlm4vla.studies.sweep import play

        run.update(episodes=run.status.episodes * (1 + len(steps)))
        play(
            run.folder,
            plan(run.folder, trial.evaluations, ",".join(map(str, steps))),
            replace(resources, videos=0),
        )


def evaluate_again(folder: Path, recipe: EvaluationRecipe, resources: Resources) -> list[EpisodeResult]:
    """Play what is missing of an evaluation of a trial's folder or of a checkpoint, into its `evaluations`.

    Raises: RunError when the folder is neither, ActionSpecMismatch when its policy acts in another convention.
    """
    benchmark = make_benchmark(recipe)
    if (folder / "trial.json").exists():
        trial = read_trial(folder)
        _require_finished(trial, folder)
        # Shards may be on other machines; each writes a file of its own.
        part = "" if resources.shard[1] == 1 else "-{}-of-{}".format(*resources.shard)
        with locked(folder / f".lock{part}", what=f"the trial {trial.name!r}"):
            resources = planned([recipe], _checkpoint_of(trial, folder, None), resources)
            predictor = predictor_of(trial, folder, None, benchmark.action_spec, resources)
            return run_evaluation(predictor, recipe, folder, resources)
    if not (folder / "policy.json").exists():
        held = ", ".join(path.parent.name for path in sorted(folder.glob("trials/*/trial.json")))
        hint = f"; it holds the trials {held}: name one as {folder / 'trials'}/ID" if held else ""
        raise RunError(
            f"{folder}: neither a trial's folder (trial.json) nor a checkpoint (policy.json){hint}"
        )
    resources = planned([recipe], folder, resources)
    return run_evaluation(load_policy(folder, resources), recipe, folder, resources)


def planned(recipes: Sequence[EvaluationRecipe], checkpoint: Path | None, resources: Resources) -> Resources:
    """The resources with as many workers as fit beside a checkpoint's policy, told before any of them starts.

    Raises: RecipeError when more workers are asked for than fit, or a GPU has less room than the policy takes.
    """
    parameters = working = 0
    if checkpoint is not None:
        from vlm4vla.training import memory

        path = checkpoint / "policy.json"
        recipe = from_json(PolicyRecipe, read_json(path).get("recipe", {}), where=str(path))
        recipe = replace(recipe, backbone=str(checkpoint / "backbone"))
        try:
            parameters, working = memory.rollout(recipe, samples=BATCH)
        except BackboneError:  # inputs of its own processor: only the weights can be told
            parameters = sum(file.stat().st_size for file in checkpoint.rglob("*.safetensors"))
        device = device_named(resources.device)
        if device.startswith("cuda"):
            import torch

            free, total = torch.cuda.mem_get_info(device)
            if parameters + working > free:
                raise RecipeError(
                    f"the policy takes {parameters / 1e9:.1f} GB and {working / 1e9:.1f} GB while it predicts, but "
                    f"{free / 1e9:.1f} GB of {total / 1e9:.1f} are free on {device}; use another device, or cpu"
                )
            parameters = working = 0
    return spread(recipes, resources, policy=parameters + working, told=resources.progress)


def trained_for(checkpoint: Path) -> tuple[EvaluationRecipe, ...]:
    """The evaluations of the trial that a checkpoint says it comes from; none when it does not say."""
    path = checkpoint / "policy.json"
    if not path.exists():
        return ()
    trial = read_json(path).get("provenance", {}).get("trial")
    return () if trial is None else from_json(Trial, trial, where=str(path)).evaluations


def run_evaluation(
    predictor: ChunkPredictor,
    recipe: EvaluationRecipe,
    folder: Path,
    resources: Resources,
    *,
    display: Progress | None = None,
) -> list[EpisodeResult]:
    """Play what is missing of one evaluation into a trial's folder; every result. `display` is that of several."""
    if not 1 <= recipe.execute <= predictor.horizon:
        raise RecipeError(
            f"the policy predicts {predictor.horizon} actions, so it cannot execute {recipe.execute} of them; "
            f"choose 1 to {predictor.horizon}"
        )
    benchmark = make_benchmark(recipe)
    require_same(predictor.action_spec, benchmark.action_spec, who=f"The policy and {benchmark.name}")
    where = folder / "evaluations" / fingerprint(recipe)
    where.mkdir(parents=True, exist_ok=True)
    if not (where / "evaluation.json").exists():
        write_json(where / "evaluation.json", to_json(recipe))
    elif (
        from_json(
            EvaluationRecipe, read_json(where / "evaluation.json"), where=str(where / "evaluation.json")
        )
        != recipe
    ):
        raise RunError(f"{where / 'evaluation.json'}: was changed by hand; delete {where} to evaluate again")
    resources = spread([recipe], resources) if resources.workers == AUTO else resources
    # Others step while one batch is predicted; in one process nothing happens at the same time.
    environments = 2 * BATCH if resources.workers else BATCH
    play = partial(
        evaluate,
        predictor,
        benchmark,
        execute=recipe.execute,
        folder=where,
        environments=environments,
        workers=resources.workers,
        videos=resources.videos,
        progress=resources.progress if display is None else display,
        note=note_of(folder),
        repeats=recipe.repeats,
        shard=resources.shard,
        memory=memory_of(recipe) if recipe.benchmark in BENCHMARKS else 0,
        origin=_origin(folder, recipe),
    )
    results = play()
    return play() if any(result.error for result in results) else results  # a second attempt, then they stand


def _origin(folder: Path, recipe: EvaluationRecipe) -> Origin:
    """What a trial's folder or a checkpoint's says of the policy."""
    if (folder / "trial.json").exists():
        trial, step = folder.name, read_trial(folder).train.steps or None
    else:
        path = folder / "policy.json"
        told = read_json(path).get("provenance", {}) if path.exists() else {}
        trial, step = fingerprint(told["trial"]) if "trial" in told else "", told.get("step")
    return Origin(trial=trial, checkpoint=step, evaluation=fingerprint(recipe), execute=recipe.execute)


def _tuned(
    recipe: TuneRecipe, store: RunStore, resources: Resources, notes: Mapping[str, Any] | None
) -> Path:
    """The VLM that a trial starts from; trials of one tuning wait for the one that carries it out."""
    from vlm4vla.studies.tunings import run_tuning

    return run_tuning(recipe, store, resources=resources, notes=notes, patience=_FOREVER)


def _train(trial: Trial, run: TrialRun, demonstrations: Path, resources: Resources, vlm: Path | None) -> None:
    device, resources = settled(run, resources)
    if resources.train_processes > 1:
        _train_in_processes(trial, run, demonstrations, resources, device, vlm)
        return
    from vlm4vla.training.train import train

    train(
        trial,
        open_demonstrations(demonstrations),
        run.folder,
        vlm=vlm,
        device=device,
        progress=resources.progress,
        provenance=read_json(run.folder / "provenance.json"),
        mirrors=resources.mirrors,
    )


def settled(run: TrialRun, resources: Resources) -> tuple[str, Resources]:
    """The device, and resources with no more training processes than GPUs; both are noted."""
    device = device_named(resources.device)
    if device.startswith("cuda"):
        import torch

        resources = replace(
            resources, train_processes=min(resources.train_processes, torch.cuda.device_count())
        )
    _note_training(run.folder / "provenance.json", device, resources.train_processes)
    return device, resources


def _note_training(path: Path, device: str, processes: int) -> None:
    """Keep where a training ran, and every change of that when it was continued elsewhere."""
    kept, now = read_json(path), {"device": device, "processes": processes}
    if kept.get("training", [])[-1:] != [now]:
        kept.setdefault("training", []).append(now)
        write_json(path, kept)


def _note_scripted(path: Path, told: str) -> None:
    """Keep that the policy, or its VLM before, was trained on what a scripted expert did."""
    kept = read_json(path)
    if told and kept.get("scripted") != told:
        write_json(path, {**kept, "scripted": told})


def _train_in_processes(
    trial: Trial, run: TrialRun, demonstrations: Path, resources: Resources, device: str, vlm: Path | None
) -> None:
    from vlm4vla.training.worker import launch_command

    arguments = [str(run.folder / "trial.json"), str(demonstrations), str(run.folder), "--device", device]
    arguments += ["--provenance", str(run.folder / "provenance.json"), "--quiet"]
    arguments += [] if vlm is None else ["--vlm", str(vlm)]
    arguments += [part for mirror in resources.mirrors for part in ("--mirror", mirror)]
    view = TrialView(trial, run.folder)
    in_processes(launch_command(resources.train_processes, arguments), run, resources, view.line)


def in_processes(
    command: Sequence[str], run: TrialRun, resources: Resources, line: Callable[[], str]
) -> None:
    """Run a training's command, `line` shown while it works. Raises: RunError with its last words."""
    log = run.folder / "train.log"
    with log.open("wb") as output, Display(shown=resources.progress) as display:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={"OMP_NUM_THREADS": "1", **os.environ},
            # Should this process be killed, the training keeps the folder locked for as long as it goes on.
            pass_fds=[run.lock],
        )
        try:
            while process.poll() is None:
                display.show([line()])
                display.wait()
        finally:
            process.terminate()
            process.wait()
    if process.returncode:
        raise RunError(f"training ended with an error: {last_words(log)}")


def last_words(log: Path) -> str:
    """What a process that failed said about it: its `error:` line, else the end of its output."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    told = [line.partition("error: ")[2] for line in lines if line.startswith("error: ")]
    return told[0] if told else f"{lines[-1] if lines else 'it printed nothing'} (all of it: {log})"


def predictor_of(
    trial: Trial, folder: Path, checkpoint: Path | None, spec: ActionSpec, resources: Resources
) -> ChunkPredictor:
    """A trial's policy, of its last checkpoint or the given one. Raises: RunError when it has none."""
    if not is_trained(trial):
        return RandomPredictor(spec, trial.policy.horizon, seed=trial.train.seed)
    latest = _checkpoint_of(trial, folder, checkpoint)
    if latest is None and trial.train.steps == 0:
        raise RunError(
            f"{folder}: its policy was not trained here: name it with --policy instead of the folder"
        )
    if latest is None:
        raise RunError(f"{folder}: no checkpoint, so there is nothing to evaluate; train it first")
    return load_policy(latest, resources)


def _checkpoint_of(trial: Trial, folder: Path, checkpoint: Path | None) -> Path | None:
    if checkpoint is not None or not is_trained(trial):
        return checkpoint
    from vlm4vla.training.checkpoints import latest_checkpoint

    return latest_checkpoint(folder / "checkpoints")


def load_policy(checkpoint: Path, resources: Resources) -> ChunkPredictor:
    """The policy of a checkpoint's folder, on the device that the resources name."""
    device = device_named(resources.device)
    from vlm4vla.policies.predictor import Predictor
    from vlm4vla.policies.vla import VLA

    return Predictor(VLA.from_pretrained(checkpoint).to(device), batch_size=BATCH)


def device_named(name: str) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:N` as torch's name. Raises: RecipeError for another, or one that is not there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise unknown_name("device", name, ["auto", "cpu", "cuda", "cuda:0"])
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise RecipeError(
            f"device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices; use cpu or auto"
        )
    if name == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # at the sizes that CPUs train, a second thread costs more than it brings
    return name


def _read(display: Display) -> Callable[[int, int], None]:
    def show(count: int, total: int) -> None:
        left = time_left(display.seconds, count, total)
        display.show([f"demonstrations   {count:,} of {total:,} read{left}"], last=count == total)

    return show


def _counted(made: Iterator[Demonstration], total: int, *, shown: bool) -> Iterator[Demonstration]:
    with Display(shown=shown) as display:
        for count, demonstration in enumerate(made, start=1):
            yield demonstration
            left = time_left(display.seconds, count, total)
            display.show([f"demonstrations   {count:,} of {total:,} made{left}"], last=count == total)


def _require_finished(trial: Trial, folder: Path) -> None:
    """Results belong to a trial's last checkpoint: those of an earlier one would be taken for them later."""
    if not is_trained(trial):
        return
    from vlm4vla.training.checkpoints import latest_checkpoint

    latest = latest_checkpoint(folder / "checkpoints")
    if latest is not None and latest.name != f"step-{trial.train.steps:06d}":
        raise RunError(
            f"{folder}: its training stopped at {latest.name} of {trial.train.steps}. Run the same command again to "
            f"finish it, or evaluate the checkpoint by itself: vlm4vla evaluate {latest}"
        )
