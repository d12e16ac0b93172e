"""Reading demonstrations: samples a second in random order, against decoding the same PNG files with Pillow alone."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import support
from PIL import Image

from vlm4vla.benchmarks.tabletop.generate import NAME, SPEC, generate_demonstrations
from vlm4vla.core.recipes import DemonstrationRecipe
from vlm4vla.core.types import Demonstration
from vlm4vla.demonstrations.chunks import ChunkDataset
from vlm4vla.demonstrations.packed import write_packed

COUNT = 90
SAMPLES = 512


def main() -> None:
    options = support.arguments(__doc__)
    made: list[Demonstration] = []

    def demonstrations() -> Iterator[Demonstration]:
        for demonstration in generate_demonstrations(DemonstrationRecipe(episodes=COUNT)):
            made.append(demonstration)
            yield demonstration

    with tempfile.TemporaryDirectory() as folder:
        source = write_packed(
            demonstrations(), Path(folder) / "packed", name=NAME, action_spec=SPEC, fingerprint="perf"
        )
        dataset = ChunkDataset(source, range(COUNT), horizon=5)
        order = np.random.default_rng(0).permutation(len(dataset))[:SAMPLES]
        pictures: list[bytes] = []
        for image in [image for demonstration in made for image in demonstration.images][:SAMPLES]:
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, format="png", compress_level=1)
            pictures.append(stream.getvalue())

        def ours() -> None:
            dataset.fetch(order)

        def decode() -> None:
            for data in pictures:
                np.asarray(Image.open(io.BytesIO(data)))

        def make() -> None:
            for _ in generate_demonstrations(DemonstrationRecipe(episodes=9, seed=5)):
                pass

        read, decoded, generated = support.seconds(ours, decode, make)
        stored = sum(path.stat().st_size for path in (Path(folder) / "packed").iterdir())
    steps = sum(len(demonstration.images) for demonstration in made)
    figures = {
        "samples_per_second": SAMPLES / read,
        "read_over_decoding_alone": (read / SAMPLES) / (decoded / len(pictures)),
        "bytes_per_step": stored / steps,
        "demonstrations_made_per_second": 9 / generated,
    }
    support.publish("demonstrations", figures, options.json)


if __name__ == "__main__":
    main()
