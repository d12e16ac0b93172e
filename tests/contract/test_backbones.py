"""Every family keeps the backbone contract: real Hugging Face classes at tiny size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8

from vlm4vla.backbones.architectures import MOST_PIXELS, config_of
from vlm4vla.backbones.backbone import PARTS, Backbone, image_layout
from vlm4vla.backbones.families import FAMILIES
from vlm4vla.backbones.registry import BACKBONES
from vlm4vla.backbones.tiny import TinySize, build_tiny
from vlm4vla.core.types import Observation

SIDE = 32
SIZE = TinySize(
    hidden=32, layers=2, mlp=64, vision_hidden=32, vision_layers=2, vision_mlp=64, image_size=SIDE, latents=4
)
SAYINGS = ("lift the red block", "press the button", "push the blue block to the left")
TINY = [name for name in BACKBONES if name.startswith("tiny-")]

PROMPTS = {
    # Paper A.2.3 and the released code; <query> stands for the learned token.
    "qwen": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>IMAGE"
        "<|vision_end|>What action should the robotic arm take to lift the red block<|im_end|>\n"
        "<|im_start|>assistant\n<query>"
    ),
    "paligemma": "IMAGE<bos>lift the red block\n<query>",
    "prismatic": "<s>IMAGEIn: What action should the robot take to lift the red block?\nOut:<query>",
    "kosmos": "<s><image>IMAGE</image><phrase>lift the red block\n</phrase><query>",
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("tiny") / str(request.param)
    return build_tiny(str(request.param), SIZE, where, texts=SAYINGS, seed=0)


@pytest.fixture
def backbone(folder: Path) -> Backbone:
    return Backbone.from_pretrained(folder, image_size=SIDE)


def picture(seed: int) -> UInt8[np.ndarray, "32 32 3"]:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def observation(image: int = 0, saying: int = 0) -> Observation:
    return Observation(image=picture(image), instruction=SAYINGS[saying])


def features(backbone: Backbone, *observations: Observation, length: int | None = None) -> torch.Tensor:
    with torch.no_grad():
        return backbone(backbone.encode(observations, length=length))


def test_one_feature_per_query(backbone: Backbone) -> None:
    found = features(backbone, observation(), observation(1, 1))
    assert found.shape == (2, 1, backbone.hidden_size)
    assert found.isfinite().all()


def test_image_and_instruction_matter(backbone: Backbone) -> None:
    here, other_image, other_words = features(backbone, observation(), observation(1), observation(0, 2))
    assert (here - other_image).abs().max() > 1e-3
    assert (here - other_words).abs().max() > 1e-3


def test_every_pixel_reaches_the_query_and_nothing_behind_it_does(backbone: Backbone) -> None:
    """Change one corner of the picture, then what stands after the query."""
    inputs = backbone.encode([observation()])
    before = features(backbone, observation())
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        changed = picture(0)
        changed[corner] = 255 - changed[corner]
        assert not torch.equal(features(backbone, replace(observation(), image=changed)), before)
    padded = backbone.encode([observation()], length=inputs.input_ids.shape[1] + 3)
    padded.input_ids[:, -3:] = backbone.encoder.tokens(SAYINGS[2])[-4:-1].tolist()[0]
    with torch.no_grad():
        torch.testing.assert_close(backbone(padded), before, rtol=1e-4, atol=1e-5)


def test_neighbours_padding_and_order_do_not_matter(backbone: Backbone) -> None:
    alone = features(backbone, observation())
    several = features(backbone, observation(3, 2), observation(), observation(2, 1), length=90)
    torch.testing.assert_close(several[1:2], alone, rtol=1e-4, atol=1e-5)
    turned = features(backbone, observation(2, 1), observation(), observation(3, 2), length=90)
    torch.testing.assert_close(turned.flip(0), several, rtol=1e-4, atol=1e-5)


def test_the_query_learns_and_its_vocabulary_row_does_not(backbone: Backbone) -> None:
    backbone(backbone.encode([observation(), observation(1, 1)])).square().sum().backward()
    assert backbone.query.grad is not None
    assert backbone.query.grad.norm() > 0
    words = backbone.vlm.get_input_embeddings().weight
    assert words.grad is not None
    assert words.grad[backbone.encoder.query_id].abs().max() == 0
    assert words.grad.abs().max() > 0


def test_parts_cover_everything_once(backbone: Backbone) -> None:
    parts = [{id(parameter) for parameter in backbone.part(name)} for name in PARTS]
    assert sum(map(len, parts)) == len(set().union(*parts))
    assert set().union(*parts) | {id(backbone.query)} == {
        id(parameter) for parameter in backbone.parameters()
    }
    assert all(parts)


def test_what_the_released_code_froze_as_vision(backbone: Backbone) -> None:
    """Qwen's mergers are in it, the projectors of the others are not."""
    frozen = {id(parameter) for parameter in backbone.part("released_vision")}
    vision = {id(parameter) for parameter in backbone.part("vision")}
    projector = {id(parameter) for parameter in backbone.part("projector")}
    assert frozen == (vision | projector if "qwen" in backbone.family.name else vision)


def test_the_prompt_is_the_papers(backbone: Backbone) -> None:
    tokens = backbone.encoder.tokens(SAYINGS[0]).tolist()
    assert tokens.count(backbone.encoder.image_id) >= backbone.encoder.image_tokens
    start = backbone.encoder.image_start
    tokenizer = backbone.encoder.tokenizer
    text = (
        tokenizer.decode(tokens[:start])
        + "IMAGE"
        + tokenizer.decode(tokens[start + backbone.encoder.image_tokens : -1])
        + "<query>"
    )
    assert tokens[-1] == backbone.encoder.query_id
    assert text == next(prompt for name, prompt in PROMPTS.items() if name in backbone.family.name)


def test_the_short_prompt_is_scheme_2_of_the_paper(folder: Path) -> None:
    backbone = Backbone.from_pretrained(folder, image_size=SIDE, prompt="short")
    if "qwen" not in backbone.family.name:
        pytest.skip(f"{backbone.family.name} has one prompt: the paper names a second for Qwen alone")
    encoder = backbone.encoder
    ids = encoder.tokens(SAYINGS[0]).tolist()
    start, stop = encoder.image_start, encoder.image_start + encoder.image_tokens
    text = encoder.tokenizer.decode(ids[:start]) + "IMAGE" + encoder.tokenizer.decode(ids[stop:-1])
    assert text == "<|im_start|><|vision_start|>IMAGE<|vision_end|>lift the red block\n"
    assert ids[-1] == encoder.query_id


@pytest.mark.parametrize(
    ("patch", "image_size", "enlarge", "side", "tokens"),
    [
        # Qwen2.5-VL has patches of 14 pixels, Qwen3-VL of 16; 2 x 2 patches make a token.
        (14, 224, True, 448, 256),
        (14, 224, False, 224, 64),
        (14, 448, False, 448, 256),
        (14, 512, True, 504, 324),
        (14, 768, True, 756, 729),
        (16, 224, True, 448, 196),
        (16, 224, False, 224, 49),
        (16, 512, True, 512, 256),
        (16, 768, False, 768, 576),
    ],
)
def test_image_sizes_of_qwen(patch: int, image_size: int, enlarge: bool, side: int, tokens: int) -> None:
    name = "qwen2.5-vl-3b" if patch == 14 else "qwen3-vl-2b"
    config, family = config_of(name), FAMILIES["qwen2.5-vl" if patch == 14 else "qwen3-vl"]
    found = image_layout(config, family, image_size, MOST_PIXELS, enlarge=enlarge)
    assert found[1:] == (side, tokens)


def test_native_size_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    """A recipe's field, saved and loaded with the policy: fewer tokens, another feature."""
    folder = build_tiny("qwen3-vl", replace(SIZE, image_size=64), tmp_path / "vlm", texts=SAYINGS, seed=0)
    large, small = (Backbone.from_pretrained(folder, image_size=SIDE, enlarge=e) for e in (True, False))
    assert (large.encoder.image_tokens, small.encoder.image_tokens) == (16, 4)
    beyond = Backbone.from_pretrained(
        folder, image_size=128, enlarge=False
    )  # than its own preprocessing lets through
    assert beyond.encoder.image_tokens == 64
    assert not torch.allclose(features(large, observation()), features(small, observation()))


def test_saved_and_loaded_it_is_the_same(backbone: Backbone, tmp_path: Path) -> None:
    backbone.save(tmp_path / "saved")
    again = Backbone.from_pretrained(tmp_path / "saved", image_size=SIDE)
    with torch.no_grad():
        again.query.copy_(backbone.query)
    assert torch.equal(features(again, observation()), features(backbone, observation()))


def test_random_weights_keep_the_architecture(folder: Path) -> None:
    first, second = (
        Backbone.from_pretrained(folder, weights="random", image_size=SIDE, seed=s) for s in (1, 2)
    )
    trained = Backbone.from_pretrained(folder, image_size=SIDE)
    assert [p.shape for p in first.parameters()] == [p.shape for p in trained.parameters()]
    assert not torch.equal(features(first, observation()), features(second, observation()))


@pytest.mark.parametrize("name", TINY)
def test_shipped_weights(name: str) -> None:
    """Small, in bf16, with their origin, and sharper than chance at telling pictures apart."""
    folder = Path(BACKBONES[name].location)
    assert (folder / "model.safetensors").stat().st_size <= 3_000_000
    assert (folder / "pretraining.json").is_file()
    backbone = Backbone.from_pretrained(name, prompt="short", image_size=64)
    images = [np.random.default_rng(s).integers(0, 256, (64, 64, 3), dtype=np.uint8) for s in (0, 1)]
    pair = [Observation(image=image, instruction="lift the red block") for image in images]
    found = features(backbone, *pair)
    assert found.isfinite().all()
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_shipped_weights_are_small_together() -> None:
    files = [Path(BACKBONES[name].location) / "model.safetensors" for name in TINY]
    assert sum(file.stat().st_size for file in files) <= 15_000_000


def native_states(backbone: Backbone, **changes: torch.Tensor | None) -> torch.Tensor:
    """Last hidden states of one row, with arguments of the native forward replaced or, with None, left out."""
    inputs = backbone.encode([observation()])
    arguments = backbone.native(backbone.vlm, inputs.input_ids, inputs.images) | changes
    with torch.no_grad():
        given = {name: value for name, value in arguments.items() if value is not None}
        states: torch.Tensor = backbone.vlm(**given, use_cache=False).last_hidden_state
    return states


def test_positions_are_the_models_own(backbone: Backbone) -> None:
    """Ours are computed once per length; Hugging Face's own forward computes them from the ids in every call."""
    if "image_grid_thw" not in backbone.family.extra_inputs:
        pytest.skip(f"{backbone.family.name} counts positions: no M-RoPE to compare")
    inputs = backbone.encode([observation()])
    is_image = (inputs.input_ids == backbone.encoder.image_id).int()
    own = native_states(backbone, position_ids=None, mm_token_type_ids=is_image)
    assert torch.equal(native_states(backbone), own)
    flat = torch.arange(inputs.input_ids.shape[1]).expand(3, 1, -1)
    assert not torch.allclose(native_states(backbone, position_ids=flat), own)


def test_deepstack_is_on(backbone: Backbone) -> None:
    visual = getattr(backbone.vlm, "visual", None)
    if not hasattr(visual, "deepstack_merger_list"):
        pytest.skip(f"{backbone.family.name} has no DeepStack")
    before = native_states(backbone)
    with torch.no_grad():
        for parameter in visual.deepstack_merger_list.parameters():
            parameter.zero_()
    assert not torch.allclose(native_states(backbone), before)


def test_image_tokens_of_paligemma_see_each_other(backbone: Backbone) -> None:
    if "token_type_ids" not in backbone.family.extra_inputs:
        pytest.skip(f"{backbone.family.name} is causal everywhere: no tokens see each other both ways")
    ids = backbone.encode([observation()]).input_ids
    image = slice(backbone.native.image_start, backbone.native.image_start + backbone.native.image_tokens)
    ours = native_states(backbone)
    causal = native_states(backbone, token_type_ids=torch.ones_like(ids))
    assert not torch.allclose(ours[:, image], causal[:, image])
    # Nothing of the text reaches back into the image.
    other = ids.clone()
    other[:, image.stop :] = ids[:, image.stop :].flip(1)
    assert torch.allclose(native_states(backbone, input_ids=other)[:, image], ours[:, image], atol=1e-6)
