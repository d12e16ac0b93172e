"""How well a VLM answers: greedy answers to held-out questions, and a number for each (Paper 4.2, A.6)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vlm4vla.core.errors import RecipeError
from vlm4vla.tuning.answering import AnsweringVLM
from vlm4vla.tuning.collate import Row
from vlm4vla.tuning.examples import Conversation, Exchange

_NUMBER = r"-?\d+(?:\.\d+)?"
_POINT = re.compile(rf"[(\[]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[)\]]")
_RESAMPLED = 16
"""Points of a path, equally far apart, that are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One question, what was said, and how good that is."""

    id: str
    task: str
    measure: str
    question: str
    answer: str
    """The right one."""
    said: str
    value: float
    """In 0..1. `exact`, `choice`: 1 if right; `points`: share inside; `number`: relative error, at most 1;
    `trajectory`: mean distance in widths of the picture, at most 1. What cannot be read counts as all wrong."""


def score(
    vlm: AnsweringVLM,
    conversations: Iterable[Conversation],
    *,
    batch_size: int = 32,
    most_tokens: int = 64,
    seen: Callable[[int], None] = lambda count: None,
) -> list[Answer]:
    """Ask every question that has a measure. Prompts of one length are answered together; `seen` counts answers.

    Raises: DataError; RecipeError when nothing of all this can be scored.
    """
    asked: list[tuple[Conversation, Exchange]] = []
    rows: list[Row] = []
    for conversation in conversations:
        prompts = vlm.encoder.questions(conversation)
        for exchange, row in zip(conversation.exchanges, prompts, strict=True):
            if exchange.measure != "text":
                asked.append((conversation, exchange))
                rows.append(row)
    if not rows:
        raise RecipeError("none of these questions has a measure, so nothing can be scored")
    alike: dict[Any, list[int]] = {}
    for index, row in enumerate(rows):
        alike.setdefault(tuple((n, v.shape) for n, v in sorted(row.items())), []).append(index)
    said: dict[int, str] = {}
    vlm.eval()
    for group in alike.values():
        for start in range(0, len(group), batch_size):
            part = group[start : start + batch_size]
            said |= zip(part, vlm.answer([rows[i] for i in part], most_tokens=most_tokens), strict=True)
            seen(len(said))
    return [
        Answer(
            id=conversation.id,
            task=conversation.task,
            measure=exchange.measure,
            question=exchange.question,
            answer=exchange.answer,
            said=said[index],
            value=value_of(exchange, said[index]),
        )
        for index, (conversation, exchange) in enumerate(asked)
    ]


def write_answers(answers: Sequence[Answer], path: Path) -> None:
    """JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(asdict(answer)) + "\n" for answer in answers), encoding="utf-8")
    partial.replace(path)


def value_of(exchange: Exchange, said: str) -> float:
    """As `Answer.value`. Raises: RecipeError for an exchange without what its measure needs."""
    truth = exchange.truth
    try:
        if exchange.measure == "exact":
            return float(_plain(said) == _plain(exchange.answer))
        if exchange.measure == "choice":
            return float(_chosen(said, truth["choices"]) == _chosen(exchange.answer, truth["choices"]))
        if exchange.measure == "points":
            return _inside(points_in(said), np.asarray(truth["region"]))
        if exchange.measure == "number":
            return _relative_error(said, float(truth["value"]))
        if exchange.measure == "trajectory":
            return _path_distance(points_in(said), np.asarray(truth["path"], dtype=np.float64))
    except KeyError as error:
        raise RecipeError(f"{exchange.question!r}: measure {exchange.measure!r} needs truth[{error}]") from error
    raise RecipeError(f"{exchange.question!r}: measure {exchange.measure!r} gives no number")


def points_in(text: str) -> Float[np.ndarray, "points 2"]:
    """Every `(x, y)` or `[x, y]` of a text."""
    return np.array(_POINT.findall(text), dtype=np.float64).reshape(-1, 2)


def _plain(text: str) -> str:
    """Lower-case words without articles and punctuation."""
    words = re.sub(r"[^\w\s.<>-]", " ", text.lower()).split()
    return " ".join(word.rstrip(".") for word in words if word not in ("a", "an", "the"))


def _chosen(said: str, choices: Sequence[str]) -> str | None:
    """The choice that a text begins with or is; None for none."""
    by_name = {_plain(choice): choice for choice in choices}
    first = re.match(r"\W*(\w+)", said)
    exact = by_name.get(_plain(said))
    return exact if exact is not None else by_name.get(first.group(1).lower()) if first else None


def _inside(points: Float[np.ndarray, "points 2"], region: Any) -> float:
    if not len(points):
        return 0.0
    height, width = region.shape
    columns, rows = (np.floor(points[:, axis] * side).astype(int) for axis, side in ((0, width), (1, height)))
    within = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    hit = region[rows.clip(0, height - 1), columns.clip(0, width - 1)] & within
    return float(hit.mean())


def _relative_error(said: str, value: float) -> float:
    found = re.search(_NUMBER, said)
    if found is None:
        return 1.0
    error = abs(float(found.group()) - value)
    return min(1.0, error / abs(value)) if value else float(error > 0)


def _path_distance(points: Float[np.ndarray, "points 2"], path: Float[np.ndarray, "points 2"]) -> float:
    if not len(points):
        return 1.0
    apart = np.linalg.norm(_resampled(points) - _resampled(path), axis=1)
    return float(min(1.0, apart.mean()))


def _resampled(path: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "resampled 2"]:
    steps = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    places = np.linspace(0, steps[-1], _RESAMPLED)
    return np.stack([np.interp(places, steps, path[:, axis]) for axis in (0, 1)], axis=1)
