"""Rows of token ids with their images -> batches, and a conversation's pieces -> one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Row = dict[str, Tensor]
"""Arguments of one conversation, `[1, ...]` each, `input_ids` among them."""
DRAWING, SEED = "drawing", "seed"
"""Names in a row of what the VLM does not take: the picture to be drawn, and what its noise is drawn from."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A batch with its answers, padded on the right."""

    arguments: Mapping[str, Tensor]
    """What the VLM's forward takes, ids included."""
    targets: Int64[Tensor, "batch length"]
    """The token that should follow each position; -1 where nothing is asked."""
    drawings: Float[Tensor, "batch 3 side side"] | None = None
    """In -1..1, where they and not words are the answers."""
    seeds: Int64[Tensor, " batch"] | None = None
    """Of their noise; it stays on the CPU."""

    @property
    def count(self) -> int:
        """Answer tokens."""
        return int((self.targets >= 0).sum())

    def to(self, device: torch.device) -> Asked:
        """The same on another device."""
        moved = {name: value.to(device, non_blocking=True) for name, value in self.arguments.items()}
        drawings = None if self.drawings is None else self.drawings.to(device, non_blocking=True)
        return Asked(moved, self.targets.to(device, non_blocking=True), drawings, self.seeds)


def collate(rows: Sequence[tuple[Row, Int64[Tensor, "1 length"]]], *, pad_id: int) -> list[Asked]:
    """Batches of rows, one where their images have shapes that fit together, else more."""
    groups: dict[Any, list[tuple[Row, Tensor]]] = {}
    for row, targets in rows:
        length = row["input_ids"].shape[1]
        key = tuple((n, None if per_token(v, length) else v.shape[1:]) for n, v in sorted(row.items()))
        groups.setdefault(key, []).append((row, targets))
    return [_padded(group, pad_id) for group in groups.values()]


def _padded(rows: Sequence[tuple[Row, Tensor]], pad_id: int) -> Asked:
    lengths = [row["input_ids"].shape[1] for row, _ in rows]
    wide = max(lengths)
    arguments = {
        name: torch.cat(
            [
                _pad(row[name], wide, pad_id if name == "input_ids" else 0)
                if per_token(row[name], length)
                else row[name]
                for (row, _), length in zip(rows, lengths, strict=True)
            ]
        )
        for name in rows[0][0]
    }
    drawings, seeds = arguments.pop(DRAWING, None), arguments.pop(SEED, None)
    return Asked(arguments, torch.cat([_pad(targets, wide, -1) for _, targets in rows]), drawings, seeds)


def joined(row: Row, piece: Row) -> Row:
    """A conversation's row with a later prompt behind it; what belongs to no token stays the row's."""
    before, after = row["input_ids"].shape[1], piece["input_ids"].shape[1]
    whole: Row = {}
    for name in {**row, **piece}:
        sides = [(part[name], length) for part, length in ((row, before), (piece, after)) if name in part]
        if not all(per_token(value, length) for value, length in sides):
            whole[name] = sides[0][0]
            continue
        value = sides[0][0]
        first = row.get(name, value.new_zeros(1, before, *value.shape[2:]))
        whole[name] = torch.cat([first, piece.get(name, value.new_zeros(1, after, *value.shape[2:]))], dim=1)
    return whole


def per_token(value: Tensor, tokens: int) -> bool:
    """Whether the second axis of one row's argument runs over its tokens."""
    return value.ndim >= 2 and value.shape[:2] == (1, tokens) and not value.is_floating_point()


def _pad(value: Tensor, length: int, fill: int) -> Tensor:
    missing = length - value.shape[1]
    return (
        torch.cat([value, value.new_full((1, missing, *value.shape[2:]), fill)], dim=1) if missing else value
    )
