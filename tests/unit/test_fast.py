"""FAST as a head: what is trained on, how it is weighed, what it writes, and that its tokenizer travels with it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_trials
import torch
from jaxtyping import Float32

from vlm4vla.backbones.backbone import Backbone
from vlm4vla.backbones.continuation import Rereading
from vlm4vla.core.errors import DataError, RecipeError, RunError
from vlm4vla.core.normalization import ClipScale, Normalization
from vlm4vla.core.recipes import PolicyRecipe, check_policy
from vlm4vla.core.types import Observation
from vlm4vla.demonstrations.chunks import ChunkDataset
from vlm4vla.policies.fast import FastHead
from vlm4vla.policies.heads import Features, LossWeights
from vlm4vla.policies.vla import VLA

HORIZON, HIDDEN = 4, 8


def chunks(count: int, seed: int = 0) -> Float32[np.ndarray, "count 4 7"]:
    """Smooth movements with a gripper of 0 and 1."""
    rng = np.random.default_rng(seed)
    start, slope = rng.uniform(-0.5, 0.5, (2, count, 1, 7))
    made = (start + slope * np.linspace(0, 1, HORIZON)[None, :, None]).astype(np.float32)
    made[..., 6] = made[..., 6] > 0
    return made


def fitted(vocabulary: int = 128) -> FastHead:
    head = FastHead(HIDDEN, HORIZON, vocabulary=vocabulary, seed=0)
    head.fit(lambda: chunks(200))
    return head


def follow(embeddings: torch.Tensor | None) -> torch.Tensor:
    """A reader that answers with what it read, and with zeros at the query."""
    assert embeddings is not None
    return torch.cat([torch.zeros(len(embeddings), 1, HIDDEN), embeddings], dim=1)


class Dictated:
    """A reader whose states make a head with an identity answer write the given tokens."""

    def __init__(self, rows: list[list[int]], tokens: int) -> None:
        self.rows, self.tokens, self.count = rows, tokens, 0

    def __call__(self, embedding: torch.Tensor | None) -> torch.Tensor:
        states = torch.zeros(len(self.rows), 1, self.tokens)
        for row, ids in enumerate(self.rows):
            states[row, 0, ids[min(self.count, len(ids) - 1)]] = 1.0
        self.count += 1
        return states


def written(head: FastHead, rows: list[list[int]]) -> torch.Tensor:
    tokens = head.end + 1
    head.answer = torch.nn.Linear(tokens, tokens, bias=False)
    torch.nn.init.eye_(head.answer.weight)
    with torch.no_grad():
        return head.predict(Features(read_on=Dictated(rows, tokens)))


def test_the_loss_is_the_cross_entropy_of_tokens_and_end_per_number() -> None:
    """Worked out row by row without padding, each row weighed by its valid steps."""
    head = fitted()
    target = torch.from_numpy(chunks(5, seed=1))
    valid = torch.arange(HORIZON) < torch.tensor([[4], [4], [2], [1], [3]])
    losses = head.loss(Features(follow=follow), target, valid, weights=LossWeights(pose=0.7, gripper=0.7))
    expected = 0.0
    for row in range(5):
        steps = int(valid[row].sum())
        filled = target[row].clone()
        filled[steps:] = filled[steps - 1]
        filled[:, 6] = 2 * filled[:, 6] - 1
        (ids,) = head.tokenizer.encode(filled[None].numpy())
        states = follow(head.words(torch.tensor([ids])))[0]
        logits = (states @ head.answer.weight.T + head.answer.bias).tolist()
        for scores, token in zip(logits, [*ids, head.end], strict=True):
            known = [*scores[: head.tokenizer.bpe.get_vocab_size()], scores[head.end]]
            nats = math.log(sum(math.exp(score) for score in known)) - scores[token]
            expected += steps * nats / (7 * HORIZON) / float(valid.sum())
    assert losses["loss"].item() == pytest.approx(0.7 * expected, rel=1e-4)
    assert (losses["pose"] + losses["gripper"]).item() == pytest.approx(expected, rel=1e-4)
    assert losses["pose"] > losses["gripper"] > 0


def test_a_tokens_share_follows_from_its_frequencies() -> None:
    """Without merges every token is one frequency, and each seventh of them the gripper's."""
    head = FastHead(HIDDEN, HORIZON, vocabulary=200, seed=0)
    head.fit(lambda: np.random.default_rng(0).uniform(0, 1, (2, HORIZON, 7)).astype(np.float32))
    target = torch.from_numpy(chunks(1, seed=3))
    tokens, share = head._written(target, torch.ones(1, HORIZON, dtype=torch.bool))
    widths = head._widths[tokens[0]].tolist()
    place = 0
    for width, part in zip(widths[:-1], share[0].tolist(), strict=False):
        grippers = sum(number % 7 == 6 for number in range(place, place + width))
        assert part == pytest.approx(grippers / width)
        place += width
    assert place == 7 * HORIZON
    assert (tokens[0, -1].item(), share[0, -1].item()) == (head.end, pytest.approx(1 / 7))


def test_micro_batches_and_rows_that_only_fill_add_up() -> None:
    head, target = fitted(), torch.from_numpy(chunks(4, seed=2))
    valid = torch.arange(HORIZON) < torch.tensor([[4], [2], [3], [0]])
    whole = head.loss(Features(follow=follow), target, valid, weights=LossWeights())["loss"]
    parts = [
        head.loss(Features(follow=follow), target[part], valid[part], weights=LossWeights(), count=9.0)[
            "loss"
        ]
        for part in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_what_is_written_comes_back_and_what_is_malformed_is_counted() -> None:
    """Rows end at different times; too many frequencies are cut, missing ones are zero."""
    head, target = fitted(), chunks(3, seed=4)
    motion = target.copy()
    motion[..., 6] = 2 * motion[..., 6] - 1
    ids = head.tokenizer.encode(motion)
    rows = [[*ids[0], head.end], [*ids[1][:-1], head.end], [*ids[2][:-1], *ids[0]]]
    found = written(head, rows)
    assert (head.predicted, head.malformed) == (3, 2)
    assert np.abs(found[0].numpy() - target[0]).max() < 0.15
    assert found.shape == (3, HORIZON, 7)
    relaxed = head.tokenizer.decode([ids[1][:-1]], relaxed=True)[0]
    torch.testing.assert_close(found[1, :, :6], torch.from_numpy(relaxed[:, :6]).clamp(-1, 1))
    assert not torch.equal(found[1], torch.zeros_like(found[1]))


def test_nothing_written_is_a_pause() -> None:
    head = fitted()
    found = written(head, [[head.end]])
    assert not found[..., :6].any()
    assert (found[..., 6] == 0.5).all()
    assert head.malformed == 1


def test_tokens_that_were_not_learned_are_never_written() -> None:
    head = fitted(vocabulary=4000)
    used = head.tokenizer.bpe.get_vocab_size()
    assert used < 4000
    logits = head._logits(torch.randn(2, 3, HIDDEN, generator=torch.Generator().manual_seed(0)))
    assert logits[..., used:-1].eq(-torch.inf).all()
    assert logits[..., :used].isfinite().all()
    assert logits[..., -1].isfinite().all()


@pytest.mark.parametrize("family", ["qwen2.5-vl", "paligemma-2", "kosmos-2"])
def test_chunks_are_the_same_with_and_without_the_cache(family: str, tmp_path: Path) -> None:
    side = tiny_trials.SIDE
    backbone = Backbone.from_pretrained(
        tiny_trials.tiny_vlm(tmp_path / "vlm", family), image_size=side
    ).eval()
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    inputs = backbone.encode([Observation(picture, saying) for saying in tiny_trials.SAYINGS])
    head = FastHead(backbone.hidden_size, HORIZON, vocabulary=128, seed=0)
    head.fit(lambda: chunks(200))
    with torch.no_grad():
        cached = head.predict(Features(read_on=backbone.continuation(inputs)))
        reread = head.predict(Features(read_on=Rereading(backbone, inputs)))
    assert torch.equal(cached, reread)
    assert cached.isfinite().all()


FIT = """
import sys
from pathlib import Path
from test_fast import fitted
fitted().save(Path(sys.argv[1]))
"""


def test_other_processes_learn_the_same_tokens(tmp_path: Path) -> None:
    """Two that train together each fit their own."""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", FIT, str(tmp_path / seed)],
            env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": seed},
            check=True,
            timeout=120,
        )
    fitted().save(tmp_path / "own")
    for name in ("tokenizer.json", "processor_config.json"):
        assert len({(tmp_path / where / name).read_bytes() for where in ("1", "2", "own")}) == 1


def test_the_tokenizer_travels_with_the_policy(tmp_path: Path) -> None:
    vlm = tiny_trials.tiny_vlm(tmp_path / "vlm")
    recipe = PolicyRecipe(
        backbone=str(vlm), head="fast", image_size=tiny_trials.SIDE, horizon=HORIZON, fast_vocabulary=128
    )
    vla = VLA.from_recipe(
        recipe, action_spec=tiny_trials.SPEC, normalization=Normalization((ClipScale(0.65),)), seed=0
    )
    with pytest.raises(DataError, match="`fit`"):
        vla.save(tmp_path / "early")
    vla.head.fit(lambda: chunks(100))
    vla.save(tmp_path / "policy")
    again = VLA.from_pretrained(tmp_path / "policy").head
    assert isinstance(again, FastHead) and isinstance(vla.head, FastHead)
    ids = again.tokenizer.encode(chunks(5, seed=5))
    assert ids == vla.head.tokenizer.encode(chunks(5, seed=5))
    facts = tmp_path / "policy" / "head" / "processor_config.json"
    assert f"head/{facts.name}" in json.loads((tmp_path / "policy" / "policy.json").read_text())["sha256"]
    facts.unlink()
    with pytest.raises(RunError, match=r"processor_config\.json: missing"):
        VLA.from_pretrained(tmp_path / "policy")


def test_another_policys_tokenizer_is_refused(tmp_path: Path) -> None:
    fitted().save(tmp_path)
    with pytest.raises(DataError, match="another policy"):
        FastHead(HIDDEN, HORIZON + 1, vocabulary=128, seed=0).load(tmp_path)
    with pytest.raises(DataError, match="another policy"):
        FastHead(HIDDEN, HORIZON, vocabulary=20, seed=0).load(tmp_path)


def test_a_vocabulary_too_small_is_told() -> None:
    with pytest.raises(DataError, match=r"policy\.fast_vocabulary"):
        FastHead(HIDDEN, HORIZON, vocabulary=5, seed=0).fit(lambda: chunks(50))
    with pytest.raises(RecipeError, match="fast_vocabulary"):
        check_policy(PolicyRecipe(backbone="any", fast_vocabulary=0))


def test_it_is_fitted_to_the_chunks_that_are_trained_on(tmp_path: Path) -> None:
    dataset = ChunkDataset(tiny_trials.packed(tmp_path / "walks", 4), [0, 2, 3], 5)
    every = dataset.fetch(range(len(dataset))).actions
    assert np.array_equal(dataset.all_chunks(10_000), every)
    assert np.array_equal(dataset.all_chunks(len(dataset) // 3 + 1), every[::3])
