"""A real policy in real episodes: the same results for any number of workers and of episodes side by side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tiny_trials

from vlm4vla.benchmarks.registry import make_benchmark
from vlm4vla.benchmarks.rollout import evaluate
from vlm4vla.benchmarks.tabletop.benchmark import TabletopEnvironment
from vlm4vla.core.recipes import EvaluationRecipe
from vlm4vla.core.types import EpisodeResult, Observation
from vlm4vla.demonstrations.packed import PackedSource
from vlm4vla.policies.predictor import Predictor
from vlm4vla.policies.vla import VLA
from vlm4vla.testing import check_policy
from vlm4vla.training.train import train

SIDE = tiny_trials.SIDE
BENCHMARK = make_benchmark(
    EvaluationRecipe(
        benchmark="tabletop-a", look="A", tasks=("press", "stack"), episodes_per_task=3, image_size=SIDE
    )
)


@pytest.fixture(scope="module", params=["qwen3-vl", "qwen3-vl-moe", "kosmos-2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for some steps, so that what it does is neither zero nor random."""
    folder = tmp_path_factory.mktemp(request.param)
    vlm = tiny_trials.tiny_vlm(folder / "vlm", family=request.param)
    source: PackedSource = tiny_trials.packed(folder / "walks")
    return train(tiny_trials.trial(vlm, steps=8), source, folder / "run", progress=False)


@pytest.fixture(scope="module")
def observations() -> list[Observation]:
    environment = TabletopEnvironment(SIDE)
    return [environment.reset(episode) for episode in BENCHMARK.episodes()]


def what_happened(results: list[EpisodeResult]) -> list[dict[str, object]]:
    """Everything but the time."""
    return [{k: v for k, v in asdict(result).items() if k != "seconds"} for result in results]


def test_the_contract(checkpoint: Path, observations: list[Observation]) -> None:
    check_policy(Predictor(VLA.from_pretrained(checkpoint), batch_size=4), observations)


def test_workers_and_batches_change_nothing(checkpoint: Path) -> None:
    """One observation at a time or eight, here or in processes: the forward pass has the same shape."""
    vla = VLA.from_pretrained(checkpoint)
    found = [
        what_happened(
            evaluate(
                Predictor(vla, batch_size=8),
                BENCHMARK,
                execute=5,
                folder=None,
                environments=environments,
                workers=workers,
                progress=False,
            )
        )
        for workers, environments in ((0, 1), (1, 8), (2, 8), (2, 3))
    ]
    assert len(found[0]) == 6
    assert all(other == found[0] for other in found)


def test_predictions_hardly_depend_on_the_batch_size(
    checkpoint: Path, observations: list[Observation]
) -> None:
    vla = VLA.from_pretrained(checkpoint)
    one, eight = (Predictor(vla, batch_size=size).predict_chunk(observations) for size in (1, 8))
    np.testing.assert_allclose(one, eight, atol=1e-5)
