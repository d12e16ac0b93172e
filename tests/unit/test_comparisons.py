"""Statistics of comparison against scipy, textbook values and simulations of known truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vlm4vla.reports.comparisons import (
    best_of,
    compare_all,
    compare_outcomes,
    correlation,
    episodes_to_separate,
    holm,
    letters,
    paired_difference,
    power_of,
)
from vlm4vla.reports.estimates import fisher_p


def outcomes(text: str, *, start: int = 0) -> dict[str, bool]:
    return {f"e{start + i}": mark == "1" for i, mark in enumerate(text)}


def test_holms_correction_is_the_textbooks() -> None:
    """Holm's own example of four hypotheses, and the order given is kept."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_pairs_use_shared_episodes_and_are_corrected_together() -> None:
    rows = {
        "good": outcomes("1" * 40),
        "bad": outcomes("0" * 40),
        "also bad": outcomes("0" * 39 + "1"),
        "elsewhere": outcomes("1" * 10, start=100),
        "nothing": {},
    }
    pairs = {(p.first, p.second): p for p in compare_all(rows)}
    assert len(pairs) == 6
    assert pairs["good", "bad"].differs and pairs["good", "bad"].comparison.paired
    assert not pairs["bad", "also bad"].differs
    assert not pairs["bad", "elsewhere"].comparison.paired
    for pair in pairs.values():
        assert pair.adjusted_p >= pair.comparison.p_value
    assert compare_outcomes({}, rows["good"]) is None


@given(
    count=st.integers(1, 6),
    picks=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda p: p[0] < p[1])),
)
def test_rows_share_a_letter_exactly_when_they_are_not_told_apart(
    count: int, picks: set[tuple[int, int]]
) -> None:
    names = [f"row {i}" for i in range(count)]
    different = [(names[a], names[b]) for a, b in sorted(picks) if b < count]
    shown = letters(names, different)
    assert all(shown.values())
    for first, second in itertools.combinations(names, 2):
        apart = (first, second) in different
        assert bool(set(shown[first]) & set(shown[second])) != apart


def test_letters_follow_the_rows() -> None:
    shown = letters(["a", "b", "c"], [("a", "c")])
    assert shown == {"a": "a", "b": "ab", "c": "b"}


def test_the_best_of_equal_tries_is_biased_and_the_honest_score_is_not() -> None:
    """Twenty tries with the same true rate of one half: over many studies the reported best is far above it."""
    rng = np.random.default_rng(1)
    found = [
        best_of(rng.binomial(1, 0.5, size=(20, 24)).astype(float), seed=s, halves=20, resamples=20)
        for s in range(60)
    ]
    assert np.mean([s.reported for s in found]) > 0.65
    assert np.mean([s.honest.value for s in found]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([s.bias for s in found]) > 0.15
    covered = [s.honest.low <= 0.5 <= s.honest.high for s in found]
    assert np.mean(covered) > 0.85


def test_a_try_that_is_truly_best_is_chosen_and_not_punished() -> None:
    rng = np.random.default_rng(2)
    scores = rng.binomial(1, 0.2, size=(5, 200)).astype(float)
    scores[3] = rng.binomial(1, 0.8, size=200)
    found = best_of(scores)
    assert found.best == 3 and found.tries == 5
    assert found.bias == pytest.approx(0, abs=0.01)
    assert found.honest.low < 0.8 < found.honest.high
    assert best_of(scores) == found
    with pytest.raises(ValueError, match="at least one try and two episodes"):
        best_of(np.zeros((3, 1)))


def test_one_try_has_no_bias() -> None:
    found = best_of(np.array([[1.0, 0.0, 1.0, 1.0]]))
    assert found.bias == pytest.approx(0) and found.reported == 0.75


@given(
    first=st.lists(st.integers(0, 5), min_size=2, max_size=9),
    seed=st.integers(0, 3),
)
def test_small_sign_flip_tests_are_scipys(first: list[int], seed: int) -> None:
    second = np.random.default_rng(seed).integers(0, 6, len(first)).astype(float)
    found = paired_difference(np.array(first, float), second, resamples=200)
    expected = stats.permutation_test(
        (np.array(first, float) - second,),
        lambda d, axis: np.mean(d, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.difference.value == pytest.approx(float(np.mean(first) - second.mean()))


def test_equal_scores_do_not_differ() -> None:
    found = paired_difference(np.ones(3), np.ones(3), resamples=50)
    assert found.p_value == 1 and found.difference.low == found.difference.high == 0


def test_intervals_of_differences_cover_the_truth() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for index in range(200):
        base = rng.poisson(2.0, 60).astype(float)
        other = base + rng.normal(0.4, 1.0, 60)
        interval = paired_difference(other, base, seed=index, resamples=500).difference
        covered += interval.low <= 0.4 <= interval.high
    assert 180 <= covered <= 199
    with pytest.raises(ValueError, match="3 and 2 episodes"):
        paired_difference(np.zeros(3), np.zeros(2))


@pytest.mark.parametrize("episodes", [5, 24])
def test_power_is_the_share_of_studies_that_find_it(episodes: int) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.binomial(episodes, 0.9, 4000), rng.binomial(episodes, 0.4, 4000)
    found = np.mean(
        [fisher_p((int(x), episodes), (int(y), episodes)) < 0.05 for x, y in zip(a, b, strict=True)]
    )
    assert power_of(0.9, 0.4, episodes) == pytest.approx(found, abs=0.03)
    assert power_of(0.5, 0.5, episodes) < 0.05


def test_how_many_episodes_separate_two_rates() -> None:
    """Fleiss' table A.3: 0.2 against 0.4 at 5 % and 80 % needs 91 each with the correction."""
    assert episodes_to_separate(0.2, 0.4) == 91
    assert episodes_to_separate(0.5, 0.5) is None
    assert episodes_to_separate(0.5, 0.50001) is None
    needed = episodes_to_separate(0.5, 0.25)
    assert needed is not None
    assert power_of(0.5, 0.25, needed) == pytest.approx(0.8, abs=0.02)


def test_within_groups_what_groups_have_in_common_does_not_count() -> None:
    """Groups lie on a line, their members anywhere: r is high over all, significant within as rarely as promised."""
    names, offsets = [f"group {i // 3}" for i in range(18)], np.repeat(np.arange(6.0) * 10, 3)
    significant = covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x, y = (offsets + rng.normal(size=18) for _ in range(2))
        over_all, within = correlation(x.tolist(), y.tolist()), correlation(x, y, groups=names)
        assert over_all is not None and over_all.r.low > 0.9 and within is not None
        significant += within.p_value < 0.05
        covered += within.r.low <= 0 <= within.r.high
    assert significant <= 7 and covered >= 52
    steep = correlation(x, x * 2 + offsets * 5 + 0.2 * rng.normal(size=18), groups=names)
    assert steep is not None and steep.r.low > 0.8 and steep.p_value < 0.001
    dummies = np.array([[name == f"group {g}" for g in range(6)] for name in names], dtype=float)
    rest = [v - dummies @ np.linalg.lstsq(dummies, v, rcond=None)[0] for v in (x, y)]
    assert within.r.value == pytest.approx(stats.pearsonr(*rest).statistic)
    assert correlation(x[:6], y[:6], groups=list("abcdab")) is None


def test_correlations_of_a_handful_of_models() -> None:
    rng = np.random.default_rng(5)
    for count in (5, 9):
        x = rng.normal(size=count)
        y = x + rng.normal(size=count)
        found = correlation(x.tolist(), y.tolist())
        assert found is not None and found.models == count
        expected = stats.pearsonr(x, y)
        assert found.r.value == pytest.approx(expected.statistic)
        low, high = expected.confidence_interval()
        assert (found.r.low, found.r.high) == pytest.approx((low, high))
        assert found.p_value == pytest.approx(
            stats.pearsonr(x, y, method=stats.PermutationMethod(n_resamples=20_000, rng=0)).pvalue, abs=0.02
        )
        assert found.without_one[0] == pytest.approx(stats.pearsonr(x[1:], y[1:]).statistic)
        assert found.r_squared == pytest.approx(expected.statistic**2)


def test_a_perfect_line_is_one_and_no_spread_is_nothing() -> None:
    line = correlation([1, 2, 3, 4, 5], [2, 4, 6, 8, 10])
    assert line is not None and line.r.value == pytest.approx(1) and line.p_value == pytest.approx(2 / 120)
    assert correlation([1, 1, 1, 1], [1, 2, 3, 4]) is None
    assert correlation([1, 2, 3], [1, 2, 3]) is None
    with pytest.raises(ValueError, match="give both of every model"):
        correlation([1], [1, 2])
