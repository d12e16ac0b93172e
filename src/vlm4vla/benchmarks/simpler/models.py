"""SimplerEnv's models: which files, where they lie in its repository, and whether those here are the published ones."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

_ROBOT = ("mani_skill2_real2sim/assets/descriptions/widowx_description", "data/robots/widowx")
_BRIDGE = "data/tasks/bridge_v2_real2sim_dataset"


@functools.cache
def published() -> Mapping[str, str]:
    """Git's hash of every file, by its place in the simulator's folder."""
    text = resources.files(__package__).joinpath("models.json").read_text(encoding="utf-8")
    files: dict[str, str] = json.loads(text)
    return files


def places() -> Mapping[str, str]:
    """Where in the simulator's folder each file of ManiSkill2_real2sim goes (its place there -> here)."""
    found = {}
    for path in published():
        origin = path.replace(_ROBOT[1], _ROBOT[0])
        origin = origin.replace(f"{_BRIDGE}/stages", "data/hab2_bench_assets/stages").replace(_BRIDGE, "data")
        found[origin] = path
    return found


def substitutes(folder: Path) -> list[str]:
    """Files that are missing from a folder or are not the published ones; none when nothing is installed there."""
    if not (folder / "data").is_dir():
        return []
    return [path for path, blob in published().items() if _blob(folder / path) != blob]


def _blob(path: Path) -> str:
    if not path.is_file():
        return ""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
