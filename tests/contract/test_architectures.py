"""The query token on architectures nobody wrote code for, each at tiny size with native inputs."""

from __future__ import annotations

import pytest
import torch

from vlm4vla.backbones.shrink import SENTINEL, architectures, shrunk_config, tiny_model
from vlm4vla.backbones.stand_ins import Row, StandInInputs, words
from vlm4vla.backbones.survey import CHECKS, Finding, examine, markdown, survey
from vlm4vla.core.errors import RecipeError

DIVERSE = (
    "blip-2",  # read at the input of its LM head
    "chameleon",  # images as vocabulary ids
    "florence2",  # encoder and decoder
    "fuyu",  # no vision encoder
    "gemma3",
    "git",  # image tokens stand before the text's
    "idefics",  # cross-attention
    "lfm2_vl",  # convolutions beside attention
    "llava_next",  # crops
    "mllama",  # cross-attention to tiles
    "qwen2_5_vl",  # positions in three axes
    "qwen3_5",  # linear attention
    "smolvlm",
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DIVERSE)
def test_the_query_works_on(name: str) -> None:
    finding = examine(name)
    assert finding.passes, finding.reason


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_at_least_seventy_architectures_carry_the_query() -> None:
    findings = list(survey())
    passing = [finding.name for finding in findings if finding.passes]
    assert len(findings) == len(architectures())
    assert len(passing) >= 70, passing
    assert all(finding.passes != bool(finding.reason) for finding in findings)


def test_stand_in_inputs_pad_on_the_right_and_place_the_sentinel_behind_the_text() -> None:
    inputs = StandInInputs(tiny_model("smolvlm"))
    made = inputs([Row(text=words(1, 7), image=1), Row(text=words(2, 4), image=2, after=(101,))])
    places = (made["input_ids"] == SENTINEL).nonzero()
    lengths = made["attention_mask"].sum(dim=1)
    assert places[:, 0].tolist() == [0, 1]
    assert places[:, 1].tolist() == [int(lengths[0]) - 1, int(lengths[1]) - 2]
    assert not made["attention_mask"][1, int(lengths[1]) :].any()


def test_a_tiny_model_is_the_same_for_the_same_seed() -> None:
    first, second, other = (tiny_model("llava", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_unknown_architectures_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="qwen2_5_vl"):
        shrunk_config("qwen2_5_v")


def test_the_table_counts_and_gives_reasons() -> None:
    page = markdown([Finding(name="a", passed=CHECKS), Finding(name="b", reason="x | y")])
    assert "Of the 2 image-text-to-text" in page
    assert "**1 carry" in page
    assert "| b | 0 of 7 | 0 | x / y |" in page
