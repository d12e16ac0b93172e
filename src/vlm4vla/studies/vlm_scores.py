"""What the authors of the paper's VLMs report of them on general benchmarks (Paper A.4): `vlm_scores.json`, read.

A score is there only where it was found in the report that it names; `null` stands for one that A.4 asks for and that
no report of the VLM's authors gives.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_FILE = Path(__file__).with_name("vlm_scores.json")
EIGHTEEN = (
    "MMBench v1.1 (en)",
    "MMStar",
    "BLINK",
    "HallusionBench",
    "AI2D",
    "OCRBench",
    "MVBench",
    "VideoMME",
    "MMMU",
    "MathVista",
    "MathVision",
    "CountBenchQA",
    "RefCOCO (all)",
    "GPQA",
    "OmniSpatial",
    "RealWorldQA",
    "ERQA",
    "VSI-Bench",
)
"""In A.4's order."""


@dataclass(frozen=True, slots=True)
class VLMScore:
    """One printed number."""

    value: float
    """Percent; the mean where A.4 asks for several splits."""
    where: str
    """Report and table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VLMScores:
    """Everything in the file."""

    sources: Mapping[str, str]
    """Reports, by the identifier that `where` begins with."""
    notes: Mapping[str, str]
    """What a benchmark's numbers are, where that is not the same for all."""
    scores: Mapping[str, Mapping[str, VLMScore | None]]
    """By VLM and benchmark: those that A.4 asks for of this VLM; None: not reported."""

    @property
    def general(self) -> tuple[str, ...]:
        """VLMs that A.4 judges by all eighteen; the others' scores it weights down."""
        return tuple(name for name, found in self.scores.items() if set(found) == set(EIGHTEEN))

    def missing(self, name: str) -> tuple[str, ...]:
        """Benchmarks that A.4 asks for and no report gives."""
        return tuple(benchmark for benchmark, score in self.scores[name].items() if score is None)

    @property
    def common(self) -> tuple[str, ...]:
        """Those of the eighteen that every general VLM has."""
        return tuple(b for b in EIGHTEEN if all(self.scores[name][b] is not None for name in self.general))


@functools.cache
def vlm_scores() -> VLMScores:
    """The file's content."""
    held = json.loads(_FILE.read_text(encoding="utf-8"))
    scores = {
        name: {
            benchmark: None if told is None else VLMScore(_mean(told["value"]), told["where"])
            for benchmark, told in found.items()
        }
        for name, found in held["scores"].items()
    }
    return VLMScores(sources=held["sources"], notes=held["notes"], scores=scores)


def _mean(value: float | list[float]) -> float:
    return sum(value) / len(value) if isinstance(value, list) else float(value)
