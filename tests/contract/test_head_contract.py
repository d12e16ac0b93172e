"""Every registered head keeps the head contract on every family, and acts the same in any batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_trials

from vlm4vla.backbones.families import FAMILIES
from vlm4vla.core import recipes
from vlm4vla.core.normalization import Normalization, Quantiles
from vlm4vla.core.recipes import PolicyRecipe
from vlm4vla.core.types import Observation
from vlm4vla.policies.predictor import Predictor
from vlm4vla.policies.registry import HEADS
from vlm4vla.policies.vla import VLA
from vlm4vla.testing import ContractError, check_head, check_policy

FAST = "qwen3-vl"


def policy(folder: Path, head: str, family: str = FAST) -> VLA:
    vlm = tiny_trials.tiny_vlm(folder / "vlm", family)
    recipe = PolicyRecipe(
        backbone=str(vlm),
        image_size=tiny_trials.SIDE,
        horizon=3,
        head=head,
        head_width=32,
        head_body=(32, 16),
        expert_layers=2,
        expert_width=32,
        expert_mlp=64,
        expert_heads=2,
        expert_head_width=16,
    )
    actions = np.random.default_rng(0).uniform(-1, 1, (50, 7)).astype(np.float32)
    normalization = Normalization((Quantiles.fit(actions),))
    vla = VLA.from_recipe(recipe, action_spec=tiny_trials.SPEC, normalization=normalization, seed=0)
    vla.head.fit(lambda: normalization.normalize(actions[:48].reshape(-1, 3, 7)))
    return vla


def observations(count: int) -> list[Observation]:
    rng = np.random.default_rng(0)
    side = tiny_trials.SIDE
    return [
        Observation(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), tiny_trials.SAYINGS[index % 2])
        for index in range(count)
    ]


def test_the_recipes_names_are_the_registered_ones() -> None:
    assert tuple(HEADS) == recipes.HEADS


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_keeps_the_contract(family: str, head: str, tmp_path: Path) -> None:
    """Each learns four samples by heart; a flow, which meets other noise each time, more slowly."""
    check_head(policy(tmp_path, head, family), observations(4), steps=150 if head == "flow" else 60)


@pytest.mark.parametrize("head", [head for head in HEADS if head != "mlp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_its_neighbours(family: str, head: str, tmp_path: Path) -> None:
    """The `mlp` head's own check is in the rollout tests."""
    check_policy(Predictor(policy(tmp_path, head, family), batch_size=4), observations(6))


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_policy_acts_the_same(head: str, tmp_path: Path) -> None:
    vla = policy(tmp_path, head)
    vla.save(tmp_path / "saved")
    found = Predictor(VLA.from_pretrained(tmp_path / "saved"), batch_size=2).predict_chunk(observations(3))
    assert np.array_equal(found, Predictor(vla, batch_size=2).predict_chunk(observations(3)))


def test_the_contract_finds_a_head_that_does_not_learn(tmp_path: Path) -> None:
    vla = policy(tmp_path, "flow")
    with pytest.raises(ContractError, match="do not belong together"):
        check_head(vla, observations(4), steps=0)
