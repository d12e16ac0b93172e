"""Annotation files as conversations: one reader, and for each layout a function that turns a row into a draft.

Layouts that authors publish differ in names only; `LAYOUTS` says how each names things, with its source.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vlm4vla.core.errors import DataError, RecipeError, unknown_name
from vlm4vla.core.recipes import fingerprint
from vlm4vla.tuning import layouts
from vlm4vla.tuning.examples import IMAGE_MARK, Conversation, ConversationSource, check
from vlm4vla.tuning.layouts import Draft
from vlm4vla.tuning.readers_images import moments, picture, within
from vlm4vla.tuning.readers_rows import JsonRows, ParquetRows, rows_of

LAYOUTS: Mapping[str, Callable[..., Draft]] = {
    "llava": layouts.llava,
    "messages": layouts.messages,
    "multiple-choice": layouts.multiple_choice,
    "trajectory": layouts.trajectory,
    "affordance": layouts.affordance,
    "options": layouts.options,
    "problem": layouts.problem,
}


@dataclass(frozen=True, slots=True)
class Files:
    """Annotation files and where the pictures that they name lie."""

    pattern: str
    """Below the folder, as `Path.glob` takes it."""
    images: str = "."
    """A folder below it."""


class RowSource:
    """The rows of annotation files as a `ConversationSource`. It pickles as path and options."""

    def __init__(
        self,
        folder: str | Path,
        *,
        layout: str,
        files: Sequence[Files] = (Files("*.json"), Files("*.jsonl"), Files("**/*.parquet")),
        name: str = "",
        frames: int = 8,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """`frames`: pictures taken of a video; `options`: further arguments of the layout's function.

        Raises: RecipeError for an unknown layout; DataError for a folder without such files, or damaged ones.
        """
        if layout not in LAYOUTS:
            raise unknown_name("layout", layout, LAYOUTS)
        if frames < 1:
            raise RecipeError(f"frames: a video gives at least one picture, not {frames}")
        self.folder = Path(folder)
        self.name = name or self.folder.name
        self._arguments = (layout, tuple(files), name, frames, dict(options or {}))
        self._draft, self._frames, self._options = LAYOUTS[layout], frames, dict(options or {})
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: no such folder; {self.name} is read from where you unpacked it")
        found = [(path, part.images) for part in files for path in sorted(self.folder.glob(part.pattern))]
        if not found:
            patterns = ", ".join(part.pattern for part in files)
            raise DataError(f"{self.folder}: holds no {patterns}; is it the folder of {self.name}, unpacked?")
        self._parts = [(rows_of(path), self.folder / images) for path, images in found]
        self._ends = list(itertools.accumulate(len(rows) for rows, _ in self._parts))

    @cached_property
    def fingerprint(self) -> str:
        """Of the annotation files' names and contents, and all options; not of the pictures."""
        files = [[rows.path.relative_to(self.folder).as_posix(), rows.digest] for rows, _ in self._parts]
        layout, parts, _, frames, options = self._arguments
        return fingerprint(
            files, [layout, frames, sorted(options.items()), [[p.pattern, p.images] for p in parts]]
        )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Conversation:
        """The row's conversation. Raises: DataError naming file and row."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: conversation {index} of {len(self)}")
        part = bisect.bisect_right(self._ends, index)
        rows, root = self._parts[part]
        place = index - (self._ends[part - 1] if part else 0)
        return self._conversation(rows, root, place)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.folder, *self._arguments)

    def _conversation(self, rows: JsonRows | ParquetRows, root: Path, place: int) -> Conversation:
        where = f"{rows.path}, row {place}"
        try:
            draft = self._draft(rows[place], **self._options)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, SyntaxError) as error:
            said = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{where}: is not of the layout of {self.name} ({said}); docs/tuning.md tells what is expected"
            ) from error
        pictures = [picture(value, root, where) for value in draft.images]
        exchanges = draft.exchanges
        if draft.video:
            pictures += moments(within(root, draft.video, where), self._frames, where)
            exchanges = layouts.with_marks(exchanges, len(pictures))
        conversation = Conversation(where, tuple(pictures), tuple(exchanges), task=self.name)
        if faults := check(conversation):
            raise DataError(
                f"{where}: {'; '.join(faults)} (an image mark is {IMAGE_MARK}); mend the row or leave it out"
            )
        return conversation


class Mixed:
    """Several sources as one in fixed proportions, evenly interleaved, each in its own order."""

    def __init__(self, name: str, sources: Sequence[ConversationSource], weights: Sequence[int]) -> None:
        """As long as the proportions hold without a row twice, so that what is held out is never seen.

        Raises: DataError for an empty source; RecipeError for weights that are not positive whole numbers.
        """
        if len(weights) != len(sources) or not all(weight > 0 for weight in weights):
            raise RecipeError(
                f"{name}: {len(sources)} parts need as many positive weights, not {list(weights)}"
            )
        for source in sources:
            if not len(source):
                raise DataError(f"{source.name}: no conversations")
        self.name, self.sources, self.weights = name, tuple(sources), tuple(weights)
        total = sum(weights)
        self._length = min(len(s) * total // weight for s, weight in zip(sources, weights, strict=True))
        while any(count > len(source) for count, source in zip(self._counts(), sources, strict=True)):
            self._length -= 1  # rounding, some few

    @property
    def draws(self) -> bool:
        """Whether a part has drawings as answers."""
        return any(getattr(source, "draws", False) for source in self.sources)

    @property
    def fingerprint(self) -> str:
        """Of the parts and the weights."""
        return fingerprint([source.fingerprint for source in self.sources], list(self.weights))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Conversation:
        """Raises: as the parts do."""
        if not 0 <= index < self._length:
            raise IndexError(f"{self.name}: conversation {index} of {self._length}")
        left = sum(self.weights)
        for source, weight in zip(self.sources, self.weights, strict=True):
            before = index * weight // left
            if (index + 1) * weight // left > before:
                return source[before]
            index, left = index - before, left - weight
        raise AssertionError("the last source takes whatever is left")

    def _counts(self) -> list[int]:
        """Conversations of each source."""
        found, rest, left = [], self._length, sum(self.weights)
        for weight in self.weights:
            found.append(rest * weight // left)
            rest, left = rest - found[-1], left - weight
        return found


def _again(
    folder: Path, layout: str, files: Sequence[Files], name: str, frames: int, options: Mapping[str, Any]
) -> RowSource:
    return RowSource(folder, layout=layout, files=files, name=name, frames=frames, options=options)
