"""What a study takes, before it is run: time and memory, as an estimate, with what it assumes in words.

Operations are counted from the architectures (`studies.costs`), pictures and physics are stated per benchmark; what
is finished already says how much faster or slower this machine is than all that. Nothing is started, and torch is
asked only for VLMs or heads that were not counted before.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from vlm4vla.core.errors import BackboneError, RecipeError
from vlm4vla.core.recipes import EvaluationRecipe, Trial, TuneRecipe, share_of
from vlm4vla.policies.catalogue import STANDARD_SIZE, cards
from vlm4vla.studies.costs import Cost, cost_of, count
from vlm4vla.studies.runs import RunStore, Seconds, read_status
from vlm4vla.studies.study import Study, impossible

_SHARE = 0.4
_PEAK = {"bf16": 989e12, "fp32": 67e12}
"""Operations a second of an H100 (SXM, dense)."""
_CORE = 70e9
"""Of one core: a tiny VLM's training on an AMD EPYC of 2023."""
_SLOWER = 4
"""Predictions, of few observations at a time, than training."""
_CORES = 16
"""That step simulators beside a GPU."""
_PROGRAM = 600_000_000
"""Bytes that a training process holds beside its step: its libraries."""
_KINDS = (
    "by finished ones of the same kind",
    "by their operations and what finished ones took for theirs",
    "by their operations",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """An evaluation's episodes, about. Seconds of one core for a step and for a picture."""

    steps: int
    physics: float
    picture: float
    episodes: int = 0
    """The protocol's; 0: the recipe's, for each of `tasks`."""
    tasks: int = 1


_TABLETOP = Play(tasks=9, steps=15, physics=0.0015, picture=0.0015)
PLAYS = {
    **dict.fromkeys(("tabletop", "tabletop-a", "tabletop-d"), _TABLETOP),
    "calvin-abc-d": Play(episodes=1000, steps=700, physics=0.001, picture=0.1),
    "simpler-bridge": Play(episodes=96, steps=75, physics=0.008, picture=0.05),
    "libero-long": Play(episodes=500, steps=350, physics=0.016, picture=0.11),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Memory of the largest training of a kind, on each GPU, in bytes."""

    backbone: str
    head: str
    image_size: int
    gpus: int
    samples: int
    """At once on a GPU."""
    kept: int | None
    """The most at any moment; None: not known without the checkpoint."""
    again: int | None
    """With activations computed again (train.checkpoint_activations)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Seconds of what is not done, one after the other, and memory. An estimate."""

    tune: float
    train: float
    evaluate: float
    assumption: str
    unknown: tuple[str, ...]
    """Trials of which nothing is known: not in these seconds."""
    memory: tuple[Need, ...]

    @property
    def seconds(self) -> float:
        """In all."""
        return self.tune + self.train + self.evaluate


_Kind = tuple[str, ...]
"""Of work, a phase and what it is done with: `(train, backbone, ...)`."""


@dataclass
class _Pace:
    """Seconds that finished work took, against those that were to be expected."""

    expected: dict[_Kind, float] = field(default_factory=dict)
    taken: dict[_Kind, float] = field(default_factory=dict)
    judged: dict[str, Counter[int]] = field(default_factory=dict)

    def learn(self, key: _Kind, expected: float | None, taken: float) -> None:
        if not (taken > 0 and expected != 0):
            return
        for name in (key, key[:1]) if expected is not None else (key,):
            self.expected[name] = self.expected.get(name, 0.0) + (expected or 1.0)
            self.taken[name] = self.taken.get(name, 0.0) + taken

    def of(self, key: _Kind, expected: float | None) -> float | None:
        """Seconds; of what no operations are known, only as long as another took of the same kind."""
        if expected == 0:
            return 0.0
        for rank, name in enumerate((key, key[:1])):
            if name in self.taken and (expected is not None or rank == 0):
                self.judged.setdefault(key[0], Counter())[rank] += 1
                return (expected or 1.0) * self.taken[name] / self.expected[name]
        if expected is not None:
            self.judged.setdefault(key[0], Counter())[2] += 1
        return expected


def forecast(study: Study, store: RunStore, *, gpus: int | None = None) -> Forecast:
    """`gpus` that share a training, without loss; None: one, or one core for the small VLMs.

    Raises: RecipeError for a batch that the GPUs cannot share.
    """
    never = set(impossible(study))
    trials = [trial for trial in study.trials if trial not in never]
    costs = {trial: _cost(trial) for trial in trials}
    pace, left = _Pace(), list[tuple[Trial, _Kind, float | None]]()

    def sort(trial: Trial, kind: _Kind, expected: float | None, taken: float | None) -> None:
        if taken is None:
            left.append((trial, kind, expected))
        else:
            pace.learn(kind, expected, taken)

    tunings = {trial.tuning: trial for trial in trials if trial.tuning is not None}
    for tuning, trial in tunings.items():
        spent = _spent(tuning, store)
        expected = _tuning(tuning, costs[trial], trial, gpus)
        sort(trial, ("tune", tuning.backbone), expected, spent.train if spent else None)
    for trial in trials:
        spent, policy = _spent(trial, store), trial.policy
        of = (policy.backbone, policy.head, str(policy.image_size), str(sorted(policy.freeze)))
        sort(trial, ("train", *of), _training(trial, costs[trial], gpus), spent.train if spent else None)
        names = "+".join(sorted({evaluation.benchmark for evaluation in trial.evaluations}))
        sort(
            trial,
            ("evaluate", names),
            _evaluating(trial, costs[trial], len(study.checkpoints) or 1),
            spent.evaluate if spent else None,
        )
    sums, unknown = dict.fromkeys(("tune", "train", "evaluate"), 0.0), dict[str, None]()
    for trial, kind, expected in left:
        seconds = pace.of(kind, expected)
        if seconds is None:
            unknown[trial.name] = None
        else:
            sums[kind[0]] += seconds
    return Forecast(
        tune=sums["tune"],
        train=sums["train"],
        evaluate=sums["evaluate"],
        assumption=_assumption(pace, [trial for trial, *_ in left], gpus),
        unknown=tuple(unknown),
        memory=tuple(_memory(trials, gpus or 1)),
    )


@functools.lru_cache(maxsize=256)
def _cost(trial: Trial) -> Cost | None:
    if trial.train.steps == 0:
        return None
    if trial.policy.image_size > STANDARD_SIZE:
        return cost_of(trial)  # to count it takes minutes
    try:
        return cost_of(trial) or count(trial)
    except (BackboneError, RecipeError):  # its architecture is not written down
        return None


def _spent(recipe: Trial | TuneRecipe, store: RunStore) -> Seconds | None:
    status = read_status(store.folder(recipe))
    return status.seconds if status is not None and status.state == "done" else None


def _rate(trial: Trial, precision: str) -> float:
    """Operations a second: on a GPU where the policy trains in bf16."""
    return _SHARE * _PEAK[precision] if trial.train.precision == "bf16" else _CORE


def _training(trial: Trial, cost: Cost | None, gpus: int | None) -> float | None:
    samples = trial.train.steps * trial.train.batch_size
    if cost is None:
        return None if samples else 0.0
    return samples * cost.flops / _rate(trial, trial.train.precision) / (gpus or 1)


def _tuning(tuning: TuneRecipe, cost: Cost | None, trial: Trial, gpus: int | None) -> float | None:
    """A conversation costs what a sample costs."""
    samples = tuning.train.steps * tuning.train.batch_size
    return None if cost is None else samples * cost.flops / _rate(trial, tuning.train.precision) / (gpus or 1)


def _evaluating(trial: Trial, cost: Cost | None, checkpoints: int) -> float | None:
    """Of so many checkpoints. None for benchmarks of which nothing is stated."""
    if trial.train.steps and cost is None:
        return None
    cores = _CORES if trial.train.precision == "bf16" else 1
    prediction = cost.flops / 3 / _rate(trial, trial.train.precision) * _SLOWER if cost else 0.0
    total = 0.0
    for recipe in trial.evaluations:
        play = PLAYS.get(recipe.benchmark)
        if play is None:
            return None
        steps = _episodes(play, recipe) * play.steps
        total += (
            steps * (play.physics + play.picture / recipe.execute) / cores
            + steps / recipe.execute * prediction
        )
    return total * checkpoints


def _episodes(play: Play, recipe: EvaluationRecipe) -> int:
    each = recipe.episodes_per_task * (len(recipe.tasks) or play.tasks)
    return (play.episodes or each) * recipe.repeats


def _assumption(pace: _Pace, left: Iterable[Trial], gpus: int | None) -> str:
    words = {"tune": "tunings", "train": "trainings", "evaluate": "evaluations"}
    told = [
        f"{number} {words[phase]} are judged {_KINDS[rank]}"
        for phase, counts in pace.judged.items()
        for rank, number in sorted(counts.items())
    ]
    if any(2 in counts for counts in pace.judged.values()):
        where = {trial.train.precision == "bf16" for trial in left}
        if True in where:
            shared = f", {gpus} that share a training without loss" if gpus and gpus > 1 else ""
            told.append(
                f"an H100 does {_SHARE:.0%} of its peak of {_PEAK['bf16'] / 1e12:.0f} TFLOP/s in bf16 and "
                f"{_PEAK['fp32'] / 1e12:.0f} in fp32{shared}; simulators have {_CORES} cores"
            )
        if False in where:
            told.append(f"one core does {_CORE / 1e9:.0f} GFLOP/s")
        told.append("nothing is frozen, a conversation costs what a sample costs")
    return "; ".join([*told, "demonstrations that are made first are not counted"]) if told else ""


def side_by_side(trials: Iterable[Trial], processes: int, *, cores: int, free: int) -> tuple[int, str]:
    """How many of so many trainings fit the main memory that is `free`, and a sentence where that or cores are few.

    By the most that a step holds, where it was counted; else by parameters, gradients and moments.
    """
    loaded = {card.name: 16 * (card.loaded or 0) for card in cards()}
    needs = [0]
    for trial in trials:
        cost, again = cost_of(trial), trial.train.checkpoint_activations
        samples = trial.train.micro_batch_size or trial.train.batch_size
        needs.append(
            cost.peak(max(samples, cost.samples), again=again)
            if cost
            else loaded.get(trial.policy.backbone, 0)
        )
    need = max(needs) + _PROGRAM
    fitting = max(1, min(processes, free // need))
    if fitting < processes:
        return fitting, (
            f"{fitting} of {processes} trials at a time: one is expected to need {need / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free"
        )
    if processes > cores:
        return processes, (
            f"{processes} trials at a time share {cores} core{'s' if cores > 1 else ''}: each will be slower; "
            f"--processes {cores} uses them as well"
        )
    return processes, ""


def _memory(trials: Iterable[Trial], gpus: int) -> list[Need]:
    """Of every backbone, head and image size the training with the most samples, the least frozen of them."""
    largest: dict[tuple[str, str, int], Trial] = {}
    for trial in sorted(trials, key=lambda trial: (-trial.train.batch_size, len(trial.policy.freeze))):
        if trial.train.steps:
            largest.setdefault((trial.policy.backbone, trial.policy.head, trial.policy.image_size), trial)
    found = []
    for (backbone, head, size), trial in largest.items():
        samples = trial.train.micro_batch_size or share_of(trial.train.batch_size, gpus)
        peaks = _peaks(trial, samples, gpus)
        found.append(
            Need(
                backbone=backbone,
                head=head,
                image_size=size,
                gpus=gpus,
                samples=samples,
                kept=peaks[0],
                again=peaks[1],
            )
        )
    return found


def _peaks(trial: Trial, samples: int, gpus: int) -> tuple[int | None, int | None]:
    cost = _cost(trial)
    if cost is None:
        return None, None
    if gpus == 1 and samples >= cost.samples:
        return cost.peak(samples, again=False), cost.peak(samples, again=True)
    from vlm4vla.training.memory import plan, with_checkpointing

    kept, again = (plan(with_checkpointing(trial, on), gpus=gpus).peak for on in (False, True))
    return kept, again
