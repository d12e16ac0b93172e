"""Data sets read where they lie: their columns are kept in a folder, every frame stays in its file.

    recordings.npy     int64 [episodes]: which of the reader's recordings an episode is

beside the columns (`columns.py`), so that a data set of any size opens at once and normalisation reads no file twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import DataError, RecipeError
from vlm4vla.core.types import Demonstration
from vlm4vla.demonstrations.columns import Column, ColumnSource, ColumnWriter, write_manifest, written_whole
from vlm4vla.demonstrations.datasets import DATA_SETS, data_set, open_reader
from vlm4vla.demonstrations.recordings import FrameReader, Reader, Recording
from vlm4vla.demonstrations.transforms import apply, transforms_named

_KEPT_OPEN = 64
"""Episodes whose transformed recordings are remembered: samples of one batch rarely share an episode."""

Progress = Callable[[int, int], None]
"""Called with how many recordings were read, and of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a data set on disk is, in full: equal places give equal demonstrations."""

    source: str
    folder: str
    format: str = ""
    camera: str = ""
    transforms: tuple[str, ...] = ()
    action_spec: ActionSpec

    def reader(self) -> Reader:
        """Raises: as `open_reader`."""
        return open_reader(self.source, Path(self.folder), format=self.format, camera=self.camera)


def find(
    source: str,
    folder: str,
    *,
    format: str = "",
    camera: str = "",
    transforms: tuple[str, ...] | None = None,
    actions: str = "",
) -> tuple[Place, Reader]:
    """A data set and its reader, with what its facts or its files say filled in.

    `actions` names a data set whose actions mean the same, where the files do not say.

    Raises: RecipeError for unknown names or actions nobody declared, DataError for files that are not there or damaged.
    """
    facts = data_set(source)
    reader = open_reader(source, Path(folder), format=format, camera=camera)
    declared = data_set(actions).action_spec if actions else facts.action_spec
    spec = declared or getattr(reader, "action_spec", None)
    if spec is None:
        known = ", ".join(name for name, entry in DATA_SETS.items() if entry.action_spec)
        raise RecipeError(
            f"{folder}: its files do not say what its actions mean. Set demonstrations.actions to a source with the "
            f"same convention ({known})"
        )
    chosen = facts.transforms if transforms is None else transforms
    transforms_named(chosen)
    place = Place(
        source=source, folder=folder, format=format, camera=camera, transforms=chosen, action_spec=spec
    )
    return place, reader


def demonstrations_of(
    place: Place,
    reader: Reader,
    *,
    episodes: int = 0,
    tasks: Sequence[str] = (),
    progress: Progress | None = None,
    on_fault: Callable[[DataError], None] | None = None,
) -> Iterator[tuple[int, Demonstration]]:
    """Recordings that stay after the transforms, with their index; `episodes` (0: all) are spread over the files.

    With `on_fault` an episode that cannot be read, has a damaged frame or a number that is not finite is told and left
    out; every frame is decoded for that. Raises: without it DataError naming file and episode.
    """
    transforms = transforms_named(place.transforms)
    count = len(reader)
    chosen = np.arange(count) if not 0 < episodes < count else np.arange(episodes) * count // episodes
    for done, index in enumerate(chosen.tolist(), start=1):
        recording = None
        try:
            recording = apply(transforms, _recording(reader[index]))
            if on_fault and recording is not None:
                _look_at(recording)
        except DataError as error:
            if on_fault is None:
                raise
            recording = None
            on_fault(error)
        if recording is not None and (not tasks or task_of(recording) in tasks):
            yield index, demonstration(recording)
        if progress:
            progress(done, len(chosen))


def _look_at(recording: Recording) -> None:
    """Raises: DataError for a frame that cannot be decoded or an action that is not finite."""
    if not np.isfinite(recording.actions).all():
        raise DataError(f"{recording.id}: an action is not finite")
    for _ in recording.images:
        pass


def _recording(found: Recording | Demonstration) -> Recording:
    """A packed folder gives demonstrations, which are recordings without states."""
    if isinstance(found, Recording):
        return found
    return Recording(
        id=found.id,
        instruction=found.instruction,
        task=found.task,
        images=found.images,
        actions=found.actions,
        facts=found.facts,
    )


def demonstration(recording: Recording) -> Demonstration:
    """What training reads of a recording behind its transforms."""
    return Demonstration(
        id=recording.id,
        instruction=recording.instruction,
        task=task_of(recording),
        images=recording.images,
        actions=np.asarray(recording.actions, dtype=np.float32),
        facts=recording.facts,
    )


def task_of(recording: Recording) -> str:
    """The instruction where the files name no task."""
    return recording.task or recording.instruction


class IndexedSource(ColumnSource):
    """Columns of this folder, frames of the original files.

    Raises: DataError as `ColumnSource` does, and when the files have changed since.
    """

    FORMAT = "vlm4vla-indexed"

    def __init__(self, folder: str | Path, *, hashes: bool = False) -> None:
        super().__init__(folder, hashes=hashes)
        kept = self.manifest["place"]
        self.place = Place(
            **{
                **kept,
                "transforms": tuple(kept["transforms"]),
                "action_spec": ActionSpec(**kept["action_spec"]),
            }
        )
        self._transforms = transforms_named(self.place.transforms)
        self._reader = self.place.reader()
        if self._reader.fingerprint != self.manifest["reader"]:
            raise DataError(
                f"{self.place.folder}: its files have changed since their columns were read into {self.folder}. "
                "Delete that folder; the same command reads them again"
            )
        self.scripted = self._reader.scripted
        self._recordings: Int64[np.ndarray, " episodes"] = self.column("recordings.npy")
        self._remembered: OrderedDict[int, Sequence[UInt8[np.ndarray, "height width 3"]]] = OrderedDict()

    def images(
        self, index: int, start: int, stop: int, name: str
    ) -> Sequence[UInt8[np.ndarray, "height width 3"]]:
        """The frames that the transforms leave of the recording."""
        found = self._remembered.pop(index, None)
        if found is None:
            number = int(self._recordings[index])
            if not self._transforms and isinstance(self._reader, FrameReader):
                found = self._reader.frames_of(number)
            elif (recording := apply(self._transforms, self._reader[number])) is not None:
                found = recording.images
            if found is None or len(found) != stop - start:
                raise DataError(
                    f"{self.place.folder}, episode {name}: is not what it was when it was indexed"
                )
        self._remembered[index] = found
        if len(self._remembered) > _KEPT_OPEN:
            self._remembered.popitem(last=False)
        return found


def write_indexed(
    place: Place,
    reader: Reader,
    folder: Path,
    *,
    fingerprint: str,
    episodes: int = 0,
    tasks: Sequence[str] = (),
    progress: Progress | None = None,
) -> IndexedSource:
    """Read the columns of a data set into a folder, or reuse it when it holds this fingerprint.

    Raises: DataError as `demonstrations_of`, or when no demonstration is left.
    """

    def write(into: Path) -> None:
        made = demonstrations_of(place, reader, episodes=episodes, tasks=tasks, progress=progress)
        with ColumnWriter(into) as columns, Column(into / "recordings.npy", "<i8") as recordings:
            for index, made_one in made:
                columns.add(made_one)
                recordings.append([index])
        if not columns.counts["episodes"]:
            raise DataError(
                f"{place.folder}: none of {len(reader)} recordings is left after the transforms "
                f"{', '.join(place.transforms) or '(none)'} and the filter of tasks"
            )
        facts = {
            "format": IndexedSource.FORMAT,
            "name": place.source,
            "action_spec": place.action_spec.to_json(),
            "fingerprint": fingerprint,
            "reader": reader.fingerprint,
            "place": asdict(place),
            "read": len(reader),
            "missing": dict(reader.missing),
            "counts": columns.counts,
        }
        write_manifest(into, ["recordings.npy"], facts)

    return written_whole(folder, fingerprint, IndexedSource, write)
