"""Actions as questions and answers: what control looks like, told to a VLM before it becomes a policy (Paper 4.4).

The question is an instruction and the observation, the answer the action chunk that follows in FAST tokens. Tokens are
words that no tokenizer has: either they are added to the vocabulary, or they stand for its last ordinary tokens, which
are rare (as OpenVLA and FAST's authors do). The paper does not tell its wording.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32

from vlm4vla.core.errors import RecipeError, unknown_name
from vlm4vla.core.recipes import fingerprint
from vlm4vla.demonstrations.chunks import ChunkDataset, ids_of
from vlm4vla.demonstrations.sources import open_demonstrations
from vlm4vla.demonstrations.statistics import fit_normalization
from vlm4vla.policies.action_tokens import FastTokenizer
from vlm4vla.policies.heads import centred
from vlm4vla.tuning.examples import IMAGE_MARK, Conversation, Exchange

VERSION = 1
FITTED_CHUNKS = 100_000
"""The most chunks that the tokens are learned from, evenly spread."""
WORD = "<action{:04d}>"
_WORD = re.compile(r"<action(\d{4})>")
FOLDER = "action_tokens"
"""In the tuned VLM's folder: what the words mean."""
QUESTION = "What are the next {} actions of the robot to {}?"


class ActionQuestions:
    """A conversation for every step of every demonstration."""

    def __init__(
        self,
        folder: Path | None,
        *,
        tokens: str = "added",
        vocabulary: int = 1024,
        horizon: int = 10,
        normalization: str = "quantiles",
        every: int = 1,
    ) -> None:
        """`tokens`: `added` or `tail`; `vocabulary`: the most that FAST learns; `every`: only each so many-th step.

        Raises: RecipeError without a folder or for options out of range; DataError for damaged demonstrations.
        """
        if folder is None:
            raise RecipeError("actions: name the folder of the demonstrations (packed: `vlm4vla data pack`)")
        if tokens not in ("added", "tail"):
            raise unknown_name("way of writing action tokens", tokens, ("added", "tail"))
        if min(vocabulary, horizon, every) < 1:
            raise RecipeError("actions: vocabulary, horizon and every must be at least 1")
        self.folder, self.name, self.tail = folder, "actions", tokens == "tail"
        self.source = open_demonstrations(folder)
        self.horizon, self.every = horizon, every
        self._options = (tokens, vocabulary, horizon, normalization, every)
        self.samples = ChunkDataset(self.source, range(len(self.source)), horizon)
        self._ids = ids_of(self.source)
        self.normalization = fit_normalization(tuple(normalization.split("+")), self.samples.all_actions())
        self.tokenizer = FastTokenizer.fit(
            self._normal(self.samples.all_chunks(FITTED_CHUNKS)), vocabulary=vocabulary
        )

    @property
    def fingerprint(self) -> str:
        """Of demonstrations and options."""
        return fingerprint("actions", VERSION, self.source.fingerprint, list(self._options))

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        """One for each token that FAST learned."""
        return tuple(WORD.format(index) for index in range(len(self.tokenizer.widths())))

    def group(self, index: int) -> str:
        """The demonstration of a conversation: its neighbours show almost the same picture."""
        return self._ids[int(self.samples.owners(np.array([index * self.every]))[0])]

    def __len__(self) -> int:
        """Steps, or each so many-th of them."""
        return -(-len(self.samples) // self.every)

    def __getitem__(self, index: int) -> Conversation:
        """A step's picture, and the chunk that follows; behind a demonstration's end its last action goes on."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: step {index} of {len(self)}")
        batch = self.samples.fetch([index * self.every])
        chunk = self._normal(batch.actions)
        answer = "".join(self.words[token] for token in self.tokenizer.encode(chunk)[0])
        seen = batch.observations[0]
        question = f"{IMAGE_MARK}\n{QUESTION.format(self.horizon, seen.instruction.rstrip('.'))}"
        where = f"{self.folder}, demonstration {self.group(index)}, step {index * self.every}"
        truth = {"chunk": chunk[0], "read": self.read}
        return Conversation(
            where, (seen.image,), (Exchange(question, answer, "actions", truth),), task=self.name
        )

    def read(self, said: str) -> Float[np.ndarray, "horizon 7"] | None:
        """The chunk that an answer says, normalised; None when no action word is in it."""
        found = [int(number) for number in _WORD.findall(said)]
        ids = [number for number in found if number < len(self.words)]
        return self.tokenizer.decode([ids], relaxed=True)[0] if ids else None

    def save(self, folder: Path) -> None:
        """Keep beside a VLM what its action words mean: tokenizer, normalisation, convention."""
        self.tokenizer.save(folder / FOLDER)
        facts = {"word": WORD, "question": QUESTION, "normalization": self.normalization.to_json()}
        facts |= {"action_spec": str(self.source.action_spec)}
        (folder / FOLDER / "actions.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.folder, self._options)

    def _normal(
        self, actions: Float32[np.ndarray, "count horizon 7"]
    ) -> Float32[np.ndarray, "count horizon 7"]:
        return centred(torch.from_numpy(self.normalization.normalize(actions))).numpy()


def _again(folder: Path, options: tuple[str, int, int, str, int]) -> ActionQuestions:
    tokens, vocabulary, horizon, normalization, every = options
    return ActionQuestions(
        folder,
        tokens=tokens,
        vocabulary=vocabulary,
        horizon=horizon,
        normalization=normalization,
        every=every,
    )
