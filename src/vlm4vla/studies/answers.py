"""What VLMs of a study answered, as it lies beside its runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.core.recipes import from_json
from vlm4vla.studies.runs import read_json

FOLDER = "asked"
"""Beside a trial's checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One VLM and one task."""

    task: str
    questions: str
    """Fingerprint of what was asked, and how."""
    values: tuple[float, ...]
    """Of every question, in 0..1, more is better: 1 for what is right, less one's error where errors are measured."""
    unreadable: int
    """Answers that did not have the form."""


def read_asked(folder: Path) -> Iterator[Asked]:
    """Of a trial's folder, in the order of their files. Raises: RunError for a damaged one."""
    for path in sorted((folder / FOLDER).glob("[!.]*.json")):
        try:
            asked: Asked = from_json(Asked, read_json(path), where=str(path))
            if not asked.values or not all(0 <= value <= 1 for value in asked.values):
                raise RunError(f"{path}: its scores are not numbers in 0..1")
            yield asked
        except (RecipeError, RunError) as error:
            raise RunError(f"{error}; delete it, and `vlm4vla study NAME --ask` asks again") from error
