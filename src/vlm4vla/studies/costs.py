"""What a training step of every backbone in the studies costs, counted once and kept, so that a plan takes no time.

Counting one takes torch and seconds (`training.memory`): the counts are kept in `costs.json` beside this file, written
by `python -m vlm4vla.studies.costs` and held against a fresh count by a test.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vlm4vla.backbones.registry import ARCHITECTURE_OF
from vlm4vla.core.recipes import PolicyRecipe, Trial, fingerprint
from vlm4vla.policies.catalogue import STANDARD_SIZE
from vlm4vla.studies.study import Scale

COSTS = Path(__file__).with_name("costs.json")
_SIZES = (
    *("head_trunk", "head_width", "head_body", "fast_vocabulary"),
    *(f"expert_{name}" for name in ("layers", "width", "mlp", "heads", "head_width")),
)
_ELSEWHERE = ("backbone", "head", "image_size", "enlarge", "horizon", "freeze", *_SIZES)
_NOTHING = ("weights", "prompt", "query_init", "normalization")
"""Fields that change no shape; instructions are as long as `memory.TEXT_TOKENS` says."""
_Key = tuple[str, str, int, bool, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A training step in one process, nothing frozen. Bytes unless said."""

    backbone: str
    head: str
    image_size: int
    precision: str
    sizes: str
    """Fingerprint of the recipe's fields about the head's layers."""
    enlarge: bool = True
    horizon: int
    samples: int
    """At once, in the step that was counted."""
    flops: int
    """Of forward and backward pass, a sample."""
    lasting: int
    """Parameters and AdamW's moments."""
    kept: int
    """The most at any moment, activations kept."""
    again: int
    """The same with activations computed again."""

    def peak(self, samples: int, *, again: bool) -> int:
        """With other samples at once, at least as many: what is not lasting in proportion, which is a bound."""
        most = self.again if again else self.kept
        return self.lasting + (most - self.lasting) * samples // self.samples


def cost_of(trial: Trial) -> Cost | None:
    """Kept, where such a step was counted; frozen parts and shorter chunks count as if they learned and were longer."""
    policy, like = trial.policy, PolicyRecipe(backbone=trial.policy.backbone)
    for field in dataclasses.fields(PolicyRecipe):
        same = getattr(policy, field.name) == getattr(like, field.name)
        if not (same or field.name in _ELSEWHERE or field.name in _NOTHING):
            return None
    found = _kept().get(_key(trial))
    return found if found is not None and policy.horizon <= found.horizon else None


def count(trial: Trial) -> Cost:
    """Count a trial's step anew, with all its samples at once. Needs torch, seconds, and no memory for weights.

    Raises: BackboneError for a VLM whose inputs are not known without its processor; RecipeError as `hollow_policy`.
    """
    from vlm4vla.training.memory import hollow_step, with_checkpointing

    trial = dataclasses.replace(trial, policy=dataclasses.replace(trial.policy, freeze=()))
    samples = trial.train.micro_batch_size or trial.train.batch_size
    kept, again = (hollow_step(with_checkpointing(trial, on), samples=samples) for on in (False, True))
    backbone, head, size, enlarge, precision, sizes = _key(trial)
    return Cost(
        backbone=backbone,
        head=head,
        image_size=size,
        enlarge=enlarge,
        precision=precision,
        sizes=sizes,
        horizon=trial.policy.horizon,
        samples=samples,
        flops=kept.flops // samples,
        lasting=kept.parameters + kept.optimizer,
        kept=kept.peak,
        again=again.peak,
    )


def counted(trials: Iterable[Trial]) -> list[Trial]:
    """Of all these trials, those that are counted: one of a kind, with the fewest samples and the longest chunk.

    Larger images than the standard are not: some VLMs cut them into uneven windows, which takes minutes.
    """
    found: dict[_Key, Trial] = {}
    for trial in sorted(trials, key=lambda trial: (trial.train.batch_size, -trial.policy.horizon)):
        if trial.train.steps and trial.policy.image_size <= STANDARD_SIZE:
            found.setdefault(_key(trial), trial)
    return list(found.values())


def _key(trial: Trial) -> _Key:
    policy = trial.policy
    sizes = fingerprint([getattr(policy, name) for name in _SIZES])
    backbone = ARCHITECTURE_OF.get(policy.backbone, policy.backbone)
    return backbone, policy.head, policy.image_size, policy.enlarge, trial.train.precision, sizes


@functools.cache
def _kept() -> dict[_Key, Cost]:
    costs = [Cost(**values) for values in json.loads(COSTS.read_text(encoding="utf-8"))]
    return {(c.backbone, c.head, c.image_size, c.enlarge, c.precision, c.sizes): c for c in costs}


if __name__ == "__main__":
    from vlm4vla.studies.mini import OWN_STUDIES
    from vlm4vla.studies.paper import STUDIES

    scales: tuple[Scale, ...] = ("paper", "tabletop", "mini")
    everything = [
        trial
        for make in (*STUDIES.values(), *OWN_STUDIES.values())
        for scale in scales
        for trial in make(scale).trials
    ]
    made = [dataclasses.asdict(count(trial)) for trial in counted(everything)]
    COSTS.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
