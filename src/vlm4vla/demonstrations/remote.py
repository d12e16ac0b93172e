"""Data sets behind a URL (`hf://datasets/...`, `s3://...`): each file is downloaded once, whole, and kept."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec

from vlm4vla.core.errors import DataError

Progress = Callable[[int, int, str], None]


def cache_folder() -> Path:
    """Where downloads are kept: `VLM4VLA_CACHE`, else the user's cache folder."""
    base = os.environ.get("VLM4VLA_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vlm4vla"


def is_url(text: str) -> bool:
    """Whether `text` is more than a local path."""
    return "://" in text


def local(text: str, *, progress: Progress | None = None) -> Path:
    """The folder itself, or a copy of what lies behind the URL; files that are there with the right size are kept.

    An interrupted download goes on with the next file. Raises: DataError when nothing can be read there.
    """
    if not is_url(text):
        return Path(text).expanduser()
    folder = cache_folder() / "data" / hashlib.sha256(text.encode()).hexdigest()[:16]
    try:
        system, root = fsspec.core.url_to_fs(text)
        found = system.find(root, detail=True)
    except (OSError, ImportError, ValueError) as error:
        raise DataError(
            f"{text}: cannot be read ({error}). Is the address right, and are you logged in?"
        ) from error
    if not found:
        raise DataError(f"{text}: nothing lies there")
    root = root.rstrip("/")
    for number, (path, facts) in enumerate(sorted(found.items()), start=1):
        name = path.removeprefix(root).lstrip("/")
        target = folder / name if name else folder / Path(path).name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{text}: the file {name!r} would be written outside {folder}")
        if progress:
            progress(number, len(found), name)
        if target.exists() and target.stat().st_size == facts["size"]:
            continue
        _download(system, path, target, facts["size"], text)
    return folder


def _download(system: fsspec.AbstractFileSystem, path: str, target: Path, size: int, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        with system.open(path, "rb") as source, partial.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        if partial.stat().st_size != size:
            raise DataError(
                f"{text}: {path} came with {partial.stat().st_size:,} of {size:,} bytes; try again"
            )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
