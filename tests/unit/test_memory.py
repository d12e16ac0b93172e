"""Predictions without weights against the tensors that are alive in a real step, counted; and what a user is told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_trials
import torch

from vlm4vla.backbones.architectures import ARCHITECTURE_NAMES
from vlm4vla.backbones.backbone import Backbone
from vlm4vla.backbones.tiny import TINY_SIZES, TinySize, build_tiny
from vlm4vla.cli import main
from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import RecipeError
from vlm4vla.core.normalization import Normalization
from vlm4vla.core.recipes import Trial
from vlm4vla.core.types import Observation
from vlm4vla.policies.vla import VLA
from vlm4vla.studies.paper_presets import calvin
from vlm4vla.studies.presets import tabletop
from vlm4vla.training import memory
from vlm4vla.training.batches import Batch, MicroBatch
from vlm4vla.training.memory import Alive

SPEC = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="controller")
SAMPLES = 6
SMALL = TinySize(
    hidden=192,
    layers=4,
    heads=6,
    mlp=768,
    vision_hidden=144,
    vision_layers=3,
    vision_heads=6,
    vision_mlp=576,
    image_size=112,
    patch=14,
    latents=16,
)


def changed(trial: Trial, *, freeze: tuple[str, ...] = (), again: bool = False, **policy: object) -> Trial:
    return dataclasses.replace(
        trial,
        policy=dataclasses.replace(trial.policy, freeze=freeze, **policy),
        train=dataclasses.replace(trial.train, checkpoint_activations=again),
    )


def real_step(trial: Trial) -> tuple[memory.Step, int]:
    """Counted on real tensors, and how many tokens the text had."""
    vla = VLA.from_recipe(trial.policy, action_spec=SPEC, normalization=Normalization(()), seed=0).train()
    if trial.train.checkpoint_activations:
        vla.backbone.checkpoint_activations()
    size = trial.policy.image_size
    frame = np.zeros((size, size, 3), dtype=np.uint8)
    inputs = vla.encode([Observation(frame, "push the red block to the left")] * SAMPLES)
    native = vla.backbone.native
    assert native is not None
    horizon = trial.policy.horizon
    vla.head.fit(lambda: memory.smooth_chunks(4096, horizon))
    target = torch.from_numpy(memory.smooth_chunks(SAMPLES, horizon))
    micro = MicroBatch(inputs, target, torch.ones(SAMPLES, horizon, dtype=torch.bool))
    step = memory.count_step(vla, Batch([micro], SAMPLES * horizon), trial)
    return step, inputs.input_ids.shape[1] - native.image_tokens


def assert_predicted(trial: Trial) -> None:
    counted, text_tokens = real_step(trial)
    predicted = memory.hollow_step(trial, samples=SAMPLES, text_tokens=text_tokens)
    assert predicted.parameters == counted.parameters
    assert predicted.gradients == counted.gradients
    assert predicted.optimizer == counted.optimizer
    assert predicted.activations == pytest.approx(counted.activations, rel=0.1)
    assert predicted.peak == pytest.approx(counted.peak, rel=0.1)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("freeze", [(), ("vision",)])
@pytest.mark.parametrize("family", TINY_SIZES)
def test_a_tiny_step_is_predicted(family: str, freeze: tuple[str, ...], again: bool) -> None:
    assert_predicted(changed(tabletop(f"tiny-{family}"), freeze=freeze, again=again))


@pytest.mark.parametrize("family", ["qwen3-vl", "paligemma-1", "kosmos-2"])
def test_a_larger_step_is_predicted(family: str, tmp_path: Path) -> None:
    folder = build_tiny(family, SMALL, tmp_path / "vlm", texts=tiny_trials.SAYINGS, seed=0)
    trial = tabletop(str(folder), image_size=SMALL.image_size)
    assert_predicted(trial)
    assert_predicted(changed(trial, again=True))


@pytest.mark.parametrize("head", ["flow", "tokens", "fast"])
def test_other_heads_are_predicted(head: str) -> None:
    assert_predicted(tabletop("tiny-qwen3-vl", head=head))


def test_adapters_are_predicted() -> None:
    trial = changed(tabletop("tiny-qwen3-vl"), lora_rank=4)
    assert_predicted(trial)
    whole = memory.hollow_step(tabletop("tiny-qwen3-vl"), samples=2)
    assert memory.hollow_step(trial, samples=2).optimizer < 0.7 * whole.optimizer


def test_the_papers_trainings_take_another_head(
    capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    head = "fast"
    assert main(["plan", "bridge", "--backbone", "kosmos-2", "--head", head, "--gpus", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["checkpointed"] for entry in found] == [False, True] and not recwarn.list
    assert main(["train", "bridge", "--backbone", "kosmos-2", "--head", head, "--plan"]) == 0
    assert f"bridge kosmos-2 pretrained {head}" in capsys.readouterr().out


def test_what_is_alive_is_counted_once_and_until_it_is_gone() -> None:
    alive = Alive()
    with alive:
        first = torch.zeros(1000)
        view = first[10:].reshape(2, -1)
        assert alive.now == 4000
        second = view + 1
        assert alive.now == 4000 + second.numel() * 4
        del first
        assert alive.now == 4000 + second.numel() * 4  # the view holds it
        del view
        assert alive.now == second.numel() * 4
        del second
    assert alive.now == 0 and alive.peak == 4000 + 990 * 4


@pytest.mark.parametrize("family", TINY_SIZES)
def test_activations_computed_again_give_the_same_gradients(family: str) -> None:
    def gradients(again: bool) -> list[torch.Tensor]:
        backbone = Backbone.from_pretrained(f"tiny-{family}", prompt="short", image_size=64).train()
        if again:
            backbone.checkpoint_activations()
        frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        backbone(backbone.encode([Observation(frame, "press the button")] * 2)).pow(2).sum().backward()
        return [p.grad for p in backbone.parameters() if p.grad is not None]

    kept, again = gradients(False), gradients(True)
    assert len(kept) == len(again) > 20
    for first, second in zip(kept, again, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_what_is_spread_over_gpus_and_what_is_not() -> None:
    """Parameters, gradients and moments are; activations and a few whole blocks stay."""
    kept, again = calvin("kosmos-2"), changed(calvin("kosmos-2"), again=True)
    alone, shared, less = (
        memory.plan(kept, samples=2),
        memory.plan(kept, gpus=8, samples=2),
        memory.plan(again, gpus=8, samples=2),
    )
    assert alone.parameters == pytest.approx(4 * 1.53e9, rel=0.1)
    assert alone.optimizer == 2 * alone.gradients
    for name in ("parameters", "gradients", "optimizer"):
        assert getattr(shared, name) == pytest.approx(getattr(alone, name) / 8, rel=0.01)
    assert alone.gathered == 0 < shared.gathered < shared.peak < alone.peak / 2
    assert less.activations < shared.activations and less.peak < shared.peak
    assert not alone.fits["24 GB"] and shared.fits["24 GB"]


@pytest.mark.parametrize(
    "name",
    ["qwen3-vl-2b", *(pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURE_NAMES)],
)
def test_a_step_of_every_backbone_of_the_paper_runs_without_weights(name: str) -> None:
    again = memory.hollow_step(changed(calvin(name), again=True), samples=2)
    kept = memory.hollow_step(calvin(name), samples=2)
    assert again.activations < kept.activations < kept.peak
    assert kept.gradients <= kept.parameters and kept.optimizer == 2 * kept.gradients


@pytest.mark.parametrize(
    "name",
    ["openvla-7b", *(pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURE_NAMES)],
)
def test_every_backbone_of_the_paper_is_planned_for_several_gpus(name: str) -> None:
    """FSDP2 gives the modules bf16 weights, while images are made in fp32."""
    shared = memory.plan(calvin(name), gpus=8, samples=2)
    assert shared.activations > 0 and shared.peak > shared.gathered + shared.optimizer
    assert shared.optimizer == pytest.approx(2 * shared.gradients, rel=1e-3)


def test_the_largest_micro_batch_fits_and_one_more_does_not() -> None:
    trial = calvin("kosmos-2")
    most = memory.largest_micro_batch(trial, memory.GPUS["80 GB"])
    assert memory.plan(trial, samples=most).fits["80 GB"]
    assert not memory.plan(trial, samples=round(1.1 * most)).fits["80 GB"]


def test_the_plan_is_told_and_impossible_ones_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "tabletop", "--backbone", "tiny-kosmos-2"]) == 0
    told = capsys.readouterr().out
    assert main(["plan", "tabletop", "--backbone", "tiny-kosmos-2", "--gpus", "2", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert [plan["checkpointed"] for plan in plans] == [False, True]
    for plan in plans:
        sizes = list(plan["largest_micro_batch"].values())
        assert sizes == sorted(sizes) and plan["samples"] == 32
    assert "computed again" in told and "Largest micro-batch" in told and "GB on each of 1 GPU" in told
    assert main(["plan", "calvin", "--gpus", "3"]) == 1
    assert "not divisible by 3 processes" in capsys.readouterr().err
    assert main(["plan", "calvin", "--gpus", "0"]) == 1
    assert main(["plan", "calvin", "--backbone", "qwen9"]) == 1
    assert main(["plan", "calvin", "--backbone", "internvl3.5-1b"]) == 1
    with pytest.raises(RecipeError):
        memory.plan(calvin("kosmos-2"), gpus=5)
