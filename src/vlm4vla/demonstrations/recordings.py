"""Episodes as they lie on disk, before any transform, and the readers that find them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One episode of a file. `images[t]` is what was seen before `actions[t]`."""

    id: str
    """Unique within its source and stable when other files come or go."""
    instruction: str
    """Empty where the file has none."""
    task: str = ""
    """The source's name of the task; empty where it has none."""
    images: Sequence[UInt8[np.ndarray, "height width 3"]]
    """RGB of one camera; decoded when asked for. JPEG and PNG bytes stay as they are (`EncodedFrames`)."""
    actions: Float[np.ndarray, "steps dim"]
    """As stored, in the file's own precision and convention."""
    state: Float[np.ndarray, "steps state"] | None = None
    """Proprioception as stored, where a transform needs it."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else is known (file, scene); JSON values only."""


@runtime_checkable
class Reader(Protocol):
    """Recordings by index. Opening reads no frame; a reader pickles as its path and opens nothing before a fork."""

    @property
    def name(self) -> str:
        """What a report calls it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever any recording would; found without reading whole files (names, sizes, metadata)."""
        ...

    @property
    def scripted(self) -> str:
        """Who made them, where a scripted expert did; empty for others."""
        ...

    @property
    def missing(self) -> Mapping[str, int]:
        """What its metadata names and the disk lacks, e.g. `{"episodes": 3}`; empty when all is there."""
        ...

    def __len__(self) -> int:
        """Number of recordings that are there."""
        ...

    def __getitem__(self, index: int) -> Recording:
        """One recording. Raises: DataError naming file and episode for whatever cannot be read."""
        ...


@runtime_checkable
class FrameReader(Protocol):
    """A reader that gets at a recording's frames without reading its columns."""

    def frames_of(self, index: int) -> Sequence[UInt8[np.ndarray, "height width 3"]]:
        """`reader[index].images`, cheaper."""
        ...
