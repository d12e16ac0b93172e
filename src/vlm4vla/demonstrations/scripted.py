"""Demonstrations that a scripted expert made: how they are known, and what is said of policies trained on them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm4vla.core.errors import DataError

MARK = "scripted.json"
"""Beside the files of scripted demonstrations; its `note` says which expert made them."""
SCRIPTED = "trained on scripted demonstrations"
"""What is said wherever a score of such a policy is shown."""
NO_NOTE = "scripted expert"


def note_of(folder: Path) -> str:
    """What the mark in a folder says; empty where there is none. Raises: DataError for one that cannot be read."""
    path = folder / MARK
    if not path.is_file():
        return ""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))["note"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(
            f"{path}: is damaged ({error!r}); it marks demonstrations as scripted and says who made them: write "
            '{"note": "..."} into it, or make the demonstrations again'
        ) from error
    return str(note) or NO_NOTE


def together(*notes: str) -> str:
    """Several notes as one, each once; empty where all are."""
    return "; ".join(dict.fromkeys(part for note in notes for part in note.split("; ") if part))


def told_of(provenance: Mapping[str, Any]) -> str:
    """`SCRIPTED` for a policy of this provenance, or nothing."""
    return SCRIPTED if provenance.get("scripted") else ""


def labelled(name: str, told: str) -> str:
    """A name with what is told of it behind."""
    return f"{name} ({told})" if told else name
