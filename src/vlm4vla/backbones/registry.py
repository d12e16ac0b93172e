"""Backbones by name: the tiny ones in this package and the paper's on the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm4vla.core.errors import BackboneError, unknown_name

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneEntry:
    """Where a VLM is."""

    name: str
    location: str
    """A hub id or a folder."""
    family: str | None = None
    """None: found out from the checkpoint's config."""


def _tiny(family: str) -> BackboneEntry:
    return BackboneEntry(name=f"tiny-{family}", location=str(WEIGHTS / f"tiny-{family}"), family=family)


BACKBONES: dict[str, BackboneEntry] = {
    entry.name: entry
    for entry in (
        _tiny("qwen2.5-vl"),
        _tiny("qwen3-vl"),
        _tiny("qwen3-vl-moe"),
        _tiny("paligemma-1"),
        _tiny("paligemma-2"),
        _tiny("kosmos-2"),
        BackboneEntry(name="qwen2.5-vl-3b", location="Qwen/Qwen2.5-VL-3B-Instruct", family="qwen2.5-vl"),
        BackboneEntry(name="qwen2.5-vl-7b", location="Qwen/Qwen2.5-VL-7B-Instruct", family="qwen2.5-vl"),
        BackboneEntry(name="qwen3-vl-2b", location="Qwen/Qwen3-VL-2B-Instruct", family="qwen3-vl"),
        BackboneEntry(name="qwen3-vl-4b", location="Qwen/Qwen3-VL-4B-Instruct", family="qwen3-vl"),
        BackboneEntry(name="qwen3-vl-8b", location="Qwen/Qwen3-VL-8B-Instruct", family="qwen3-vl"),
        BackboneEntry(
            name="qwen3-vl-30b-a3b", location="Qwen/Qwen3-VL-30B-A3B-Instruct", family="qwen3-vl-moe"
        ),
        BackboneEntry(name="paligemma-1-3b", location="google/paligemma-3b-pt-224", family="paligemma-1"),
        BackboneEntry(name="paligemma-2-3b", location="google/paligemma2-3b-pt-224", family="paligemma-2"),
        BackboneEntry(name="kosmos-2", location="microsoft/kosmos-2-patch14-224", family="kosmos-2"),
        BackboneEntry(name="openvla-7b", location="openvla/openvla-7b", family="prismatic"),
        # Beyond the paper; their own processors make their inputs.
        BackboneEntry(name="internvl3.5-1b", location="OpenGVLab/InternVL3_5-1B-HF"),
        BackboneEntry(name="internvl3.5-2b", location="OpenGVLab/InternVL3_5-2B-HF"),
        BackboneEntry(name="internvl3.5-4b", location="OpenGVLab/InternVL3_5-4B-HF"),
        BackboneEntry(name="smolvlm2-256m", location="HuggingFaceTB/SmolVLM2-256M-Video-Instruct"),
        BackboneEntry(name="smolvlm2-500m", location="HuggingFaceTB/SmolVLM2-500M-Video-Instruct"),
        BackboneEntry(name="smolvlm2-2.2b", location="HuggingFaceTB/SmolVLM2-2.2B-Instruct"),
        BackboneEntry(name="gemma-3-4b", location="google/gemma-3-4b-it"),
        BackboneEntry(name="gemma-4-e2b", location="google/gemma-4-E2B-it"),
        BackboneEntry(name="llava-onevision-0.5b", location="llava-hf/llava-onevision-qwen2-0.5b-ov-hf"),
        BackboneEntry(name="llava-onevision-7b", location="llava-hf/llava-onevision-qwen2-7b-ov-hf"),
        BackboneEntry(name="qwen3.5-27b", location="Qwen/Qwen3.5-27B"),
    )
}

ARCHITECTURE_OF = {"BAAI/RoboBrain2.0-7B": "qwen2.5-vl-7b"}
"""Hub ids of VLMs that others tuned -> the registered VLM that they tuned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedFacts:
    """What the released configurations do differently for one VLM (learning rate: on Bridge and LIBERO)."""

    learning_rate: float = 5e-5
    precision: str = "fp16"
    bridge_interval: int = 10_000
    """Steps between checkpoints, and so how many of them the best is taken of."""
    attention: str
    """What became of the VLM's attention and positions."""
    negated: bool = False
    """Bridge's and LIBERO's images are negated in training, not in evaluation."""
    benchmarks: tuple[str, ...] = ("calvin", "bridge", "libero")
    """For which there is a configuration."""


_CAUSAL = "causal for image tokens too, or bidirectional, by attention backend"


def _qwen(attention: str, **facts: Any) -> ReleasedFacts:
    return ReleasedFacts(learning_rate=2e-5, precision="bf16", negated=True, attention=attention, **facts)


_RELEASED = {
    "qwen2.5-vl-3b": _qwen("one-dimensional positions", bridge_interval=5_000),
    "qwen2.5-vl-7b": _qwen("one-dimensional positions", bridge_interval=1_250),
    **{
        f"qwen3-vl-{size}": _qwen("one-dimensional positions, padding counted") for size in ("2b", "4b", "8b")
    },
    "qwen3-vl-30b-a3b": _qwen(
        "one-dimensional positions, padding counted; no DeepStack", benchmarks=("calvin",)
    ),
    "paligemma-1-3b": ReleasedFacts(bridge_interval=2_500, attention=_CAUSAL),
    "paligemma-2-3b": ReleasedFacts(attention=_CAUSAL, benchmarks=("calvin",)),
    "kosmos-2": ReleasedFacts(
        bridge_interval=2_500, attention="image before the sequence's start, not marked as one"
    ),
}


def released_facts(name: str, benchmark: str) -> ReleasedFacts | None:
    """Of a VLM on `calvin`, `bridge` or `libero`; None where the released code has no configuration for the two."""
    facts = _RELEASED.get(name)
    return facts if facts is not None and benchmark in facts.benchmarks else None


def with_released_facts(benchmark: str) -> list[str]:
    """The VLMs that the released code configures for a benchmark."""
    return [name for name, facts in _RELEASED.items() if benchmark in facts.benchmarks]


def tiny_member(name: str) -> str | None:
    """The registered tiny VLM of the same family; None where there is none. Raises: RecipeError as `resolve`."""
    tiny = f"tiny-{resolve(name).family}"
    return tiny if tiny in BACKBONES else None


def resolve(name_or_folder: str | Path) -> BackboneEntry:
    """The entry of a registered name, a checkpoint folder, or a hub id `organisation/name`.

    Raises: RecipeError with the nearest names when it is none of these; BackboneError for a folder without config.
    """
    text = str(name_or_folder)
    if text in BACKBONES:
        return BACKBONES[text]
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BackboneError(f"{folder}: no config.json; a backbone folder is a Hugging Face checkpoint")
        return BackboneEntry(name=folder.name, location=str(folder))
    if text.count("/") == 1 and not text.startswith((".", "~", "/")):
        return BackboneEntry(name=text, location=text)
    raise unknown_name("backbone", text, BACKBONES)
