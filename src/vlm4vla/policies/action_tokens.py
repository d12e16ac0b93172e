"""FAST: action chunks as few tokens, through frequencies over time, rounding and byte-pair encoding (arXiv 2501.09747).

A folder holds `tokenizer.json` and `processor_config.json`, as the published tokenizer does; no remote code is run.
The published processor reads ours too, where `order` is its own (`frequencies`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Float32, Int64
from scipy.fft import dct, idct
from tokenizers import Tokenizer, decoders, models, trainers

from vlm4vla.core.errors import DataError

_FIRST = 0x100
"""Code point of the smallest coefficient of a fitted tokenizer; the published one starts at 0."""

Order = Literal["frequencies", "dimensions"]
"""What is written first: the lowest frequency of all dimensions (as published), or all frequencies of a dimension."""


class FastTokenizer:
    """Chunks `[horizon, size]`, about in [-1, 1], to token ids and back."""

    def __init__(
        self,
        bpe: Tokenizer,
        *,
        scale: float,
        low: int,
        high: int,
        horizon: int,
        size: int,
        first: int = _FIRST,
        order: Order = "frequencies",
    ) -> None:
        """`low`, `high`: the least and greatest coefficient; `first`: the code point of the least."""
        self.bpe = bpe
        self.scale = scale
        self.low = low
        self.high = high
        self.horizon = horizon
        self.size = size
        self.first = first
        self.order = order

    @classmethod
    def fit(
        cls,
        chunks: Float32[np.ndarray, "count horizon size"],
        *,
        scale: float = 10.0,
        vocabulary: int = 1024,
        order: Order = "frequencies",
    ) -> FastTokenizer:
        """Learn merges from chunks. Dimensions first takes fewer tokens, but one that is missing costs dimensions.

        Raises: DataError without chunks or when coefficients outnumber the vocabulary.
        """
        if len(chunks) == 0:
            raise DataError("cannot fit action tokens on no chunks; check the task and episode filters")
        numbers = _coefficients(chunks, scale, order)
        low, high = int(numbers.min()), int(numbers.max())
        if high - low >= vocabulary:
            raise DataError(
                f"coefficients from {low} to {high} do not fit into {vocabulary} tokens; raise "
                "policy.fast_vocabulary or normalise"
            )
        bpe = Tokenizer(models.BPE())
        bpe.decoder = decoders.Fuse()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=[chr(_FIRST + index) for index in range(high - low + 1)],
        )
        bpe.train_from_iterator((_text(row, low, _FIRST) for row in numbers), trainer=trainer)
        _, horizon, size = chunks.shape
        return cls(bpe, scale=scale, low=low, high=high, horizon=horizon, size=size, order=order)

    def encode(self, chunks: Float32[np.ndarray, "count horizon size"]) -> list[list[int]]:
        """Ids per chunk, in the tokenizer's order; coefficients beyond those fitted are clamped."""
        numbers = _coefficients(chunks, self.scale, self.order).clip(self.low, self.high)
        return [list(self.bpe.encode(_text(row, self.low, self.first)).ids) for row in numbers]

    def decode(
        self, ids: Sequence[Sequence[int]], *, relaxed: bool = False
    ) -> Float32[np.ndarray, "count horizon size"]:
        """Chunks. As the authors do, tokens that do not make a whole chunk give zeros, or `relaxed` are used as far as
        they go: coefficients too many are cut, those that are missing, the last ones, are zero.
        """
        numbers = np.zeros((len(ids), self.horizon * self.size))
        for row, tokens in enumerate(ids):
            points = [ord(letter) for letter in self.bpe.decode(list(tokens), skip_special_tokens=False)]
            if relaxed or len(points) == numbers.shape[1]:
                points = points[: numbers.shape[1]]
                found = np.array(points, dtype=np.int64) - self.first + self.low
                numbers[row, : len(points)] = np.clip(found, self.low, self.high)
        if self.order == "dimensions":
            frequencies = numbers.reshape(-1, self.size, self.horizon).swapaxes(1, 2) / self.scale
        else:
            frequencies = numbers.reshape(-1, self.horizon, self.size) / self.scale
        return np.asarray(idct(frequencies, axis=1, norm="ortho"), dtype=np.float32)

    def widths(self) -> list[int]:
        """How many coefficients each token of a fitted tokenizer stands for, by id."""
        vocabulary = self.bpe.get_vocab()
        return [len(token) for token in sorted(vocabulary, key=vocabulary.__getitem__)]

    def save(self, folder: Path) -> None:
        """Write the two files, and what transformers wants beside them."""
        folder.mkdir(parents=True, exist_ok=True)
        self.bpe.save(str(folder / "tokenizer.json"))
        kept = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        facts = {
            "processor_class": "UniversalActionProcessor",
            "scale": self.scale,
            "vocab_size": self.bpe.get_vocab_size(),
            "min_token": self.low - self.first,  # the coefficient whose code point would be 0
            "max_token": self.high,
            "first_code_point": self.first,
            "time_horizon": self.horizon,
            "action_dim": self.size,
            "order": self.order,
        }
        (folder / "processor_config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, horizon: int | None = None, size: int | None = None) -> FastTokenizer:
        """A saved or published folder; `horizon` and `size` where the published one names none.

        Folders that transformers 5 saved have `tokenizer.json` in `bpe_tokenizer`.
        Raises: DataError for a missing or damaged file, or when horizon or size are known from nowhere.
        """
        path = folder / "processor_config.json"
        if not path.exists():
            path = folder / "preprocessor_config.json"
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            inner = folder / "bpe_tokenizer" / "tokenizer.json"
            bpe = Tokenizer.from_file(str(inner if inner.exists() else folder / "tokenizer.json"))
            first, order = int(facts.get("first_code_point", 0)), facts.get("order", "frequencies")
            low = int(facts["min_token"]) + first
            if order not in get_args(Order):
                raise ValueError(f"unknown order {order!r}")
            return cls(
                bpe,
                scale=float(facts["scale"]),
                low=low,
                high=int(facts.get("max_token", low + int(facts["vocab_size"]) - 1)),
                horizon=int(horizon or facts["time_horizon"]),
                size=int(size or facts["action_dim"]),
                first=first,
                order=order,
            )
        except Exception as error:  # the tokenizers library raises bare exceptions
            raise DataError(
                f"{folder}: no FAST tokenizer ({type(error).__name__}: {error}); it needs tokenizer.json and "
                "processor_config.json, and horizon and size where that names none"
            ) from error


def _coefficients(
    chunks: Float[np.ndarray, "count horizon size"], scale: float, order: Order
) -> Int64[np.ndarray, "count numbers"]:
    frequencies = dct(chunks.astype(np.float64), axis=1, norm="ortho") * scale
    if order == "dimensions":
        frequencies = frequencies.swapaxes(1, 2)
    return np.around(frequencies).astype(np.int64).reshape(len(chunks), -1)


def _text(numbers: Int64[np.ndarray, " numbers"], low: int, first: int) -> str:
    return "".join(chr(first + int(number) - low) for number in numbers)
