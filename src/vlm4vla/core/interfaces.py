"""The protocols where packages meet. Read this first.

Protocols with tensors live beside their users: `backbones.backbone.Backbone`, `policies.heads.ActionHead`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.types import Demonstration, EpisodeResult, EpisodeSpec, Observation, Step


@runtime_checkable
class DemonstrationSource(Protocol):
    """Expert episodes by index."""

    @property
    def name(self) -> str:
        """What a report calls it."""
        ...

    @property
    def action_spec(self) -> ActionSpec:
        """The meaning of every demonstration's actions."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever any demonstration would."""
        ...

    @property
    def scripted(self) -> str:
        """Who made them, where a scripted expert did; empty for others."""
        ...

    def __len__(self) -> int:
        """Number of episodes."""
        ...

    def __getitem__(self, index: int) -> Demonstration:
        """One episode; its frames may decode lazily."""
        ...


@runtime_checkable
class ChunkPredictor(Protocol):
    """Observations in, action chunks out. Local, remote, scripted and replayed policies look the same."""

    @property
    def action_spec(self) -> ActionSpec:
        """The meaning of the actions it returns."""
        ...

    @property
    def horizon(self) -> int:
        """Actions per chunk."""
        ...

    def predict_chunk(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "batch horizon 7"]:
        """One chunk per observation; a row does not depend on its neighbours."""
        ...


@runtime_checkable
class EpisodePredictor(ChunkPredictor, Protocol):
    """A predictor that keeps something per episode, a memory or a connection, under `Observation.episode`."""

    def end_episode(self, episode: str, result: EpisodeResult | None) -> None:
        """Forget it. Without a result it was broken off, and may be begun again under the same name."""
        ...


@runtime_checkable
class Environment(Protocol):
    """One simulator, played one episode at a time."""

    def reset(self, episode: EpisodeSpec) -> Observation:
        """Build the episode's initial state; nothing of earlier episodes remains."""
        ...

    def step(self, action: Float32[np.ndarray, "7"]) -> Step:
        """Carry out one action of the benchmark's convention."""
        ...

    def close(self) -> None:
        """Free the simulator; the environment is unusable afterwards."""
        ...


@runtime_checkable
class LazyEnvironment(Environment, Protocol):
    """An environment that can also step without rendering: between predictions of a chunk nobody looks."""

    def advance(self, action: Float32[np.ndarray, "7"]) -> int:
        """As `step`, to the bit, but only the goals completed come back."""
        ...

    def observe(self) -> Observation:
        """What `step` would have shown; looking changes nothing."""
        ...


@runtime_checkable
class Benchmark(Protocol):
    """A fixed list of episodes and the environment that plays them."""

    @property
    def name(self) -> str:
        """Carries its version, e.g. `tabletop-v1`: another version's numbers are not comparable."""
        ...

    @property
    def action_spec(self) -> ActionSpec:
        """The meaning of the actions its environments take."""
        ...

    def episodes(self) -> Sequence[EpisodeSpec]:
        """All episodes, in reporting order, with unique ids."""
        ...

    def make_environment(self) -> Environment:
        """A fresh environment; called in the process that will step it."""
        ...

    def recipe(self) -> tuple[str, Mapping[str, Any]]:
        """How a worker process constructs an equal benchmark: `module:callable` and its JSON keyword arguments."""
        ...


@runtime_checkable
class Isolated(Protocol):
    """A benchmark whose environments are played in processes of their own only, one in each, and by which Python."""

    @property
    def python(self) -> str | None:
        """The interpreter that has its simulator; None: the one that asks. Raises: SimulatorError when none has."""
        ...


@runtime_checkable
class Outlined(Protocol):
    """A benchmark whose episodes take time to make, and that can tell at once what there are."""

    def outline(self) -> Sequence[EpisodeSpec]:
        """`episodes()` without instructions and setup: ids, how many goals, steps."""
        ...


@runtime_checkable
class Versioned(Protocol):
    """A benchmark that says which packages decide what its episodes look like; they are recorded with each result."""

    @property
    def software(self) -> Mapping[str, str]:
        """Package -> the version that its numbers are known for; empty: any."""
        ...
