"""Tokens read one at a time from the cache are those read all at once, whatever the padding; what cannot is reread."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_trials
import torch

from vlm4vla.backbones import loading
from vlm4vla.backbones.backbone import Backbone
from vlm4vla.backbones.continuation import Cached, Rereading
from vlm4vla.backbones.families import FAMILIES, Architecture
from vlm4vla.core.types import Observation
from vlm4vla.policies.heads import Features
from vlm4vla.policies.tokens import BINS, TokensHead

SIDE = tiny_trials.SIDE


def load(folder: Path, family: str) -> Backbone:
    return Backbone.from_pretrained(tiny_trials.tiny_vlm(folder / "vlm", family), image_size=SIDE).eval()


def observations() -> list[Observation]:
    pictures = torch.randint(256, (3, SIDE, SIDE, 3), dtype=torch.uint8, generator=seeded())
    sayings = (*tiny_trials.SAYINGS, "go")
    return [Observation(picture.numpy(), saying) for picture, saying in zip(pictures, sayings, strict=True)]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def states(reader: Cached | Rereading, embeddings: torch.Tensor) -> torch.Tensor:
    return torch.cat([reader(None), *(reader(part) for part in embeddings.split(1, dim=1))], dim=1)


@pytest.mark.parametrize("length", [None, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_gives_the_states_of_one_pass(family: str, length: int | None, tmp_path: Path) -> None:
    backbone = load(tmp_path, family)
    inputs = backbone.encode(observations(), length=length)
    assert len(set(inputs.lengths.tolist())) > 1  # rows are padded differently
    embeddings = torch.randn(3, 5, backbone.hidden_size, generator=seeded())
    with torch.no_grad():
        whole = backbone.follow(inputs, embeddings)
        reader = backbone.continuation(inputs)
        assert isinstance(reader, Cached)
        torch.testing.assert_close(states(reader, embeddings), whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            states(Rereading(backbone, inputs), embeddings), whole, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_are_the_same_with_and_without_the_cache(family: str, tmp_path: Path) -> None:
    backbone = load(tmp_path, family)
    inputs = backbone.encode(observations(), length=64)
    head = TokensHead(backbone.hidden_size, 2, tokens=BINS, seed=0)
    with torch.no_grad():
        chunks = [
            head.predict(Features(read_on=reader))
            for reader in (backbone.continuation(inputs), Rereading(backbone, inputs))
        ]
    assert torch.equal(chunks[0], chunks[1])
    assert len(chunks[0].unique()) > 5


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_costs_one_token(family: str, tmp_path: Path) -> None:
    """Counted at the last layer's input: the prompt once, then single tokens."""
    backbone = load(tmp_path, family)
    inputs = backbone.encode(observations())
    seen: list[int] = []
    backbone.vlm.get_input_embeddings().register_forward_hook(lambda *call: seen.append(call[2].shape[1]))
    with torch.no_grad():
        TokensHead(backbone.hidden_size, 1, tokens=BINS, seed=0).predict(
            Features(read_on=backbone.continuation(inputs))
        )
    assert seen == [inputs.input_ids.shape[1], *[1] * 6]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("internvl", Cached),
        ("smolvlm", Cached),
        ("gemma3", Cached),
        ("gemma4", Cached),
        ("qwen3_5", Rereading),
    ],
)
def test_what_an_unknown_vlm_can_is_found_out(family: str, kind: type, tmp_path: Path) -> None:
    """Qwen3.5's linear attention carries a state over the padding."""
    backbone = load(tmp_path, family)
    inputs = backbone.encode(observations())
    embeddings = torch.randn(3, 3, backbone.hidden_size, generator=seeded())
    with torch.no_grad():
        reader = backbone.continuation(inputs)
        assert type(reader) is kind
        whole = backbone.follow(inputs, embeddings)
        torch.testing.assert_close(states(reader, embeddings), whole, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PaliGemma's processor
@pytest.mark.parametrize(("family", "kind"), [("qwen2.5-vl", Cached), ("paligemma-1", Rereading)])
def test_positions_in_three_axes_are_found_and_two_way_attention_is_refused(
    family: str, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As unknown architectures: PaliGemma's tokens then see what follows them, which a cache cannot give."""
    folder = tiny_trials.tiny_vlm(tmp_path / "vlm", family)
    facts = FAMILIES[family]
    plain = Architecture(name=facts.name, model_type=facts.model_type, attention=facts.attention)
    monkeypatch.setattr(loading, "architecture_of", lambda config, where: plain)
    backbone = Backbone.from_pretrained(folder, image_size=SIDE).eval()
    inputs = backbone.encode(observations())
    assert type(backbone.continuation(inputs)) is kind
    assert inputs.arguments  # made by its own processor


@pytest.mark.parametrize("family", ["qwen3-vl", "paligemma-1", "kosmos-2"])
def test_a_wrong_position_would_be_noticed(family: str, tmp_path: Path) -> None:
    backbone = load(tmp_path, family)
    inputs = backbone.encode(observations())
    embeddings = torch.randn(3, 2, backbone.hidden_size, generator=seeded())
    native = backbone.native
    assert native is not None
    with torch.no_grad():
        right = states(Cached(backbone, inputs, native.position), embeddings)
        wrong = states(
            Cached(backbone, inputs, lambda vlm, before: native.position(vlm, before + 1)), embeddings
        )
    assert torch.equal(right[:, 0], wrong[:, 0])
    assert (right[:, 1:] - wrong[:, 1:]).abs().max() > 1e-2


def test_gradients_of_training_do_not_know_the_cache(tmp_path: Path) -> None:
    """A prediction in between changes no bit of the states that are trained on."""
    backbone = load(tmp_path, "qwen3-vl")
    inputs = backbone.encode(observations())
    embeddings = torch.randn(3, 4, backbone.hidden_size, generator=seeded())
    before = backbone.follow(inputs, embeddings)
    with torch.no_grad():
        states(backbone.continuation(replace(inputs)), embeddings)
    assert torch.equal(backbone.follow(inputs, embeddings), before)
    assert before.requires_grad
