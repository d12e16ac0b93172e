"""LoRA: what learns, what stays, and that nothing is lost between training, saving and merging."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_trials
import torch
from transformers import AutoModel

from vlm4vla.backbones import architectures, lora
from vlm4vla.backbones.discover import PARTS
from vlm4vla.backbones.encoding import BackboneInputs
from vlm4vla.backbones.families import FAMILIES, architecture_of
from vlm4vla.backbones.shrink import tiny_model
from vlm4vla.backbones.tiny import build_tiny
from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.core.normalization import ClipScale, Normalization
from vlm4vla.core.recipes import PolicyRecipe, Trial, check_policy
from vlm4vla.core.types import Observation
from vlm4vla.demonstrations.packed import PackedSource
from vlm4vla.policies.conformance import examine
from vlm4vla.policies.vla import VLA
from vlm4vla.training.checkpoints import latest_checkpoint
from vlm4vla.training.train import train
from vlm4vla.training.worker import launch_command

TERMS = ("step", "loss", "pose", "gripper", "gradient_norm")
EVERYWHERE: dict[str, Any] = {"lora_rank": 4, "lora_parts": ("vision", "projector", "language")}


@pytest.fixture(scope="module", params=[*FAMILIES, "internvl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("tiny") / str(request.param)
    return build_tiny(str(request.param), tiny_trials.SIZE, where, texts=tiny_trials.SAYINGS, seed=0)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_trials.tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> PackedSource:
    return tiny_trials.packed(tmp_path_factory.mktemp("packed") / "walks")


def policy(backbone: Path, **fields: Any) -> VLA:
    """A policy in evaluation mode; `fields` are those of PolicyRecipe."""
    return VLA.from_recipe(
        replace(tiny_trials.trial(backbone).policy, **fields),
        action_spec=tiny_trials.SPEC,
        normalization=Normalization((ClipScale(1.0),)),
        seed=3,
    ).eval()


def lora_trial(backbone: Path, policy: Mapping[str, Any] = EVERYWHERE, **train: Any) -> Trial:
    trial = tiny_trials.trial(backbone, **train)
    return replace(trial, policy=replace(trial.policy, **policy))


def seen(vla: VLA) -> BackboneInputs:
    side = tiny_trials.SIDE
    pictures = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    return vla.encode(
        [Observation(image=p, instruction=s) for p, s in zip(pictures, tiny_trials.SAYINGS, strict=True)]
    )


def tuned(vla: VLA) -> VLA:
    """As if trained: adapters that do something."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in vla.named_parameters():
            if lora.is_adapter(name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return vla


def bits(vla: VLA) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in vla.state_dict().items()}


@torch.no_grad()
def test_without_training_it_changes_no_bit_of_the_output(folder: Path) -> None:
    plain, adapted = policy(folder), policy(folder, **EVERYWHERE)
    inputs = seen(plain)
    assert torch.equal(plain.predict(inputs), adapted.predict(inputs))
    assert not torch.equal(plain.predict(inputs), tuned(adapted).predict(inputs))


def test_adapters_learn_belong_to_their_part_and_leave_its_weights_alone(folder: Path) -> None:
    vla = policy(folder, **EVERYWHERE)
    vla.predict(seen(vla)).sum().backward()
    names = {id(parameter): name for name, parameter in vla.named_parameters()}
    parts = [id(parameter) for group in vla.learners().values() for parameter in group]
    assert len(parts) == len(set(parts)) == len(names)
    for part in ("vision", "projector", "language"):
        own = vla.backbone.part(part)
        adapters = [p for p in own if lora.is_adapter(names[id(p)])]
        assert adapters
        assert all(p.requires_grad == lora.is_adapter(names[id(p)]) for p in own)
        assert all(p.grad is None for p in own if not p.requires_grad)
        assert all(p.grad is not None for p in adapters)
    assert vla.backbone.query.grad is not None
    assert vla.backbone.query.grad.norm() > 0
    assert all(p.requires_grad for p in vla.backbone.part("word_embedding"))


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same_and_merged_it_is_so_to_rounding(
    folder: Path, tmp_path: Path
) -> None:
    """Merged, plain transformers loads it and computes the same features to 1e-5 of the largest."""
    vla = tuned(policy(folder, **EVERYWHERE))
    inputs = seen(vla)
    vla.save(tmp_path / "kept")
    again = VLA.from_pretrained(tmp_path / "kept")
    assert again.recipe == vla.recipe
    assert bits(again) == bits(vla)
    assert torch.equal(again.predict(inputs), vla.predict(inputs))

    vla.save(tmp_path / "merged", merge=True)
    merged = VLA.from_pretrained(tmp_path / "merged")
    assert merged.recipe == replace(vla.recipe, lora_rank=0)
    assert not any(map(lora.is_adapter, merged.state_dict()))
    features = vla.backbone(inputs)
    furthest = (merged.backbone(inputs) - features).abs().max() / features.abs().max()
    assert furthest < 1e-5

    plain = AutoModel.from_pretrained(tmp_path / "merged" / "backbone").eval()
    found, expected = plain.state_dict(), merged.backbone.vlm.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_backbone_with_adapters_passes_the_battery(vlm: Path) -> None:
    failed = [f for f in examine(policy(vlm, lora_rank=4).backbone) if not f.passed]
    assert failed == []


def test_only_what_the_recipe_names_changes(vlm: Path, source: PackedSource, tmp_path: Path) -> None:
    trial = lora_trial(vlm, {"lora_rank": 2, "freeze": ("vision", "projector", "word_embedding")}, steps=3)
    before = bits(policy(vlm, **{"lora_rank": 2}))
    after = bits(VLA.from_pretrained(train(trial, source, tmp_path, progress=False)))
    changed = {name for name in after if after[name] != before[name]}
    adapters = {name for name in after if lora.is_adapter(name)}
    assert adapters <= changed
    assert all(name.startswith("backbone.vlm.language_model.layers.") for name in adapters)
    assert {name for name in changed - adapters if not name.startswith("head.")} == {"backbone.query"}


def test_interrupted_and_continued_is_the_same(vlm: Path, source: PackedSource, tmp_path: Path) -> None:
    """With dropout, whose random numbers follow from the step, and a learning rate of the part's own."""
    fields = {**EVERYWHERE, "lora_dropout": 0.1, "lora_alpha": 8.0}
    trial = lora_trial(vlm, fields, steps=6, part_rates=("language=3",))
    train(trial, source, tmp_path / "whole", progress=False)
    for stop in (3, None):
        train(trial, source, tmp_path / "parts", progress=False, stop_after=stop)
    whole, parts = (tiny_trials.metrics(tmp_path / name, *TERMS) for name in ("whole", "parts"))
    assert whole == parts
    ends = [latest_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "parts")]
    first, second = (bits(VLA.from_pretrained(end)) for end in ends if end)
    assert first == second


def test_it_learns_in_bf16(vlm: Path, tmp_path: Path) -> None:
    few = tiny_trials.packed(tmp_path / "few", count=3)
    fields = {"steps": 80, "batch_size": 16, "validate_every": 80, "checkpoint_every": 80}
    trial = lora_trial(vlm, learning_rate=3e-3, precision="bf16", **fields)
    train(trial, few, tmp_path / "run", progress=False)
    losses = [row[0] for row in tiny_trials.metrics(tmp_path / "run", "loss")]
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


def test_two_processes_give_the_losses_of_one(vlm: Path, source: PackedSource, tmp_path: Path) -> None:
    """FSDP2, which then splits layers that learn in part."""
    trial = lora_trial(vlm, steps=2, checkpoint_every=1, validate_every=2)
    one = VLA.from_pretrained(train(trial, source, tmp_path / "one", progress=False))
    recipe = tiny_trials.write_trial(trial, tmp_path / "trial.json")
    arguments = [str(recipe), str(source.folder), str(tmp_path / "two"), "--sharding", "full", "--quiet"]
    done = subprocess.run(
        launch_command(2, arguments),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [tiny_trials.metrics(tmp_path / where, *TERMS) for where in ("one", "two")]
    for first, second in zip(*rows, strict=True):
        assert first == pytest.approx(second, rel=2e-4)
    latest = latest_checkpoint(tmp_path / "two" / "checkpoints")
    assert latest is not None
    told = json.loads((latest / "policy.json").read_text())["new_parameter_share"]
    adapters = sum(p.numel() for name, p in one.named_parameters() if "lora_" in name)
    assert told == one.new_parameter_share() > adapters / sum(p.numel() for p in one.parameters()) > 0
    two = VLA.from_pretrained(latest).state_dict()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


def test_parameters_of_a_real_vlm() -> None:
    """Rank times inputs plus outputs of every linear layer, counted on the meta device."""
    vlm = architectures.skeleton(architectures.config_of("qwen3-vl-4b"))
    sizes = {
        name: layer.in_features + layer.out_features
        for name, layer in vlm.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.startswith("language_model.")
    }
    assert len(sizes) == 36 * 7
    with torch.device("meta"):
        lora.add_adapters(vlm, FAMILIES["qwen3-vl"], PolicyRecipe(backbone="", lora_rank=16), seed=0)
    adapters = sum(p.numel() for name, p in vlm.named_parameters() if lora.is_adapter(name))
    assert adapters == 16 * sum(sizes.values()) == 33_030_144


@pytest.mark.filterwarnings("ignore")
def test_experts_stay_as_they_are(tmp_path: Path) -> None:
    """A mixture's experts are one parameter and no linear layers; its attention has adapters. Routers have none."""
    build_tiny("qwen3-vl-moe", tiny_trials.SIZE, tmp_path / "moe", texts=tiny_trials.SAYINGS, seed=0)
    names = {name for name in policy(tmp_path / "moe", lora_rank=4).state_dict() if lora.is_adapter(name)}
    assert {name.split(".layers.")[1].split(".")[1] for name in names} == {"self_attn"}
    vlm = tiny_model("llama4")
    family = architecture_of(vlm.config, where="llama4")
    lora.add_adapters(vlm, family, PolicyRecipe(backbone="", lora_rank=4), seed=0)
    adapters = [name for name in vlm.state_dict() if lora.is_adapter(name)]
    assert any("shared_expert" in name for name in adapters)
    assert not any("router" in name for name in adapters)


def test_a_part_without_linear_layers_is_refused(tmp_path: Path) -> None:
    build_tiny("gemma3", tiny_trials.SIZE, tmp_path / "gemma3", texts=tiny_trials.SAYINGS, seed=0)
    with pytest.raises(RecipeError, match="projector part of gemma3 has no linear layers"):
        policy(tmp_path / "gemma3", **EVERYWHERE)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"lora_rank": -1}, "lora_rank must not be negative"),
        ({"lora_rank": 4, "lora_alpha": 0.0}, "lora_alpha must be positive"),
        ({"lora_rank": 4, "lora_dropout": 1.0}, "lora_dropout must be at least 0 and below 1"),
        ({"lora_alpha": 8.0}, "do nothing without policy.lora_rank"),
        ({"lora_rank": 4, "lora_parts": ()}, "no part is named"),
        ({"lora_rank": 4, "freeze": ("language",)}, "language is frozen"),
        (
            {"lora_rank": 4, "lora_parts": ("language", "projector"), "freeze": ("released_vision",)},
            "projector is frozen",
        ),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_policy(PolicyRecipe(backbone="", **fields))


def test_without_peft_it_says_what_to_install(vlm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'vlm4vla\[lora\]'"):
        check_policy(PolicyRecipe(backbone="", lora_rank=4))


def test_a_damaged_adapter_file_is_told(vlm: Path, tmp_path: Path) -> None:
    policy(vlm, lora_rank=4).save(tmp_path / "policy")
    file = tmp_path / "policy" / "policy.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=r"policy\.safetensors: damaged"):
        VLA.from_pretrained(tmp_path / "policy")


def test_random_weights_may_have_adapters(vlm: Path) -> None:
    vla = policy(vlm, weights="random", lora_rank=2)
    assert sum(p.numel() for name in PARTS for p in vla.backbone.part(name) if p.requires_grad) > 0
