"""Conversations about pictures: what a VLM is tuned on and scored with, whatever files they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import UInt8
from numpy import ndarray

IMAGE_MARK = "<image>"
"""Where an image stands in a question; the encoder puts the VLM's own image tokens there."""

Measure = Literal["exact", "choice", "number", "points", "trajectory", "actions", "text"]
"""How an answer is scored: the same words; the same letter; relative error; share of points in a region; mean distance
of paths; mean absolute error of an action chunk; not at all."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer."""

    question: str
    """May hold `IMAGE_MARK`; all of a conversation together hold as many as it has images."""
    answer: str
    measure: Measure = "text"
    truth: Mapping[str, Any] = field(default_factory=dict)
    """What scoring needs beside the answer: `choices` (letters or words), `region` (Bool [height, width], for points),
    `value` (a number), `path` (points in 0..1), `chunk` (actions in -1..1) and
    `read` (from an answer to such a chunk)."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Exchanges about the same images."""

    id: str
    """Names file and row, for messages."""
    images: tuple[bytes | UInt8[ndarray, "height width 3"], ...]
    """Encoded JPEG or PNG, or pixels."""
    exchanges: tuple[Exchange, ...]
    task: str = ""
    """Of a mixture: what is counted and scored together."""


@runtime_checkable
class ConversationSource(Protocol):
    """Conversations in a fixed order, read when asked for. It pickles and opens nothing before a fork."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of everything that decides the content."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Conversation:
        """Raises: DataError that names file and row, for an image that is missing or cut short, an empty answer, or
        image marks and images that differ in number."""
        ...


def check(conversation: Conversation) -> Sequence[str]:
    """What is wrong with a conversation, in words; nothing for a sound one."""
    faults = []
    if not conversation.exchanges:
        faults.append("no question")
    marks = sum(exchange.question.count(IMAGE_MARK) for exchange in conversation.exchanges)
    if marks != len(conversation.images):
        faults.append(f"{marks} image marks, but {len(conversation.images)} images")
    for number, exchange in enumerate(conversation.exchanges):
        if not exchange.answer.strip():
            faults.append(f"answer {number} is empty")
        if not exchange.question.replace(IMAGE_MARK, "").strip():
            faults.append(f"question {number} is empty")
    return faults
