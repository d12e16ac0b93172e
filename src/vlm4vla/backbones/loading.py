"""Reading and writing Hugging Face checkpoints, strictly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, logging

from vlm4vla.backbones import prismatic  # noqa: F401  registers an architecture that transformers lacks
from vlm4vla.backbones.families import Architecture, architecture_of
from vlm4vla.backbones.initialization import NARROW, scaled_init_
from vlm4vla.backbones.kernels import ROW_STABLE_EXPERTS, images_as_batch_, patches_as_rows_
from vlm4vla.backbones.registry import BackboneEntry, resolve
from vlm4vla.core.errors import BackboneError

_PROCESSOR_FILES = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A loaded VLM: base model without language head (or, asked for, with it), tokenizer, facts."""

    vlm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: Architecture
    location: str
    """Where it was loaded from."""
    where: str
    """The same in an error's words."""
    processor_files: Mapping[str, str]
    """Text of the files that describe its processor, by name: kept to be saved again."""


def most_pixels(processor_files: Mapping[str, str]) -> int:
    """Largest image that a checkpoint's own preprocessing lets through (VLMs of any image size)."""
    files = {name: json.loads(text) for name, text in processor_files.items() if name.endswith(".json")}
    facts = files.get("preprocessor_config.json") or files["processor_config.json"]["image_processor"]
    return int(facts.get("max_pixels") or facts["size"]["longest_edge"])


def load(
    name_or_folder: str | Path,
    *,
    weights: Literal["pretrained", "random"],
    seed: int,
    dtype: torch.dtype,
    whole: bool = False,
) -> Checkpoint:
    """Load the base model; every weight must come from the checkpoint, only a language head may be left over.

    `whole`: the class with the language head instead, which must be there too.

    Raises: BackboneError naming the checkpoint.
    """
    entry = resolve(name_or_folder)
    where = _where(entry)
    try:
        with quiet():
            config, family, tokenizer, files = _described(entry.location, where)
            if whole and type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
                raise BackboneError(
                    f"{where}: transformers has no class of {family.name} with a vocabulary head, so it can neither be "
                    "tuned on answers nor asked; it can become a policy"
                )
            if weights == "random":
                vlm = _random(config, family, seed=seed, dtype=dtype, whole=whole)
            else:
                vlm = _pretrained(entry.location, config, family, dtype=dtype, where=where, whole=whole)
            patches_as_rows_(vlm)
            images_as_batch_(vlm)
            if family.experts:
                vlm.set_experts_implementation(ROW_STABLE_EXPERTS)
    except BackboneError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _unreadable(where, error) from error
    return Checkpoint(
        vlm=vlm,
        tokenizer=tokenizer,
        family=family,
        location=entry.location,
        where=where,
        processor_files=files,
    )


def inspect(name_or_folder: str | Path) -> None:
    """Find what is wrong with a checkpoint without reading its weights.

    Raises: RecipeError for an unknown name, BackboneError as `load` does.
    """
    entry = resolve(name_or_folder)
    where = _where(entry)
    try:
        with quiet():
            _described(entry.location, where)
    except BackboneError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(where, error) from error


def _where(entry: BackboneEntry) -> str:
    where = entry.name if entry.name == entry.location else f"{entry.name} ({entry.location})"
    if entry.location.startswith(("/", ".", "~")) and not Path(entry.location).is_dir():
        raise BackboneError(f"{where}: the folder does not exist; the package is incomplete, reinstall it")
    return where


def _described(
    location: str, where: str
) -> tuple[PreTrainedConfig, Architecture, PreTrainedTokenizerBase, dict[str, str]]:
    """Everything but the weights."""
    config = AutoConfig.from_pretrained(location, trust_remote_code=False)
    family = architecture_of(config, where=where)
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackboneError(
            f"{where}: has no tokenizer that can be read ({_first_line(error)}); copy tokenizer.json and "
            "tokenizer_config.json of the original beside the weights"
        ) from error
    return config, family, tokenizer, processor_files(location)


def _unreadable(where: str, error: Exception) -> BackboneError:
    return BackboneError(
        f"{where}: cannot be loaded ({_first_line(error)}). Check the folder, or that the machine can reach the hub "
        "(or holds the model in its cache) and that the model's licence was accepted."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def save(checkpoint: Checkpoint, folder: Path, *, state: Mapping[str, Tensor]) -> None:
    """Write weights (safetensors), config, tokenizer and the processor files that came with the checkpoint."""
    with quiet():
        checkpoint.vlm.save_pretrained(folder, state_dict=dict(state))
        checkpoint.tokenizer.save_pretrained(folder)
    for name, text in checkpoint.processor_files.items():
        (folder / name).write_text(text, encoding="utf-8")


def export(
    checkpoint: Checkpoint, folder: Path, *, state: Mapping[str, Tensor], original: str | Path
) -> None:
    """Write the class with the vocabulary head: the VLM's own weights in `state`, the head from `original`.

    Raises: BackboneError when the original cannot be loaded, or has no such class.
    """
    entry = resolve(original)
    try:
        with quiet():
            whole = AutoModelForImageTextToText.from_pretrained(
                entry.location, dtype=checkpoint.vlm.dtype, use_safetensors=True, trust_remote_code=False
            )
            inner = [module for module in whole.modules() if type(module) is type(checkpoint.vlm)]
            # Kosmos-2 has the parts of its base model, not the model itself.
            report = (inner or [whole])[0].load_state_dict(dict(state), strict=False)
            wrong = [*report.unexpected_keys, *(key for key in report.missing_keys if not _of_head(key))]
            if wrong:
                raise KeyError(f"{wrong[0]} and {len(wrong) - 1} other weights are of only one of the two")
            whole.save_pretrained(folder)
            checkpoint.tokenizer.save_pretrained(folder)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackboneError(
            f"{entry.name} ({entry.location}): its vocabulary head cannot be had ({type(error).__name__}: {reason}). "
            "Name the checkpoint that the policy was trained from with --original"
        ) from error
    for name, text in checkpoint.processor_files.items():
        (folder / name).write_text(text, encoding="utf-8")


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


def _class_of(config: PreTrainedConfig, architecture: Architecture, *, whole: bool) -> Any:
    """The auto class of the base model, or of the whole one where transformers maps no base or it is asked for."""
    if whole or architecture.whole or type(config) not in MODEL_MAPPING:
        return AutoModelForImageTextToText
    return AutoModel


def _base_of(vlm: PreTrainedModel, architecture: Architecture, *, whole: bool) -> PreTrainedModel:
    """What returns hidden states, unless the whole is asked for."""
    if whole or architecture.whole or not hasattr(vlm, "lm_head"):
        return vlm
    return vlm.base_model


def _pretrained(
    location: str,
    config: PreTrainedConfig,
    architecture: Architecture,
    *,
    dtype: torch.dtype,
    where: str,
    whole: bool,
) -> PreTrainedModel:
    kind = _class_of(config, architecture, whole=whole)
    vlm, report = kind.from_pretrained(
        location,
        dtype=dtype,
        attn_implementation=architecture.attention,
        use_safetensors=True,  # never unpickle
        trust_remote_code=False,  # nor run what a checkpoint brings along
        output_loading_info=True,
    )
    # A base model's checkpoint has no head; that of a whole one is not used for anything here.
    wrong = {
        "missing": sorted(
            key for key in report["missing_keys"] if whole or kind is AutoModel or not _of_head(key)
        ),
        "unexpected": sorted(key for key in report["unexpected_keys"] if not _of_head(key)),
        "of another shape": sorted(str(key[0]) for key in report["mismatched_keys"]),
    }
    problems = [f"{len(keys)} weights {what} (first: {keys[0]})" for what, keys in wrong.items() if keys]
    if problems:
        raise BackboneError(f"{where}: the weights do not fit the config: {'; '.join(problems)}")
    return _base_of(vlm, architecture, whole=whole)


def _of_head(key: str) -> bool:
    return "lm_head" in key


def _random(
    config: PreTrainedConfig, architecture: Architecture, *, seed: int, dtype: torch.dtype, whole: bool
) -> PreTrainedModel:
    kind = _class_of(config, architecture, whole=whole)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vlm = kind.from_config(config, dtype=dtype, attn_implementation=architecture.attention)
    vlm = _base_of(vlm, architecture, whole=whole)
    if vlm.get_input_embeddings().weight.shape[-1] < NARROW:
        scaled_init_(vlm, seed=seed, unit_norm_inputs=architecture.unit_norm_inputs)
    return vlm


def processor_files(location: str) -> dict[str, str]:
    """Text of the files that describe a checkpoint's processor, by name. Raises: BackboneError without the main one."""
    files = {}
    for name in _PROCESSOR_FILES:
        path = cached_file(location, name, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            files[name] = Path(path).read_text(encoding="utf-8")
    if not files.keys() & {_PROCESSOR_FILES[0], "processor_config.json"}:
        raise BackboneError(
            f"{location}: has no processor, so that nothing says how it is shown a picture; copy "
            "preprocessor_config.json (or processor_config.json) of the original beside the weights"
        )
    return files
