"""Layers are read alike in every family, whatever the batch, and an untrained copy has not moved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_trials import SAYINGS, SIDE, tiny_vlm

from vlm4vla.backbones.backbone import Backbone
from vlm4vla.backbones.families import FAMILIES
from vlm4vla.core.types import Observation
from vlm4vla.policies import readings
from vlm4vla.policies.readings import read_layers
from vlm4vla.studies.representation import linear_cka

OTHERS = ("internvl", "gemma3", "qwen3_5")
"""VLMs without a family: their parts, blocks and image tokens are discovered."""


def seen(count: int) -> list[Observation]:
    images = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return [Observation(image=image, instruction=SAYINGS[i % 2]) for i, image in enumerate(images)]


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_an_untrained_copy_has_not_moved(family: str, tmp_path: Path) -> None:
    folder = tiny_vlm(tmp_path / "vlm", family)
    first, copy = (Backbone.from_pretrained(folder, image_size=SIDE).eval() for _ in range(2))
    before, after = (read_layers(b, seen(6), batch_size=6) for b in (first, copy))
    kinds = ("vision", "image", "query")
    numbers = {kind: sum(kind in place.split() for place in before) for kind in kinds}
    assert numbers["query"] == numbers["image"] == 2 and numbers["vision"] >= 2
    assert all(np.array_equal(before[place], after[place]) for place in before)
    # A linear attention of random weights may have forgotten everything where the query stands.
    varied = [place for place, value in before.items() if np.ptp(value, axis=0).any()]
    assert len(varied) >= 5 and all(linear_cka(before[p], after[p]) == 1 for p in varied)
    for place, value in read_layers(copy, seen(6), batch_size=4).items():
        np.testing.assert_allclose(value, before[place], rtol=1e-3, atol=1e-4)


def test_rows_are_the_observations_and_the_last_block_precedes_the_final_norm(tmp_path: Path) -> None:
    backbone = Backbone.from_pretrained(tiny_vlm(tmp_path / "vlm"), image_size=SIDE).eval()
    inputs = backbone.encode(seen(3))
    states = backbone.layers(inputs)[0]
    found = read_layers(backbone, seen(3), batch_size=2)
    assert backbone.native is not None
    image = states[:, backbone.native.image_start :][:, : backbone.native.image_tokens]
    np.testing.assert_allclose(
        found["language 1 image"], image.flatten(1).detach().numpy(), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(
            found["language 2 query"], backbone(inputs)[:, 0].detach().numpy(), rtol=1e-3
        )


def test_tokens_of_a_large_layer_become_means_of_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone.from_pretrained(tiny_vlm(tmp_path / "vlm"), image_size=SIDE).eval()
    whole = read_layers(backbone, seen(3))["vision 1"]
    hidden = backbone.vlm.config.vision_config.hidden_size
    monkeypatch.setattr(readings, "NUMBERS", 2 * hidden)
    halves = read_layers(backbone, seen(3))["vision 1"]
    tokens = whole.reshape(3, -1, hidden)
    middle = tokens.shape[1] // 2
    expected = np.concatenate([tokens[:, :middle].mean(1), tokens[:, middle:].mean(1)], axis=1)
    np.testing.assert_allclose(halves, expected, rtol=1e-4, atol=1e-5)
