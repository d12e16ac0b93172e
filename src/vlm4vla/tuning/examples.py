"""Conversations about pictures: what a VLM is tuned on and scored with, whatever files they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import UInt8
from numpy import ndarray

IMAGE_MARK = "<image>"
"""Where an image stands in a question; the encoder puts the VLM's own image tokens there."""

Measure = Literal["exact", "choice", "near", "number", "points", "trajectory", "actions", "text"]
"""How an answer is scored: the same words; the same letter; numbered tokens beside the right ones; relative error;
share of points in a region; mean distance of paths; mean absolute error of an action chunk; not at all."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture that is wanted as the answer."""

    kind: Literal["image", "depth", "segmentation"]
    """How it is scored: by its colours, as distances, as classes."""
    pixels: UInt8[ndarray, "height width 3"]
    """RGB, of any shape; a depth is grey."""
    metres: tuple[float, float] = (0.0, 1.0)
    """`depth`: what black and white stand for; all that is further away is white and not scored."""
    colors: tuple[tuple[int, int, int], ...] = ()
    """`segmentation`: of the classes, the background's first."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer."""

    question: str
    """May hold `IMAGE_MARK`; all of a conversation together hold as many as it has images."""
    answer: str
    """Empty where a drawing is the answer."""
    measure: Measure = "text"
    truth: Mapping[str, Any] = field(default_factory=dict)
    """What scoring needs beside the answer: `choices` (letters or words), `near` (by kind of token, how many numbers
    beside the right one count), `region` (Bool [height, width], for points),
    `value` (a number), `path` (points in 0..1), `chunk` (actions in -1..1) and
    `read` (from an answer to such a chunk)."""
    drawing: Drawing | None = None
    """Instead of words, by a diffusion branch; then the conversation's only exchange."""


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

    @property
    def drawing(self) -> Drawing | None:
        """What is to be drawn, if that is the question."""
        return self.exchanges[0].drawing if self.exchanges else None


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
        if exchange.drawing is not None and (exchange.answer or len(conversation.exchanges) > 1):
            faults.append("a drawing beside words or other questions")
        if not exchange.answer.strip() and exchange.drawing is None:
            faults.append(f"answer {number} is empty")
        if not exchange.question.replace(IMAGE_MARK, "").strip():
            faults.append(f"question {number} is empty")
    return faults
