"""Conversations -> rows of token ids, through a VLM's own processor and chat template.

A row is prompt and answer in turn. Only answers, and the token that ends each, are asked for. Every prompt is
tokenized by itself, as it is when an answer is generated behind it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vlm4vla.backbones.families import Family
from vlm4vla.backbones.loading import Checkpoint
from vlm4vla.backbones.processed import load_processor
from vlm4vla.core.errors import BackboneError, DataError
from vlm4vla.tuning.examples import IMAGE_MARK, Conversation, check

Row = dict[str, Tensor]
"""Arguments of one conversation, `[1, ...]` each, `input_ids` among them."""
_REFUSALS = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError)
_IMAGE_TOKENS = ("image_token", "boi_token", "fake_image_token")


@dataclass(frozen=True, slots=True)
class Asked:
    """A batch with its answers, padded on the right."""

    arguments: Mapping[str, Tensor]
    """What the VLM's forward takes, ids included."""
    targets: Int64[Tensor, "batch length"]
    """The token that should follow each position; -1 where nothing is asked."""

    @property
    def count(self) -> int:
        """Answer tokens."""
        return int((self.targets >= 0).sum())

    def to(self, device: torch.device) -> Asked:
        """The same on another device."""
        moved = {name: value.to(device, non_blocking=True) for name, value in self.arguments.items()}
        return Asked(moved, self.targets.to(device, non_blocking=True))


class ConversationEncoder:
    """Knows a VLM's prompt; no weights, so that it pickles cheaply."""

    def __init__(
        self, checkpoint: Checkpoint, *, short: bool, rows: int, token_ids: Mapping[str, int]
    ) -> None:
        """`short`: the bare question instead of the chat template; `rows`: of the embedding table; `token_ids`: words
        of answers that stand for ids which the tokenizer has for something else.

        Raises: BackboneError without a processor.
        """
        self.processor = load_processor(checkpoint.location, where=checkpoint.where)
        self.tokenizer = checkpoint.tokenizer
        # Added tokens are in the checkpoint's own tokenizer alone.
        self.processor.tokenizer = self.tokenizer
        template = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template
        self._template = None if short or not template else template
        if isinstance(self._template, dict):
            self._template = self._template["default"]
        self._question = checkpoint.family.question
        self._image = next(
            (
                token
                for name in _IMAGE_TOKENS
                for owner in (self.processor, self.tokenizer)
                if isinstance(token := getattr(owner, name, None), str)
            ),
            IMAGE_MARK,
        )
        # In a prefix that attends to itself both ways, an answer must be told from the prompt.
        takes = checkpoint.family.extra_inputs if isinstance(checkpoint.family, Family) else ()
        self._answer_types = "token_type_ids" in takes
        self._needs_image = "image_embeds_position_mask" in takes
        self.rows, self.token_ids = rows, dict(token_ids)
        self._words = re.compile("|".join(map(re.escape, self.token_ids))) if token_ids else None
        self.names = {index: word for word, index in self.token_ids.items()}
        self._nested: bool | None = None
        latents = getattr(checkpoint.vlm.config, "latent_query_num", None)
        self._settings = {} if latents is None else {"num_image_tokens": latents}
        pad = self.tokenizer.pad_token_id
        self.pad_id = int(pad if pad is not None else self.tokenizer.eos_token_id or 0)

    def __call__(self, conversation: Conversation) -> list[tuple[Row, Int64[Tensor, "1 length"]]]:
        """Rows with targets: one in a chat template, else one for every exchange.

        Raises: DataError that names the conversation for whatever is wrong with it.
        """
        images = self._checked(conversation)
        return [self._row(conversation, parts, images, answered=True) for parts in self._parts(conversation)]

    def questions(self, conversation: Conversation) -> list[Row]:
        """A row per exchange that ends where its answer begins; answers before it are the true ones."""
        images = self._checked(conversation)
        found = []
        for parts in self._parts(conversation):
            for count in range(1, len(parts) + 1):
                found.append(self._row(conversation, parts[:count], images, answered=False)[0])
        return found

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer."""
        ids = [self.tokenizer.eos_token_id]
        if self._template:
            ids += self._ids(self._tail())[:1]
        return sorted({index for index in ids if isinstance(index, int)})

    def text(self, ids: Sequence[int]) -> str:
        """An answer's words up to its end."""
        ends, words, run = set(self.end_ids), [], list[int]()
        for index in [*ids, None]:
            if index is None or index in ends or index in self.names:
                words.append(self.tokenizer.decode(run, skip_special_tokens=True))
                run = []
                if index is None or index in ends:
                    break
                words.append(self.names[index])
            else:
                run.append(index)
        return "".join(words).strip()

    def _checked(self, conversation: Conversation) -> list[UInt8[np.ndarray, "height width 3"]]:
        faults = check(conversation)
        if faults:
            raise DataError(
                f"{conversation.id}: {'; '.join(faults)}. Repair it there, or leave the row out of the file"
            )
        if self._needs_image and not conversation.images:
            raise DataError(
                f"{conversation.id}: has no image, without which this VLM answers nothing; leave it out"
            )
        return [self._decoded(conversation.id, image) for image in conversation.images]

    def _decoded(
        self, where: str, image: bytes | UInt8[np.ndarray, "height width 3"]
    ) -> UInt8[np.ndarray, "height width 3"]:
        if isinstance(image, np.ndarray):
            return image
        try:
            with Image.open(io.BytesIO(image)) as opened:
                return np.asarray(opened.convert("RGB"))
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
            raise DataError(
                f"{where}: its image cannot be read ({error}); copy the file again or leave the row out"
            ) from error

    def _parts(self, conversation: Conversation) -> Iterator[list[tuple[str, str]]]:
        """Of every row: prompt and answer in turn."""
        exchanges = conversation.exchanges
        if self._template is None:
            for number, exchange in enumerate(exchanges):
                marks = exchange.question.count(IMAGE_MARK)
                if number and not marks:  # a later question is about the first one's images
                    marks = exchanges[0].question.count(IMAGE_MARK)
                asked = exchange.question.replace(IMAGE_MARK, "").strip()
                question = self._question.replace("{image}", self._image * marks)
                yield [(question.replace("{instruction}", asked), exchange.answer.strip())]
            return
        messages: list[dict[str, Any]] = []
        parts, done = [], ""
        for exchange in exchanges:
            pieces = re.split(f"({re.escape(IMAGE_MARK)})", exchange.question.strip())
            content = [
                {"type": "image"} if piece == IMAGE_MARK else {"type": "text", "text": piece.strip()}
                for piece in pieces
                if piece.strip()
            ]
            messages.append({"role": "user", "content": content})
            prompt = self._render(messages, prompt=True)
            answer = exchange.answer.strip()
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            if not prompt.startswith(done):
                raise BackboneError(
                    "the chat template rewrites what was said before, so several questions cannot be one row; tune "
                    "with --prompt short"
                )
            parts.append((prompt[len(done) :], answer))
            done = prompt + answer
        yield parts

    def _render(self, messages: Sequence[Mapping[str, Any]], *, prompt: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages, chat_template=self._template, add_generation_prompt=prompt, tokenize=False
        )
        return text

    def _tail(self) -> str:
        """What the chat template writes behind an answer."""
        asked = {"role": "user", "content": [{"type": "text", "text": "a"}]}
        said = {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}
        return self._render([asked, said], prompt=False).rpartition("yes")[2]

    def _row(
        self,
        conversation: Conversation,
        parts: Sequence[tuple[str, str]],
        images: Sequence[UInt8[np.ndarray, "height width 3"]],
        *,
        answered: bool,
    ) -> tuple[Row, Int64[Tensor, "1 length"]]:
        left = list(images)
        row: Row = {}
        asked: list[bool] = []
        for number, (prompt, answer) in enumerate(parts):
            count = len(images) if self._template is None else prompt.count(self._image)
            piece = self._prompt(conversation.id, prompt, left[:count], first=number == 0)
            left = left[count:]
            # The first token of what follows an answer ends it.
            asked += [number > 0] + [False] * (piece["input_ids"].shape[1] - 1)
            row = _joined(row, piece) if row else piece
            if number + 1 < len(parts) or answered:
                ids = self._ids(answer)
                row = self._longer(row, ids)
                asked += [True] * len(ids)
        if answered:
            row = self._longer(
                row, [self.end_ids[0] if self._template is None else self._ids(self._tail())[0]]
            )
            asked.append(True)
        ids_row = row["input_ids"]
        worst = int(ids_row.max())
        if worst >= self.rows:
            raise DataError(
                f"{conversation.id}: token {worst} ({self.tokenizer.convert_ids_to_tokens(worst)!r}) is outside the "
                f"VLM's vocabulary of {self.rows}; the tokenizer belongs to another checkpoint"
            )
        following = torch.tensor([[*asked[1:], False]])
        targets = torch.where(following, ids_row.roll(-1, dims=1), -1)
        return row, targets

    def _prompt(
        self, where: str, text: str, images: Sequence[UInt8[np.ndarray, "height width 3"]], *, first: bool
    ) -> Row:
        start = self.tokenizer.bos_token
        special = {} if first and not (start and text.startswith(start)) else {"add_special_tokens": False}
        if not images:
            ids = self.tokenizer(text, **special).input_ids
            return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
        reasons = []
        for nested in (False, True) if self._nested is None else (self._nested,):
            try:
                made = self.processor(
                    text=[text],
                    images=[list(images)] if nested else list(images),
                    return_tensors="pt",
                    **special,
                    **self._settings,
                )
            except _REFUSALS as error:
                reasons.append(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
                continue
            self._nested = nested
            return {n: v for n, v in made.items() if n != "labels" and isinstance(v, Tensor)}
        raise DataError(f"{where}: the VLM's processor does not take it ({'; '.join(reasons)})")

    def _longer(self, row: Row, ids: Sequence[int]) -> Row:
        """A row with an answer's tokens behind."""
        length, longer = row["input_ids"].shape[1], dict(row)
        for name, value in row.items():
            if _per_token(value, length):
                fill = (
                    1 if name == "attention_mask" or (name == "token_type_ids" and self._answer_types) else 0
                )
                longer[name] = torch.cat(
                    [value, value.new_full((1, len(ids), *value.shape[2:]), fill)], dim=1
                )
        longer["input_ids"] = torch.cat([row["input_ids"], torch.tensor([ids])], dim=1)
        return longer

    def _ids(self, text: str) -> list[int]:
        """Of an answer, words that stand for ids among them."""
        if self._words is None:
            return list(self.tokenizer(text, add_special_tokens=False).input_ids)
        found, last = [], 0
        for match in self._words.finditer(text):
            found += self.tokenizer(text[last : match.start()], add_special_tokens=False).input_ids
            found.append(self.token_ids[match.group()])
            last = match.end()
        return [*found, *self.tokenizer(text[last:], add_special_tokens=False).input_ids]


def collate(rows: Sequence[tuple[Row, Int64[Tensor, "1 length"]]], *, pad_id: int) -> list[Asked]:
    """Batches of rows, one where their images have shapes that fit together, else more."""
    groups: dict[Any, list[tuple[Row, Tensor]]] = {}
    for row, targets in rows:
        length = row["input_ids"].shape[1]
        key = tuple((n, None if _per_token(v, length) else v.shape[1:]) for n, v in sorted(row.items()))
        groups.setdefault(key, []).append((row, targets))
    return [_padded(group, pad_id) for group in groups.values()]


def _padded(rows: Sequence[tuple[Row, Tensor]], pad_id: int) -> Asked:
    lengths = [row["input_ids"].shape[1] for row, _ in rows]
    wide = max(lengths)
    arguments = {
        name: torch.cat(
            [
                _pad(row[name], wide, pad_id if name == "input_ids" else 0)
                if _per_token(row[name], length)
                else row[name]
                for (row, _), length in zip(rows, lengths, strict=True)
            ]
        )
        for name in rows[0][0]
    }
    return Asked(arguments, torch.cat([_pad(targets, wide, -1) for _, targets in rows]))


def _joined(row: Row, piece: Row) -> Row:
    """A conversation's row with a later prompt, which may bring images of its own."""
    before, after = row["input_ids"].shape[1], piece["input_ids"].shape[1]
    joined: Row = {}
    for name in {**row, **piece}:
        values = [part[name] for part in (row, piece) if name in part]
        per_token = all(
            _per_token(part[name], length) for part, length in ((row, before), (piece, after)) if name in part
        )
        if not per_token:  # several images of one row stand in its second axis, where there is one for them
            joined[name] = torch.cat(values, dim=1 if values[0].ndim >= 5 and len(values[0]) == 1 else 0)
            continue
        blank = values[0].new_zeros
        first = row.get(name, blank(1, before, *values[0].shape[2:]))
        joined[name] = torch.cat([first, piece.get(name, blank(1, after, *values[0].shape[2:]))], dim=1)
    return joined


def _per_token(value: Tensor, tokens: int) -> bool:
    """Whether the second axis of one row's argument runs over its tokens."""
    return value.ndim >= 2 and value.shape[:2] == (1, tokens) and not value.is_floating_point()


def _pad(value: Tensor, length: int, fill: int) -> Tensor:
    missing = length - value.shape[1]
    return (
        torch.cat([value, value.new_full((1, missing, *value.shape[2:]), fill)], dim=1) if missing else value
    )
