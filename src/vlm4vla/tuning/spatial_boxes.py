"""Questions about your own pictures, made from boxes: a small JSON file beside them.

boxes.json    [{"image": "a.jpg", "things": [{"name": "red cup", "box": [left, top, right, bottom]}, ...]}, ...]

Boxes are in pixels; all things of a kind must be listed, or counts are wrong. A thing may tell `depth` (metres from the
camera, along its view) and `width` (metres). A row may tell `focal` (pixels), with which depths give positions and
widths, and `depth`: a 16-bit PNG of millimetres beside the picture, of the same shape, whose median within a box gives
the depth of things that tell none; 0 means unknown there. What is not known is not asked.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError

from vlm4vla.core.errors import DataError, RecipeError
from vlm4vla.core.recipes import fingerprint
from vlm4vla.tuning.examples import IMAGE_MARK, Conversation, Exchange
from vlm4vla.tuning.readers_images import picture, within
from vlm4vla.tuning.readers_rows import rows_of
from vlm4vla.tuning.spatial import QUESTIONS, Thing

VERSION = 1


class BoxQuestions:
    """Several questions about each picture, a pure function of the file, `seed` and the picture's number."""

    def __init__(
        self, folder: Path | None, *, file: str = "boxes.json", seed: int = 0, questions: int = 5
    ) -> None:
        """Raises: RecipeError without a folder or questions; DataError when the file is missing or damaged."""
        if folder is None or questions < 1:
            raise RecipeError("boxes: name the folder of the pictures, and at least one question about each")
        self.folder, self.file, self.seed, self.questions = Path(folder), file, seed, questions
        self.name = "boxes"
        self._rows = rows_of(self.folder / file)

    @property
    def fingerprint(self) -> str:
        """Of the file's content and all options; not of the pictures."""
        return fingerprint("boxes", VERSION, self._rows.digest, self.seed, self.questions)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Conversation:
        """A picture's questions. Raises: DataError naming file and row, also for things that allow no question."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: picture {index} of {len(self)}")
        where = f"{self.folder / self.file}, row {index}"
        row = self._rows[index]
        try:
            image = picture(row["image"], self.folder, where)
            things = self._things(row, _size(image), where)
        except (KeyError, TypeError, ValueError) as error:
            said = f"no field {error}" if isinstance(error, KeyError) else str(error)
            if isinstance(error, DataError):
                raise
            raise DataError(f"{where}: {said}; docs/tuning.md tells what boxes.json holds") from error
        rng = np.random.default_rng([self.seed, index])
        asked: dict[str, Exchange] = {}
        kinds = list(QUESTIONS.values())
        for _ in range(20 * self.questions):
            exchange = kinds[int(rng.integers(len(kinds)))](things, rng)
            if exchange is not None:
                asked.setdefault(exchange.question, exchange)
            if len(asked) == self.questions:
                break
        if not asked:
            raise DataError(f"{where}: its things allow no question; give them names and boxes that differ")
        first, *rest = asked.values()
        marked = Exchange(f"{IMAGE_MARK}\n{first.question}", first.answer, first.measure, first.truth)
        return Conversation(where, (image,), (marked, *rest), task=self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.folder, self.file, self.seed, self.questions)

    def _things(self, row: Mapping[str, Any], size: tuple[int, int], where: str) -> list[Thing]:
        width, height = size
        depths = depth_map(within(self.folder, row["depth"], where), where) if "depth" in row else None
        found = []
        for told in row["things"]:
            left, top, right, bottom = (float(edge) for edge in told["box"])
            if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                raise ValueError(
                    f"box {told['box']} of {told['name']!r} is not within {width} x {height} pixels"
                )
            box = (left / width, top / height, right / width, bottom / height)
            depth, wide = told.get("depth"), told.get("width")
            if depth is None and depths is not None:
                depth = _median(depths, box)
            position = None
            if depth is not None and "focal" in row:
                x, y = (left + right - width) / 2, (top + bottom - height) / 2
                position = np.array([x / row["focal"], y / row["focal"], 1.0]) * depth
                wide = (right - left) / row["focal"] * depth if wide is None else wide
                depth = float(np.linalg.norm(position))
            found.append(Thing(told["name"], box, depth=depth, position=position, width=wide))
        return found


def _again(folder: Path, file: str, seed: int, questions: int) -> BoxQuestions:
    return BoxQuestions(folder, file=file, seed=seed, questions=questions)


def _size(image: Any) -> tuple[int, int]:
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    with Image.open(io.BytesIO(image)) as opened:
        return opened.size


def depth_map(path: Path, where: str) -> Float[np.ndarray, "height width"]:
    """Metres, of a 16-bit PNG of millimetres. Raises: DataError for another file."""
    try:
        with Image.open(path) as opened:
            values = np.asarray(opened)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(
            f"{where}: its depth {path.name} cannot be read ({error}); copy the file again"
        ) from error
    if values.ndim != 2 or values.dtype == np.uint8:
        raise DataError(f"{where}: depth {path.name} is no 16-bit PNG of one channel, in millimetres")
    return values.astype(np.float64) / 1000


def _median(
    depths: Float[np.ndarray, "height width"], box: tuple[float, float, float, float]
) -> float | None:
    height, width = depths.shape
    left, top, right, bottom = box
    inside = depths[int(top * height) : int(bottom * height) + 1, int(left * width) : int(right * width) + 1]
    known = inside[inside > 0]
    return float(np.median(known)) if known.size else None
