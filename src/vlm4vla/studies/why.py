"""Why a policy acts as it does: how far training moved each layer of its VLM, what can be read off it before and after.

The reference is what training started from: the pretrained VLM, or the drawn weights of a policy from scratch. Frames
are held out; on Tabletop they have ground truth. A measurement is kept beside the run, named by what it depends on, and
is not made twice.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64

from vlm4vla.backbones.backbone import Backbone
from vlm4vla.benchmarks.tabletop.frames import Frames, labelled_frames
from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.core.recipes import Trial, fingerprint, from_json, to_json
from vlm4vla.core.types import Observation
from vlm4vla.demonstrations.chunks import ids_of, split_episodes
from vlm4vla.demonstrations.sources import open_demonstrations
from vlm4vla.policies.readings import read_layers
from vlm4vla.policies.vla import VLA
from vlm4vla.studies.checks import is_trained
from vlm4vla.studies.execute import device_named
from vlm4vla.studies.representation import (
    LOOK,
    SCENES,
    FramesRecipe,
    Layer,
    Reading,
    Reference,
    Why,
    compact,
    probe,
    similarity,
)
from vlm4vla.studies.runs import RunStore, read_json, read_status, read_trial, write_json
from vlm4vla.studies.study import Study
from vlm4vla.training.checkpoints import latest_checkpoint, step_of

Features = dict[str, Float64[np.ndarray, "rows numbers"]]


def runs_in(folder: Path) -> list[Path]:
    """The trained trials of a run folder, or the one that the folder is. Raises: RunError when there are none."""
    folders = [folder] if (folder / "trial.json").exists() else sorted(folder.glob("trials/*/"))
    found = [path for path in folders if (path / "trial.json").exists() and is_trained(read_trial(path))]
    if not found:
        raise RunError(f"{folder}: no trained trial here; give a trial's folder, or one that holds `trials`")
    return found


def finished(study: Study, store: RunStore) -> list[Path]:
    """Folders of the study's trained trials that are done. Raises: RunError when there are none."""
    found = []
    for trial in study.trials:
        status = read_status(store.folder(trial))
        if is_trained(trial) and status is not None and status.state == "done":
            found.append(store.folder(trial))
    if not found:
        raise RunError(
            f"study {study.name!r}: none of its trials under {store.root} is done; `--run` does them"
        )
    return found


def why(
    folder: Path,
    *,
    looks: Sequence[str] = (),
    scenes: int = SCENES,
    every: bool = False,
    device: str = "auto",
    told: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[Path, Why]]:
    """Measure a trial in every look of its evaluations (or these), as far as it is not done; files with their content.

    Its last checkpoint, or `every` one that was kept (`train.keep_every`), in their order. Raises: RunError for a
    trial without a checkpoint or frames, BackboneError for a VLM whose layers cannot be read.
    """
    trial = read_trial(folder)
    checkpoint = latest_checkpoint(folder / "checkpoints")
    if checkpoint is None:
        raise RunError(f"{folder}: no checkpoint, so there is no policy to look into; train it first")
    kept = sorted(checkpoint.parent.glob("step-*/policy.json"), key=lambda p: step_of(p.parent))
    checkpoints = [path.parent for path in kept] if every else [checkpoint]
    for checkpoint, look in itertools.product(checkpoints, looks or _looks(trial)):
        digest = hashlib.sha256((checkpoint / "policy.json").read_bytes()).hexdigest()[:12]
        recipe = FramesRecipe(look=look, scenes=scenes, checkpoint=f"{checkpoint.name} {digest}")
        path = folder / "why" / f"{fingerprint(recipe)}.json"
        if not path.exists():
            where = f"look {look}" if look else "held-out demonstrations"
            told(f"{trial.name}, {checkpoint.name}, {where}: measuring")
            path.parent.mkdir(exist_ok=True)
            write_json(path, to_json(_measure(trial, folder, checkpoint, recipe, device_named(device))))
        try:
            yield path, from_json(Why, read_json(path), where=str(path))
        except RecipeError as error:
            raise RunError(f"{error}; delete it to measure again") from error


def _looks(trial: Trial) -> list[str]:
    if trial.demonstrations.source != "tabletop":
        return [""]
    return list(dict.fromkeys(e.look for e in trial.evaluations)) or [LOOK]


def _measure(trial: Trial, folder: Path, checkpoint: Path, recipe: FramesRecipe, device: str) -> Why:
    frames = _frames(trial, folder, recipe)
    trained = VLA.from_pretrained(checkpoint)
    policy = (
        trained.recipe
    )  # it names what training started from, which is a folder for a VLM that was tuned before
    start = Backbone.from_pretrained(
        policy.backbone,
        weights=policy.weights,
        prompt=policy.prompt,
        image_size=policy.image_size,
        enlarge=policy.enlarge,
        query_init=policy.query_init,
        seed=trial.train.seed,
    )
    before = _features(start.eval().to(device), frames.observations)
    after = _features(trained.backbone.to(device), frames.observations)
    reference: Reference = "the tuned VLM" if trial.tuning else "the pretrained VLM"
    if policy.weights == "random":
        reference = "its own initialisation"
    layers = []
    for place in before:
        try:
            found, chance = similarity(before[place], after[place], frames.scenes)
        except ValueError as error:
            raise RunError(f"{trial.name}, {place}: {error}") from error
        layers.append(
            Layer(
                place=place,
                similarity=found,
                chance=chance,
                before=_readings(before[place], frames),
                after=_readings(after[place], frames),
            )
        )
    return Why(
        recipe=recipe,
        reference=reference,
        scenes=len(set(frames.scenes)),
        layers=tuple(layers),
    )


def _features(backbone: Backbone, observations: Sequence[Observation]) -> Features:
    return {place: compact(value) for place, value in read_layers(backbone, observations).items()}


def _readings(features: Float[np.ndarray, "rows numbers"], frames: Frames) -> tuple[Reading, ...]:
    return tuple(
        probe(features, truth, frames.scenes, target=name) for name, truth in frames.positions.items()
    )


def _frames(trial: Trial, folder: Path, recipe: FramesRecipe) -> Frames:
    made = trial.demonstrations
    if recipe.look:
        return labelled_frames(
            look=recipe.look,
            tasks=made.tasks,
            scenes=recipe.scenes,
            frames=recipe.frames,
            seed=recipe.seed,
            image_size=made.image_size,
            renderer=made.renderer,
        )
    identity = read_json(folder / "provenance.json").get("demonstrations")
    where = folder.parents[1] / "demonstrations" / str(identity)
    if not where.is_dir():
        raise RunError(
            f"{where}: the demonstrations of {trial.name!r} are not here, so that none are held out"
        )
    source = open_demonstrations(where)
    ids = ids_of(source)
    _, aside = split_episodes(ids, held_out=made.held_out, seed=made.seed)
    observations, scenes = [], []
    for index in aside[: recipe.scenes]:
        episode = source[index]
        for frame in np.linspace(0, len(episode.images) - 1, recipe.frames).round().astype(int):
            observations.append(Observation(episode.images[int(frame)], episode.instruction))
            scenes.append(ids[index])
    if len(set(scenes)) < 2:
        raise RunError(
            f"{trial.name!r}: fewer than two of its demonstrations are held out, too few to measure"
        )
    return Frames(observations=tuple(observations), scenes=tuple(scenes))
