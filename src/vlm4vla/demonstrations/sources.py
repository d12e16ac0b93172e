"""From a recipe to the demonstrations a training reads: one data set or several, indexed where they lie."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from vlm4vla.core.actions import ActionSpec, require_same
from vlm4vla.core.errors import DataError, RecipeError
from vlm4vla.core.recipes import DemonstrationRecipe, fingerprint
from vlm4vla.core.types import Demonstration
from vlm4vla.demonstrations.columns import ColumnSource, read_manifest
from vlm4vla.demonstrations.datasets import data_set
from vlm4vla.demonstrations.indexed import IndexedSource, Place, Progress, find, write_indexed
from vlm4vla.demonstrations.packed import PackedSource
from vlm4vla.demonstrations.recordings import Reader
from vlm4vla.demonstrations.remote import local
from vlm4vla.demonstrations.scripted import together

_JOINED = "joined.json"


class JoinedSource:
    """Several sources behind one another; `weights` say how often each is drawn from (empty: by its size)."""

    def __init__(self, parts: Sequence[ColumnSource], weights: Sequence[float] = ()) -> None:
        """Raises: ActionSpecMismatch when actions mean different things."""
        for part in parts[1:]:
            require_same(parts[0].action_spec, part.action_spec, who=f"{parts[0].name} and {part.name}")
        self.parts, self.weights = tuple(parts), tuple(weights)
        self.name = " + ".join(part.name for part in parts)
        self.action_spec: ActionSpec = parts[0].action_spec
        self.scripted = together(*(part.scripted for part in parts))
        self.fingerprint = fingerprint([part.fingerprint for part in parts], list(weights))
        self._ends = list(itertools.accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Demonstration:
        part, own = self._locate(index)
        return self.parts[part][own]

    def ids(self) -> list[str]:
        """Of all episodes; the part's number keeps those of equal names apart."""
        return [f"{number}/{name}" for number, part in enumerate(self.parts) for name in part.ids()]

    @property
    def lengths(self) -> Int64[np.ndarray, " episodes"]:
        """Steps of every episode."""
        return np.concatenate([part.lengths for part in self.parts])

    def part_of(self, episodes: Int64[np.ndarray, " episodes"]) -> Int64[np.ndarray, " episodes"]:
        """The number of the part that each episode belongs to."""
        return np.searchsorted(np.array(self._ends), episodes, side="right")

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: episode {index} of {len(self)}")
        part = bisect.bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)


def places(recipe: DemonstrationRecipe) -> list[tuple[Place, Reader]]:
    """The data sets that a recipe names, opened.

    Raises: RecipeError for a recipe that names none or contradicts itself, DataError for files that cannot be read.
    """
    data_set(recipe.source)
    if not recipe.path:
        raise RecipeError(f"demonstrations of {recipe.source!r} lie on disk: say where, --data FOLDER")
    if recipe.weights and len(recipe.weights) != len(recipe.path):
        raise RecipeError(
            f"demonstrations.weights: {len(recipe.weights)} numbers for {len(recipe.path)} paths; one each is needed"
        )
    found = []
    for text in recipe.path:
        source, equals, folder = text.partition("=")
        if not equals:
            source, folder = recipe.source, text
        found.append(
            find(
                source,
                str(local(folder)),
                format=recipe.format,
                camera=recipe.camera,
                transforms=recipe.transforms,
                actions=recipe.actions,
            )
        )
    return found


def check(recipe: DemonstrationRecipe) -> None:
    """Raises: as `places`; ActionSpecMismatch when data sets that are trained on together mean different things."""
    found = places(recipe)
    for place, _ in found[1:]:
        require_same(
            found[0][0].action_spec,
            place.action_spec,
            who=f"{found[0][0].source} and {place.source}",
        )


def demonstrations_fingerprint(recipe: DemonstrationRecipe) -> str:
    """Changes with whatever would change a demonstration; not with where the files lie."""
    return fingerprint(
        [_fingerprint(recipe, place, reader) for place, reader in places(recipe)], list(recipe.weights)
    )


def _fingerprint(recipe: DemonstrationRecipe, place: Place, reader: Reader) -> str:
    meaning = place.action_spec.to_json()
    return fingerprint(
        reader.fingerprint, list(place.transforms), meaning, recipe.episodes, list(recipe.tasks)
    )


def make(recipe: DemonstrationRecipe, folder: Path, *, progress: Progress | None = None) -> Path:
    """A folder that `open_demonstrations` opens: columns of every data set, and which they are.

    What was read before is not read again. Raises: as `places`; DataError for recordings that cannot be read.
    """
    names = []
    for number, (place, reader) in enumerate(places(recipe)):
        if isinstance(reader, PackedSource):
            names.append(str(Path(place.folder).resolve()))
            continue
        name = f"part-{number}"
        write_indexed(
            place,
            reader,
            folder / name,
            fingerprint=_fingerprint(recipe, place, reader),
            episodes=recipe.episodes,
            tasks=recipe.tasks,
            progress=progress,
        )
        names.append(name)
    joined = {"parts": names, "weights": list(recipe.weights)}
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{_JOINED}.partial"
    partial.write_text(json.dumps(joined, indent=1), encoding="utf-8")
    partial.rename(folder / _JOINED)
    return folder


def open_demonstrations(folder: str | Path) -> ColumnSource | JoinedSource:
    """Whatever kind of folder of demonstrations it is. Raises: DataError when it is none, or damaged."""
    folder = Path(folder)
    path = folder / _JOINED
    if not path.exists():
        kind = read_manifest(folder, PackedSource.FORMAT, IndexedSource.FORMAT)["format"]
        return PackedSource(folder) if kind == PackedSource.FORMAT else IndexedSource(folder)
    try:
        joined = json.loads(path.read_text(encoding="utf-8"))
        names, weights = [str(name) for name in joined["parts"]], [float(w) for w in joined["weights"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: is damaged ({error}); delete {folder}, and the same command makes it again"
        ) from error
    parts = [open_demonstrations(folder / name) for name in names]
    sources = [part for part in parts if isinstance(part, ColumnSource)]
    if len(sources) != len(parts) or not parts:
        raise DataError(f"{path}: is damaged; delete {folder}, and the same command makes it again")
    return sources[0] if len(sources) == 1 else JoinedSource(sources, weights)
