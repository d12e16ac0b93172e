"""Cards of the registered backbones: the paper's Table 9, counted."""

from __future__ import annotations

import pytest

from vlm4vla.backbones.architectures import ARCHITECTURE_NAMES, PUBLISHED_MILLIONS, config_of
from vlm4vla.backbones.registry import BACKBONES
from vlm4vla.core.errors import RecipeError
from vlm4vla.policies.catalogue import cards, count

EXACT = {
    # name: with the vocabulary head, head at chunk 10, image tokens, image side
    "qwen2.5-vl-3b": (3_754_622_976, 6_577_222, 256, 448),
    "qwen2.5-vl-7b": (8_292_166_656, 11_689_798, 256, 448),
    "qwen3-vl-2b": (2_127_532_032, 6_577_222, 196, 448),
    "qwen3-vl-4b": (4_437_815_808, 8_019_270, 196, 448),
    "qwen3-vl-8b": (8_767_123_696, 13_918_278, 196, 448),
    "qwen3-vl-30b-a3b": (31_070_754_032, 6_577_222, 196, 448),
    "paligemma-1-3b": (2_923_466_480, 6_577_222, 256, 224),
    "paligemma-2-3b": (3_032_242_416, 7_265_478, 256, 224),
    "kosmos-2": (1_664_485_376, 6_577_222, 64, 224),
}
UNTIED = {"qwen2.5-vl-7b": 7747.17, "qwen3-vl-8b": 8144.79, "qwen3-vl-30b-a3b": 30759.59}


@pytest.mark.parametrize("name", EXACT)
def test_counts_are_the_papers(name: str) -> None:
    card = count(BACKBONES[name])
    assert (card.parameters, card.head, card.image_tokens, card.image_size) == EXACT[name]
    assert card.loaded is not None and card.parameters is not None and card.new_share is not None
    assert card.loaded / 1e6 == pytest.approx(UNTIED.get(name, card.parameters / 1e6), abs=0.006)
    assert card.new_share < 0.01
    # 4437.8 was cut, not rounded.
    published = PUBLISHED_MILLIONS[name]
    assert published in (round(card.parameters / 1e6), int(card.parameters / 1e6))


def test_cards_are_fresh() -> None:
    assert [card.name for card in cards()] == list(BACKBONES)
    assert cards() == [count(entry) for entry in BACKBONES.values()]


def test_the_nine_are_those_of_the_paper() -> None:
    assert set(EXACT) == set(PUBLISHED_MILLIONS)
    assert set(ARCHITECTURE_NAMES) == {*EXACT, "openvla-7b"}
    with pytest.raises(RecipeError, match="qwen3-vl-8b"):
        config_of("qwen3-vl-8")
