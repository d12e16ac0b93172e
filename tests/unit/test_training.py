"""The training loop on a real tiny VLM: what it computes, how it goes on, when it stops."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_trials
import torch
from safetensors.torch import load_file

from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.core.normalization import Normalization
from vlm4vla.core.recipes import HEADS, TrainRecipe, Trial, check_train
from vlm4vla.core.types import Observation
from vlm4vla.demonstrations.chunks import ChunkDataset
from vlm4vla.demonstrations.packed import PackedSource
from vlm4vla.policies.vla import VLA
from vlm4vla.training import optimization
from vlm4vla.training.batches import Batches
from vlm4vla.training.checkpoints import latest_checkpoint
from vlm4vla.training.train import train

TERMS = ("step", "loss", "pose", "gripper", "gradient_norm")


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_trials.tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> PackedSource:
    return tiny_trials.packed(tmp_path_factory.mktemp("packed") / "walks")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    latest = latest_checkpoint(folder / "checkpoints")
    assert latest is not None
    return {
        **load_file(latest / "policy.safetensors"),
        **load_file(latest / "backbone" / "model.safetensors"),
    }


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_the_same_recipe_gives_the_same_bits(vlm: Path, source: PackedSource, tmp_path: Path) -> None:
    trial = tiny_trials.trial(vlm)
    for name in ("a", "b"):
        train(trial, source, tmp_path / name, progress=False)
    assert tiny_trials.metrics(tmp_path / "a", *TERMS) == tiny_trials.metrics(tmp_path / "b", *TERMS)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_golden_losses(vlm: Path, source: PackedSource, tmp_path: Path) -> None:
    """First steps of a training, to a tolerance that covers other CPUs' rounding and nothing else.

    A change of these numbers changes what everybody trains: say why in docs/log.md.
    """
    train(tiny_trials.trial(vlm, steps=3), source, tmp_path, progress=False)
    found = [row[0] for row in tiny_trials.metrics(tmp_path, "loss")]
    assert found == pytest.approx(GOLDEN, rel=1e-4)


GOLDEN = [0.809362, 0.773328, 0.759489]


@pytest.mark.parametrize("head", HEADS)
def test_interrupted_and_continued_is_the_same(
    head: str, vlm: Path, source: PackedSource, tmp_path: Path
) -> None:
    trial = tiny_trials.trial(vlm, head=head)
    train(trial, source, tmp_path / "whole", progress=False)
    for stop in (3, 6, None):
        train(trial, source, tmp_path / "parts", progress=False, stop_after=stop)
    assert tiny_trials.metrics(tmp_path / "whole", *TERMS) == tiny_trials.metrics(tmp_path / "parts", *TERMS)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.parametrize("head", [head for head in HEADS if head != "flow"])
def test_micro_batches_give_the_same_step(head: str, vlm: Path, source: PackedSource, tmp_path: Path) -> None:
    """A flow's noise is drawn in the order of rows, which `check_head` covers."""
    for name, size in (("whole", 0), ("split", 1)):
        trial = tiny_trials.trial(vlm, head=head, steps=3, micro_batch_size=size)
        train(trial, source, tmp_path / name, progress=False)
    whole, split = (tiny_trials.metrics(tmp_path / name, *TERMS) for name in ("whole", "split"))
    for first, second in zip(whole, split, strict=True):
        assert first == pytest.approx(second, rel=1e-3)


@pytest.mark.parametrize("kind", ["shift", "crop_and_color"])
def test_augmentation_changes_training_and_nothing_it_should_not_depend_on(
    kind: str, vlm: Path, source: PackedSource, tmp_path: Path
) -> None:
    """The same images for any micro-batch and after an interruption; what is held out is seen as it is."""
    changed = tiny_trials.trial(vlm, steps=4, augmentation=kind)
    train(changed, source, tmp_path / "whole", progress=False)
    for stop in (2, None):
        train(changed, source, tmp_path / "parts", progress=False, stop_after=stop)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    split = tiny_trials.trial(vlm, steps=4, augmentation=kind, micro_batch_size=2)
    train(split, source, tmp_path / "split", progress=False)
    train(tiny_trials.trial(vlm, steps=4), source, tmp_path / "plain", progress=False)
    losses = {name: tiny_trials.metrics(tmp_path / name, *TERMS) for name in ("whole", "split", "plain")}
    assert losses["whole"][0] == pytest.approx(losses["split"][0], rel=1e-3)
    assert losses["whole"][0] != losses["plain"][0]

    vla = VLA.from_recipe(
        changed.policy, action_spec=source.action_spec, normalization=Normalization(()), seed=0
    )
    data = ChunkDataset(source, range(len(source)), changed.policy.horizon)
    batches = Batches(data, vla, changed.train, rank=0, world=1)
    held_out = batches.held_out(data).micro_batches[0].to(torch.device("cpu"))
    frames = torch.from_numpy(np.stack([o.image for o in data.fetch(range(2)).observations]))
    assert torch.equal(held_out.inputs.images[:1], frames[:1])
    assert not torch.equal(
        next(batches.training([0])).micro_batches[0].to(torch.device("cpu")).inputs.images,
        next(Batches(data, vla, replace(changed.train, augmentation="none"), rank=0, world=1).training([0]))
        .micro_batches[0]
        .inputs.images,
    )


def test_it_learns(vlm: Path, tmp_path: Path) -> None:
    """Three demonstrations, seen again and again, are learned by heart."""
    few = tiny_trials.packed(tmp_path / "few", count=3)
    trial = tiny_trials.trial(
        vlm,
        steps=100,
        batch_size=16,
        learning_rate=3e-3,
        log_every=10,
        validate_every=100,
        checkpoint_every=100,
    )
    train(trial, few, tmp_path, progress=False)
    losses = [row[0] for row in tiny_trials.metrics(tmp_path, "loss")]
    assert losses[-1] < 0.5 * losses[0]


def test_frozen_parts_stay(vlm: Path, source: PackedSource, tmp_path: Path) -> None:
    trial = tiny_trials.trial(vlm, steps=2)
    frozen = replace(trial, policy=replace(trial.policy, freeze=("vision", "language")))
    train(frozen, source, tmp_path, progress=False)
    before, after = load_file(vlm / "model.safetensors"), weights(tmp_path)
    names = {name.removeprefix("model."): name for name in before}
    changed = {
        name
        for name, tensor in after.items()
        if (key := names.get(name.removeprefix("model."))) is not None
        and not torch.equal(tensor, before[key])
    }
    assert any("merger" in name for name in changed)
    assert any("embed_tokens" in name for name in changed)
    assert not any("visual.blocks" in name or "language_model.layers" in name for name in changed)


def test_parts_learn_at_their_own_rates(vlm: Path, source: PackedSource, tmp_path: Path) -> None:
    """After one step of Adam a weight has moved by its learning rate, and a resumed training goes on alike."""
    trial = tiny_trials.trial(vlm, steps=4, warmup_steps=0, learning_rate=1e-3, checkpoint_every=1)
    slow = replace(trial, train=replace(trial.train, part_rates=("vision=0.01", "head=0.1")))
    train(slow, source, tmp_path / "slow", progress=False)
    before, after = load_file(vlm / "model.safetensors"), weights(tmp_path / "slow")
    names = {name.removeprefix("model."): name for name in before}
    moved: dict[str, float] = {}
    for name, tensor in after.items():
        key = names.get(name.removeprefix("model."))
        if key is not None:
            part = "vision" if "visual.blocks" in name else "language" if ".layers." in name else "other"
            moved[part] = max(moved.get(part, 0.0), (tensor - before[key]).abs().max().item())
    assert 0 < moved["vision"] < 5e-5
    assert 1e-3 < moved["language"] < 5e-3
    train(slow, source, tmp_path / "twice", progress=False, stop_after=2)
    train(slow, source, tmp_path / "twice", progress=False)
    resumed = weights(tmp_path / "twice")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in after.items())


@pytest.mark.parametrize("head", HEADS)
def test_bf16_trains_every_head(head: str, vlm: Path, source: PackedSource, tmp_path: Path) -> None:
    """Nearly the losses of fp32 and not the same; weights stay fp32, and what was saved acts."""
    for precision in ("fp32", "bf16"):
        trial = tiny_trials.trial(vlm, head=head, steps=4, precision=precision)
        train(trial, source, tmp_path / precision, progress=False)
    whole, half = (tiny_trials.metrics(tmp_path / name, "loss") for name in ("fp32", "bf16"))
    assert whole != half
    for first, second in zip(whole, half, strict=True):
        assert first == pytest.approx(second, rel=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "bf16").values())
    latest = latest_checkpoint(tmp_path / "bf16" / "checkpoints")
    assert latest is not None
    vla = VLA.from_pretrained(latest)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = vla.predict(vla.encode([Observation(source[0].images[0], source[0].instruction)]))
    assert found.shape == (1, 5, 7)
    assert found.isfinite().all()


@pytest.mark.parametrize("wrong", ["vision", "vision=0", "vision=fast", "vision=-1", "eyes=1"])
def test_rates_of_parts_are_checked(wrong: str) -> None:
    with pytest.raises(RecipeError, match="part_rates"):
        check_train(TrainRecipe(part_rates=(wrong,)))


def test_the_gradient_is_clipped(vlm: Path, source: PackedSource, tmp_path: Path) -> None:
    """Ten steps clipped to almost nothing by a plain sum of squares move the weights less than unclipped ones."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([3.0, 4.0, 0.0])
    norm = torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    assert norm.item() == pytest.approx(5.0)
    assert parameter.grad.norm().item() == pytest.approx(1.0, rel=1e-4)
    train(tiny_trials.trial(vlm, steps=4, clip_norm=1e-9), source, tmp_path / "clipped", progress=False)
    train(tiny_trials.trial(vlm, steps=4), source, tmp_path / "free", progress=False)
    start = load_file(vlm / "model.safetensors")
    key = "model.language_model.layers.0.mlp.up_proj.weight"

    def moved(name: str) -> float:
        after = weights(tmp_path / name)
        return (after[key.removeprefix("model.")] - start[key]).abs().max().item()

    assert moved("clipped") < 0.5 * moved("free")


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = TrainRecipe(steps=100, warmup_steps=10, learning_rate=1.0, schedule="cosine")
    rates = [optimization.learning_rate(recipe, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 0.01
    assert optimization.learning_rate(replace(recipe, schedule="constant"), 99) == 1.0


@pytest.mark.parametrize(
    ("loss", "norm", "told"),
    [
        (float("nan"), 1.0, "loss is nan"),
        (1.0, float("inf"), "norm of the gradient"),
        (90.0, 1.0, "times the median"),
    ],
)
def test_divergence_has_a_reason(loss: float, norm: float, told: str) -> None:
    reason = optimization.what_is_wrong(loss, norm, [1.0] * 50, 2.0)
    assert reason is not None
    assert told in reason
    assert optimization.what_is_wrong(1.1, 3.0, [1.0] * 50, 2.0) is None


def test_a_training_that_diverges_stops_with_advice(vlm: Path, source: PackedSource, tmp_path: Path) -> None:
    trial = tiny_trials.trial(vlm, steps=60, learning_rate=1e30, warmup_steps=0, clip_norm=1e30)
    with pytest.raises(RunError, match=r"training stopped at step \d+: .*lower train\.learning_rate"):
        train(trial, source, tmp_path, progress=False)


def test_impossible_recipes_are_refused(vlm: Path, source: PackedSource, tmp_path: Path) -> None:
    for field, value in (("steps", 0), ("learning_rate", -1.0), ("warmup_steps", -1)):
        with pytest.raises(RecipeError, match=f"train.{field}"):
            train(tiny_trials.trial(vlm, **{field: value}), source, tmp_path, progress=False)
    assert not any(tmp_path.iterdir())


def test_leftovers_of_a_kill_are_no_obstacle(vlm: Path, source: PackedSource, tmp_path: Path) -> None:
    recipe = tiny_trials.trial(vlm)
    train(recipe, source, tmp_path, progress=False, stop_after=4)
    (tmp_path / "checkpoints" / ".latest.partial").write_text("step-0")
    (tmp_path / "checkpoints" / ".step-000008.partial").mkdir()
    assert train(recipe, source, tmp_path, progress=False).name == "step-000008"
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_checkpoint_is_complete_and_damage_is_told(vlm: Path, source: PackedSource, tmp_path: Path) -> None:
    trial: Trial = tiny_trials.trial(vlm)
    train(trial, source, tmp_path, progress=False)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-000004", "step-000008"]
    latest = tmp_path / "checkpoints" / "step-000008"
    manifest = json.loads((latest / "policy.json").read_text())
    assert {"recipe", "action_spec", "normalization", "provenance"} <= manifest.keys()
    new, own = (
        sum(tensor.numel() for tensor in load_file(latest / name).values())
        for name in ("policy.safetensors", "backbone/model.safetensors")
    )
    assert manifest["new_parameter_share"] == new / own
    moments = latest / "training_state" / "optimizer.safetensors"
    moments.write_bytes(moments.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"optimizer\.safetensors: damaged .*go on from step-000004"):
        train(trial, source, tmp_path, progress=False)
    moments.unlink()
    (latest / "policy.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match="damaged"):
        train(trial, source, tmp_path, progress=False)


def test_another_recipe_does_not_go_on_here(vlm: Path, source: PackedSource, tmp_path: Path) -> None:
    train(tiny_trials.trial(vlm, steps=4), source, tmp_path, progress=False)
    with pytest.raises(RunError, match="another recipe"):
        train(tiny_trials.trial(vlm, steps=8), source, tmp_path, progress=False)
