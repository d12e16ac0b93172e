"""Policies from outside, code of somebody or a server: evaluated, recorded and reported like our own.

Its folder is that of a trial without training, named by what the policy is. What a server says of itself must stay the
same while its evaluations are continued; where it runs need not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm4vla.benchmarks.registry import BENCHMARKS, make_benchmark
from vlm4vla.core.interfaces import ChunkPredictor
from vlm4vla.core.recipes import (
    DemonstrationRecipe,
    EvaluationRecipe,
    PolicyRecipe,
    TrainRecipe,
    Trial,
    fingerprint,
)
from vlm4vla.core.types import EpisodeResult
from vlm4vla.serving.layout import Layout
from vlm4vla.studies.checks import Resources
from vlm4vla.studies.execute import run_evaluation
from vlm4vla.studies.runs import RunStore, locked


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsidePolicy:
    """How a policy is reached."""

    address: str
    """`ws://host:port`, `module:name` or `file.py:name`."""
    name: str = ""
    """What reports call it; empty: its address."""
    protocol: str = "auto"
    layout: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Changes to how observations and actions travel (`serving.layout.Layout`)."""
    seconds: float = 120.0
    """For an answer."""
    connections: int = 1
    """Observations that are asked for at a time."""

    @property
    def is_remote(self) -> bool:
        """Whether it is a server."""
        return self.address.startswith(("ws://", "wss://"))


def evaluate_outside(
    policy: OutsidePolicy,
    recipe: EvaluationRecipe,
    store: RunStore,
    resources: Resources,
    *,
    notes: Mapping[str, Any] | None = None,
) -> tuple[Path, list[EpisodeResult]]:
    """Play what is missing of an evaluation, into the folder of the policy; the folder and every result.

    Raises: RunError when the policy breaks or has become another one, RecipeError and ActionSpecMismatch before.
    """
    benchmark = make_benchmark(recipe)
    if not policy.is_remote:
        from vlm4vla.serving.module import ModulePolicy

        code = ModulePolicy(policy.address, benchmark.action_spec, execute=recipe.execute)
        recipe = dataclasses.replace(recipe, shows=code.needs)
        identity: dict[str, Any] = {"sha256": code.sha256, "version": code.version}
        return _play(policy, identity, {}, code, recipe, store, resources, notes)
    from vlm4vla.serving.client import RemotePolicy
    from vlm4vla.serving.codec import plain

    tiers = {goal.tier for episode in benchmark.episodes() for goal in episode.goals}
    with closing(
        RemotePolicy(
            policy.address,
            benchmark.action_spec,
            benchmark=recipe.benchmark,
            suite=tiers.pop() if len(tiers) == 1 else "",
            execute=recipe.execute,
            protocol=policy.protocol,
            changes=policy.layout,
            seconds=policy.seconds,
            connections=policy.connections,
        )
    ) as remote:
        identity = {"protocol": remote.protocol, "layout": dataclasses.asdict(remote.layout)}
        facts = {"metadata": plain(remote.metadata)}
        notes = {"scripted": str(remote.metadata.get("scripted", "")), **(notes or {})}
        recipe = dataclasses.replace(recipe, shows=_shown(recipe, remote.layout))
        return _play(policy, identity, facts, remote, recipe, store, resources, notes)


def _shown(recipe: EvaluationRecipe, layout: Layout) -> tuple[Any, ...]:
    """What is sent and the benchmark can show; what it cannot is told, or made up, when the first question is asked."""
    entry = BENCHMARKS.get(recipe.benchmark)
    return tuple(name for name in (entry.shows if entry else ()) if getattr(layout, name))


def _play(
    policy: OutsidePolicy,
    identity: Mapping[str, Any],
    facts: Mapping[str, Any],
    predictor: ChunkPredictor,
    recipe: EvaluationRecipe,
    store: RunStore,
    resources: Resources,
    notes: Mapping[str, Any] | None,
) -> tuple[Path, list[EpisodeResult]]:
    trial = _trial(policy.name or policy.address, identity)
    recorded = {"policy": {**identity, **facts}}
    with store.open(trial, facts=recorded, notes={"address": policy.address, **(notes or {})}) as run:
        run.begin()
        if resources.shard[1] == 1:
            with run.phase("evaluate"):
                results = run_evaluation(predictor, recipe, run.folder, resources)
            run.update(state="done")
            return run.folder, results
        run.update(state="done", phase="evaluate")
    # Shards play side by side, and may be on other machines.
    part = "-{}-of-{}".format(*resources.shard)
    with locked(run.folder / f".lock{part}", what=f"a shard of the policy {trial.name!r}"):
        return run.folder, run_evaluation(predictor, recipe, run.folder, resources)


def _trial(name: str, identity: Mapping[str, Any]) -> Trial:
    """Nothing is trained; the name holds what the policy is, so that another one gets another folder."""
    named = f"{name}@{fingerprint({'name': name, **identity})[:8]}"
    return Trial(
        name=named,
        policy=PolicyRecipe(backbone=named),
        demonstrations=DemonstrationRecipe(source="none", episodes=0, looks=()),
        train=TrainRecipe(steps=0),
        evaluations=(),
    )
