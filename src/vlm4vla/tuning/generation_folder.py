"""Your own drawings: a small JSON file beside pictures and what is to be drawn of them.

drawings.json    [{"image": "a.jpg", "question": "Draw the depth.", "kind": "depth", "drawing": "a-depth.png",
                   "metres": [0.3, 2.0]}, ...]

`kind`: `image`; `depth`, a 16-bit PNG of millimetres, 0 where unknown, of which `metres` become black and white; or
`segmentation`, a picture of the `colors` ([[0, 0, 0], [255, 0, 0], ...], the background's first) and of no others.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlm4vla.core.errors import DataError, RecipeError
from vlm4vla.core.recipes import fingerprint
from vlm4vla.tuning.drawings import MEASURES
from vlm4vla.tuning.examples import IMAGE_MARK, Conversation, Drawing, Exchange
from vlm4vla.tuning.readers_images import picture, within
from vlm4vla.tuning.readers_rows import rows_of
from vlm4vla.tuning.spatial_boxes import depth_map

VERSION = 1


class FolderDrawings:
    """A drawing of each row's picture."""

    draws = True

    def __init__(self, folder: Path | None, *, file: str = "drawings.json") -> None:
        """Raises: RecipeError without a folder; DataError when the file is missing or damaged."""
        if folder is None:
            raise RecipeError("drawings: name the folder of the pictures")
        self.folder, self.file = Path(folder), file
        self.name = "drawings"
        self._rows = rows_of(self.folder / file)

    @property
    def fingerprint(self) -> str:
        """Of the file's content; not of the pictures."""
        return fingerprint("drawings", VERSION, self._rows.digest)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Conversation:
        """A row. Raises: DataError naming it."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: row {index} of {len(self)}")
        where = f"{self.folder / self.file}, row {index}"
        row = self._rows[index]
        try:
            image, question = picture(row["image"], self.folder, where), str(row["question"])
            asked = Exchange(f"{IMAGE_MARK}\n{question}", "", drawing=self._drawing(row, where))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            said = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{where}: {said}; docs/tuning.md tells what drawings.json holds") from error
        return Conversation(where, (image,), (asked,), task=self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.folder, self.file)

    def _drawing(self, row: Mapping[str, Any], where: str) -> Drawing:
        kind = row["kind"]
        if kind not in MEASURES:
            raise ValueError(f"kind {kind!r}: {', '.join(MEASURES)} are expected")
        if kind == "depth":
            near, far = (float(edge) for edge in row["metres"])
            if not 0 <= near < far:
                raise ValueError(f"metres {row['metres']}: the nearer comes first")
            metres = depth_map(within(self.folder, row["drawing"], where), where)
            share = np.clip(np.where(metres > 0, metres - near, far) / (far - near), 0, 1)
            grey = (share * 255 + 0.5).astype(np.uint8)
            return Drawing(kind, np.repeat(grey[..., None], 3, axis=-1), metres=(near, far))
        found = picture(row["drawing"], self.folder, where)
        if isinstance(found, bytes):
            with Image.open(io.BytesIO(found)) as opened:
                found = np.array(opened.convert("RGB"))
        if kind == "image":
            return Drawing(kind, found)
        colors = tuple((int(r), int(g), int(b)) for r, g, b in row["colors"])
        others = {tuple(color) for color in np.unique(found.reshape(-1, 3), axis=0).tolist()} - set(colors)
        if others:
            raise ValueError(f"{row['drawing']} has colors that are none of a class, {min(others)} for one")
        return Drawing(kind, found, colors=colors)


def _again(folder: Path, file: str) -> FolderDrawings:
    return FolderDrawings(folder, file=file)
