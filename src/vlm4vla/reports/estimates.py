"""Estimates with their uncertainty: rates, differences of rates, chain lengths.

Episodes that broke are in no rate: callers pass scored episodes only, and zero scored episodes give None,
because unscored is not zero. All but the bootstrap is plain arithmetic, the same on every machine.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A difference of two success rates, first minus second."""

    difference: Estimate
    p_value: float
    """Two-sided and exact: McNemar's when paired, Fisher's otherwise."""
    paired: bool
    """Both rates come from the same episodes."""


def success_rate(successes: float, episodes: int, *, confidence: float = CONFIDENCE) -> Estimate | None:
    """A success rate with Wilson's score interval (Wilson 1927, JASA 22:209); None for zero episodes."""
    if episodes == 0:
        return None
    _require_count(successes, episodes)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / episodes
    scale = 1 + z * z / episodes
    centre = (rate + z * z / (2 * episodes)) / scale
    half = z * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes**2)) / scale
    # At the edges the interval includes the edge exactly; rounding would leave it 1e-17 off.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == episodes else centre + half
    return Estimate(rate, low, high)


def compare(first: tuple[int, int], second: tuple[int, int]) -> Comparison | None:
    """Two rates from different episodes, each as (successes, episodes); None when either has no episodes.

    Interval: Newcombe's hybrid score interval (Newcombe 1998, Stat. Med. 17:873, method 10).
    Test: Fisher's exact.
    """
    a, b = success_rate(*first), success_rate(*second)
    if a is None or b is None:
        return None
    value = a.value - b.value
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    high = value + math.hypot(a.high - a.value, b.value - b.low)
    return Comparison(Estimate(value, low, high), fisher_p(first, second), paired=False)


def compare_paired(both: int, first_only: int, second_only: int, neither: int) -> Comparison | None:
    """Two rates from the same episodes, as counts of who succeeded where; None for no episodes.

    Interval: Newcombe's score interval for paired data (Newcombe 1998, Stat. Med. 17:2635, method 10).
    Test: McNemar's exact.
    """
    episodes = both + first_only + second_only + neither
    a = success_rate(both + first_only, episodes)
    b = success_rate(both + second_only, episodes)
    if a is None or b is None:
        return None
    margins = (both + first_only) * (second_only + neither) * (both + second_only) * (first_only + neither)
    association = float(both * neither - first_only * second_only)
    if association > 0:
        association = max(association - episodes / 2, 0.0)
    phi = association / math.sqrt(margins) if margins else 0.0
    value = a.value - b.value
    low = value - _paired_half_width(a.value - a.low, b.high - b.value, phi)
    high = value + _paired_half_width(a.high - a.value, b.value - b.low, phi)
    return Comparison(Estimate(value, low, high), mcnemar_p(first_only, second_only), paired=True)


def mcnemar_p(first_only: int, second_only: int) -> float:
    """McNemar's exact two-sided p: a fair coin decides each episode that only one of the two solved."""
    discordant = first_only + second_only
    tail = sum(math.comb(discordant, k) for k in range(min(first_only, second_only) + 1))
    return min(1.0, tail / float(2 ** (discordant - 1))) if discordant else 1.0


def fisher_p(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Fisher's exact two-sided p for two rates as (successes, episodes); computed in whole numbers."""
    (a, n), (b, m) = first, second
    successes = a + b
    possible = range(max(0, successes - m), min(n, successes) + 1)
    weights = [math.comb(n, k) * math.comb(m, successes - k) for k in possible]
    observed = math.comb(n, a) * math.comb(m, b)
    return sum(weight for weight in weights if weight <= observed) / math.comb(n + m, successes)


def chain_length(
    completed: Sequence[int], goals: int, *, seed: int = 0, resamples: int = 10_000
) -> Estimate | None:
    """Mean goals completed in a row, out of `goals`, with a seeded percentile bootstrap over episodes.

    None for no episodes. Depends on how often each count occurs, never on the episodes' order. When all
    episodes are alike a bootstrap has no width; then it is Wilson's interval of mean / goals, wide enough for
    any quantity in [0, goals] (none varies more than a coin of the same mean).
    """
    if not completed:
        return None
    counts = sorted(Counter(completed).items())
    mean = sum(completed) / len(completed)
    if len(counts) == 1:
        share = success_rate(sum(completed) / goals, len(completed))
        assert share is not None
        return Estimate(mean, share.low * goals, share.high * goals)
    import numpy as np  # here, so that listing results does not wait for it

    values = np.array([value for value, _ in counts])
    shares = np.array([count for _, count in counts]) / len(completed)
    drawn = np.random.default_rng(seed).multinomial(len(completed), shares, size=resamples)
    means = (drawn @ values) / len(completed)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(mean, float(low), float(high))


@dataclass(frozen=True, slots=True)
class Repeated:
    """Episodes that were played several times by a policy that draws noise."""

    estimate: Estimate
    """The mean over episodes with Student's t interval over them: plays of one episode are not independent."""
    between: float
    """Variance that the choice of episodes brings: of their true rates."""
    within: float
    """Variance that the policy's noise brings: of plays of the same episode."""


def repeated(plays: Mapping[str, Sequence[float]]) -> Repeated | None:
    """Score and variance components (one-way analysis of variance) of plays by episode; None for fewer than two."""
    if len(plays) < 2:
        return None
    import numpy as np
    from scipy import stats

    means = np.array([np.mean(scores) for scores in plays.values()])
    several = [np.var(scores, ddof=1) for scores in plays.values() if len(scores) > 1]
    within = float(np.mean(several)) if several else 0.0
    count = len(plays) / sum(1 / len(scores) for scores in plays.values())
    between = max(0.0, float(np.var(means, ddof=1)) - within / count)
    value = float(means.mean())
    half = float(stats.t.isf((1 - CONFIDENCE) / 2, len(means) - 1) * means.std(ddof=1)) / math.sqrt(
        len(means)
    )
    most = max(1.0, max(max(scores) for scores in plays.values()))
    return Repeated(Estimate(value, max(0.0, value - half), min(most, value + half)), between, within)


def _paired_half_width(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(0.0, first**2 - 2 * phi * first * second + second**2))


def _require_count(successes: float, episodes: int) -> None:
    if not 0 <= successes <= episodes:
        raise ValueError(f"{successes} successes in {episodes} episodes: count each scored episode once")
