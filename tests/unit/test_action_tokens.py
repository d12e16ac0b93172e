"""FAST tokens: small errors, few tokens, and what happens to what is not a chunk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float32
from tokenizers import ByteLevelBPETokenizer

from vlm4vla.core.errors import DataError
from vlm4vla.policies.action_tokens import FastTokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "fast"


def chunks(count: int, seed: int = 0) -> Float32[np.ndarray, "count 10 7"]:
    """Smooth movements."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, 10)[None, :, None]
    start, slope = rng.uniform(-0.5, 0.5, (2, count, 1, 7))
    return (start + slope * time).astype(np.float32)


def test_chunks_come_back_in_few_tokens() -> None:
    tokenizer = FastTokenizer.fit(chunks(500), vocabulary=512)
    found = tokenizer.encode(chunks(50, seed=1))
    assert np.mean([len(ids) for ids in found]) < 35
    assert np.abs(tokenizer.decode(found) - chunks(50, seed=1)).max() < 0.2


def test_low_frequencies_come_first() -> None:
    """A constant chunk has only its first seven coefficients: size times the root of ten."""
    tokenizer = FastTokenizer.fit(chunks(100), vocabulary=512)
    text = tokenizer.bpe.decode(tokenizer.encode(np.full((1, 10, 7), 0.3, dtype=np.float32))[0])
    numbers = [ord(letter) - tokenizer.first + tokenizer.low for letter in text]
    assert numbers == [round(3 * 10**0.5)] * 7 + [0] * 63


def test_dimensions_first_is_another_order_of_the_same_numbers(tmp_path: Path) -> None:
    ours, other = (FastTokenizer.fit(chunks(300), order=order) for order in ("frequencies", "dimensions"))
    other.save(tmp_path)
    other = FastTokenizer.load(tmp_path)
    found = other.encode(chunks(20, seed=1))
    assert np.array_equal(other.decode(found), ours.decode(ours.encode(chunks(20, seed=1))))
    assert sum(map(len, found)) < sum(map(len, ours.encode(chunks(20, seed=1))))
    text = other.bpe.decode(other.encode(np.full((1, 10, 7), 0.3, dtype=np.float32))[0])
    numbers = [ord(letter) - other.first + other.low for letter in text]
    assert numbers == [round(3 * 10**0.5), *[0] * 9] * 7
    (tmp_path / "processor_config.json").write_text(
        (tmp_path / "processor_config.json").read_text().replace("dimensions", "columns")
    )
    with pytest.raises(DataError, match="unknown order 'columns'"):
        FastTokenizer.load(tmp_path)


def test_tokens_of_a_wrong_length_are_zeros() -> None:
    tokenizer = FastTokenizer.fit(chunks(100), vocabulary=512)
    (ids,) = tokenizer.encode(chunks(1))
    assert not tokenizer.decode([ids[:-1], [], [*ids, ids[0]]]).any()
    assert tokenizer.decode([ids]).any()


def test_what_was_never_seen_is_clamped() -> None:
    tokenizer = FastTokenizer.fit(chunks(100), vocabulary=512)
    found = tokenizer.decode(tokenizer.encode(np.full((1, 10, 7), 50, dtype=np.float32)))
    assert found.min() > 0


def test_a_folder_keeps_it(tmp_path: Path) -> None:
    tokenizer = FastTokenizer.fit(chunks(100), vocabulary=512)
    tokenizer.save(tmp_path)
    again = FastTokenizer.load(tmp_path)
    ids = tokenizer.encode(chunks(5, seed=2))
    assert again.encode(chunks(5, seed=2)) == ids
    assert np.array_equal(again.decode(ids), tokenizer.decode(ids))


def test_the_published_layout_is_read(tmp_path: Path) -> None:
    """Byte-level merges over code points from 0, and a config that names neither horizon nor size."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["".join(map(chr, range(200)))] * 3, vocab_size=300, show_progress=False)
    bpe.save(str(tmp_path / "tokenizer.json"))
    facts = {"scale": 10, "vocab_size": 300, "min_token": -100, "time_horizon": None, "action_dim": None}
    (tmp_path / "processor_config.json").write_text(json.dumps(facts))
    tokenizer = FastTokenizer.load(tmp_path, horizon=10, size=7)
    found = tokenizer.decode(tokenizer.encode(chunks(3)))
    assert np.abs(found - chunks(3)).max() < 0.2
    with pytest.raises(DataError, match="horizon and size"):
        FastTokenizer.load(tmp_path)


def test_the_published_processor_and_ours_read_each_others_folders(tmp_path: Path) -> None:
    """Its ids and actions, kept by `tests/oracles/published_fast.py`: of a folder of its own and of one of ours."""
    kept = np.load(GOLDEN / "chunks.npz")
    answers = json.loads((GOLDEN / "answers.json").read_text())
    FastTokenizer.fit(kept["training"], vocabulary=384).save(tmp_path)
    for name, folder in (("published", GOLDEN / "published"), ("ours", tmp_path)):
        tokenizer = FastTokenizer.load(folder)
        ids = tokenizer.encode(kept["other"])
        assert ids == answers[name]["ids"], name
        assert np.abs(tokenizer.decode(ids) - answers[name]["chunks"]).max() < 1e-6, name
    assert answers["published"]["ids"] != answers["ours"]["ids"]


def test_nothing_to_fit_and_too_much_are_errors() -> None:
    with pytest.raises(DataError, match="no chunks"):
        FastTokenizer.fit(chunks(0))
    with pytest.raises(DataError, match="do not fit"):
        FastTokenizer.fit(100 * chunks(10), vocabulary=256)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_tabletops_demonstrations_are_written_in_thirteen_tokens(tmp_path: Path) -> None:
    """Ten steps of seven numbers with at most 2048 tokens, on held-out demonstrations; FAST's own order needs more."""
    program = Path(__file__).parents[2] / "perf" / "fast.py"
    out = tmp_path / "fast.json"
    subprocess.run([sys.executable, str(program), "--json", str(out)], check=True, capture_output=True)
    figures = json.loads(out.read_text())["figures"]
    assert figures["chunks"] > 1000
    assert figures["dimensions/tokens"] <= 13 < figures["frequencies/tokens"] < 20
    assert figures["dimensions/error"] <= 0.02 and figures["frequencies/error"] <= 0.02
    assert figures["dimensions/microseconds"] <= 100 and figures["frequencies/microseconds"] <= 100
