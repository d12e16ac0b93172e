"""The conformance battery: what passes, and that each of its checks can fail."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_trials
import torch
from transformers import AutoModelForImageTextToText, GPT2Config, GPT2LMHeadModel

from vlm4vla.backbones import families, loading
from vlm4vla.backbones.backbone import Backbone
from vlm4vla.backbones.discover import query_id_of
from vlm4vla.backbones.encoding import BackboneInputs
from vlm4vla.backbones.families import ARCHITECTURES, FAMILIES, Architecture
from vlm4vla.backbones.processed import ProcessorEncoder
from vlm4vla.backbones.tiny import TinySize, build_tiny
from vlm4vla.cli import main
from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import BackboneError
from vlm4vla.core.normalization import ClipScale, Normalization
from vlm4vla.core.recipes import HEADS, PolicyRecipe
from vlm4vla.core.types import Observation
from vlm4vla.policies.conformance import CHECKS, examine
from vlm4vla.policies.predictor import Predictor
from vlm4vla.policies.vla import VLA
from vlm4vla.studies.execute import run_trial
from vlm4vla.studies.parallel import run_trials
from vlm4vla.studies.presets import quickstart
from vlm4vla.studies.runs import RunStore
from vlm4vla.testing import ContractError, check_backbone, check_policy

SIDE = 32
SIZE = TinySize(
    hidden=32,
    layers=2,
    heads=2,
    mlp=64,
    vision_hidden=32,
    vision_layers=2,
    vision_heads=2,
    vision_mlp=64,
    image_size=SIDE,
    latents=4,
)
SAYINGS = ("lift the red block", "press the button", "push the blue block to the left")
CURATED = ("internvl", "smolvlm", "gemma3", "gemma4", "llava_onevision", "qwen3_5")
ASKED = "What action should the robotic arm take to {instruction}"
GOLDEN = {
    # The question of the paper's long scheme inside each model's chat template; InternVL: the reference's prompt.
    "internvl": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<IMG_CONTEXT>"
        f"{ASKED}<|im_end|>\n<|im_start|>assistant\n"
    ),
    "gemma3": f"<|im_start|>user\n<start_of_image>{ASKED}<|im_end|>\n<|im_start|>assistant\n",
    "smolvlm": f"<|im_start|>user\n<image>{ASKED}<|im_end|>\n<|im_start|>assistant\n",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    where, built = tmp_path_factory.mktemp("conformance"), {}

    def folder(name: str) -> Path:
        if name not in built:
            built[name] = build_tiny(name, SIZE, where / name, texts=SAYINGS, seed=0)
        return built[name]

    return folder


def load(folder: Path) -> Backbone:
    return Backbone.from_pretrained(folder, image_size=SIDE)


def seen(image: int, saying: int) -> Observation:
    picture = np.random.default_rng(image).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Observation(image=picture, instruction=SAYINGS[saying])


@pytest.mark.parametrize("name", [*FAMILIES, *CURATED])
def test_every_curated_family_passes_the_whole_battery(name: str, tiny: Callable[[str], Path]) -> None:
    findings = list(examine(load(tiny(name))))
    assert len(findings) == len(CHECKS)
    assert [f"{f.check}: {f.measured}" for f in findings if not f.passed] == []


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl", "qwen3-vl-moe"])
def test_what_is_discovered_equals_what_is_known(
    name: str, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The VLM's own processor and positions against those made here, from the chat template to the feature."""
    known = load(tiny(name))
    facts = known.family
    plain = Architecture(name=facts.name, model_type=facts.model_type, experts=facts.experts)
    monkeypatch.setattr(loading, "architecture_of", lambda config, where: plain)
    found = load(tiny(name))
    assert isinstance(found.encoder, ProcessorEncoder)
    pair = (seen(0, 0), seen(1, 2))
    with torch.no_grad():
        found.query.copy_(known.query)
        ours, theirs = known(known.encode(pair)), found(found.encode(pair))
    # The processor rounds the resized image on another library: up to a grey level.
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert len(found.encoder.tokens(SAYINGS[0])) == len(known.encoder.tokens(SAYINGS[0]))


@pytest.mark.parametrize("name", GOLDEN)
def test_prompts_of_discovered_families(name: str, tiny: Callable[[str], Path]) -> None:
    assert load(tiny(name)).encoder.prompt == GOLDEN[name]


def findings_of(backbone: Backbone) -> dict[str, bool]:
    return {finding.check: finding.passed for finding in examine(backbone)}


def breaking(name: str, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break a backbone in the way that the named check is there to notice."""
    native: Any = backbone.native
    encoder: Any = backbone.encoder
    states = backbone.states
    if name == "output":
        monkeypatch.setattr(backbone, "states", lambda inputs: states(inputs) * torch.nan)
    elif name == "image matters":
        monkeypatch.setattr(native, "images", lambda images, path=native.images: path(images * 0))
    elif name == "whole image":
        monkeypatch.setattr(
            native,
            "images",
            lambda images, path=native.images: path(images * (torch.arange(SIDE) > 9)[:, None]),
        )
    elif name == "instruction matters":
        monkeypatch.setattr(type(encoder), "turn_ids", lambda self, text: self.text_ids("the same"))
    elif name == "whole instruction":
        place = int(
            next(i for i, (a, b) in enumerate(zip(*map(encoder.tokens, SAYINGS[:2]), strict=False)) if a != b)
        )

        def one_word_lost(inputs: BackboneInputs) -> torch.Tensor:
            ids = inputs.input_ids.clone()
            ids[:, place] = 5
            return states(replace(inputs, input_ids=ids))

        monkeypatch.setattr(backbone, "states", one_word_lost)
    elif name == "query seen by none":
        # All of PaliGemma's tokens see each other, as when its processor is asked without a suffix.
        call = type(native).__call__

        def seen_by_all(self: Any, vlm: Any, ids: Any, images: Any) -> dict[str, Any]:
            return call(self, vlm, ids, images) | {"token_type_ids": torch.zeros_like(ids)}

        monkeypatch.setattr(type(native), "__call__", seen_by_all)
    elif name == "query learns":
        backbone.query.requires_grad_(False)
    elif name == "alone or in a batch":
        monkeypatch.setattr(backbone, "states", lambda inputs: states(inputs) + inputs.images.float().mean())
    elif name == "parts":
        monkeypatch.setattr(backbone, "part", lambda part: list(backbone.vlm.parameters())[:3])
    elif name == "frozen parts":
        monkeypatch.setattr(
            backbone,
            "part",
            lambda part: [p.detach().clone().requires_grad_() for p in backbone.parameters()],
        )
        monkeypatch.setattr(backbone, "states", lambda inputs: states(inputs).detach().requires_grad_())
    elif name == "new parameters":
        monkeypatch.setattr("vlm4vla.policies.conformance.REAL_SIZE", 1)
    elif name == "prompt":
        monkeypatch.setattr(encoder, "prompt", encoder.prompt + " ")
    elif name == "saved and loaded":
        monkeypatch.setattr(
            loading, "save", lambda checkpoint, folder, state=None: save_another(checkpoint, folder)
        )
    elif name == "eager = SDPA":
        set_attention = backbone.vlm.set_attn_implementation

        def wrong(kind: str) -> None:
            set_attention(kind)
            with torch.no_grad():
                next(backbone.vlm.parameters()).mul_(1.5)

        monkeypatch.setattr(backbone.vlm, "set_attn_implementation", wrong)


_save = loading.save


def save_another(checkpoint: loading.Checkpoint, folder: Path) -> None:
    state = {name: value * 1.01 for name, value in checkpoint.vlm.state_dict().items()}
    _save(checkpoint, folder, state=state)


@pytest.mark.parametrize("name", [check.name for check in CHECKS])
def test_every_check_can_fail(
    name: str, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = "paligemma-1" if name == "query seen by none" else "qwen2.5-vl"
    backbone = load(tiny(family))
    breaking(name, backbone, monkeypatch)
    assert not findings_of(backbone)[name]


@pytest.mark.parametrize(("name", "head"), [("gemma4", "mlp"), *(("internvl", head) for head in HEADS)])
def test_a_discovered_vlm_becomes_a_policy(
    name: str, head: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe = PolicyRecipe(
        backbone=str(tiny(name)),
        head=head,
        image_size=SIDE,
        horizon=2,
        head_width=16,
        head_body=(16,),
        expert_layers=2,
        expert_width=32,
        expert_mlp=64,
        expert_heads=2,
        expert_head_width=16,
        freeze=("vision",),
    )
    spec = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="metres_radians")
    vla = VLA.from_recipe(recipe, action_spec=spec, normalization=Normalization((ClipScale(0.65),)), seed=0)
    chunks = np.random.default_rng(0).uniform(-1, 1, (40, 2, 7)).astype(np.float32)
    vla.head.fit(lambda: vla.normalization.normalize(chunks))
    vla.save(tmp_path / "policy")
    again = VLA.from_pretrained(tmp_path / "policy")
    observations = [seen(0, 0), seen(1, 1), seen(2, 2)]
    predictor = Predictor(again, batch_size=2)
    check_policy(predictor, observations)
    assert np.array_equal(
        predictor.predict_chunk(observations), Predictor(vla, batch_size=2).predict_chunk(observations)
    )


@pytest.mark.parametrize("name", ["qwen3-vl", "internvl", "gemma3"])
def test_plain_transformers_loads_what_is_saved(
    name: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    load(tiny(name)).save(tmp_path / "saved")
    model, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    original = AutoModelForImageTextToText.from_pretrained(tiny(name))
    for (key, ours), theirs in zip(model.named_parameters(), original.parameters(), strict=True):
        assert torch.equal(ours, theirs), key


def test_the_battery_as_a_contract(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load(tiny("qwen3-vl"))
    check_backbone(backbone)
    monkeypatch.setattr("vlm4vla.policies.conformance.REAL_SIZE", 1)
    with pytest.raises(ContractError, match=r"new parameters: .* under 1 %"):
        check_backbone(backbone)


def test_the_query_has_an_id_of_its_own(tiny: Callable[[str], Path]) -> None:
    for name in CURATED:
        backbone = load(tiny(name))
        rows = backbone.vlm.get_input_embeddings().weight.shape[0]
        tokenizer = backbone.encoder.tokenizer
        index = query_id_of(tokenizer, backbone.vlm)
        assert 0 <= index < rows
        assert index not in tokenizer.all_special_ids
        # Whatever is typed, no text has it.
        assert index not in tokenizer("Grüße, schiebe den Würfel → ÿ 红色 \U0001f916 <|im_start|>").input_ids


def test_an_instruction_with_the_querys_token_is_refused(tiny: Callable[[str], Path]) -> None:
    backbone = load(tiny("internvl"))
    encoder: Any = backbone.encoder
    encoder.query_id = encoder.tokenizer(" press", add_special_tokens=False).input_ids[0]
    with pytest.raises(BackboneError, match="marks the query; reword"):
        backbone.encode([seen(0, 1)])


def test_a_text_only_model_is_refused(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16)).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="'gpt2' is no architecture that reads images"):
        Backbone.from_pretrained(tmp_path)


def test_a_missing_processor_is_told(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny("internvl"), tmp_path / "vlm")
    (tmp_path / "vlm" / "processor_config.json").unlink()
    with pytest.raises(BackboneError, match="processor"):
        Backbone.from_pretrained(tmp_path / "vlm")


@pytest.mark.parametrize("family", ["qwen3-vl", "paligemma-1"])
def test_what_a_familys_checkpoint_lacks_is_told_with_its_folder(family: str, tmp_path: Path) -> None:
    whole = tiny_trials.tiny_vlm(tmp_path / "whole", family)
    for names, said in (
        (("preprocessor_config.json", "processor_config.json"), "has no processor.*beside the weights"),
        (("tokenizer.json",), "has no tokenizer.*beside the weights"),
    ):
        lacking = shutil.copytree(whole, tmp_path / f"lacks {names[0]}")
        for name in names:
            (lacking / name).unlink(missing_ok=True)
        for read in (loading.inspect, Backbone.from_pretrained):
            with pytest.raises(BackboneError, match=f"lacks {names[0]}.*: {said}"):
                read(lacking)
    loading.inspect(whole)
    renamed = shutil.copytree(whole, tmp_path / "renamed")
    token = families.FAMILIES[family].image_token
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (renamed / name).read_text(encoding="utf-8")
        (renamed / name).write_text(text.replace(token, "<|other|>"), encoding="utf-8")
    with pytest.raises(
        BackboneError, match=f"renamed: its tokenizer lacks the token {re.escape(repr(token))}"
    ):
        Backbone.from_pretrained(renamed)


def test_a_vlm_that_cannot_be_is_told_before_anything_is_made(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16)).save_pretrained(
        tmp_path / "gpt"
    )
    trial = quickstart((str(tmp_path / "gpt"),))[0]
    with pytest.raises(BackboneError, match="reads images"):
        run_trial(trial, RunStore(tmp_path / "runs"), evaluated=False)
    with pytest.raises(BackboneError, match="reads images"):
        run_trials([trial], RunStore(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_a_prompt_without_the_image_is_told(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = Architecture(name="internvl", model_type="internvl", prompt="{instruction}")
    monkeypatch.setitem(families.ARCHITECTURES, "internvl", blind)
    with pytest.raises(BackboneError, match="took no prompt with an image"):
        load(tiny("internvl"))


def test_facts_are_of_architectures_that_exist() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    assert set(ARCHITECTURES) <= set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def test_the_command_prints_a_table_and_fails_with_reasons(
    tiny: Callable[[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["models", "check", str(tiny("qwen3-vl")), "--image-size", str(SIDE)]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert all(check.name in table for check in CHECKS)
    assert "FAILED" not in table
    monkeypatch.setattr("vlm4vla.policies.conformance.REAL_SIZE", 1)
    assert main([*command, "--json"]) == 1
    printed = capsys.readouterr()
    assert [f["check"] for f in json.loads(printed.out) if not f["passed"]] == ["new parameters"]
    assert "1 of 14 checks failed: new parameters (under 1 %" in printed.err
