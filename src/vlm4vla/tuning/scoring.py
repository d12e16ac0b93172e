"""How well a VLM answers: greedy answers to held-out questions, and a number for each (Paper 4.2, A.6)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.tuning.answering import AnsweringVLM
from vlm4vla.tuning.examples import Conversation, Exchange, Measure

_NUMBER = r"-?\d+(?:\.\d+)?"
_POINT = re.compile(rf"[(\[]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[)\]]")
VERSION = 1
"""Of the measures: answers kept under another one are asked for again."""
WORST: Mapping[Measure, float] = {
    "exact": 0.0,
    "choice": 0.0,
    "near": 0.0,
    "points": 0.0,
    "number": 1.0,
    "trajectory": 1.0,
    "actions": 1.0,
}
"""Of every measure; where it is 1, less is better."""
_RESAMPLED = 16
"""Points of a path, equally far apart, that are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One question, what was said, and how good that is."""

    id: str
    task: str
    measure: Measure
    question: str
    answer: str
    """The right one."""
    said: str
    value: float
    """In 0..1. `exact`, `choice`, `near`: 1 if right; `points`: share inside; `number`: relative error, at most 1;
    `trajectory`: mean distance in widths of the picture, at most 1; `actions`: mean absolute error over
    the range."""
    readable: bool
    """Whether such an answer was found in what was said; else `value` is the worst there is."""


def score(
    vlm: AnsweringVLM,
    conversations: Iterable[Conversation],
    *,
    batch_size: int = 32,
    most_tokens: int = 0,
    seen: Callable[[int], None] = lambda count: None,
) -> list[Answer]:
    """Ask every question that has a measure. Prompts of one length are answered together; `seen` counts answers.

    `most_tokens` of an answer; 0: twice as many as the longest right one has, and 16.

    Raises: DataError; RecipeError when nothing of all this can be scored.
    """
    asked: list[tuple[Conversation, int]] = []
    alike: dict[Any, list[int]] = {}
    for conversation in conversations:
        for number, row in enumerate(vlm.encoder.questions(conversation)):
            if conversation.exchanges[number].measure != "text":
                # Only shapes are kept: all pixels at once may be more than there is room for.
                key = tuple((name, tuple(value.shape)) for name, value in sorted(row.items()))
                alike.setdefault(key, []).append(len(asked))
                asked.append((conversation, number))
    if not asked:
        raise RecipeError("none of these questions has a measure, so nothing can be scored")
    right = max(vlm.encoder.tokens(talk.exchanges[number].answer) for talk, number in asked)
    most_tokens = most_tokens or 2 * right + 16
    said: dict[int, str] = {}
    vlm.eval()
    for group in alike.values():
        for start in range(0, len(group), batch_size):
            part = group[start : start + batch_size]
            rows = [vlm.encoder.questions(asked[index][0])[asked[index][1]] for index in part]
            said |= zip(part, vlm.answer(rows, most_tokens=most_tokens), strict=True)
            seen(len(said))
    return [
        _answer(conversation, conversation.exchanges[number], said[index])
        for index, (conversation, number) in enumerate(asked)
    ]


def _answer(conversation: Conversation, exchange: Exchange, said: str) -> Answer:
    value = value_of(exchange, said)
    return Answer(
        id=conversation.id,
        task=conversation.task,
        measure=exchange.measure,
        question=exchange.question,
        answer=exchange.answer,
        said=said,
        value=WORST[exchange.measure] if value is None else value,
        readable=value is not None,
    )


def write_answers(answers: Sequence[Answer], path: Path) -> None:
    """JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(asdict(answer)) + "\n" for answer in answers), encoding="utf-8")
    partial.replace(path)


def read_answers(path: Path) -> list[Answer]:
    """What `write_answers` wrote. Raises: RunError when it is damaged."""
    try:
        return [Answer(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError) as error:
        raise RunError(f"{path}: damaged ({error}); delete it, and the questions are asked again") from error


def value_of(exchange: Exchange, said: str) -> float | None:
    """As `Answer.value`; None for an answer in which nothing of the kind is found.

    Raises: RecipeError for an exchange without what its measure needs.
    """
    truth = exchange.truth
    try:
        if exchange.measure == "exact":
            return float(_plain(said) == _plain(exchange.answer)) if _plain(said) else None
        if exchange.measure == "choice":
            letter = _chosen(said, truth["choices"])
            return None if letter is None else float(letter == _chosen(exchange.answer, truth["choices"]))
        if exchange.measure == "near":
            return _near(said, exchange.answer, truth["near"])
        if exchange.measure == "points":
            return _inside(points_in(said), np.asarray(truth["region"]))
        if exchange.measure == "number":
            return _relative_error(said, float(truth["value"]))
        if exchange.measure == "trajectory":
            return _path_distance(points_in(said), np.asarray(truth["path"], dtype=np.float64))
        if exchange.measure == "actions":
            chunk = truth["read"](said)
            return None if chunk is None else float(np.abs(chunk.clip(-1, 1) - truth["chunk"]).mean() / 2)
    except KeyError as error:
        raise RecipeError(
            f"{exchange.question!r}: measure {exchange.measure!r} needs truth[{error}]"
        ) from error
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


def _near(said: str, right: str, near: Mapping[str, int]) -> float | None:
    """Whether numbered tokens, as `<loc0012>`, are the right kinds in the right order and each near its number."""
    found, wanted = (re.findall(r"<([a-z]+)(\d+)>", text) for text in (said, right))
    if not found:
        return None
    alike = [kind for kind, _ in found] == [kind for kind, _ in wanted]
    return float(
        alike
        and all(abs(int(a) - int(b)) <= near[kind] for (kind, a), (_, b) in zip(found, wanted, strict=True))
    )


def _inside(points: Float[np.ndarray, "points 2"], region: Any) -> float | None:
    if not len(points):
        return None
    height, width = region.shape
    columns, rows = (np.floor(points[:, axis] * side).astype(int) for axis, side in ((0, width), (1, height)))
    within = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    hit = region[rows.clip(0, height - 1), columns.clip(0, width - 1)] & within
    return float(hit.mean())


def _relative_error(said: str, value: float) -> float | None:
    found = re.search(_NUMBER, said)
    if found is None:
        return None
    error = abs(float(found.group()) - value)
    return min(1.0, error / abs(value)) if value else float(error > 0)


def _path_distance(
    points: Float[np.ndarray, "points 2"], path: Float[np.ndarray, "points 2"]
) -> float | None:
    if not len(points):
        return None
    apart = np.linalg.norm(_resampled(points) - _resampled(path), axis=1)
    return float(min(1.0, apart.mean()))


def _resampled(path: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "resampled 2"]:
    steps = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    places = np.linspace(0, steps[-1], _RESAMPLED)
    return np.stack([np.interp(places, steps, path[:, axis]) for axis in (0, 1)], axis=1)
