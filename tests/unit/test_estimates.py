"""Estimates against scipy and the examples of the papers they come from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vlm4vla.reports.estimates import (
    chain_length,
    compare,
    compare_paired,
    fisher_p,
    mcnemar_p,
    repeated,
    success_rate,
)

counts = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
quarters = st.tuples(*[st.integers(0, 60)] * 4).filter(lambda four: sum(four) > 0)


@given(counts)
def test_wilson_agrees_with_scipy(count: tuple[int, int]) -> None:
    ours = success_rate(*count)
    theirs = stats.binomtest(*count).proportion_ci(confidence_level=0.95, method="wilson")
    assert ours is not None
    assert ours.low == pytest.approx(theirs.low, abs=1e-12)
    assert ours.high == pytest.approx(theirs.high, abs=1e-12)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


@given(st.integers(1, 200), st.data())
def test_more_successes_never_lower_the_interval(episodes: int, data: st.DataObject) -> None:
    fewer = data.draw(st.integers(0, episodes - 1))
    a, b = success_rate(fewer, episodes), success_rate(fewer + 1, episodes)
    assert a is not None
    assert b is not None
    assert a.low < b.low
    assert a.high <= b.high


@given(counts)
def test_failures_mirror_successes(count: tuple[int, int]) -> None:
    successes, episodes = count
    a, b = success_rate(successes, episodes), success_rate(episodes - successes, episodes)
    assert a is not None
    assert b is not None
    assert a.low == pytest.approx(1 - b.high, abs=1e-12)


def test_unscored_is_not_zero() -> None:
    assert success_rate(0, 0) is None
    assert compare((0, 0), (3, 5)) is None
    assert compare_paired(0, 0, 0, 0) is None
    assert chain_length([], 5) is None
    nothing = success_rate(0, 10)
    assert nothing is not None
    assert (nothing.value, nothing.low) == (0, 0)
    assert nothing.high > 0.2


def test_counting_an_episode_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="11 successes in 10 episodes"):
        success_rate(11, 10)


def test_newcombes_example_of_two_samples() -> None:
    found = compare((56, 70), (48, 80))
    assert found is not None
    assert not found.paired
    assert found.difference.value == pytest.approx(0.2)
    assert found.difference.low == pytest.approx(0.0524, abs=5e-5)
    assert found.difference.high == pytest.approx(0.3339, abs=5e-5)


def test_newcombes_example_of_paired_samples() -> None:
    found = compare_paired(36, 12, 2, 0)
    assert found is not None
    assert found.paired
    assert found.difference.low == pytest.approx(0.0569, abs=5e-5)
    assert found.difference.high == pytest.approx(0.3404, abs=5e-5)


@given(quarters)
def test_swapping_the_policies_negates_a_paired_difference(four: tuple[int, int, int, int]) -> None:
    both, first, second, neither = four
    one, other = compare_paired(*four), compare_paired(both, second, first, neither)
    assert one is not None
    assert other is not None
    assert one.difference.low == pytest.approx(-other.difference.high, abs=1e-12)
    assert one.p_value == other.p_value
    assert -1 <= one.difference.low <= one.difference.value <= one.difference.high <= 1


@given(counts, counts)
def test_fisher_agrees_with_scipy(first: tuple[int, int], second: tuple[int, int]) -> None:
    (a, n), (b, m) = first, second
    theirs = stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue
    assert fisher_p(first, second) == pytest.approx(theirs, rel=1e-6)


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_the_exact_sign_test(first_only: int, second_only: int) -> None:
    discordant = first_only + second_only
    expected = stats.binomtest(first_only, discordant).pvalue if discordant else 1.0
    assert mcnemar_p(first_only, second_only) == pytest.approx(expected, rel=1e-9)


def test_chain_length_is_near_the_normal_interval_and_repeats() -> None:
    completed = [0, 1, 1, 2, 2, 2, 3, 3, 4, 5] * 20
    found = chain_length(completed, 5)
    assert found == chain_length(sorted(completed, reverse=True), 5)
    assert found is not None
    mean = sum(completed) / len(completed)
    deviation = math.sqrt(sum((c - mean) ** 2 for c in completed) / len(completed))
    half = 1.96 * deviation / math.sqrt(len(completed))
    assert found.value == pytest.approx(mean)
    assert found.low == pytest.approx(mean - half, abs=0.02)
    assert found.high == pytest.approx(mean + half, abs=0.02)


def test_chains_that_all_end_alike_still_have_a_width() -> None:
    found = chain_length([0] * 20, 5)
    assert found is not None
    assert (found.value, found.low) == (0, 0)
    assert found.high > 0.5


def test_repeats_of_an_episode_are_not_independent() -> None:
    rng = np.random.default_rng(0)
    rates = rng.beta(2, 2, size=4000)
    plays = {str(i): rng.binomial(1, rate, size=5).astype(float).tolist() for i, rate in enumerate(rates)}
    found = repeated(plays)
    assert found is not None
    assert found.between == pytest.approx(0.05, abs=0.005)  # Beta(2, 2) has variance 1/20
    assert found.within == pytest.approx(0.2, abs=0.01)  # E[p (1 - p)]
    half = (found.estimate.high - found.estimate.low) / 2
    assert half == pytest.approx(1.96 * np.sqrt((0.05 + 0.2 / 5) / 4000), rel=0.05)
    assert repeated({"one": [1.0, 0.0]}) is None
