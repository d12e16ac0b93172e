"""What `vlm4vla models` knows of every backbone by name: sizes, image, prompt. Counted on the meta device.

Counting needs torch and seconds, listing shall need neither: the cards are kept in `cards.json` beside this file,
written by `python -m vlm4vla.policies.catalogue` and held against a fresh count by a test.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from vlm4vla.backbones.registry import BACKBONES, BackboneEntry

CARDS = Path(__file__).with_name("cards.json")
STANDARD_SIZE = 224
"""Pixels; every image is first brought to this square (Paper 3.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One backbone. None: not known without its checkpoint."""

    name: str
    location: str
    family: str | None
    parameters: int | None
    """With the vocabulary head (Paper Table 9), tied weights counted once."""
    loaded: int | None
    """Without it: what a policy has."""
    published_millions: int | None
    """Paper Table 9."""
    head: int | None
    """Parameters of the paper's head on it, at chunk 10."""
    new_share: float | None
    """Query and head over what is loaded."""
    image_tokens: int | None
    image_size: int | None
    """Side of the VLM's own input image in pixels."""
    prompt: str | None


def cards() -> list[Card]:
    """All registered backbones, in the registry's order. Imports no torch."""
    return [Card(**values) for values in json.loads(CARDS.read_text(encoding="utf-8"))]


def count(entry: BackboneEntry) -> Card:
    """Make an entry's card anew. Needs torch, no network, and no memory for weights."""
    import torch
    from transformers import AutoConfig

    from vlm4vla.backbones import architectures
    from vlm4vla.backbones.backbone import image_layout
    from vlm4vla.backbones.families import Family, architecture_of
    from vlm4vla.backbones.loading import most_pixels, processor_files
    from vlm4vla.core.recipes import PolicyRecipe
    from vlm4vla.policies.registry import make_head

    packaged = Path(entry.location).is_dir()
    location = f"in this package: {entry.name}" if packaged else entry.location
    if packaged:
        config = AutoConfig.from_pretrained(entry.location)
    elif entry.name in architectures.ARCHITECTURE_NAMES:
        config = architectures.config_of(entry.name)
    else:
        nothing = {field.name: None for field in dataclasses.fields(Card)}
        return Card(**{**nothing, "name": entry.name, "location": location})  # type: ignore[arg-type]
    family = architecture_of(config, where=entry.name)
    assert isinstance(family, Family)
    base = architectures.skeleton(config)
    hidden = base.get_input_embeddings().weight.shape[1]
    with torch.device("meta"):
        head = make_head(PolicyRecipe(backbone=entry.name), hidden_size=hidden, seed=0)
    new = sum(parameter.numel() for parameter in head.parameters())
    loaded = architectures.parameter_count(base)
    whole = None
    if architectures.has_vocabulary_head(config):
        whole = architectures.parameter_count(architectures.skeleton(config, vocabulary_head=True))
    any_size = packaged and "image_grid_thw" in family.extra_inputs
    most = most_pixels(processor_files(entry.location)) if any_size else architectures.MOST_PIXELS
    _, size, tokens = image_layout(config, family, STANDARD_SIZE, most)
    return Card(
        name=entry.name,
        location=location,
        family=family.name,
        parameters=whole,
        loaded=loaded,
        published_millions=architectures.PUBLISHED_MILLIONS.get(entry.name),
        head=new,
        new_share=(new + hidden) / loaded,
        image_tokens=tokens,
        image_size=size,
        prompt=family.prompts["long"],
    )


if __name__ == "__main__":
    made = [dataclasses.asdict(count(entry)) for entry in BACKBONES.values()]
    CARDS.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
