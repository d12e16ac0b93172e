"""What a row of each published layout says: questions, answers, how they are scored, and which pictures it names."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vlm4vla.tuning.examples import IMAGE_MARK, Exchange, Measure

LETTERS = "ABCDEFGHIJ"
Row = Mapping[str, Any]
_POINT = re.compile(r"[(\[]\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*[)\]]")
_MARK = re.compile(r"<(?:image|video)\b[^>]*>")
_REGION = 100
"""Cells along a side of the region that points are scored with, where a file tells no region."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A conversation whose pictures are still to be found."""

    images: tuple[Any, ...]
    """Paths, bytes, base64 or the Hub's mappings."""
    exchanges: tuple[Exchange, ...]
    video: str = ""
    """A path instead of images."""


def llava(row: Row, *, radius: float = 0.05) -> Draft:
    """`{image, conversations: [{from: human, value}, {from: gpt, value}, ...]}`; `video` instead of `image` for videos.

    `image` is a path, a list of paths, or absent for text alone. `radius`, in widths of the picture: points are scored
    by the share that lies so near to one of the answer's. LLaVA's data page; RoboPoint's README.
    """
    says: list[tuple[bool, str]] = []
    for turn in row["conversations"]:
        speaker = turn.get("from") or turn["role"]
        text = turn["value"] if "value" in turn else turn["content"]
        if speaker == "system":
            continue
        if speaker not in ("human", "user", "gpt", "assistant"):
            raise ValueError(f"speaker {speaker!r}")
        says.append((speaker in ("human", "user"), text))
    images = row.get("images") or row.get("image") or ()
    return Draft(
        (images,) if isinstance(images, str | bytes | Mapping) else tuple(images),
        _paired(says, radius),
        video=row.get("video") or "",
    )


def messages(row: Row, *, radius: float = 0.05) -> Draft:
    """`{images: [picture, ...], messages: [{role, content}, ...]}`; content: text, or parts `{type, text}`.

    VQASynth writes so (`remyxai/vqasynth_spacellava`); a part of type `image` stands where the picture goes.
    """
    says: list[tuple[bool, str]] = []
    before = ""
    for turn in row["messages"]:
        content = turn["content"]
        if not isinstance(content, str):
            content = "".join(
                IMAGE_MARK if part["type"] == "image" else part.get("text") or "" for part in content
            )
        if turn["role"] == "system":
            before = content + "\n"
            continue
        if turn["role"] not in ("user", "assistant"):
            raise ValueError(f"role {turn['role']!r}")
        says.append((turn["role"] == "user", content))
    if before and says:
        says[0] = (says[0][0], before + says[0][1])
    return Draft(tuple(row["images"] or ()), _paired(says, radius))


def multiple_choice(row: Row) -> Draft:
    """Robo2VLM-1: `{id, question, choices, correct_answer, image}`, choices: a Python list as text.

    Columns: the data set's card (`keplerccc/Robo2VLM-1`). Wording: Paper A.6.
    """
    choices = row["choices"]
    choices = ast.literal_eval(choices) if isinstance(choices, str) else list(choices)
    return Draft((row["image"],), (choice_exchange(row["question"], choices, int(row["correct_answer"])),))


def choice_exchange(question: str, choices: Sequence[str], right: int) -> Exchange:
    """A question with lettered choices, answered by the letter, worded as in Paper A.6 (Robo2VLM)."""
    if not 0 <= right < len(choices) <= len(LETTERS):
        raise ValueError(f"answer {right} of {len(choices)} choices")
    listed = " ".join(
        f"{letter}. {str(choice).rstrip('.')}." for letter, choice in zip(LETTERS, choices, strict=False)
    )
    return Exchange(
        f"{IMAGE_MARK}\n{question.strip()} Choices: {listed} Please answer directly with only the letter of the "
        "correct option and nothing else.",
        LETTERS[right],
        "choice",
        {"choices": tuple(LETTERS[: len(choices)])},
    )


def trajectory(row: Row, *, normalized: bool = False) -> Draft:
    """ShareRobot: `{id, meta_data: {original_width, original_height}, instruction, points: [[x, y], ...]}`, in pixels.

    Its own viewer takes `id` for the picture's path. The answer is in pixels with two digits, as in Paper A.6, and not
    scored; `normalized`: in 0..1 with three digits, as RoboBrain was trained (`BAAI/RoboBrain-LoRA-Trajectory`), and
    scored.
    """
    width, height = _size(row)
    points = np.array(row["points"], dtype=np.float64).reshape(-1, 2)
    if not len(points):
        raise ValueError("no points")
    return Draft(
        (_named(row),),
        (path_exchange(row["instruction"], points / [width, height], width, height, normalized),),
    )


def path_exchange(
    instruction: str, path: Float[np.ndarray, "points 2"], width: float, height: float, normalized: bool
) -> Exchange:
    """An instruction answered by a path of the gripper; `path` in 0..1. Paper A.6 (ShareRobot)."""
    shown, digits = (path, 3) if normalized else (path * [width, height], 2)
    answer = f"[{','.join(f'[{x:.{digits}f},{y:.{digits}f}]' for x, y in shown)}]"
    question = f"{IMAGE_MARK}\n{instruction.strip()}"
    if not normalized:
        return Exchange(question, answer)
    return Exchange(question, answer, "trajectory", {"path": path})


def affordance(row: Row, *, normalized: bool = False) -> Draft:
    """ShareRobot: as `trajectory`, with `affordance: {x, y, width, height}` in pixels: where to touch. Not scored."""
    width, height = _size(row)
    box = row["affordance"]
    x, y = box["x"], box["y"]
    corners = np.array([x, y, x + box["width"], y + box["height"]], dtype=np.float64)
    if normalized:
        corners = corners / [width, height, width, height]
    answer = ",".join(f"{value:.{3 if normalized else 2}f}" for value in corners)
    return Draft((_named(row),), (Exchange(f"{IMAGE_MARK}\n{row['instruction'].strip()}", f"[{answer}]"),))


def options(row: Row) -> Draft:
    """EmbSpatial: `{image: base64, question, answer_options: [...], answer: number}`, or LLaVA's conversations."""
    if "conversations" in row:
        return llava(row)
    return Draft(
        (row["image"],), (choice_exchange(row["question"], row["answer_options"], int(row["answer"])),)
    )


def problem(row: Row) -> Draft:
    """SpaceR: `{problem, problem_type, options, solution: "<answer>...</answer>", data_type, path}`, as Video-R1's."""
    found = re.search(r"<answer>(.*?)</answer>", row["solution"], re.DOTALL)
    answer = (found.group(1) if found else row["solution"]).strip()
    question = row["problem"].strip()
    if row.get("options"):
        question += "\n" + "\n".join(row["options"])
    exchanges = (scored(Exchange(f"{IMAGE_MARK}\n{question}", answer)),)
    path = str(row["path"])
    return Draft((), exchanges, video=path) if row["data_type"] == "video" else Draft((path,), exchanges)


def scored(exchange: Exchange, radius: float = 0.05) -> Exchange:
    """The measure that an answer's form gives: a number, a letter of choices, points, a few words; else none."""
    answer = exchange.answer.strip()
    measure: Measure = "text"
    truth: dict[str, Any] = {}
    if re.fullmatch(r"-?\d+(\.\d+)?", answer):
        measure, truth = "number", {"value": float(answer)}
    elif re.fullmatch(r"\(?[A-J][).]?", answer):
        named = re.findall(r"(?:^|[\s(])([A-J])[.):]", exchange.question)
        measure, truth = "choice", {"choices": tuple(sorted({*named, answer.strip("().")}))}
    elif (points := _POINT.findall(answer)) and answer.startswith("[") and radius > 0:
        places = np.array(points, dtype=np.float64)
        if places.min() >= 0 and places.max() <= 1:
            measure, truth = "points", {"region": _near(places, radius)}
    elif len(answer.split()) <= 12 and not re.search(r"\d", answer):
        measure = "exact"
    return replace(exchange, measure=measure, truth=truth)


def with_marks(exchanges: Sequence[Exchange], count: int) -> tuple[Exchange, ...]:
    """The mark of a video becomes as many marks as it gives pictures."""
    first, *rest = exchanges
    if first.question.count(IMAGE_MARK) != 1:
        raise ValueError("a video is marked once, in the first question")
    return (replace(first, question=first.question.replace(IMAGE_MARK, IMAGE_MARK * count)), *rest)


def _paired(says: Sequence[tuple[bool, str]], radius: float) -> tuple[Exchange, ...]:
    if len(says) % 2 or any(asks != (place % 2 == 0) for place, (asks, _) in enumerate(says)):
        raise ValueError("question and answer do not take turns")
    return tuple(
        scored(Exchange(_MARK.sub(IMAGE_MARK, question), answer.strip()), radius)
        for (_, question), (_, answer) in zip(says[::2], says[1::2], strict=True)
    )


def _size(row: Row) -> tuple[float, float]:
    meta = row["meta_data"]
    meta = json.loads(meta) if isinstance(meta, str) else meta
    return float(meta["original_width"]), float(meta["original_height"])


def _named(row: Row) -> str:
    name = row["id"] if isinstance(row["id"], str) else row.get("image")
    if not isinstance(name, str):
        raise ValueError(f"id {row['id']!r} names no picture")
    return name


def _near(points: Float[np.ndarray, "points 2"], radius: float) -> Bool[np.ndarray, "height width"]:
    centres = (np.arange(_REGION) + 0.5) / _REGION
    near = [(centres - x)[None] ** 2 + (centres - y)[:, None] ** 2 <= radius**2 for x, y in points]
    return np.any(near, axis=0)
