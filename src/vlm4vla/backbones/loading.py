"""Reading and writing Hugging Face checkpoints, strictly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file, logging

from vlm4vla.backbones.families import Family, family_of
from vlm4vla.backbones.initialization import scaled_init_
from vlm4vla.backbones.registry import resolve
from vlm4vla.core.errors import BackboneError

_PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A loaded VLM: base model without language head, tokenizer, facts."""

    vlm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: Family
    most_pixels: int
    """Largest image that the checkpoint's own preprocessing lets through (any-size VLMs)."""


def load(
    name_or_folder: str | Path, *, weights: Literal["pretrained", "random"], seed: int, dtype: torch.dtype
) -> Checkpoint:
    """Load the base model; every weight must come from the checkpoint, only a language head may be left over.

    Raises: BackboneError naming the checkpoint.
    """
    entry = resolve(name_or_folder)
    where = entry.name if entry.name == entry.location else f"{entry.name} ({entry.location})"
    if entry.location.startswith(("/", ".", "~")) and not Path(entry.location).is_dir():
        raise BackboneError(f"{where}: the folder does not exist; the package is incomplete, reinstall it")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(entry.location)
            family = family_of(config, where=where)
            tokenizer = AutoTokenizer.from_pretrained(entry.location)
            if weights == "random":
                vlm = _random(config, family, seed=seed, dtype=dtype)
            else:
                vlm = _pretrained(entry.location, family, dtype=dtype, where=where)
            most_pixels = _most_pixels(entry.location)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise BackboneError(
            f"{where}: cannot be loaded: {str(error).splitlines()[0]} "
            "Check the folder, or that the machine can reach the hub (or holds the model in its cache) "
            "and that the model's licence was accepted."
        ) from error
    return Checkpoint(vlm=vlm, tokenizer=tokenizer, family=family, most_pixels=most_pixels)


def save(vlm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights (safetensors), config, tokenizer and the processor files that came with the checkpoint."""
    with quiet():
        vlm.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing progress bars and loading reports of its own."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _pretrained(location: str, family: Family, *, dtype: torch.dtype, where: str) -> PreTrainedModel:
    vlm, report = AutoModel.from_pretrained(
        location, dtype=dtype, attn_implementation=family.attention, output_loading_info=True
    )
    wrong = {
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(key for key in report["unexpected_keys"] if "lm_head" not in key),
        "of another shape": sorted(str(key[0]) for key in report["mismatched_keys"]),
    }
    problems = [f"{len(keys)} weights {what} (first: {keys[0]})" for what, keys in wrong.items() if keys]
    if problems:
        raise BackboneError(f"{where}: the weights do not fit the config: {'; '.join(problems)}")
    return vlm


def _random(config: object, family: Family, *, seed: int, dtype: torch.dtype) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vlm = AutoModel.from_config(config, dtype=dtype, attn_implementation=family.attention)
    scaled_init_(vlm, seed=seed, unit_norm_inputs=family.unit_norm_inputs)
    return vlm


def _most_pixels(location: str) -> int:
    file = cached_file(location, _PREPROCESSOR, _raise_exceptions_for_missing_entries=False)
    if file is None:
        raise BackboneError(f"{location}: no {_PREPROCESSOR}; copy the checkpoint's processor files beside its weights")
    facts = json.loads(Path(file).read_text(encoding="utf-8"))
    return int(facts.get("max_pixels") or facts.get("size", {}).get("longest_edge") or 2**31)
