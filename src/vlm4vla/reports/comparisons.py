"""Conclusions from several rows: pairs with correction, letters, the best of many tries, power, correlations.

All of it works on outcomes per episode, so that rows which played the same episodes are compared on the same episodes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from vlm4vla.reports.estimates import CONFIDENCE, Comparison, Estimate, compare, compare_paired

Outcomes = Mapping[str, bool]
"""By episode id: whether it succeeded. Episodes that broke are absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two rows, compared."""

    first: str
    second: str
    comparison: Comparison
    adjusted_p: float
    """Holm's, over all pairs of the table."""

    @property
    def differs(self) -> bool:
        """At a family-wise error of 5 %."""
        return self.adjusted_p < 1 - CONFIDENCE


def compare_all(rows: Mapping[str, Outcomes]) -> list[Pair]:
    """Every pair of rows, on the episodes both scored; unpaired where they share none.

    Rows without a scored episode are left out.
    """
    named = [name for name, outcomes in rows.items() if outcomes]
    found = []
    for first, second in itertools.combinations(named, 2):
        comparison = compare_outcomes(rows[first], rows[second])
        if comparison is not None:
            found.append((first, second, comparison))
    adjusted = holm([comparison.p_value for _, _, comparison in found])
    return [
        Pair(first=first, second=second, comparison=comparison, adjusted_p=p)
        for (first, second, comparison), p in zip(found, adjusted, strict=True)
    ]


def compare_outcomes(first: Outcomes, second: Outcomes) -> Comparison | None:
    """Paired over shared episodes; unpaired when there are none; None when a side scored nothing."""
    shared = first.keys() & second.keys()
    if not shared:
        return compare((sum(first.values()), len(first)), (sum(second.values()), len(second)))
    pairs = [(first[episode], second[episode]) for episode in shared]
    counts = [pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
    return compare_paired(*counts)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979, Scand. J. Stat. 6:65), in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = highest
    return adjusted


def letters(names: Sequence[str], different: Sequence[tuple[str, str]]) -> dict[str, str]:
    """A compact letter display: two rows share a letter exactly when they are not shown to be `different`.

    Insert and absorb (Piepho 2004, J. Comput. Graph. Stat. 13:456). Letters follow the order of `names`.
    """
    columns: list[frozenset[str]] = [frozenset(names)]
    for first, second in different:
        split: list[frozenset[str]] = []
        for column in columns:
            split += [column - {first}, column - {second}] if {first, second} <= column else [column]
        columns = [c for c in dict.fromkeys(split) if not any(c < other for other in split)]
    place = {name: index for index, name in enumerate(names)}
    columns.sort(key=lambda column: sorted(place[name] for name in column))
    marks = [_letter(index) for index in range(len(columns))]
    return {
        name: "".join(mark for mark, column in zip(marks, columns, strict=True) if name in column)
        for name in names
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The best of several tries (checkpoints times execution modes), as reported and as it can be expected again."""

    tries: int
    best: int
    """Which try scored best on all episodes; the earliest of equals."""
    reported: float
    """Its score on the episodes it was chosen by: biased upwards."""
    honest: Estimate
    """Chosen on one half of the episodes, scored on the other, both ways, averaged over random halves."""

    @property
    def bias(self) -> float:
        """What choosing on the test episodes adds."""
        return self.reported - self.honest.value


def best_of(
    scores: Float[np.ndarray, "tries episodes"], *, seed: int = 0, halves: int = 200, resamples: int = 400
) -> Selection:
    """The best of `tries` that all played the same episodes; scores per episode, e.g. 0/1 or goals in a row.

    The interval is a bootstrap over episodes, percentile, of the cross-fitted score. Copies of a resampled episode go
    to the same half: else the half that chooses would have seen the episodes that score.

    Raises: ValueError for no tries or fewer than two episodes.
    """
    tries, episodes = scores.shape
    if tries == 0 or episodes < 2:
        raise ValueError(
            f"{tries} tries on {episodes} episodes: at least one try and two episodes are needed"
        )
    rng = np.random.default_rng(seed)
    weights = np.ones((1, episodes))
    value = float(_cross_fitted(scores, weights, rng, halves)[0])
    drawn = rng.multinomial(episodes, np.full(episodes, 1 / episodes), size=resamples).astype(np.float64)
    resampled = _cross_fitted(scores, drawn, rng, max(1, halves // 20))
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    means = scores.mean(axis=1)
    return Selection(
        tries=tries,
        best=int(means.argmax()),
        reported=float(means.max()),
        honest=Estimate(value, min(float(low), value), max(float(high), value)),
    )


def paired_difference(
    first: Float[np.ndarray, " episodes"],
    second: Float[np.ndarray, " episodes"],
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> Comparison:
    """Mean difference of scores on the same episodes, e.g. chain lengths: bootstrap interval, sign-flip test.

    The test is exact up to 12 episodes that differ, else with `resamples` random flips, where p is at least
    1 / (resamples + 1). Raises: ValueError for no episodes or different numbers of them.
    """
    if len(first) != len(second) or len(first) == 0:
        raise ValueError(
            f"{len(first)} and {len(second)} episodes: give the scores of the same episodes, at least one"
        )
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(difference), size=(resamples, len(difference)), dtype=np.int32)
    low, high = np.quantile(difference[picks].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    moved = difference[difference != 0]
    observed = abs(moved.sum()) - 1e-9
    if not len(moved):
        p = 1.0
    elif len(moved) <= 12:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(moved)))).reshape(-1, len(moved))
        p = float((np.abs(signs @ moved) >= observed).mean())
    else:
        flips = rng.choice((-1.0, 1.0), size=(resamples, len(moved)))
        p = float((1 + (np.abs(flips @ moved) >= observed).sum()) / (1 + resamples))
    return Comparison(Estimate(float(difference.mean()), float(low), float(high)), p, paired=True)


def power_of(first: float, second: float, episodes: int, *, level: float = 1 - CONFIDENCE) -> float:
    """Probability that two rows with these true rates differ significantly in Fisher's exact test on `episodes` each.

    Exact: summed over every pair of counts that is likelier than 1e-12.
    """
    from scipy import stats

    counts = np.arange(episodes + 1)
    mine, theirs = stats.binom.pmf(counts, episodes, first), stats.binom.pmf(counts, episodes, second)
    significant = _significant(episodes, level)
    return float(mine @ significant @ theirs)


def episodes_to_separate(
    first: float, second: float, *, power: float = 0.8, level: float = 1 - CONFIDENCE, most: int = 100_000
) -> int | None:
    """How many episodes each of two rows needs so that their difference shows with this power; None beyond `most`.

    The normal approximation with Fleiss' continuity correction (Fleiss, Statistical Methods for Rates and Proportions,
    2nd ed., eq. 3.18), which is close to what Fisher's exact test needs.
    """
    from scipy.stats import norm

    gap = abs(first - second)
    if gap == 0:
        return None
    mean = (first + second) / 2
    spread = norm.isf(level / 2) * math.sqrt(2 * mean * (1 - mean))
    spread += norm.ppf(power) * math.sqrt(first * (1 - first) + second * (1 - second))
    plain = (spread / gap) ** 2
    needed = math.ceil(plain / 4 * (1 + math.sqrt(1 + 4 / (plain * gap))) ** 2)
    return needed if needed <= most else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """Pearson's r of a handful of models."""

    r: Estimate
    """Fisher's z interval."""
    p_value: float
    """Two-sided, over all orders of the second values (exact up to eight models, else 20,000 random orders)."""
    models: int
    without_one: tuple[float, ...]
    """r with each model left out in turn: how much hangs on a single one."""

    @property
    def r_squared(self) -> float:
        """Share of the variance that a line explains."""
        return self.r.value**2


def correlation(
    first: Sequence[float], second: Sequence[float], *, groups: Sequence[str] = (), seed: int = 0
) -> Correlation | None:
    """Pearson's r between two scores of the same models (Paper Figure 3); None for fewer than four or no spread.

    `groups`, one a model: r within groups. Their means are subtracted, the test's orders change within them, and the
    interval and the least number count one model less for every group but one.
    """
    x, y = np.array(first, dtype=np.float64), np.array(second, dtype=np.float64)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} scores: give both of every model")
    members = [np.array([g == name for g in groups]).nonzero()[0] for name in dict.fromkeys(groups)]
    for inside in members:
        x[inside] -= x[inside].mean()
        y[inside] -= y[inside].mean()
    count = len(x) - max(len(members) - 1, 0)
    if count < 4 or np.ptp(x) <= 1e-12 or np.ptp(y) <= 1e-12:
        return None
    r = _pearson(x, y)
    from scipy.stats import norm

    half = norm.isf((1 - CONFIDENCE) / 2) / math.sqrt(count - 3)
    z = math.atanh(min(max(r, -1 + 1e-15), 1 - 1e-15))
    rng = np.random.default_rng(seed)
    if len(x) <= 8 and not members:
        orders = np.array(list(itertools.permutations(range(len(x)))))
        at_least = np.abs(_pearsons(x, y[orders])) >= abs(r) - 1e-12
        p = float(at_least.mean())
    else:
        orders = np.tile(np.arange(len(x)), (20_000, 1))
        for inside in members or [np.arange(len(x))]:
            orders[:, inside] = rng.permuted(orders[:, inside], axis=1)
        at_least = np.abs(_pearsons(x, y[orders])) >= abs(r) - 1e-12
        p = float((1 + at_least.sum()) / (1 + len(orders)))
    keep = ~np.eye(len(x), dtype=bool)
    without = tuple(
        _pearson(x[rest], y[rest]) if np.ptp(x[rest]) and np.ptp(y[rest]) else math.nan for rest in keep
    )
    return Correlation(
        r=Estimate(r, math.tanh(z - half), math.tanh(z + half)),
        p_value=p,
        models=len(x),
        without_one=without,
    )


def _letter(index: int) -> str:
    """a .. z, then aa, ab, ... in brackets, so that two of them cannot be read as one."""
    if index < 26:
        return chr(ord("a") + index)
    return f"({_letter(index // 26 - 1)}{chr(ord('a') + index % 26)})"


def _cross_fitted(
    scores: Float[np.ndarray, "tries episodes"],
    weights: Float[np.ndarray, "samples episodes"],
    rng: np.random.Generator,
    halves: int,
) -> Float[np.ndarray, " samples"]:
    """For every weighting of episodes: the score of the try chosen on the other half, averaged over `halves` splits."""
    episodes = scores.shape[1]
    total = np.zeros(len(weights))
    for _ in range(halves):
        one = np.zeros(episodes)
        one[rng.permutation(episodes)[: episodes // 2]] = 1
        for chooses, counts in ((one, 1 - one), (1 - one, one)):
            chosen = _mean(scores, weights * chooses).argmax(axis=0)
            total += _mean(scores, weights * counts)[chosen, np.arange(len(weights))]
    return total / (2 * halves)


def _mean(
    scores: Float[np.ndarray, "tries episodes"], weights: Float[np.ndarray, "samples episodes"]
) -> Float[np.ndarray, "tries samples"]:
    return scores @ weights.T / np.maximum(weights.sum(axis=1), 1e-12)


def _significant(episodes: int, level: float) -> Bool[np.ndarray, "first second"]:
    """Whether Fisher's exact test tells two counts out of `episodes` apart."""
    from scipy.special import gammaln

    counts = np.arange(episodes + 1)
    choose = gammaln(episodes + 1) - gammaln(counts + 1) - gammaln(episodes - counts + 1)
    result = np.zeros((episodes + 1, episodes + 1), dtype=bool)
    for successes in range(2 * episodes + 1):
        first = np.arange(max(0, successes - episodes), min(episodes, successes) + 1)
        logs = choose[first] + choose[successes - first]
        weights = np.exp(logs - logs.max())
        order = np.argsort(weights, kind="stable")
        tail = np.cumsum(weights[order]) / weights.sum()
        # Ties count together: the tail of a weight ends with the last one equal to it.
        last = np.searchsorted(weights[order], weights * (1 + 1e-9), side="right") - 1
        result[first, successes - first] = tail[last] < level
    return result


def _pearson(x: Float[np.ndarray, " models"], y: Float[np.ndarray, " models"]) -> float:
    return float(_pearsons(x, y[None])[0])


def _pearsons(
    x: Float[np.ndarray, " models"], y: Float[np.ndarray, "orders models"]
) -> Float[np.ndarray, " orders"]:
    x, y = x - x.mean(), y - y.mean(axis=1, keepdims=True)
    return (y @ x) / np.sqrt((x @ x) * (y * y).sum(axis=1))
