"""A small CALVIN split with the keys, shapes, dtypes and file names of the published one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SPANS = (
    (100, 112, "push the red block left", "push_red_block_left"),
    (108, 120, "open the drawer", "open_drawer"),
)
"""Start, end (exclusive), sentence, task; these two share four frames."""


def frame(index: int, *, side: int = 200) -> dict[str, np.ndarray]:
    """The content of one npz, a function of its number."""
    rng = np.random.default_rng(index)
    pose = rng.uniform(-1, 1, 6)
    return {
        "actions": rng.normal(size=7),
        "rel_actions": np.append(pose, 1.0 if index % 8 < 4 else -1.0),
        "robot_obs": rng.normal(size=15),
        "rgb_static": np.kron(rng.integers(0, 256, (side // 8, side // 8, 3)), np.ones((8, 8, 1))).astype(
            np.uint8
        ),
        "rgb_gripper": rng.integers(0, 256, (84, 84, 3), dtype=np.uint8),
        "rgb_tactile": np.zeros((160, 120, 6), np.uint8),
        "depth_static": np.zeros((side, side), np.float32),
        "depth_gripper": np.zeros((84, 84), np.float32),
        "depth_tactile": np.zeros((160, 120, 2), np.float32),
        "scene_obs": rng.normal(size=24),
    }


def write_annotations(folder: Path, spans: Sequence[tuple[int, int, str, str]] = SPANS) -> None:
    """`lang_annotations/auto_lang_ann.npy`, its indices numpy scalars as the annotator leaves them."""
    numbers = np.array([span[:2] for span in spans], dtype=np.int64).reshape(-1, 2)
    content = {
        "language": {
            "ann": [span[2] for span in spans],
            "task": [span[3] for span in spans],
            "emb": np.zeros((len(spans), 1, 384), np.float32),
        },
        "info": {"episodes": [], "indx": [(start, end) for start, end in numbers]},
    }
    (folder / "lang_annotations").mkdir(parents=True, exist_ok=True)
    np.save(folder / "lang_annotations" / "auto_lang_ann.npy", content)


def write_calvin(
    folder: Path,
    spans: Sequence[tuple[int, int, str, str]] = SPANS,
    *,
    frames: Iterable[int] | None = None,
    scenes: Mapping[str, list[int]] | None = None,
    digits: int = 7,
    compressed: bool = True,
    side: int = 200,
    changes: Mapping[int, Mapping[str, Any]] | None = None,
) -> Path:
    """A split with all frames of the spans, or `frames`; `changes` replaces keys of single frames."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = sorted(frames if frames is not None else {i for span in spans for i in range(span[0], span[1])})
    for index in numbers:
        content = frame(index, side=side) | dict((changes or {}).get(index, {}))
        save = np.savez_compressed if compressed else np.savez
        save(
            folder / f"episode_{index:0{digits}d}.npz", **{k: v for k, v in content.items() if v is not None}
        )
    write_annotations(folder, spans)
    np.save(folder / "ep_start_end_ids.npy", np.array([[numbers[0], numbers[-1]]]))
    if scenes is not None:
        np.save(folder / "scene_info.npy", dict(scenes))
    return folder
