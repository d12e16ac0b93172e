"""Layers are read alike in every family, whatever the batch, and an untrained copy has not moved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_trials import SAYINGS, SIDE, tiny_vlm

from vlm4vla.backbones.backbone import Backbone
from vlm4vla.backbones.families import FAMILIES
from vlm4vla.core.types import Observation
from vlm4vla.policies.readings import read_layers
from vlm4vla.reports.representation import linear_cka

TINY = [name for name in FAMILIES if name not in ("openvla", "prismatic")]


@pytest.mark.parametrize("family", TINY)
def test_an_untrained_copy_has_not_moved(family: str, tmp_path: Path) -> None:
    folder, rng = tiny_vlm(tmp_path / "vlm", family), np.random.default_rng(0)
    images = rng.integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)
    seen = [Observation(image=image, instruction=SAYINGS[i % 2]) for i, image in enumerate(images)]
    first, copy = (Backbone.from_pretrained(folder, image_size=SIDE).eval() for _ in range(2))
    before, after = read_layers(first, seen, batch_size=6), read_layers(copy, seen, batch_size=6)
    assert [*before] == [f"layer {n} {place}" for n in (1, 2) for place in ("query", "image")]
    assert all(1 - linear_cka(before[place], after[place]) == 0 for place in before)
    for place, value in read_layers(copy, seen, batch_size=4).items():
        np.testing.assert_allclose(value, before[place], rtol=1e-3, atol=1e-4)
