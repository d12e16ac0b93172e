"""Writes tabletop.png beside this file: the expert at the end of every task, and one scene in the four looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vlm4vla.benchmarks.tabletop.benchmark import Tabletop, TabletopEnvironment

SIZE, GAP = 176, 4


def main() -> None:
    """Play, render, paste."""
    environment = TabletopEnvironment(SIZE)
    pictures = []
    for episode in Tabletop(look="A", episodes_per_task=2, image_size=SIZE).episodes()[1::2]:
        environment.reset(episode)
        while environment.advance(environment.expert()) < 1:
            pass
        pictures.append(environment.renderer.image())
    for look in "ABCD":
        episode = Tabletop(look=look, tasks=["stack"], episodes_per_task=1, image_size=SIZE).episodes()[0]
        pictures.append(environment.reset(episode).image)
    columns = 7
    cells = [*pictures[:7], *pictures[7:9], np.full_like(pictures[0], 255), *pictures[9:]]
    rows = len(cells) // columns
    sheet = Image.new("RGB", (columns * (SIZE + GAP) - GAP, rows * (SIZE + GAP) - GAP), "white")
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        sheet.paste(Image.fromarray(cell), (column * (SIZE + GAP), row * (SIZE + GAP)))
    sheet.quantize(128).save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
