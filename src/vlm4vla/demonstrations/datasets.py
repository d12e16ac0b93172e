"""The data sets that are known by name: how their files are read, what is done to them, what their actions mean."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import RecipeError, unknown_name
from vlm4vla.demonstrations.recordings import Reader

FORMATS: Mapping[str, str] = {
    "lerobot": "vlm4vla.demonstrations.lerobot:LeRobotSource",
    "calvin": "vlm4vla.demonstrations.calvin:CalvinSource",
    "libero": "vlm4vla.demonstrations.libero:LiberoSource",
    "rlds": "vlm4vla.demonstrations.rlds:RldsSource",
    "packed": "vlm4vla.demonstrations.packed:PackedSource",
    "folder": "vlm4vla.demonstrations.folder:FolderSource",
}
"""Kinds of files and what reads them: constructors that take the folder and `camera`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Facts of a data set that cannot be read from its files."""

    about: str
    format: str
    transforms: tuple[str, ...] = ()
    action_spec: ActionSpec | None = None
    """Behind the transforms; None: the files say it, or a recipe must."""
    camera: str = ""
    """Empty: the reader's own."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the reader."""
    fps: int | None = None
    """Steps a second; None: the files say it, or nobody knows."""


_FRACTAL = ("world_vector", "rotation_delta", "gripper_closedness_action")
_METRES = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="metres_radians")

DATA_SETS: dict[str, DataSet] = {
    "calvin": DataSet(
        about="CALVIN's language-annotated spans, static camera, relative actions (github.com/mees/calvin)",
        fps=30,
        format="calvin",
        action_spec=ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="controller"),
    ),
    "bridge": DataSet(
        about="Bridge V2 as RLDS (`bridge_orig`), as OpenVLA's loader and the paper's code change it",
        fps=5,
        format="rlds",
        transforms=(
            "with_instruction",
            "drop_first_step",
            "decide_gripper_backwards",
            "relabel_movement",
            "gripper_sign",
        ),
        action_spec=_METRES,
        camera="image_0",
    ),
    "fractal": DataSet(
        about="RT-1's robot data as RLDS (`fractal20220817_data`), as OpenVLA's loader changes it",
        fps=3,
        format="rlds",
        transforms=("with_instruction", "gripper_from_changes", "gripper_sign"),
        action_spec=_METRES,
        camera="image",
        options={
            "actions": tuple(f"action/{part}" for part in _FRACTAL),
        },
    ),
    "libero_10": DataSet(
        about="LIBERO-Long as RLDS without no-ops (`libero_10_no_noops`): what the paper trains on",
        fps=20,
        format="rlds",
        transforms=("with_instruction", "flip_gripper", "gripper_sign"),
        action_spec=ActionSpec(rotation="axis_angle", gripper="open_positive", unit="controller"),
        camera="image",
    ),
    "libero": DataSet(
        about="LIBERO's own HDF5 files, 128 pixels: not what the paper trains on",
        fps=20,
        format="libero",
        transforms=("with_instruction", "drop_still_steps", "turn_images", "flip_gripper", "gripper_sign"),
        action_spec=ActionSpec(rotation="axis_angle", gripper="open_positive", unit="controller"),
    ),
    "lerobot": DataSet(about="any LeRobotDataset (v2.1, v3)", format="lerobot"),
    "folder": DataSet(about="your own frames and actions: docs/adding.md", format="folder"),
    "packed": DataSet(about="a folder that `vlm4vla data pack` wrote", format="packed"),
}


def data_set(name: str) -> DataSet:
    """Raises: RecipeError with the nearest names."""
    if name not in DATA_SETS:
        raise unknown_name("source of demonstrations", name, ["tabletop", *DATA_SETS])
    return DATA_SETS[name]


def open_reader(name: str, folder: Path, *, format: str = "", camera: str = "") -> Reader:
    """The files of a data set.

    Raises: RecipeError for unknown names, DataError for files that are not what they should be.
    """
    facts = data_set(name)
    kind = format or facts.format
    if kind not in FORMATS:
        raise unknown_name("format", kind, FORMATS)
    module, _, constructor = FORMATS[kind].partition(":")
    options = dict(facts.options) if kind == facts.format else {}
    chosen = camera or (facts.camera if kind == facts.format else "")
    if chosen:
        options["camera"] = chosen
    if kind == "packed" and options:
        raise RecipeError(
            "demonstrations.camera: a packed folder has the frames of one camera; leave it empty"
        )
    reader: Reader = getattr(importlib.import_module(module), constructor)(folder, **options)
    return reader
