"""Which files a simulator's models are, by Git's hash at the pinned commit, and which of those here differ."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path


@functools.cache
def published(name: str) -> Mapping[str, str]:
    """Git's hash of every file, by its place in the simulator's folder; none where packages hold the models."""
    listed = Path(__file__).parent / name / "models.json"
    files: dict[str, str] = json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else {}
    return files


def substitutes(name: str, folder: Path) -> list[str]:
    """Files that are missing from a folder or are not the published ones; none when nothing is installed there."""
    if not (folder / "data").is_dir():
        return []
    return [path for path, blob in published(name).items() if _blob(folder / path) != blob]


def _blob(path: Path) -> str:
    if not path.is_file():
        return ""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
