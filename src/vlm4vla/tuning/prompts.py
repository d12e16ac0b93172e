"""Conversations -> rows of token ids, through a VLM's own processor and chat template.

A row is prompt and answer in turn. Only answers, and the token that ends each, are asked for. Every prompt is
tokenized by itself, as it is when an answer is generated behind it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
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
from vlm4vla.tuning.collate import DRAWING, Row, joined, per_token
from vlm4vla.tuning.drawings import to_tensor
from vlm4vla.tuning.examples import IMAGE_MARK, Conversation, check

_REFUSALS = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError)
_IMAGE_TOKENS = ("image_token", "boi_token", "fake_image_token")


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
        self.drawing_side = 0
        """Pixels of what a diffusion branch draws; 0 without one."""
        self._words = re.compile("|".join(map(re.escape, self.token_ids))) if token_ids else None
        self.names = {index: word for word, index in self.token_ids.items()}
        self._nested: bool | None = None
        latents = getattr(checkpoint.vlm.config, "latent_query_num", None)
        self._settings = {} if latents is None else {"num_image_tokens": latents}
        pad = self.tokenizer.pad_token_id
        self.pad_id = int(pad if pad is not None else self.tokenizer.eos_token_id or 0)

    def __call__(self, conversation: Conversation) -> list[tuple[Row, Int64[Tensor, "1 length"]]]:
        """Rows with targets: one in a chat template, else one for every exchange. A drawing's ends with its question.

        Raises: DataError that names the conversation for whatever is wrong with it.
        """
        images, drawing = self._checked(conversation), conversation.drawing
        rows = [
            self._row(conversation, parts, [images[i] for i in seen], answered=drawing is None)
            for parts, seen in self._parts(conversation)
        ]
        if drawing is not None and self.drawing_side:
            rows[0][0][DRAWING] = to_tensor(drawing, self.drawing_side)[None]
        return rows

    def questions(self, conversation: Conversation) -> list[Row]:
        """A row per exchange that ends where its answer begins; answers before it are the true ones."""
        images = self._checked(conversation)
        found = []
        for parts, seen in self._parts(conversation):
            shown = [images[i] for i in seen]
            for count in range(1, len(parts) + 1):
                if self._template is not None:
                    shown = images[: sum(prompt.count(self._image) for prompt, _ in parts[:count])]
                found.append(self._row(conversation, parts[:count], shown, answered=False)[0])
        return found

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer."""
        ids = [self.tokenizer.eos_token_id]
        if self._template:
            ids += self._ids(self._tail())[:1]
        return sorted({index for index in ids if isinstance(index, int)})

    def tokens(self, answer: str) -> int:
        """How many tokens an answer has."""
        return len(self._ids(answer.strip()))

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

    def _parts(self, conversation: Conversation) -> Iterator[tuple[list[tuple[str, str]], range]]:
        """Of every row: prompt and answer in turn, and which images it shows."""
        exchanges = conversation.exchanges
        if self._template is None:
            before, shown = 0, range(0)
            for exchange in exchanges:
                marks = exchange.question.count(IMAGE_MARK)
                if marks:  # else a question is about the images of the one before
                    shown = range(before, before + marks)
                before += marks
                asked = exchange.question.replace(IMAGE_MARK, "").strip()
                question = self._question.replace("{image}", self._image * len(shown))
                yield [(question.replace("{instruction}", asked), exchange.answer.strip())], shown
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
        yield parts, range(len(conversation.images))

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
        seen = [len(images) if self._template is None else prompt.count(self._image) for prompt, _ in parts]
        for number, (prompt, answer) in enumerate(parts):
            piece = self._prompt(conversation.id, prompt, left[: seen[number]], first=number == 0)
            left = left[seen[number] :]
            # The first token of what follows an answer ends it.
            asked += [number > 0] + [False] * (piece["input_ids"].shape[1] - 1)
            row = joined(row, piece) if row else piece
            if number + 1 < len(parts) or answered:
                ids = self._ids(answer)
                row = self._longer(row, ids)
                asked += [True] * len(ids)
        if answered:
            row = self._longer(
                row, [self.end_ids[0] if self._template is None else self._ids(self._tail())[0]]
            )
            asked.append(True)
        if sum(count > 0 for count in seen) > 1:
            together = "".join(prompt for prompt, _ in parts)
            made = self._prompt(conversation.id, together, images, first=True)
            length = made["input_ids"].shape[1]
            row |= {name: value for name, value in made.items() if not per_token(value, length)}
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
            if per_token(value, length):
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
