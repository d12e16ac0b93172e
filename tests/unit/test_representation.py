"""Linear CKA against its definition, and probes that recover what was planted."""

from __future__ import annotations

import numpy as np
import pytest

from vlm4vla.reports.representation import linear_cka, probe

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
    assert found.r_squared > 0.999
    assert found.error < 1e-3
    assert (found.rows, found.episodes) == (300, 30)
    assert probe(X, RNG.normal(size=(300, 3)), episodes).r_squared < 0.05
    assert probe(X, position, episodes) == found


def test_a_probe_cannot_learn_episodes_by_heart() -> None:
    """Rows of an episode look alike and have the episode's own target: only a split by row would find it."""
    place = np.repeat(RNG.normal(size=(30, 40)), 10, axis=0)
    target = np.repeat(RNG.normal(size=(30, 2)), 10, axis=0)
    episodes = [f"episode-{row // 10}" for row in range(300)]
    assert probe(place, target, episodes).r_squared < 0.2
    with pytest.raises(ValueError, match="at least four episodes"):
        probe(X[:20], X[:20, :2], episodes[:20])
