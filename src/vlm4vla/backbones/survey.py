"""Which architectures of the installed transformers can carry the query token: each tried at tiny size.

The mechanism is the one of `backbone.py`: a hook on the word embeddings puts the query where the sentinel stands, and
the feature is the last hidden state there. Models that return no hidden states are read at the input of their LM head.

    vlm4vla models survey [ARCHITECTURE ...] [--markdown FILE]
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlm4vla.backbones.loading import quiet
from vlm4vla.backbones.shrink import OVERRIDES, SENTINEL, architectures, tiny_model
from vlm4vla.backbones.stand_ins import MODEL_ERRORS, Row, StandInInputs, words
from vlm4vla.core.errors import BackboneError, unknown_name

TOLERANCE = 1e-5
"""Largest difference, relative to the feature's largest entry, that counts as equal."""
CHECKS = (
    "finite",
    "query gradient",
    "sees the image",
    "sees the text",
    "independent of its batch",
    "vocabulary row unused",
    "blind to what follows",
)
CAUSES = {
    "blip": "its text decoder's hidden states are not what it returns",
    "diffusion_gemma": "it denoises blocks of text, and its tiny configuration is not written",
    "evolla": "it reads proteins, not images",
    "hunyuan_vl": "its position ids count the images of the whole batch, so a row depends on its place in it",
    "mistral4": "it reads text only",
    "pi0": "it is a VLA itself and wants actions",
    "pp_formulanet": "it takes no text; its tiny configuration is not written",
}
"""What is behind a failure, where someone looked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one architecture did."""

    name: str
    passed: tuple[str, ...] = ()
    facts: int = 0
    """Values that its tiny configuration needed beyond the generic rule."""
    reason: str = ""
    """Why it does not pass: exact and short; empty when it does."""

    @property
    def passes(self) -> bool:
        """Whether every check of `CHECKS` passed."""
        return self.passed == CHECKS


class QueryProbe(nn.Module):
    """Rows in, the feature at each row's query out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.inputs = StandInInputs(model)
        owner: Any = model
        while self.inputs.encoder_decoder and (inner := owner.get_decoder()) is not owner:
            owner = inner
        self.words = owner.get_input_embeddings()
        width = self.vocabulary.shape[-1]
        self.query = nn.Parameter(0.5 * torch.randn(width, generator=torch.Generator().manual_seed(7)))
        self.words.register_forward_hook(self._put_query)
        self._head_input: Tensor | None = None
        head = model.get_output_embeddings()
        if head is None and hasattr(model, "language_model"):
            head = model.language_model.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(self._keep)

    @property
    def vocabulary(self) -> nn.Parameter:
        """Rows x width: the matrix of word embeddings."""
        matrix = self.words.weight
        assert isinstance(matrix, nn.Parameter)
        return matrix

    def _put_query(self, module: nn.Module, arguments: tuple[Tensor, ...], states: Tensor) -> Tensor:
        return torch.where((arguments[0] == SENTINEL)[..., None], self.query.to(states.dtype), states)

    def _keep(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self._head_input = arguments[0]

    def forward(self, rows: Sequence[Row]) -> Tensor:
        """batch x width. Raises `BackboneError` when no hidden states come out."""
        arguments: dict[str, Any] = self.inputs(rows)
        output = (
            self.model(**arguments, use_cache=False)
            if "use_cache" in self.inputs.names
            else self.model(**arguments)
        )
        states = getattr(output, "last_hidden_state", None)
        if states is None:
            states = getattr(getattr(output, "language_model_outputs", None), "last_hidden_state", None)
        states = self._head_input if states is None else states
        if states is None:
            raise BackboneError("it returns no hidden states and has no LM head to read them from")
        ids = arguments["decoder_input_ids" if self.inputs.encoder_decoder else "input_ids"]
        if states.shape[1] < ids.shape[1]:
            raise BackboneError("it returns fewer hidden states than it got tokens")
        place = (ids == SENTINEL).int().argmax(dim=1) + states.shape[1] - ids.shape[1]
        return states[torch.arange(len(ids)), place]


def examine(name: str) -> Finding:
    """Tries one architecture; what its model file raises becomes the reason."""
    finding = _tried(name)
    if finding.passes or name not in CAUSES:
        return finding
    return replace(finding, reason=f"{CAUSES[name]} ({finding.reason})")


def _tried(name: str) -> Finding:
    finding = Finding(name=name, facts=len(OVERRIDES.get(name, {})))
    try:
        return _checked(finding, QueryProbe(tiny_model(name)))
    except MODEL_ERRORS as error:
        return replace(finding, reason=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")


def survey(names: Iterable[str] | None = None) -> Iterator[Finding]:
    """One finding per architecture, in turn; all that transformers knows by default."""
    yield from map(examine, architectures() if names is None else names)


def _checked(finding: Finding, probe: QueryProbe) -> Finding:
    long = Row(text=words(1, 7), image=1)
    short = Row(text=words(2, 4), image=2)
    features = probe([long, short])
    scale = float(features.detach().abs().max())
    features.square().sum().backward()
    vocabulary = probe.vocabulary.grad
    with torch.no_grad():
        base = probe([short])

        def moved(rows: Sequence[Row], row: int = 0) -> float:
            return float((probe(rows)[row] - base[0]).abs().max()) / scale

        followed = replace(short, after=words(3, 2))
        results = {
            "finite": bool(features.isfinite().all()) and features.ndim == 2,
            "query gradient": probe.query.grad is not None and bool(probe.query.grad.abs().sum() > 0),
            "sees the image": moved([replace(short, image=5)]) > TOLERANCE,
            "sees the text": moved([replace(short, text=words(4, 4))]) > TOLERANCE,
            "independent of its batch": max(moved([long, short], 1), moved([short, long], 0)) <= TOLERANCE,
            "vocabulary row unused": vocabulary is None or bool((vocabulary[SENTINEL] == 0).all()),
            "blind to what follows": moved([followed]) <= TOLERANCE,
        }
    failed = [check for check in CHECKS if not results[check]]
    reason = f"fails: {', '.join(failed)}" if failed else ""
    return replace(finding, passed=tuple(check for check in CHECKS if results[check]), reason=reason)


def markdown(findings: Sequence[Finding]) -> str:
    """The page `docs/architectures.md`."""
    passing = sum(finding.passes for finding in findings)
    lines = [
        "# Architectures",
        "",
        f"Generated by `vlm4vla models survey --markdown docs/architectures.md` with transformers "
        f"{transformers.__version__}.",
        "",
        f"Of the {len(findings)} image-text-to-text architectures that transformers knows, **{passing} carry the query "
        "token** without code of their own: each was built at tiny size with random weights and passed all checks:",
        f"{', '.join(CHECKS)}.",
        "*Facts* counts the values its tiny configuration needed beyond the generic rule (`backbones/shrink.py`).",
        "Weights are random: the table tells that the mechanism works, not how well a policy learns.",
        "",
        "| architecture | checks passed | facts | why not |",
        "|---|---|---|---|",
    ]
    for finding in findings:
        reason = finding.reason.replace("|", "/")
        lines.append(
            f"| {finding.name} | {len(finding.passed)} of {len(CHECKS)} | {finding.facts} | {reason} |"
        )
    return "\n".join([*lines, ""])


def report(names: Sequence[str] = (), file: Path | None = None) -> None:
    """Print a line per architecture (all of them by default) and write the table into `file`.

    Raises: BackboneError for a name that is none.
    """
    for name in names:
        if name not in architectures():
            raise BackboneError(str(unknown_name("architecture", name, architectures())))
    findings = []
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for finding in survey(names or None):
            findings.append(finding)
            print(f"{finding.name:24} {'passes' if finding.passes else finding.reason}", flush=True)
    print(f"{sum(finding.passes for finding in findings)} of {len(findings)} pass")
    if file is not None:
        file.write_text(markdown(findings), encoding="utf-8")
