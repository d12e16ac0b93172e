"""Run folders read back: trials, their training curves, their episodes, and what is wrong with any of them.

Nothing here raises for one damaged file: what cannot be read becomes a problem, a sentence shown in every report
beside what could be read. A trial is never dropped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm4vla.benchmarks.records import logs, result_of
from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.core.recipes import EvaluationRecipe, Trial, fingerprint, from_json
from vlm4vla.core.types import EpisodeResult
from vlm4vla.demonstrations.scripted import told_of
from vlm4vla.reports.integrity import believable, changed, misnamed

RANDOM_POLICY = "random-policy"


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of metrics.jsonl; a loss that was not finite is None."""

    step: int
    split: str
    """`train` or `held_out`."""
    loss: float | None


@dataclass(frozen=True, slots=True)
class Video:
    """One recorded episode."""

    episode: str
    task: str
    instruction: str
    success: bool
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """One evaluation of one trial, as far as it got."""

    fingerprint: str
    recipe: EvaluationRecipe
    episodes: tuple[EpisodeResult, ...] = ()
    """One per episode id, the last attempt; ordered by tier, task, id whatever order they were played in."""
    videos: tuple[Video, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def is_chain(self) -> bool:
        """Episodes have several goals in a row, as CALVIN's do."""
        return any(episode.goals > 1 for episode in self.episodes)

    @property
    def problems_and_errors(self) -> tuple[str, ...]:
        """Everything that keeps it from being complete, broken episodes with the first reason included."""
        errors = [episode.error for episode in self.episodes if episode.error is not None]
        if not errors:
            return self.problems
        return (*self.problems, f"{broke(len(errors), len(self.episodes))}; the first: {errors[0]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One trial folder, as far as it got."""

    fingerprint: str
    """The folder's name."""
    trial: Trial | None
    """None when trial.json is missing or damaged."""
    provenance: Mapping[str, Any]
    seconds: Mapping[str, float]
    """Wall time of demonstrations, train and evaluate, as far as known."""
    joules: Mapping[str, float] = field(default_factory=dict)
    """Likewise, what the machine spent; empty where it could not be read."""
    metrics: tuple[Metric, ...] = ()
    evaluations: tuple[EvaluationRecord, ...] = ()
    earlier: tuple[tuple[int, EvaluationRecord], ...] = ()
    """Evaluations of checkpoints by themselves, with their step."""
    new_share: float | None = None
    """Parameters that were added to the VLM, over its own; None where no checkpoint tells."""
    problems: tuple[str, ...] = ()

    @property
    def backbone(self) -> str:
        """The policy's backbone; `unknown` when the recipe cannot be read."""
        return self.trial.policy.backbone if self.trial else "unknown"

    @property
    def weights(self) -> str:
        """`pretrained`, `random`, `none` for a policy without any, `given` for one that was not trained here."""
        if self.trial is None:
            return "unknown"
        if self.trial.train.steps == 0:
            return "none" if self.backbone == RANDOM_POLICY else "given"
        return self.trial.policy.weights

    @property
    def note(self) -> str:
        """`trained on scripted demonstrations`; empty for others."""
        return told_of(self.provenance)

    @property
    def is_trained(self) -> bool:
        """False for the random policy."""
        return self.trial is not None and self.backbone != RANDOM_POLICY

    def curve(self, split: str) -> list[tuple[int, float]]:
        """(step, loss) of one split, by step, finite losses only."""
        return [(m.step, m.loss) for m in self.metrics if m.split == split and m.loss is not None]

    def final_loss(self, split: str = "held_out") -> float | None:
        """The last loss of a split; None when it was never measured."""
        curve = self.curve(split)
        return curve[-1][1] if curve else None


def broke(errors: int, episodes: int) -> str:
    """How a report says that episodes broke."""
    return f"{errors} of {episodes} episodes broke and {'is' if errors == 1 else 'are'} in no rate"


def collect(out: Path) -> tuple[TrialRecord, ...]:
    """Every trial under `out`, pretrained before random, the random policy last, else by name.

    Raises: RunError when `out` holds no trials at all.
    """
    folder = Path(out) / "trials"
    found = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".") if folder.is_dir() else []
    if not found:
        raise RunError(
            f"{folder}: no trials here, so there is nothing to report. Give the folder that a command wrote with "
            "--out, or start one with `vlm4vla quickstart --out FOLDER`."
        )
    return tuple(sorted((read_trial(path) for path in found), key=_reading_order))


def read_trial(folder: Path) -> TrialRecord:
    """One trial folder; whatever is missing or damaged is in `problems`."""
    problems: list[str] = []
    trial = None
    data = _read_object(folder / "trial.json", problems)
    if data is not None:
        try:
            trial = from_json(Trial, data, where="trial.json")
        except RecipeError as error:
            problems.append(str(error))
        problems.extend(misnamed(folder / "trial.json", data, trial))
    if trial is not None and trial.tuning is not None and data is not None:
        path = folder.parents[1] / "tunings" / fingerprint(data["tuning"]) / "tuning.json"
        tuning = _read_object(path, problems) if path.exists() else None
        problems.extend(misnamed(path, tuning) if tuning is not None else ())
    status = _read_object(folder / "status.json", problems) or {}
    match status.get("state"):
        case "done" | None:  # a missing status.json has been noted already
            pass
        case "running":
            problems.append(
                "has not finished: it is still running or was interrupted; the same command resumes it"
            )
        case "failed":
            problems.append(f"failed: {status.get('error') or 'no reason was recorded'}")
        case other:
            problems.append(f"status.json: unknown state {other!r}")
    expects_training = trial is not None and trial.train.steps > 0
    provenance = _read_object(folder / "provenance.json", problems)
    return TrialRecord(
        fingerprint=folder.name,
        trial=trial,
        provenance=provenance or {},
        seconds=_read_phases(status, "seconds"),
        joules=_read_phases(status, "joules"),
        metrics=_read_metrics(folder / "metrics.jsonl", problems) if expects_training else (),
        evaluations=_read_evaluations(folder / "evaluations", trial, problems),
        earlier=_read_earlier(folder / "checkpoints", problems),
        new_share=_read_new_share(folder / "checkpoints", problems),
        problems=tuple(problems),
    )


def _reading_order(record: TrialRecord) -> tuple[Any, ...]:
    weights = {"pretrained": 0, "random": 1}.get(record.weights, 2)
    name = record.trial.name if record.trial else ""
    return (not record.is_trained, record.trial is None, record.backbone, weights, name, record.fingerprint)


def _read_evaluations(folder: Path, trial: Trial | None, problems: list[str]) -> tuple[EvaluationRecord, ...]:
    """In the trial's order; those it does not list (scored later on request) follow."""
    present = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.is_dir() or path.name.startswith("."):
            continue
        expected: dict[str, Any] = {"trial": folder.parent.name}
        if trial is not None:
            expected["checkpoint"] = trial.train.steps or None
        record = _read_evaluation(path, problems, expected)
        if record is not None:
            present[record.recipe] = record
    records = []
    for recipe in trial.evaluations if trial else ():
        missing = EvaluationRecord(
            fingerprint=fingerprint(recipe), recipe=recipe, problems=("has not been evaluated yet",)
        )
        records.append(present.pop(recipe, missing))
    return (*records, *present.values())


def _read_earlier(folder: Path, problems: list[str]) -> tuple[tuple[int, EvaluationRecord], ...]:
    found = []
    for path in sorted(folder.glob("step-*/evaluations/*/evaluation.json")):
        step = path.parents[2].name.removeprefix("step-")
        if step.isdecimal():
            expected = {"trial": folder.parent.name, "checkpoint": int(step)}
            record = _read_evaluation(path.parent, problems, expected)
            found += [] if record is None else [(int(step), record)]
    return tuple(found)


def _read_new_share(folder: Path, problems: list[str]) -> float | None:
    for path in sorted(folder.glob("step-*/policy.json"), reverse=True)[:1]:
        share = (_read_object(path, problems) or {}).get("new_parameter_share")
        if isinstance(share, float):  # policies of older versions do not tell
            return share
    return None


def _read_evaluation(
    folder: Path, trial_problems: list[str], expected: Mapping[str, Any]
) -> EvaluationRecord | None:
    """`expected`: what its lines say of whose they are."""
    problems: list[str] = []
    data = _read_object(folder / "evaluation.json", problems)
    try:
        recipe = from_json(EvaluationRecipe, data, where="evaluation.json") if data is not None else None
    except RecipeError as error:
        recipe = None
        problems.append(str(error))
    if data is None or recipe is None:
        trial_problems.extend(f"evaluation {folder.name} is not shown: {problem}" for problem in problems)
        return None
    renamed = list(misnamed(folder / "evaluation.json", data, recipe))
    problems.extend(renamed)
    results = []
    for path in logs(folder) or [folder / "episodes.jsonl"]:
        entries = _read_entries(path, problems)
        problems.extend(changed(path.name, entries, {"evaluation": folder.name, **expected}))
        for entry in filter(None, entries):
            try:
                results.append(result_of(entry, where=path.name))
            except RecipeError as error:
                problems.append(str(error))
    episodes = believable(recipe, results, problems, listed=not renamed)
    return EvaluationRecord(
        fingerprint=folder.name,
        recipe=recipe,
        episodes=tuple(sorted(episodes.values(), key=lambda e: (e.tier, e.task, e.episode))),
        videos=_read_videos(folder / "videos", problems),
        problems=tuple(dict.fromkeys(problems)),
    )


def _read_videos(folder: Path, problems: list[str]) -> tuple[Video, ...]:
    index = folder / "videos.json"
    if not index.exists():
        return ()
    entries = _read_json(index, problems)
    videos = []
    for entry in entries if isinstance(entries, list) else ():
        try:
            path = (folder / str(entry["file"])).resolve()
            success = entry["success"] is True
            video = Video(str(entry["episode"]), str(entry["task"]), str(entry["instruction"]), success, path)
        except (KeyError, TypeError) as error:
            problems.append(f"videos.json: an entry is damaged ({error!r})")
            continue
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            problems.append(f"videos.json: there is no video {entry['file']!r} in the videos folder")
            continue
        videos.append(video)
    return tuple(sorted(videos, key=lambda video: video.episode))


def _read_metrics(path: Path, problems: list[str]) -> tuple[Metric, ...]:
    """By split and step; steps logged twice, before and after a resume, keep the last."""
    found: dict[tuple[str, int], Metric] = {}
    for entry in _read_lines(path, problems):
        step, split, loss = entry.get("step"), entry.get("split"), entry.get("loss")
        if not isinstance(step, int) or not isinstance(split, str):
            problems.append(f"{path.name}: a line has no step or split")
            continue
        finite = isinstance(loss, int | float) and math.isfinite(loss)
        found[split, step] = Metric(step, split, float(loss) if finite else None)  # type: ignore[arg-type]
    return tuple(found[key] for key in sorted(found))


def _read_phases(status: Mapping[str, Any], unit: str) -> dict[str, float]:
    spent = status.get(unit)
    if not isinstance(spent, Mapping):
        return {}
    return {str(name): float(value) for name, value in spent.items() if isinstance(value, int | float)}


def _read_lines(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a .jsonl file; a line cut short or damaged is a problem and is skipped."""
    return filter(None, _read_entries(path, problems))


def _read_entries(path: Path, problems: list[str]) -> list[dict[str, Any] | None]:
    """Likewise, None for a line that is damaged."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        problems.append(f"{path.name}: {error.strerror or error}")
        return []
    entries: list[dict[str, Any] | None] = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            entry = None
        entries.append(entry if isinstance(entry, dict) else None)
        if entries[-1] is None:
            end = " (the last one: writing it was interrupted)" if number == len(lines) else ""
            problems.append(f"{path.name}: line {number} is damaged{end} and was left out")
    return entries


def _read_object(path: Path, problems: list[str]) -> dict[str, Any] | None:
    data = _read_json(path, problems)
    if data is not None and not isinstance(data, dict):
        problems.append(f"{path.name}: expected a JSON object")
        return None
    return data


def _read_json(path: Path, problems: list[str]) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"{path.name}: {(error.strerror or str(error)).lower()}")
    except ValueError as error:  # not JSON, or not text
        problems.append(f"{path.name}: damaged, not readable as JSON ({error})")
    return None
