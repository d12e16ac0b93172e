"""RLDS as TFDS writes it (Bridge V2, Open X-Embodiment, the regenerated LIBERO sets), read without TensorFlow.

    features.json                                what an episode consists of
    dataset_info.json                            its splits: what their files are called, how many episodes each has
    <name>-<split>.tfrecord-00000-of-01024       a record an episode: `steps/action` is T x 7 numbers

Frames stay the JPEG or PNG bytes of the file. Where they lie is found out at the first look at one, so that lengths
and actions of a whole data set are read without touching its images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from vlm4vla.core.errors import DataError
from vlm4vla.core.recipes import fingerprint
from vlm4vla.demonstrations import tfds
from vlm4vla.demonstrations.frames import Codec, EncodedFrames, codec_of, encoded_size
from vlm4vla.demonstrations.recordings import Recording
from vlm4vla.demonstrations.scripted import note_of
from vlm4vla.demonstrations.tfds import Column
from vlm4vla.demonstrations.tfrecords import (
    Span,
    example_features,
    floats,
    integers,
    map_file,
    record_spans,
    strings,
    verify,
)

INSTRUCTIONS = ("language_instruction", "observation/natural_language_instruction")
"""Where an instruction is looked for, in this order: Bridge and LIBERO; Fractal."""

ACTIONS = (("action",), ("action/world_vector", "action/rotation_delta", "action/gripper_closedness_action"))
"""Where actions are looked for: Bridge and LIBERO; Fractal (position, rotation, gripper)."""

_HINT = f"The file is damaged, or does not belong to {tfds.FEATURES}: download both again."
_KEPT = 256  # recordings, each of about 5 kB: actions, state, where the frames lie


class RldsSource:
    """One split of a TFDS folder (the one with features.json) as a `Reader`. It pickles as its path and options.

    `camera` is an image below `steps/observation`; it may be empty where there is only one. `instruction`, `actions`
    and `state` are columns below `steps`, the latter two laid side by side in the order given. Empty, instruction and
    actions are the first of `INSTRUCTIONS` and `ACTIONS` that exist, the state is `observation/state` if that exists.
    Numbers are float32, all that a TFRecord holds, even where features.json says float64. What an episode has beside
    its steps (a number or a text each) is in `facts`. `checksums` verifies the content of every record that is read;
    the framing always is.

    A recording's id is its file's name and its number in it, so it stays when other files come or go.

    Raises: DataError for what is missing, damaged, or of a kind that is not read: videos, nested sequences, tensors
    with an encoding, images that are not RGB.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        split: str = "train",
        camera: str = "",
        instruction: str = "",
        actions: Sequence[str] = (),
        state: Sequence[str] = (),
        checksums: bool = False,
    ) -> None:
        self.folder, self._checksums = _version_folder(Path(folder)), checksums
        self._split = tfds.read_split(self.folder, split)
        self.scripted = note_of(self.folder)
        self._chosen = _choose(self.folder, camera, instruction, tuple(actions), tuple(state))
        self._arguments: dict[str, Any] = {
            "split": split,
            "camera": camera,
            "instruction": instruction,
            "checksums": checksums,
        }
        self._arguments |= {"actions": tuple(actions), "state": tuple(state)}
        self._ends: Int64[np.ndarray, " shards"] = np.cumsum([count for _, count in self._split.shards])
        self._fingerprint = fingerprint(
            [self.name, repr(self._chosen)],
            [[path.name, path.stat().st_size] for path, _ in self._split.shards],
            [(self.folder / name).read_text(encoding="utf-8") for name in (tfds.FEATURES, tfds.INFO)],
        )
        self._shard = functools.cache(self._open)
        self._recording = functools.lru_cache(maxsize=_KEPT)(self._read)

    @property
    def name(self) -> str:
        """`bridge_orig/1.0.0/train`."""
        return self._split.name

    @property
    def fingerprint(self) -> str:
        """Over the metadata, the columns chosen, and the names and sizes of the files that are there."""
        return self._fingerprint

    @property
    def missing(self) -> Mapping[str, int]:
        """Shards that are absent, and the episodes in them; empty when all are there."""
        return self._split.missing

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Recording:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: episode {index} of {len(self)}")
        return self._recording(int(index))

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return functools.partial(RldsSource, self.folder, **self._arguments), ()

    def _open(self, shard: int) -> tuple[memoryview, list[Span]]:
        path, count = self._split.shards[shard]
        try:
            data = map_file(path)
            spans = record_spans(data)
        except ValueError as error:
            raise DataError(
                f"{path}: {error}. The file is damaged or cut short: download it again."
            ) from error
        if len(spans) != count:
            raise DataError(
                f"{path}: it has {len(spans)} records, {tfds.INFO} says {count}. Download both again, from one place."
            )
        return data, spans

    def _read(self, index: int) -> Recording:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        path, count = self._split.shards[shard]
        record = index - (int(self._ends[shard]) - count)
        data, spans = self._shard(shard)
        where, chosen = f"{path}, record {record}", self._chosen
        try:
            if self._checksums:
                verify(data, spans[record])
            example = _Example(where, data, example_features(data, spans[record]))
            actions = example.numbers(chosen.actions)
            steps = len(actions)
            state = example.numbers(chosen.state, steps) if chosen.state else None
            texts = example.texts(chosen.instruction, steps) if chosen.instruction else set()
            facts = {column.name: example.fact(column) for column in chosen.facts}
        except ValueError as error:
            raise DataError(f"{where}: {error}. {_HINT}") from error
        if len(texts) > 1:
            raise DataError(
                f"{where}: {len(texts)} different instructions, among them {' and '.join(sorted(texts)[:2])!r}; an "
                "episode has one. Name another column as `instruction`."
            )
        return Recording(
            id=f"{path.name}:{record}",
            instruction="".join(texts),
            images=RecordFrames(data, steps, where, lambda: example.frames(chosen.camera, steps)),
            actions=actions,
            state=state,
            facts=facts,
        )


class RecordFrames(EncodedFrames):
    """Frames of one record. Where they lie is found out at the first look at one; their number is known before."""

    def __init__(self, data: memoryview, count: int, where: str, find: Callable[[], EncodedFrames]) -> None:
        self.data, self.where, self._count, self._find = data, where, count, functools.cache(find)

    def __len__(self) -> int:
        return self._count

    def select(self, steps: Int64[np.ndarray, " chosen"]) -> EncodedFrames:
        """Some of the frames, in the order given, still encoded and still not looked for."""
        return RecordFrames(self.data, len(steps), self.where, lambda: self._find().select(steps))

    def __getattr__(self, name: str) -> Any:
        if name not in ("starts", "stops", "codec", "size"):
            raise AttributeError(name)
        return getattr(self._find(), name)


@dataclass(frozen=True, slots=True)
class _Example:
    """One record: the columns asked for, each checked against the number of steps. Raises: ValueError."""

    where: str
    data: memoryview
    features: Mapping[str, Span]

    def numbers(
        self, columns: Sequence[Column], steps: int | None = None
    ) -> Float32[np.ndarray, "steps dim"]:
        """Columns side by side; without `steps` the first one tells how many there are."""
        blocks = []
        for column in columns:
            values = self._values(floats, column, steps)
            steps = len(values) // column.width
            blocks.append(values.reshape(steps, column.width))
        return np.concatenate(blocks, axis=1)

    def texts(self, column: Column, steps: int) -> set[str]:
        """All different texts of a column."""
        spans = self._values(strings, column, steps)
        return {text.decode("utf-8") for text in {bytes(self.data[start:stop]) for start, stop in spans}}

    def fact(self, column: Column) -> str | int | float | bool:
        """What the episode has once. Bytes that are not UTF-8 are escaped."""
        read = strings if column.is_text else floats if column.is_float else integers
        value = self._values(read, column, 1)[0]
        if column.is_text:
            return str(self.data[slice(*value)], "utf-8", "backslashreplace")
        return bool(value) if column.dtype == "bool" else value.item()

    def frames(self, camera: Column, steps: int) -> EncodedFrames:
        """The images of a camera. Raises: DataError, as nobody adds the place any more when this is called."""
        codec: Codec = "jpeg"
        size = camera.shape[0], camera.shape[1]
        try:
            spans = np.array(self._values(strings, camera, steps), dtype=np.int64).reshape(steps, 2)
            if steps:
                first = self.data[spans[0, 0] : spans[0, 1]]
                codec = codec_of(first)
                size = size if min(size) > 0 else encoded_size(first)
        except ValueError as error:
            raise DataError(f"{self.where}: {error}. {_HINT}") from error
        return EncodedFrames(self.data, spans[:, 0], spans[:, 1], codec=codec, size=size, where=self.where)

    def _values(self, read: Callable[[memoryview, Span], Any], column: Column, steps: int | None) -> Any:
        if column.name not in self.features:
            raise ValueError(f"it has no {column.name}")
        try:
            values = read(self.data, self.features[column.name])
        except ValueError as error:
            raise ValueError(f"{column.name}: {error}") from error
        per_step = 1 if read is strings else column.width
        if len(values) % per_step or (steps is not None and len(values) != steps * per_step):
            expected = f"{per_step} a step" if steps is None else f"{per_step} for each of {steps} steps"
            raise ValueError(f"{column.name} has {len(values)} values instead of {expected}")
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    camera: Column
    instruction: Column | None
    actions: tuple[Column, ...]
    state: tuple[Column, ...]
    facts: tuple[Column, ...]


def _version_folder(folder: Path) -> Path:
    """The folder itself, or its only version: TFDS puts 1.0.0 below the data set's name."""
    if not (folder / tfds.FEATURES).is_file():
        versions = sorted(path.parent for path in folder.glob(f"*/{tfds.FEATURES}"))
        if len(versions) == 1:
            return versions[0]
    return folder


def _choose(
    folder: Path, camera: str, instruction: str, actions: tuple[str, ...], state: tuple[str, ...]
) -> _Chosen:
    columns, path = tfds.read_columns(folder), folder / tfds.FEATURES
    names = [name.removeprefix("steps/") for name in columns if name.startswith("steps/")]

    def column(option: str, name: str, right: Callable[[Column], bool], what: str) -> Column:
        found = columns.get(f"steps/{name}")
        if found is None:
            raise DataError(
                f"{path}: no {name!r} below steps, asked for as `{option}`; there are {', '.join(names)}"
            )
        if found.nesting != 1 or not right(found):
            raise DataError(f"{path}: {name} cannot be read as `{option}`, {what} a step is needed: {found}")
        return found

    def numbers(option: str, chosen: tuple[str, ...]) -> tuple[Column, ...]:
        what = "floating-point numbers of fixed shape"
        return tuple(column(option, name, lambda found: found.is_float, what) for name in chosen)

    cameras = [name for name in names if name.startswith("observation/") and columns[f"steps/{name}"].is_rgb]
    if not camera and len(cameras) != 1:
        raise DataError(f"{path}: {len(cameras)} cameras ({', '.join(cameras)}); name one as `camera`")
    image = f"observation/{camera}" if camera else cameras[0]
    text = instruction or next((name for name in INSTRUCTIONS if name in names), "")
    actions = actions or next((wanted for wanted in ACTIONS if set(wanted) <= set(names)), ACTIONS[0])
    state = state or tuple({"observation/state"} & set(names))
    facts = [entry for entry in columns.values() if entry.nesting == 0 and entry.shape == ()]
    return _Chosen(
        camera=column("camera", image, lambda found: found.is_rgb, "one RGB image"),
        instruction=column("instruction", text, lambda found: found.is_text, "one text") if text else None,
        actions=numbers("actions", actions),
        state=numbers("state", state),
        facts=tuple(
            entry for entry in facts if entry.kind in ("tensor", "text") and entry.encoding == "none"
        ),
    )
