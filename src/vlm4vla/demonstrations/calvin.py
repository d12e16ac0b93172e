"""CALVIN as it is published: a folder of frames, and sentences for spans of them.

    training/ or validation/
      episode_0358482.npz                  one time step: rgb_static, rel_actions, robot_obs, ...
      lang_annotations/auto_lang_ann.npy   language.ann, language.task, info.indx: sentence, task, (start, end)
      scene_info.npy                       first and last frame of every scene; wrong in old downloads, often absent
      ep_start_end_ids.npy                 first and last frame of every stretch of play
      scripted.json                        beside those of our scripted expert

`end` is exclusive. CALVIN's annotator writes (start, start + number of frames)
(`automatic_lang_annotator_mp.py`, `label_seq`); the released code of the paper starts samples at start .. end - 1 and
masks step `end` and all behind it (`calvin_dataset.py`, `right_pad`), though CALVIN's own loader reads frame `end` too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Shaped

from vlm4vla.core.errors import DataError
from vlm4vla.core.recipes import fingerprint
from vlm4vla.demonstrations.calvin_files import FrameFiles, Progress, columns, read_rows
from vlm4vla.demonstrations.calvin_spans import (
    annotations_of,
    read_scenes,
    read_spans,
    union,
    union_size,
)
from vlm4vla.demonstrations.frames import LazyFrames, Pixels
from vlm4vla.demonstrations.recordings import Recording
from vlm4vla.demonstrations.scripted import note_of

ACTION, STATE = "rel_actions", "robot_obs"
SPLITS = ("training", "validation")
_SIZES = 256
"""Of so many frames the fingerprint knows the size: asking for a million takes minutes on a network disk."""


class CalvinSource:
    """The language-annotated spans of a CALVIN split as a `Reader`; spans that overlap share their frames' files.

    Actions are `rel_actions` as stored: position and Euler angles scaled and clipped to [-1, 1], gripper -1 close and
    +1 open. The state is `robot_obs`. `camera` is `rgb_static` or `rgb_gripper`. Instead of the split's own folder, the
    data set's may be given: its `split`, by default "training" where there is one. Without `cache` the actions of a
    span are read from its frames' files whenever it is asked for; a folder given as `cache` keeps those of all spans,
    read once.
    Nothing stays open, so a fork shares nothing.

    Raises: DataError for what is no CALVIN split, annotations that are damaged, or when no span has all its frames.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        split: str = "",
        camera: str = "rgb_static",
        cache: str | Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.folder = _split_folder(Path(folder), split)
        self.camera, self.cache = camera, None if cache is None else Path(cache)
        self.name = f"calvin/{self.folder.name}"
        self.spans = read_spans(annotations_of(self.folder))
        self.files = FrameFiles.find(self.folder)
        self.scenes = read_scenes(self.folder)
        self.scripted = note_of(self.folder)
        self._chosen, self.missing = self._present()
        self._keys = self._check_keys()
        content = [self.files.prefix, self.files.digits, self._contents()]
        self.fingerprint = fingerprint(content, camera)
        self._columns: Shaped[np.ndarray, " frames"] | None = None
        if self.cache is not None:
            place = self.cache / f"calvin-{fingerprint(content)}"
            self._columns = columns(self.files, self._frames, self._keys, place, progress=progress)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Recording:
        span = self._span(index)
        start, end = int(self.spans.starts[span]), int(self.spans.ends[span])
        if self._columns is None:
            rows = read_rows(self.files, np.arange(start, end), self._keys)
        else:
            first = int(np.searchsorted(self._frames, start))
            rows = self._columns[first : first + end - start]
        scene = self.scenes.get(start, end)
        return Recording(
            id=self.spans.ids[span],
            instruction=self.spans.sentences[span],
            task=self.spans.tasks[span],
            images=self.frames_of(index),
            actions=_numbers(rows[ACTION]),
            state=_numbers(rows[STATE]) if STATE in self._keys else None,
            facts={"start": start, "end": end} | ({"scene": scene} if scene else {}),
        )

    def frames_of(self, index: int) -> CalvinFrames:
        """The frames of a recording, without reading its actions."""
        span = self._span(index)
        return CalvinFrames(self.files, self.camera, int(self.spans.starts[span]), int(self.spans.ends[span]))

    def __reduce__(self) -> Any:
        return _reopen, (self.folder, self.camera, self.cache)

    def _span(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: span {index} of {len(self)}")
        return int(self._chosen[index])

    def _present(self) -> tuple[Int64[np.ndarray, " present"], Mapping[str, int]]:
        """The spans all of whose frames are there; sets `_frames`, the numbers of theirs, each once."""
        numbers, starts, ends = self.files.numbers, self.spans.starts, self.spans.ends
        complete = np.searchsorted(numbers, ends) - np.searchsorted(numbers, starts) == ends - starts
        chosen = np.flatnonzero(complete)
        if not len(chosen):
            raise DataError(
                f"{self.folder}: none of {len(starts)} annotated spans has all its frames here ({len(numbers)} .npz "
                "files); unpack the whole split, or annotations that belong to these frames"
            )
        self._frames = union(starts[chosen], ends[chosen], numbers)
        wanted = union_size(starts, ends)
        lacking = wanted - len(union(starts, ends, numbers))
        absent = len(starts) - len(chosen)
        return chosen, {"episodes": absent, "frames": lacking} if absent else {}

    def _check_keys(self) -> tuple[str, ...]:
        first = int(self._frames[0])
        keys = self.files.keys(first)
        if self.camera not in keys or not self.camera.startswith("rgb_"):
            cameras = ", ".join(key for key in keys if key.startswith("rgb_"))
            raise DataError(
                f"{self.files.path(first)}: has no camera {self.camera!r}; cameras here: {cameras}"
            )
        if ACTION not in keys:
            raise self.files.damaged(first, f"has no {ACTION}, only {', '.join(keys)}")
        chosen = (ACTION, STATE) if STATE in keys else (ACTION,)
        for key, array in zip(chosen, self.files.read(first, chosen), strict=True):
            if array.ndim != 1 or array.dtype.kind != "f":
                raise self.files.damaged(first, f"{key} is {array.dtype} {array.shape}, no row of numbers")
        return chosen

    def _contents(self) -> dict[str, Any]:
        spread = self._frames[np.linspace(0, len(self._frames) - 1, _SIZES).astype(np.int64)]
        names = (
            annotations_of(self.folder),
            self.folder / "scene_info.npy",
            self.folder / "ep_start_end_ids.npy",
        )
        return {
            "frames": hashlib.sha256(self._frames.astype("<i8").tobytes()).hexdigest(),
            "sizes": [self.files.path(number).stat().st_size for number in spread.tolist()],
            "files": [
                hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "" for path in names
            ],
        }


class CalvinFrames(LazyFrames):
    """Frames start .. end - 1 of one camera, each read from its file when asked for."""

    def __init__(self, files: FrameFiles, camera: str, start: int, end: int) -> None:
        self.files, self.camera, self.start, self.end = files, camera, start, end
        self.where = f"{files.folder}, frames {start} to {end - 1}"

    def __len__(self) -> int:
        return self.end - self.start

    def _frame(self, index: int) -> Pixels:
        number = self.start + index
        (image,) = self.files.read(number, [self.camera])
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise self.files.damaged(number, f"{self.camera} is {image.dtype} {image.shape}, no RGB picture")
        return image


def _reopen(folder: Path, camera: str, cache: Path | None) -> CalvinSource:
    return CalvinSource(folder, camera=camera, cache=cache)


def _split_folder(folder: Path, split: str) -> Path:
    if split:
        folder = folder / split
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the place where a CALVIN archive was unpacked")
    if annotations_of(folder).exists():
        return folder
    inside = [name for name in SPLITS if (folder / name).is_dir()]
    return folder / inside[0] if inside else folder


def _numbers(column: Shaped[np.ndarray, " frames ..."]) -> Float[np.ndarray, "frames dim"]:
    return np.ascontiguousarray(column)
