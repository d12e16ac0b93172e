"""Several tasks as one list of conversations: where they come from, what is trained on, what is scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from vlm4vla.benchmarks.registry import load
from vlm4vla.core.errors import DataError, RecipeError
from vlm4vla.core.recipes import TaskRecipe
from vlm4vla.demonstrations.chunks import split_episodes
from vlm4vla.tuning.examples import Conversation, ConversationSource
from vlm4vla.tuning.tasks import open_task

CHECKED = 5000
"""The most conversations that are read before a training begins, evenly spread."""
_KEPT_BYTES = 1 << 29
"""Of pictures that a source makes, which costs more than to read one."""


@runtime_checkable
class WordSource(ConversationSource, Protocol):
    """A source whose answers are written in words that no tokenizer has."""

    words: tuple[str, ...]
    tail: bool
    """The words take the place of the vocabulary's last ordinary tokens; else tokens are added."""

    def save(self, folder: Path) -> None:
        """Keep what the words mean beside the tuned VLM."""
        ...


@runtime_checkable
class DrawingSource(ConversationSource, Protocol):
    """A source some of whose answers are drawings."""

    @property
    def draws(self) -> bool:
        """Whether it has any."""
        ...


def open_source(task: TaskRecipe) -> ConversationSource:
    """A task's conversations. Raises: RecipeError for an unknown task or option, DataError for damaged files."""
    options = {}
    for text in task.options:
        name, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"task {task.task!r}: option {text!r}: write NAME=VALUE")
        options[name] = value
    folder = Path(task.path).expanduser() if task.path else None
    if ":" not in task.task:
        return open_task(task.task, folder, **options)
    source = load(task.task)(folder, **options)
    if not isinstance(source, ConversationSource):
        raise RecipeError(f"task {task.task!r}: {type(source).__name__} is no ConversationSource")
    return source


@runtime_checkable
class GroupedSource(ConversationSource, Protocol):
    """A source with conversations that are as good as alike, so that they are held out together."""

    def group(self, index: int) -> str:
        """The same for these."""
        ...


class Mixture:
    """Conversations of several sources, those to train on or those held out, behind one another."""

    def __init__(self, tasks: Sequence[TaskRecipe], sources: Sequence[ConversationSource]) -> None:
        """Raises: DataError for a source without conversations."""
        self.tasks, self.sources = tasks, sources
        self.weights = tuple(task.weight for task in tasks) if any(task.weight for task in tasks) else ()
        for source in sources:
            if not len(source):
                raise DataError(f"{source.name}: no conversations")

    def split(self, *, held_out: float, seed: int) -> tuple[Part, Part]:
        """What is trained on and what is held out. A conversation's side depends on its group (else its
        number) and the seed alone."""
        sides: tuple[list[list[int]], list[list[int]]] = ([], [])
        for source in self.sources:
            group = source.group if isinstance(source, GroupedSource) else str
            groups = list(map(group, range(len(source))))
            every = list(dict.fromkeys(groups))
            _, aside = split_episodes(every, held_out=held_out, seed=seed)
            held = {every[place] for place in aside}
            for side, wanted in zip(sides, (False, True), strict=True):
                side.append([index for index, name in enumerate(groups) if (name in held) == wanted])
        return Part(self.sources, sides[0]), Part(self.sources, sides[1])

    @property
    def draws(self) -> bool:
        """Whether some answers are drawings."""
        return any(isinstance(source, DrawingSource) and source.draws for source in self.sources)

    @property
    def words(self) -> tuple[str, ...]:
        """What must become tokens."""
        found = [word for s in self.sources if isinstance(s, WordSource) for word in s.words]
        return tuple(dict.fromkeys(found))

    @property
    def tail(self) -> bool:
        """How. Raises: RecipeError when the sources differ."""
        kinds = {source.tail for source in self.sources if isinstance(source, WordSource)}
        if len(kinds) > 1:
            raise RecipeError("the tasks write their words in different ways; choose one (option tokens)")
        return kinds == {True}


class Part:
    """Chosen conversations of every source."""

    def __init__(self, sources: Sequence[ConversationSource], chosen: Sequence[Sequence[int]]) -> None:
        self.sources = sources
        self.chosen: list[Int64[np.ndarray, " count"]] = [np.asarray(c, dtype=np.int64) for c in chosen]
        self.counts = tuple(len(indices) for indices in chosen)
        self._ends = np.cumsum(self.counts)
        self._kept: dict[int, Conversation] = {}
        self._room = _KEPT_BYTES

    def __len__(self) -> int:
        """Conversations of all sources."""
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Conversation:
        """The conversation at a place. Raises: DataError."""
        if index in self._kept:
            return self._kept[index]
        source = int(np.searchsorted(self._ends, index, side="right"))
        place = index - (self._ends[source] - self.counts[source])
        found = self.sources[source][int(self.chosen[source][place])]
        made = [image.nbytes for image in found.images if isinstance(image, np.ndarray)]
        made += [found.drawing.pixels.nbytes] if made and found.drawing else []
        if made and sum(made) <= self._room:
            self._kept[index] = found
            self._room -= sum(made)
        return found

    def spread_over_sources(self, most: int) -> Iterator[int]:
        """Up to so many places of every source."""
        for end, count in zip(self._ends.tolist(), self.counts, strict=True):
            places = np.linspace(0, count - 1, min(count, most)).astype(np.int64) + end - count
            yield from places.tolist()

    def spread(self, most: int) -> Iterator[int]:
        """Up to so many places, evenly spread."""
        yield from np.linspace(0, len(self) - 1, min(len(self), most)).astype(np.int64).tolist()
