"""Every benchmark by name keeps the contract; so does the test world, and each way of breaking it is noticed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from point_world import PointWorld, Seeker

from vlm4vla.benchmarks.registry import BENCHMARKS, make_benchmark
from vlm4vla.core.recipes import EvaluationRecipe
from vlm4vla.core.types import EpisodeSpec, Observation
from vlm4vla.testing import ContractError, check_benchmark, check_policy

UP_IN_POINT_WORLD = np.array([0, 1, 0, 0, 0, 0, 1], np.float32)
RAISING = np.array([0, 0, 1, 0, 0, 0, 1], np.float32)
EMBEDDED = [name for name, entry in BENCHMARKS.items() if entry.simulator is None]
"""The others need their simulator, and are checked in the tests of each."""


@pytest.mark.parametrize("name", EMBEDDED)
def test_registered(name: str) -> None:
    look = "A" if name.endswith("-a") else "D"
    benchmark = make_benchmark(EvaluationRecipe(benchmark=name, look=look, episodes_per_task=1))
    check_benchmark(benchmark, raising=RAISING)


@pytest.mark.parametrize("lazy", [False, True])
def test_point_world(lazy: bool) -> None:
    check_benchmark(PointWorld(goals=2, lazy=lazy), raising=UP_IN_POINT_WORLD)


class Unversioned(PointWorld):
    def __init__(self) -> None:
        super().__init__()
        self.name = "point-world"


class Repeated(PointWorld):
    def episodes(self) -> list[EpisodeSpec]:
        return [*super().episodes(), super().episodes()[0]]


class Unstable(PointWorld):
    calls = 0

    def episodes(self) -> list[EpisodeSpec]:
        self.calls += 1
        return [replace(spec, id=f"{spec.id}/{self.calls}") for spec in super().episodes()]


class OtherRecipe(PointWorld):
    def recipe(self):  # type: ignore[no-untyped-def]
        return "point_world:PointWorld", {"episodes_per_task": 7}


class Wrapped(PointWorld):
    """Spoils what the environment shows."""

    def spoil(self, observation: Observation) -> Observation:
        return observation

    def make_environment(self):  # type: ignore[no-untyped-def]
        environment = super().make_environment()
        observe = environment._observe
        environment._observe = lambda: self.spoil(observe())  # type: ignore[method-assign]
        return environment


class Black(Wrapped):
    def spoil(self, observation: Observation) -> Observation:
        return replace(observation, image=np.zeros_like(observation.image))


class FloatImages(Wrapped):
    def spoil(self, observation: Observation) -> Observation:
        return replace(observation, image=observation.image.astype(np.float32) / 255)


class OtherInstruction(Wrapped):
    def spoil(self, observation: Observation) -> Observation:
        return replace(observation, instruction="do something")


class SameArray(Wrapped):
    buffer = np.zeros((24, 24, 3), np.uint8)

    def spoil(self, observation: Observation) -> Observation:
        self.buffer[:] = observation.image
        return replace(observation, image=self.buffer)


@pytest.mark.parametrize(
    ("benchmark", "words"),
    [
        (Unversioned(), "ends in no version"),
        (Repeated(), "ids are not unique"),
        (Unstable(), "differs from call to call"),
        (PointWorld(max_steps=0), "allows 0 steps"),
        (PointWorld(setup={"size": (1, 2)}), "not plain JSON"),
        (PointWorld(leaky=True), "its reset keeps history"),
        (OtherRecipe(), "leads to another benchmark"),
        (Black(), "one colour only"),
        (FloatImages(), r"image of episode 'left/000' is float32 \(24, 24, 3\)"),
        (OtherInstruction(), "instructs 'do something' instead of 'go left'"),
        (SameArray(), "a later step changed an observation given out earlier"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PointWorld) else "",
)
def test_what_breaks_the_contract_is_named(benchmark: PointWorld, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        check_benchmark(benchmark)


def test_an_upside_down_image_is_noticed() -> None:
    with pytest.raises(ContractError, match="upside down"):
        check_benchmark(PointWorld(), raising=-UP_IN_POINT_WORLD)


class BatchDependent(Seeker):
    def predict_chunk(self, observations):  # type: ignore[no-untyped-def]
        return super().predict_chunk(observations) + np.float32(1e-7 * len(observations))


class SlotDependent(Seeker):
    def predict_chunk(self, observations):  # type: ignore[no-untyped-def]
        return (
            super().predict_chunk(observations)
            + np.arange(len(observations), dtype=np.float32)[:, None, None]
        )


class Forgetful(Seeker):
    def predict_chunk(self, observations):  # type: ignore[no-untyped-def]
        return super().predict_chunk(observations) + np.float32(len(self.batches))


class Double(Seeker):
    def predict_chunk(self, observations):  # type: ignore[no-untyped-def]
        return super().predict_chunk(observations).astype(np.float64)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (BatchDependent(), "a row alone differs"),
        (SlotDependent(), "depends on its position"),
        (Forgetful(), "gave another prediction"),
        (Double(), "predict_chunk gave float64"),
    ],
)
def test_a_policy_that_breaks_its_contract_is_named(policy: Seeker, words: str) -> None:
    environment = PointWorld().make_environment()
    observations = [environment.reset(spec) for spec in PointWorld().episodes()]
    check_policy(Seeker(), observations)
    with pytest.raises(ContractError, match=words):
        check_policy(policy, observations)
