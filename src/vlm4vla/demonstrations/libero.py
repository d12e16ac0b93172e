"""LIBERO's HDF5 files: one a task, its demonstrations in it.

    <task>_demo.hdf5
      data                        attributes: problem_info (JSON with language_instruction), num_demos, ...;
                                  `scripted` and `note` in those of our scripted expert
        demo_0, demo_1, ...       attribute: num_samples
          actions                 float64 [steps, 7]
          obs/agentview_rgb       uint8 [steps, height, width, 3], upside down as the simulator draws it
          obs/ee_states           float64 [steps, 6]: position and axis-angle; obs/gripper_states [steps, 2]

Files that a re-rendering script wrote may lack all attributes; then the instruction is in the file's name, as LIBERO's
own names have it (`KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5`). Source: LIBERO 8f1084e, scripts/create_dataset.py.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float

from vlm4vla.core.errors import DataError
from vlm4vla.core.recipes import fingerprint
from vlm4vla.demonstrations.frames import LazyFrames, Pixels
from vlm4vla.demonstrations.recordings import Recording
from vlm4vla.demonstrations.scripted import NO_NOTE, together

STATE = ("ee_states", "gripper_states")
"""Observations that make a recording's state, side by side: the eight numbers of the regenerated LIBERO sets."""

_OPEN_FILES = 16
_KEPT = 1024  # recordings without frames, each of about 30 kB
_HINT = "The file is damaged, cut short, or none of LIBERO's: download it again."


class LiberoSource:
    """A folder of LIBERO's HDF5 files, or one of them, as a `Reader`. It pickles as its path and camera.

    `camera` is an observation: `agentview_rgb` (third person) or `eye_in_hand_rgb`. Images and actions come as stored:
    upside down, gripper -1 open and +1 closed. Demonstrations are in the order of the files' names, then of their
    numbers. Which files a suite consists of is written nowhere, so nothing is ever `missing`.

    Raises: DataError for a path without such files, for damaged ones, and for counts that disagree.
    """

    def __init__(self, path: str | Path, *, camera: str = "agentview_rgb") -> None:
        self.path, self.camera = Path(path), camera
        tasks = [_read_task(file) for file in _find_files(self.path)]
        self.scripted = together(*(task.scripted for task in tasks))
        self._demos = [(task, number) for task in tasks for number in task.demos]
        self._fingerprint = fingerprint(camera, [task.to_json() for task in tasks])
        self._open = functools.lru_cache(maxsize=_OPEN_FILES)(_OpenFile)
        self._recording = functools.lru_cache(maxsize=_KEPT)(self._read)

    @property
    def name(self) -> str:
        """`libero_10/agentview_rgb`: the folder's or file's name, and the camera's."""
        return f"{self.path.stem}/{self.camera}"

    @property
    def fingerprint(self) -> str:
        """Over names and sizes of the files, their instructions and demonstrations, and the camera."""
        return self._fingerprint

    @property
    def missing(self) -> Mapping[str, int]:
        """Empty."""
        return {}

    def __len__(self) -> int:
        return len(self._demos)

    def __getitem__(self, index: int) -> Recording:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: demonstration {index} of {len(self)}")
        return self._recording(int(index))

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return functools.partial(LiberoSource, self.path, camera=self.camera), ()

    def _read(self, index: int) -> Recording:
        task, number = self._demos[index]
        where, path = f"{task.path}, demo_{number}", task.path
        file = self._open(path, os.getpid())
        demo = file[f"data/demo_{number}", where]
        images = file[f"data/demo_{number}/obs/{self.camera}", where]
        actions = _floats(file[f"data/demo_{number}/actions", where], where)
        counts = {len(actions), len(images), int(demo.attrs.get("num_samples", len(actions)))}
        if len(counts) > 1 or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(
                f"{where}: {len(actions)} actions, num_samples {demo.attrs.get('num_samples')}, and {self.camera} is "
                f"{images.dtype} {list(images.shape)}; one RGB uint8 image an action is expected. {_HINT}"
            )
        state = None
        if all(name in demo["obs"] for name in STATE):
            parts = [_floats(file[f"data/demo_{number}/obs/{name}", where], where) for name in STATE]
            state = np.concatenate(parts, axis=1)
        return Recording(
            id=f"{path.name}:demo_{number}",
            instruction=task.instruction,
            task=task.name,
            images=LiberoFrames(self._open, path, images.name, len(actions), where),
            actions=actions,
            state=state,
            facts={"file": path.name},
        )


class LiberoFrames(LazyFrames):
    """Frames of one demonstration, each read from the file when asked for."""

    def __init__(
        self, open_file: Callable[[Path, int], _OpenFile], path: Path, name: str, count: int, where: str
    ) -> None:
        self.where, self._open, self._path, self._name, self._count = where, open_file, path, name, count

    def __len__(self) -> int:
        return self._count

    def _frame(self, index: int) -> Pixels:
        images = self._open(self._path, os.getpid())[self._name, self.where]
        try:
            return images[index]
        except (OSError, RuntimeError) as error:
            raise DataError(f"{self.where}, frame {index}: cannot be read ({error}). {_HINT}") from error


class _OpenFile:
    """A file and what was looked up in it; the process is part of its name, as HDF5 must not be shared after a fork."""

    def __init__(self, path: Path, process: int) -> None:
        self._file = _open(path)
        self._found: dict[str, Any] = {}

    def __getitem__(self, key: tuple[str, str]) -> Any:
        """A group or data set by name; the second part is named in errors."""
        name, where = key
        if name not in self._found:
            try:
                self._found[name] = self._file[name]
            except (KeyError, OSError, RuntimeError) as error:
                parent = self._file.get(name.rpartition("/")[0])
                there = f"; there are {', '.join(parent)}" if isinstance(parent, h5py.Group) else ""
                raise DataError(f"{where}: no {name.split('/', 2)[-1]} ({error}){there}. {_HINT}") from error
        return self._found[name]


@dataclass(frozen=True, slots=True)
class _Task:
    path: Path
    instruction: str
    demos: tuple[int, ...]
    scripted: str

    @property
    def name(self) -> str:
        return self.path.stem.removesuffix("_demo")

    def to_json(self) -> list[Any]:
        return [self.path.name, self.path.stat().st_size, self.instruction, self.demos]


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(path.glob("*.hdf5"))
    if not files:
        below = sorted({str(file.parent) for file in path.glob("*/*.hdf5")})
        hint = (
            f"Did you mean {below[0]}?"
            if below
            else "Name a folder of <task>_demo.hdf5 files, or one of them."
        )
        raise DataError(f"{path}: {'no .hdf5 files here' if path.is_dir() else 'no such path'}. {hint}")
    return files


def _read_task(path: Path) -> _Task:
    with _open(path) as file:
        try:
            data = file["data"]
            names, attributes = list(data), dict(data.attrs)
        except (KeyError, OSError, RuntimeError) as error:
            raise DataError(f"{path}: no group called data ({error}). {_HINT}") from error
    numbers = [re.fullmatch(r"demo_(\d+)", name) for name in names]
    if not names or None in numbers:
        raise DataError(
            f"{path}: data should hold demo_0, demo_1, ..., it holds {', '.join(names) or 'nothing'}. {_HINT}"
        )
    if attributes.get("num_demos", len(names)) != len(names):
        raise DataError(
            f"{path}: num_demos is {attributes['num_demos']}, but {len(names)} are there. {_HINT}"
        )
    demos = tuple(sorted(int(number[1]) for number in numbers if number))
    note = str(attributes.get("note") or NO_NOTE) if attributes.get("scripted") else ""
    return _Task(path, _instruction(path, attributes.get("problem_info")), demos, note)


def _instruction(path: Path, problem_info: str | bytes | None) -> str:
    if problem_info is None:
        return re.sub(r"^.*SCENE\d+_", "", path.stem.removesuffix("_demo")).replace("_", " ")
    try:
        return str(json.loads(problem_info)["language_instruction"]).strip(' "')
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: problem_info has no language_instruction ({error!r}). {_HINT}") from error


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(
            path, "r", locking=False
        )  # reading needs no lock, and some network file systems have none
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error}). {_HINT}") from error


def _floats(values: h5py.Dataset, where: str) -> Float[np.ndarray, "steps dim"]:
    if values.ndim != 2 or values.dtype.kind != "f":
        raise DataError(
            f"{where}: {values.name} is {values.dtype} {list(values.shape)}, not floating-point [steps, dim]. {_HINT}"
        )
    try:
        return values[()]
    except (OSError, RuntimeError) as error:
        raise DataError(f"{where}: {values.name} cannot be read ({error}). {_HINT}") from error
