"""A tuned VLM leaves as it came: plain transformers loads it without a missing weight, and it says what it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from vlm4vla.backbones.backbone import Backbone
from vlm4vla.backbones.tiny import TINY_SIZES
from vlm4vla.cli import main
from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.normalization import Normalization
from vlm4vla.core.recipes import PolicyRecipe
from vlm4vla.core.types import Observation
from vlm4vla.policies.vla import VLA

SPEC = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="controller")


def untied(folder: Path, family: str) -> Path:
    """The tiny checkpoint with a vocabulary head of its own."""
    whole = AutoModelForImageTextToText.from_pretrained(
        Backbone.from_pretrained(f"tiny-{family}")._checkpoint.location, dtype=torch.float32
    )
    whole.config.tie_word_embeddings = whole.config.get_text_config().tie_word_embeddings = False
    head = whole.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.randn_like(head.weight))
    whole.save_pretrained(folder)
    source = Path(Backbone.from_pretrained(f"tiny-{family}")._checkpoint.location)
    for path in source.glob("*.json"):
        if path.name not in ("config.json", "generation_config.json", "model.safetensors.index.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    for path in source.glob("*.jinja"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def moved(recipe: PolicyRecipe) -> VLA:
    """A policy whose every weight is a little off its start."""
    vla = VLA.from_recipe(recipe, action_spec=SPEC, normalization=Normalization(()), seed=0)
    with torch.no_grad():
        for parameter in vla.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return vla.eval()


@pytest.mark.parametrize(
    ("family", "own_head", "lora"),
    [*((family, own_head, 0) for family in TINY_SIZES for own_head in (False, True)), ("qwen3-vl", False, 4)],
)
def test_the_whole_vlm_goes_out(family: str, own_head: bool, lora: int, tmp_path: Path) -> None:
    original = f"tiny-{family}"
    if own_head:
        original = str(untied(tmp_path / "original", family))
    recipe = PolicyRecipe(
        backbone=original, image_size=64, horizon=2, head_width=16, head_body=(16,), lora_rank=lora
    )
    vla = moved(recipe)
    vla.save(tmp_path / "policy")
    assert main(["models", "export", str(tmp_path / "policy"), str(tmp_path / "out")]) == 0

    whole, report = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    again = Backbone.from_pretrained(tmp_path / "out", image_size=64)
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    inputs = again.encode([Observation(frame, "push the red block")])
    with torch.no_grad():
        again.query.copy_(vla.backbone.query)
        torch.testing.assert_close(again(inputs), vla.backbone(inputs), rtol=1e-4, atol=1e-4)
    if own_head:
        kept = AutoModelForImageTextToText.from_pretrained(original, dtype=torch.float32)
        assert torch.equal(whole.get_output_embeddings().weight, kept.get_output_embeddings().weight)


def test_errors_of_an_export_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = PolicyRecipe(backbone="tiny-qwen3-vl", image_size=64, horizon=2, head_width=16, head_body=(16,))
    moved(recipe).save(tmp_path / "policy")
    arguments = ["models", "export", str(tmp_path / "policy")]
    (tmp_path / "there").mkdir()
    assert main([*arguments, str(tmp_path / "there")]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "out"), "--original", "tiny-kosmos-2"]) == 1
    assert "vocabulary head cannot be had" in capsys.readouterr().err
    assert main(["models", "export", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 1
