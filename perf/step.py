"""A training step and a prediction, for every family at tiny and small size, against what they could cost.

ready        our step over the base model with the same head, loss and optimizer, on the same ready tensors: <= 1.05
images       our step from uint8 images over the same from ready tensors: what preprocessing on the device costs
reference    the released code's way over ours: words embedded by hand, the whole model with all hidden states and
             logits, and images through the Hugging Face processor one after the other
predict_ms   one chunk for one observation, image and text included
predict_mb   the most that is alive beside the parameters while one chunk is predicted, in MB
activations  bytes that a training step keeps for its backward pass, per sample, in MB
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import support
import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from vlm4vla.backbones.backbone import Backbone
from vlm4vla.backbones.encoding import BackboneInputs
from vlm4vla.backbones.loading import quiet
from vlm4vla.backbones.tiny import TINY_SIZES, TinySize, build_tiny
from vlm4vla.benchmarks.tabletop.tasks import instructions
from vlm4vla.core.types import Observation
from vlm4vla.policies.heads import Features, LossWeights, MLPHead
from vlm4vla.training.memory import Alive

BATCH = 8
SMALL = TinySize(
    hidden=256,
    layers=6,
    heads=8,
    mlp=1024,
    vision_hidden=192,
    vision_layers=4,
    vision_heads=6,
    vision_mlp=768,
    image_size=112,
    patch=14,
    latents=16,
)


def measure(family: str, size: TinySize, folder: Path) -> dict[str, float]:
    build_tiny(family, size, folder, texts=instructions(), seed=0)
    backbone = Backbone.from_pretrained(folder, prompt="short", image_size=size.image_size, seed=0)
    with quiet():
        attention = backbone.family.attention
        whole = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation=attention)
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    rng = np.random.default_rng(0)
    shape = (size.image_size, size.image_size, 3)
    observations = [
        Observation(rng.integers(0, 255, shape, dtype=np.uint8), text) for text in instructions()[:BATCH]
    ]
    inputs = backbone.encode(observations)
    native = backbone.native
    assert native is not None
    ready = native(backbone.vlm, inputs.input_ids, inputs.images)
    head = MLPHead(backbone.hidden_size, horizon=4, trunk=128, width=128, body=(128, 128, 64), seed=0)
    target, valid = torch.rand(BATCH, 4, 7), torch.ones(BATCH, 4, dtype=torch.bool)
    rows = torch.arange(BATCH)

    def step(module: torch.nn.Module, feature: object) -> None:
        head.loss(Features(query=feature()), target, valid, weights=LossWeights())["loss"].backward()  # type: ignore[operator]
        optimizer = optimizers[id(module)]
        optimizer.step()
        optimizer.zero_grad()

    def make_optimizer(module: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW([*module.parameters(), *head.parameters()], lr=1e-9, fused=True)

    optimizers = {id(module): make_optimizer(module) for module in (backbone, backbone.vlm, whole)}

    def from_images() -> None:
        step(backbone, lambda: backbone(inputs))

    def from_ready() -> None:
        backbone.native = lambda vlm, ids, images: dict(ready)  # type: ignore[assignment]
        step(backbone, lambda: backbone(inputs))
        backbone.native = native

    def bare() -> None:
        def feature() -> Tensor:
            states = backbone.vlm(**ready, use_cache=False).last_hidden_state
            return states[rows, inputs.lengths - 1].unsqueeze(1)

        step(backbone.vlm, feature)

    def reference() -> None:
        def feature() -> Tensor:
            pixels = [processor(o.image, return_tensors="pt")["pixel_values"] for o in observations]
            arguments = ready | {"pixel_values": torch.cat(pixels).reshape(ready["pixel_values"].shape)}
            embedded = whole.get_input_embeddings()(arguments.pop("input_ids"))
            output = whole(**arguments, inputs_embeds=embedded, output_hidden_states=True)
            return output.hidden_states[-1][rows, inputs.lengths - 1].unsqueeze(1)

        step(whole, feature)

    @torch.inference_mode()
    def predict() -> None:
        head.predict(Features(query=backbone(backbone.encode(observations[:1]))))

    images, tensors, model, released, prediction = support.seconds(
        from_images, from_ready, bare, reference, predict, rounds=9
    )
    return {
        "ready": tensors / model,
        "images": images / tensors,
        "reference": released / images,
        "predict_ms": 1e3 * prediction,
        "predict_mb": working(backbone, head, predict) / 2**20,
        "activations": kept(backbone, inputs) / BATCH / 2**20,
    }


def working(backbone: Backbone, head: MLPHead, predict: Callable[[], None]) -> int:
    """Bytes alive at the peak of a prediction beside the parameters."""
    alive = Alive()
    with alive:
        alive.hold([*backbone.parameters(), *backbone.buffers(), *head.parameters()])
        alive.lasting = alive.now
        predict()
    return alive.working


def kept(backbone: Backbone, inputs: BackboneInputs) -> int:
    """Bytes of distinct tensors that autograd saves in one forward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        feature = backbone(inputs)
    total = sum(saved.values())
    del feature
    return total


def main() -> None:
    options = support.arguments(__doc__)
    torch.manual_seed(0)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, sizes in (("tiny", TINY_SIZES), ("small", dict.fromkeys(TINY_SIZES, SMALL))):
            for family in TINY_SIZES:
                found = measure(family, sizes[family], Path(folder) / kind / family)
                figures |= {f"{kind}/{family}/{name}": value for name, value in found.items()}
    support.publish("step", figures, options.json)


if __name__ == "__main__":
    main()
