"""A training step of a VLA against the bare Hugging Face model: forward and backward on the same tokens."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import support
import torch

from vlm4vla.backbones.backbone import Backbone
from vlm4vla.backbones.tiny import TinySize, build_tiny
from vlm4vla.benchmarks.tabletop.tasks import instructions
from vlm4vla.core.types import Observation
from vlm4vla.policies.heads import Features, LossWeights, MLPHead

SIZE = 64
BATCH = 32


def main() -> None:
    options = support.arguments(__doc__)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        vlm = build_tiny("qwen3-vl", TinySize(), Path(folder) / "vlm", texts=instructions(), seed=0)
        backbone = Backbone.from_pretrained(vlm, prompt="short", image_size=SIZE, seed=0)
    rng = np.random.default_rng(0)
    observations = [
        Observation(rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8), text)
        for text in instructions()[:BATCH]
    ]
    inputs = backbone.encode(observations)
    head = MLPHead(TinySize().hidden, horizon=5, trunk=128, width=128, body=(128, 128, 64), seed=0)
    actions = torch.rand(BATCH, 5, 7)
    valid = torch.ones(BATCH, 5, dtype=torch.bool)
    arguments = backbone.native(backbone.vlm, inputs.input_ids, inputs.images)

    def ours() -> None:
        head.loss(Features(query=backbone(inputs)), actions, valid, weights=LossWeights())["loss"].backward()

    def bare() -> None:
        backbone.vlm(**arguments, use_cache=False).last_hidden_state.square().mean().backward()

    def encode() -> None:
        backbone.encode(observations)

    step, native, encoding = support.seconds(ours, bare, encode)
    figures = {
        "samples_per_second": BATCH / step,
        "step_over_bare_vlm": step / native,
        "encoding_share_of_a_step": encoding / step,
    }
    support.publish("train", figures, options.json)


if __name__ == "__main__":
    main()
