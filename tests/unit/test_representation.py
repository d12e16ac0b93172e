"""Linear CKA against its definition, and probes that recover what was planted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vlm4vla.studies.representation import compact, jackknife, linear_cka, probe, similarity

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 12))


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    h = np.eye(len(k)) - 1 / len(k)
    return float(np.trace(k @ h @ m @ h))


def test_cka_is_its_definition_by_gram_matrices() -> None:
    y = X[:, :5] @ RNG.normal(size=(5, 7)) + 0.3 * RNG.normal(size=(300, 7))
    k, m = X @ X.T, y @ y.T
    assert linear_cka(X, y) == pytest.approx(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)), abs=1e-10)


def test_cka_ignores_rotation_and_scale_and_tells_independence() -> None:
    rotation, _ = np.linalg.qr(RNG.normal(size=(12, 12)))
    assert linear_cka(X, X.copy()) == 1.0
    assert linear_cka(X, 7 * X @ rotation + 3) == pytest.approx(1, abs=1e-10)
    assert linear_cka(X, RNG.normal(size=(300, 12))) < 0.1


def test_cka_refuses_what_has_no_similarity() -> None:
    with pytest.raises(ValueError, match="the same rows twice"):
        linear_cka(X, X[:10])
    with pytest.raises(ValueError, match="same in every row"):
        linear_cka(X, np.ones((300, 2)))
    with pytest.raises(ValueError, match="not finite"):
        linear_cka(X, np.full((300, 2), np.nan))


def test_a_probe_recovers_a_planted_position_and_nothing_else() -> None:
    episodes = [f"episode-{row // 10}" for row in range(300)]
    position = X @ RNG.normal(size=(12, 3)) * 0.01 + 0.2
    found = probe(X, position, episodes)
    assert found.r_squared.value > 0.999
    assert found.error.value < 1e-3
    assert probe(X, RNG.normal(size=(300, 3)), episodes).r_squared.value < 0.05
    assert probe(X, position, episodes) == found


def test_a_probe_cannot_learn_episodes_by_heart() -> None:
    """Rows of an episode look alike and have the episode's own target: only a split by row would find it."""
    place = np.repeat(RNG.normal(size=(30, 40)), 10, axis=0)
    target = np.repeat(RNG.normal(size=(30, 2)), 10, axis=0)
    episodes = [f"episode-{row // 10}" for row in range(300)]
    assert probe(place, target, episodes).r_squared.value < 0.2
    with pytest.raises(ValueError, match="at least four scenes"):
        probe(X[:20], X[:20, :2], episodes[:20])


def test_rows_turned_into_fewer_dimensions_keep_what_is_measured() -> None:
    wide = RNG.normal(size=(60, 500)) + 3
    other = wide[:, :40] @ RNG.normal(size=(40, 300))
    scenes = [f"scene-{row // 3}" for row in range(60)]
    assert compact(wide).shape[1] < 60 < 300
    assert linear_cka(compact(wide), compact(other)) == pytest.approx(linear_cka(wide, other), abs=1e-10)
    target = wide[:, :2] * 0.01
    narrow, whole = (probe(x, target, scenes) for x in (compact(wide), wide @ np.eye(500)))
    assert narrow.error.value == pytest.approx(whole.error.value, rel=0.05)


def test_chance_is_far_below_the_similarity_of_related_features_and_near_that_of_unrelated() -> None:
    scenes = [f"scene-{row // 3}" for row in range(300)]
    found, chance = similarity(X, X[:, :8], scenes)
    assert found.low < found.value < found.high <= 1
    assert chance < found.low / 4
    unrelated, chance = similarity(X, RNG.normal(size=(300, 12)), scenes)
    assert unrelated.value == pytest.approx(chance, abs=0.03)
    same, _ = similarity(X, X.copy(), scenes)
    assert (same.value, same.low, same.high) == (1, 1, 1)


def test_the_jackknife_of_a_mean_is_its_t_interval() -> None:
    """Deleting one of twenty scenes at a time: the textbook interval of the mean."""
    values = RNG.normal(size=20)
    scenes = [f"scene-{row:02d}" for row in range(20)]
    found = jackknife(lambda rows: float(values[rows].mean()), scenes, float(values.mean()), least=-9.0)
    half = stats.t.isf(0.025, 19) * values.std(ddof=1) / np.sqrt(20)
    assert found.low == pytest.approx(values.mean() - half)
    assert found.high == pytest.approx(values.mean() + half)


def test_a_probe_s_interval_covers_the_noise_it_cannot_read() -> None:
    """Nine times of ten or more over invented data sets; 95 % is promised."""
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(150, 4))
        target = x[:, :2] + 0.5 * rng.normal(size=(150, 2))
        found = probe(x, target, [f"scene-{row // 3}" for row in range(150)]).error
        covered += found.low <= np.sqrt(2 * 0.25) * 1.02 <= found.high
    assert covered >= 36
