"""Rows: one per task, tier and whole evaluation of every trial; results.json and results.csv.

The same experiment twice gives the same files byte for byte, apart from the field `seconds`, where all times are.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vlm4vla.benchmarks.records import REPEAT
from vlm4vla.core.recipes import EvaluationRecipe, fingerprint
from vlm4vla.core.types import EpisodeResult
from vlm4vla.demonstrations.scripted import labelled
from vlm4vla.reports import estimates
from vlm4vla.reports.estimates import Comparison, Estimate
from vlm4vla.reports.records import EvaluationRecord, TrialRecord, broke

ALL = "all"
DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one policy did on one task, on one tier (task `all`), or altogether (tier and task `all`)."""

    trial: str
    """The trial's fingerprint."""
    name: str
    backbone: str
    weights: str
    """`pretrained`, `random`, or `none` for the random policy."""
    note: str
    """`trained on scripted demonstrations`; empty for others."""
    train_steps: int
    train_seed: int
    evaluation: str
    """The evaluation's fingerprint; empty when there is none."""
    benchmark: str
    look: str
    execute: int
    tier: str
    task: str
    successes: int
    episodes: int
    """Scored ones: the n of the rate."""
    errors: int
    """Episodes in which the program broke; they are in no rate."""
    rate: float | None
    """None when nothing was scored."""
    low: float | None
    high: float | None
    """95 % interval of the rate (Wilson)."""
    goals: int
    """Goals per episode; 1 but for chains."""
    chain_length: float | None
    """Mean number of goals completed in a row; None unless episodes have several."""
    chain_low: float | None
    chain_high: float | None
    repeats: int
    """How often every episode was played."""
    episode_variance: float | None
    """Of the score between episodes (of the chain length where there are chains); None without repeats."""
    noise_variance: float | None
    """Of the score between plays of one episode, which is the policy's noise; likewise."""
    seconds: float
    """Simulated and predicted time of its episodes, summed over parallel environments."""
    incomplete: str
    """Why the row is not final; empty when it is."""

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object, floats rounded to six digits."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: round(v, DIGITS) if isinstance(v, float) else v for k, v in values.items()}

    @property
    def estimate(self) -> Estimate | None:
        """The success rate with its interval; None when nothing was scored."""
        if self.rate is None or self.low is None or self.high is None:
            return None
        return Estimate(self.rate, self.low, self.high)

    @property
    def chain(self) -> Estimate | None:
        """The chain length with its interval; None unless episodes have several goals."""
        if self.chain_length is None or self.chain_low is None or self.chain_high is None:
            return None
        return Estimate(self.chain_length, self.chain_low, self.chain_high)


@dataclass(frozen=True, slots=True)
class PairedArms:
    """Two trials that differ in their weights, compared on one tier of one evaluation."""

    pretrained: TrialRecord
    random: TrialRecord
    differing: tuple[str, ...]
    """Recipe fields other than the weights that differ too; empty when training was equal."""
    recipe: EvaluationRecipe
    tier: str
    comparison: Comparison


def rows(records: Sequence[TrialRecord]) -> list[Row]:
    """All rows, trial by trial, evaluation by evaluation: the whole first, then each tier followed by its tasks."""
    return [row for record in records for row in _trial_rows(record)]


def evaluation_rows(record: TrialRecord, evaluation: EvaluationRecord) -> list[Row]:
    """The whole evaluation, then each tier followed by its tasks."""
    found = [_row(record, evaluation, ALL, ALL, evaluation.episodes)]
    for tier in tiers_of(evaluation):
        of_tier = [episode for episode in evaluation.episodes if episode.tier == tier]
        found.append(_row(record, evaluation, tier, ALL, of_tier))
        for task in sorted({episode.task for episode in of_tier}):
            found.append(_row(record, evaluation, tier, task, [e for e in of_tier if e.task == task]))
    return found


def labels(records: Sequence[TrialRecord]) -> dict[str, str]:
    """What a report calls each trial, by fingerprint; those that would be called the same get more of a name."""
    found = {record.fingerprint: labelled(_label(record), record.note) for record in records}
    by_name = {record.fingerprint: record.trial.name for record in records if record.trial}
    by_fingerprint = {record.fingerprint: record.fingerprint[:6] for record in records}
    for longer in (by_name, by_fingerprint):
        shared = Counter(found.values())
        for key, label in found.items():
            if shared[label] > 1 and key in longer:
                found[key] = f"{label} · {longer[key]}"
    return found


def setting_labels(recipes: Iterable[EvaluationRecipe]) -> dict[EvaluationRecipe, str]:
    """What a report calls each evaluation recipe; those that would be called the same get their fingerprint."""
    plain = {
        recipe: f"{recipe.benchmark}, look {recipe.look}, "
        f"{recipe.execute} {'action' if recipe.execute == 1 else 'actions'} of each chunk executed"
        + ("" if recipe.renderer == "ray" else f", drawn with {recipe.renderer}")
        for recipe in recipes
    }
    return {
        recipe: label if list(plain.values()).count(label) == 1 else f"{label} · {fingerprint(recipe)[:6]}"
        for recipe, label in plain.items()
    }


def settings(
    records: Sequence[TrialRecord],
) -> dict[EvaluationRecipe, list[tuple[TrialRecord, EvaluationRecord]]]:
    """Who was scored under which evaluation recipe; only rows of one setting are comparable."""
    found: dict[EvaluationRecipe, list[tuple[TrialRecord, EvaluationRecord]]] = {}
    for record in records:
        for evaluation in record.evaluations:
            found.setdefault(evaluation.recipe, []).append((record, evaluation))
    return found


def tiers_of(evaluation: EvaluationRecord) -> list[str]:
    """Tiers that its episodes are reported under; none for chains, whose goals are of several."""
    return [] if evaluation.is_chain else sorted({episode.tier for episode in evaluation.episodes})


def weights_comparisons(records: Sequence[TrialRecord]) -> list[PairedArms]:
    """Pretrained against random weights of the same backbone, per evaluation and tier, the whole first.

    Each pretrained trial meets the random one whose recipe differs least.
    """
    found = []
    for first in records:
        others = [r for r in records if r.weights == "random" and r.backbone == first.backbone and r.trial]
        if first.weights != "pretrained" or first.trial is None or not others:
            continue
        second = min(others, key=lambda other: len(_differing(first, other)))
        for mine in first.evaluations:
            for theirs in second.evaluations:
                if mine.recipe == theirs.recipe:
                    for tier in (ALL, *tiers_of(mine)):
                        comparison = _compare(mine, theirs, tier)
                        if comparison is not None:
                            found.append(
                                PairedArms(
                                    first, second, _differing(first, second), mine.recipe, tier, comparison
                                )
                            )
    return found


def write_results(records: Sequence[TrialRecord], out: Path) -> None:
    """Write results.json and results.csv into `out`, each complete or not at all."""
    entries = [row.to_json() for row in rows(records)]
    lines = ",\n".join("  " + json.dumps(entry, ensure_ascii=False, allow_nan=False) for entry in entries)
    write_whole(out / "results.json", f"[\n{lines}\n]\n")
    table = io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(entries)
    write_whole(out / "results.csv", table.getvalue())


def write_whole(path: Path, text: str) -> None:
    """Write a text file under another name, then rename it: readers see the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _trial_rows(record: TrialRecord) -> Iterator[Row]:
    for evaluation in record.evaluations:
        yield from evaluation_rows(record, evaluation)
    if not record.evaluations:
        yield _row(record, None, ALL, ALL, ())


def _row(
    record: TrialRecord,
    evaluation: EvaluationRecord | None,
    tier: str,
    task: str,
    episodes: Sequence[EpisodeResult],
) -> Row:
    scored = [episode for episode in episodes if episode.error is None]
    errors = len(episodes) - len(scored)
    rate = estimates.success_rate(sum(episode.success for episode in scored), len(scored))
    several = _repeated(evaluation, scored)
    if several is not None:
        rate = several.estimate
    goals = max((episode.goals for episode in episodes), default=1)
    chain = estimates.chain_length([e.goals_completed for e in scored], goals) if goals > 1 else None
    if several is not None and goals > 1:
        lengths = _plays(scored, lambda episode: float(episode.goals_completed))
        several = estimates.repeated(lengths)
        chain = several.estimate if several else None
    problems = [*record.problems, *(evaluation.problems if evaluation else ["has no evaluation"])]
    if errors:
        problems.append(broke(errors, len(episodes)))
    trial, recipe = record.trial, evaluation.recipe if evaluation else None
    return Row(
        trial=record.fingerprint,
        name=trial.name if trial else "",
        backbone=record.backbone,
        weights=record.weights,
        note=record.note,
        train_steps=trial.train.steps if trial else 0,
        train_seed=trial.train.seed if trial else 0,
        evaluation=evaluation.fingerprint if evaluation else "",
        benchmark=recipe.benchmark if recipe else "",
        look=recipe.look if recipe else "",
        execute=recipe.execute if recipe else 0,
        tier=tier,
        task=task,
        successes=sum(episode.success for episode in scored),
        episodes=len(scored),
        errors=errors,
        rate=rate.value if rate else None,
        low=rate.low if rate else None,
        high=rate.high if rate else None,
        goals=goals,
        chain_length=chain.value if chain else None,
        chain_low=chain.low if chain else None,
        chain_high=chain.high if chain else None,
        repeats=evaluation.recipe.repeats if evaluation else 1,
        episode_variance=several.between if several else None,
        noise_variance=several.within if several else None,
        seconds=sum((episode.seconds for episode in episodes), 0.0),
        incomplete="; ".join(problems),
    )


def _repeated(
    evaluation: EvaluationRecord | None, scored: Sequence[EpisodeResult]
) -> estimates.Repeated | None:
    if evaluation is None or evaluation.recipe.repeats == 1:
        return None
    return estimates.repeated(_plays(scored, lambda episode: float(episode.success)))


def _plays(
    scored: Sequence[EpisodeResult], score: Callable[[EpisodeResult], float]
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for episode in scored:
        found.setdefault(episode.episode.partition(REPEAT)[0], []).append(score(episode))
    return found


def _label(record: TrialRecord) -> str:
    match record.weights:
        case "none":
            return "random policy"
        case "given":
            return record.backbone
        case "random":
            return f"{record.backbone}, random weights"
        case "pretrained":
            return f"{record.backbone}, pretrained"
    return "unreadable trial"


def _compare(mine: EvaluationRecord, theirs: EvaluationRecord, tier: str) -> Comparison | None:
    """Paired over the episodes that both scored; unpaired when they share none."""
    outcomes = [
        {e.episode: e.success for e in side.episodes if e.error is None and tier in (ALL, e.tier)}
        for side in (mine, theirs)
    ]
    shared = outcomes[0].keys() & outcomes[1].keys()
    if not shared:
        first, second = ((sum(side.values()), len(side)) for side in outcomes)
        return estimates.compare(first, second)
    pairs = [(outcomes[0][episode], outcomes[1][episode]) for episode in shared]
    return estimates.compare_paired(
        pairs.count((True, True)),
        pairs.count((True, False)),
        pairs.count((False, True)),
        pairs.count((False, False)),
    )


def _differing(first: TrialRecord, second: TrialRecord) -> tuple[str, ...]:
    """Names of the recipe fields, other than weights and labels, in which two trials differ."""
    assert first.trial is not None
    assert second.trial is not None
    return tuple(
        f"{part}.{field.name}"
        for part in ("policy", "demonstrations", "train")
        for field in fields(getattr(first.trial, part))
        if getattr(getattr(first.trial, part), field.name) != getattr(getattr(second.trial, part), field.name)
        and field.name != "weights"
    )
