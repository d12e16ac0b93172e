"""A VLM that answers: the class with the vocabulary head, as a learner and as what is scored.

Its own forward runs, images and positions included. A hook before the vocabulary head keeps the answers' positions
alone, so that logits of prompts are never computed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlm4vla.backbones import loading, lora
from vlm4vla.backbones.discover import PARTS, find_parts
from vlm4vla.core.errors import BackboneError, RunError
from vlm4vla.core.recipes import TuneRecipe
from vlm4vla.policies.learner import Learner
from vlm4vla.tuning.collate import Asked, Row
from vlm4vla.tuning.prompts import ConversationEncoder

_ADAPTERS = "adapters.safetensors"
_WORDS = "answer_tokens.json"
"""Words of answers and the ids of other tokens that stand for them."""
_VLM = "vlm."


class AnsweringVLM(Learner):
    """Conversations in, logits or words out."""

    def __init__(
        self,
        checkpoint: loading.Checkpoint,
        *,
        short: bool = False,
        token_ids: Mapping[str, int] | None = None,
    ) -> None:
        """Use `from_pretrained`. Raises: BackboneError for a VLM that cannot be asked in this way."""
        super().__init__()
        if checkpoint.vlm.config.is_encoder_decoder:
            raise BackboneError(
                f"{checkpoint.where}: has an encoder for the prompt; only VLMs that write behind it can be tuned here"
            )
        self.vlm = checkpoint.vlm
        self.checkpoint = checkpoint
        head = self.vlm.get_output_embeddings()
        rows = self.vlm.get_input_embeddings().weight.shape[0]
        self.encoder = ConversationEncoder(checkpoint, short=short, rows=rows, token_ids=token_ids or {})
        self._asked: Tensor | None = None
        head.register_forward_pre_hook(self._select)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        weights: Literal["pretrained", "random"] = "pretrained",
        prompt: Literal["chat", "short"] = "chat",
        words: Sequence[str] = (),
        tail: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Load a registered name, a hub id or a checkpoint folder.

        `words` become tokens of their own: added, or with `tail` in place of the last ordinary ones of the vocabulary.

        Raises: RecipeError for an unknown name; BackboneError.
        """
        checkpoint = loading.load(name_or_folder, weights=weights, seed=seed, dtype=dtype, whole=True)
        path = Path(checkpoint.location) / _WORDS
        ids: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        new = [word for word in words if word not in ids]
        if new and tail:
            ids |= dict(zip(new, _last_ids(checkpoint, len(new), taken=set(ids.values())), strict=True))
        elif new:
            _add_tokens(checkpoint, new, seed=seed)
        return cls(checkpoint, short=prompt == "short", token_ids=ids)

    @classmethod
    def from_recipe(cls, recipe: TuneRecipe, *, words: Sequence[str] = (), tail: bool = False) -> Self:
        """Before its first step: frozen parts frozen, adapters drawn. Raises: RecipeError, BackboneError."""
        vlm = cls.from_pretrained(
            recipe.backbone,
            weights=recipe.weights,
            prompt=recipe.prompt,
            words=words,
            tail=tail,
            seed=recipe.train.seed,
        )
        return vlm._prepared(recipe)

    @classmethod
    def from_checkpoint(cls, folder: Path, recipe: TuneRecipe) -> Self:
        """As a training left it in `folder`. Raises: RunError when that is damaged."""
        try:
            vlm = cls.from_pretrained(folder, prompt=recipe.prompt)._prepared(recipe)
            own = load_file(folder / _ADAPTERS) if recipe.lora_rank else {}
        except (BackboneError, SafetensorError, FileNotFoundError) as error:
            raise RunError(f"{folder}: damaged ({error}).") from error
        missing = {name for name in vlm.state_dict() if lora.is_adapter(name)} ^ set(own)
        if missing:
            raise RunError(f"{folder / _ADAPTERS}: its tensors are not those that the recipe describes.")
        vlm.load_state_dict(own, strict=False)  # complete: checked above
        return vlm

    def forward(self, batch: Asked) -> Float[Tensor, "asked rows"]:
        """Logits of the tokens that are asked for, row after row; of no other."""
        self._asked = batch.targets >= 0
        try:
            logits: Tensor = self.vlm(**batch.arguments, use_cache=False).logits
        finally:
            self._asked = None
        return logits.flatten(0, 1)

    @torch.no_grad()
    def answer(self, rows: Sequence[Row], *, most_tokens: int = 64) -> list[str]:
        """The likeliest token each time, for prompts of one length, so that nothing is padded."""
        device = next(self.vlm.parameters()).device
        arguments = {name: torch.cat([row[name] for row in rows]).to(device) for name in rows[0]}
        length = arguments["input_ids"].shape[1]
        with loading.quiet():
            written: Tensor = self.vlm.generate(
                **arguments,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=most_tokens,
                eos_token_id=self.encoder.end_ids,
                pad_token_id=self.encoder.pad_id,
            )
        return [self.encoder.text(ids) for ids in written[:, length:].tolist()]

    def learners(self) -> Mapping[str, list[nn.Parameter]]:
        """The four parts."""
        parts = find_parts(self.vlm, self.checkpoint.family)
        return {str(name): list(parts[name].values()) for name in PARTS}

    def save(
        self,
        folder: Path,
        *,
        provenance: Mapping[str, Any] | None = None,
        state: Mapping[str, Tensor] | None = None,
        merge: bool = False,
    ) -> None:
        """Write an ordinary Hugging Face folder, which plain transformers loads: to go on from, with LoRA's adapters
        beside, or with `merge` added in. A folder of that name is replaced.

        `state`: a full state dict to write instead of its own (sharded) parameters.
        """
        whole = self.state_dict() if state is None else state
        weights = {name.removeprefix(_VLM): value for name, value in whole.items()}
        adapters = {name: value.contiguous() for name, value in whole.items() if lora.is_adapter(name)}
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        own = lora.merged_weights(self.vlm) if merge else lora.own_weights(weights)
        loading.save(self.checkpoint, partial, state=own)
        if adapters and not merge:
            save_file(adapters, partial / _ADAPTERS)
        if self.encoder.token_ids:
            (partial / _WORDS).write_text(json.dumps(self.encoder.token_ids) + "\n", encoding="utf-8")
        (partial / "tuning.json").write_text(
            json.dumps(dict(provenance or {}), indent=1) + "\n", encoding="utf-8"
        )
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    def _prepared(self, recipe: TuneRecipe) -> Self:
        parts = self.learners()
        for part in recipe.freeze:
            for parameter in parts[part]:
                parameter.requires_grad_(False)
        if recipe.lora_rank:
            lora.add_adapters(self.vlm, self.checkpoint.family, recipe, seed=recipe.train.seed)
        if recipe.train.checkpoint_activations:
            if not self.vlm.supports_gradient_checkpointing:
                raise BackboneError(
                    f"{self.checkpoint.where}: {type(self.vlm).__name__} cannot compute activations again; leave "
                    "train.checkpoint_activations off"
                )
            self.vlm.activation_checkpointing_enable({"use_reentrant": False})
        return self

    def _select(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
        if self._asked is None:
            return None
        states: Float[Tensor, "batch length hidden"] = arguments[0]
        if states.shape[:2] != self._asked.shape:
            raise BackboneError(
                f"{self.checkpoint.where}: its vocabulary head does not see the prompt token by token "
                f"({tuple(states.shape[:2])}, not {tuple(self._asked.shape)}), so it cannot be tuned on answers"
            )
        return (states[self._asked].unsqueeze(0), *arguments[1:])


def _last_ids(checkpoint: loading.Checkpoint, count: int, *, taken: set[int]) -> list[int]:
    """The last ordinary tokens of the vocabulary, backwards: rare ones, whose words nobody writes."""
    tokenizer, rows = checkpoint.tokenizer, checkpoint.vlm.get_input_embeddings().weight.shape[0]
    never = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder, *taken}
    found = [index for index in reversed(range(min(rows, len(tokenizer)))) if index not in never][:count]
    if len(found) < count:
        raise BackboneError(
            f"{checkpoint.where}: {count} words of answers do not fit into a vocabulary with {len(found)} ordinary "
            "tokens; add tokens instead"
        )
    return found


def _add_tokens(checkpoint: loading.Checkpoint, words: Sequence[str], *, seed: int) -> None:
    """New rows of the embedding and of the head are the mean of the others, and a little noise drawn from `seed`."""
    vlm, tokenizer = checkpoint.vlm, checkpoint.tokenizer
    tokenizer.add_tokens(list(words))
    rows = vlm.get_input_embeddings().weight.shape[0]
    if len(tokenizer) <= rows:
        return
    with loading.quiet():
        vlm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    tables = {id(t.weight): t.weight for t in (vlm.get_input_embeddings(), vlm.get_output_embeddings())}
    with torch.no_grad():
        for table in tables.values():
            old = table[:rows].float()
            noise = torch.randn(len(table) - rows, table.shape[1], generator=generator) * old.std() * 0.1
            table[rows:] = (old.mean(dim=0) + noise).to(table.dtype)
