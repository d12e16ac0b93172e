"""Questions about scenes, conversations, dense grounding, and a short pretraining from end to end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vlm4vla.backbones.backbone import Backbone
from vlm4vla.backbones.tiny import TinySize, build_tiny
from vlm4vla.benchmarks.tabletop.scenes import THINGS, SceneBatch, sample_scenes
from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.core.types import Observation
from vlm4vla.tuning import pretrain
from vlm4vla.tuning.dense import DenseGrounding
from vlm4vla.tuning.questions import OFFSETS, AnswerTokens, SceneQuestions, Turn, example_texts, offset_bin
from vlm4vla.tuning.tune import ConversationEncoder, answer, cosine_rate, neighbour_targets, shuffled

SIZE = TinySize(hidden=32, layers=2, mlp=64, vision_hidden=32, vision_layers=2, vision_mlp=64, latents=4)


@pytest.fixture(scope="module")
def scenes() -> SceneBatch:
    (batch,) = sample_scenes(40, seed=3, image_size=64)
    return batch


@pytest.fixture(scope="module", params=["qwen3-vl", "paligemma-1", "kosmos-2"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("vlm") / str(request.param)
    build_tiny(
        str(request.param), SIZE, folder, texts=example_texts(), seed=0, extra_tokens=AnswerTokens().extra()
    )
    return Backbone.from_pretrained(folder, prompt="short", image_size=64)


def test_scenes_are_a_pure_function_and_their_truth_fits_the_picture(scenes: SceneBatch) -> None:
    (again,) = sample_scenes(40, seed=3, image_size=64)
    for field in dataclasses.fields(SceneBatch):
        assert np.array_equal(getattr(scenes, field.name), getattr(again, field.name), equal_nan=True)
    red = THINGS.index("red")
    seen = np.flatnonzero(scenes.visible[:, red] > 0.004)
    assert len(seen) > 5
    for row in seen:
        x, y = (scenes.places[row, red] * 64).astype(int)
        around = scenes.images[row, max(0, y - 4) : y + 5, max(0, x - 4) : x + 5].reshape(-1, 3).astype(int)
        assert (around[:, 0] - around[:, 1:].max(axis=1)).max() > 40, (
            f"no red near the red block of scene {row}"
        )


def test_offsets_are_odd_monotonous_and_finest_at_zero() -> None:
    metres = np.linspace(-0.4, 0.4, 401)
    bins = [offset_bin(float(value)) for value in metres]
    assert bins[200] == OFFSETS // 2
    assert (bins[0], bins[-1]) == (0, OFFSETS - 1)
    assert np.all(np.diff(bins) >= 0)
    assert [OFFSETS - 1 - b for b in reversed(bins)] == bins
    assert bins[220] - bins[200] > bins[340] - bins[320]


def test_answers_are_true(scenes: SceneBatch) -> None:
    questions, rng = SceneQuestions(AnswerTokens()), np.random.default_rng(0)
    for row in range(40):
        place = questions.where(scenes, row, rng)
        assert place is not None
        assert place.answer.count("<area") == place.answer.count("<loc") == 2
        held = scenes.held[row]
        for _ in range(4):
            turn = questions.gripper_state(scenes, row, rng)
            assert turn is not None
            if "hold" in turn.question:
                assert (turn.answer == "nothing") == (held == 4)
        relation = questions.relation(scenes, row, rng)
        if relation is not None and "left" in relation.question:
            names = [
                *(f"{color} block" for color in THINGS[:4]),
                "plate",
                "drawer handle",
                "button",
                "gripper",
            ]
            asked = sorted(
                (name for name in names if name in relation.question),
                key=lambda n: scenes.positions[row, names.index(n), 0],
            )
            assert relation.answer == asked[0]
    first = questions.draw(scenes, 0, 5, np.random.default_rng(1))
    assert first == questions.draw(scenes, 0, 5, np.random.default_rng(1))
    assert len(first) == 5


def test_only_answers_are_asked(backbone: Backbone, scenes: SceneBatch) -> None:
    tokenizer = backbone.encoder.tokenizer
    encode = ConversationEncoder(backbone.encoder, end=tokenizer.eos_token_id)
    turns = [Turn("is the gripper open", "yes"), Turn("where is the plate", "<area3><loc0012>")]
    batch = encode(scenes.images[:1], [turns])
    asked = batch.targets[0] >= 0
    assert tokenizer.decode(batch.targets[0][asked]).replace(" ", "") == (
        f"yes{tokenizer.eos_token}<area3><loc0012>{tokenizer.eos_token}"
    )
    ids = batch.input_ids[0].tolist()
    for position in torch.nonzero(asked)[:, 0].tolist():
        if position + 1 < len(ids):
            assert ids[position + 1] == batch.targets[0, position]


def test_logits_are_those_of_the_class_with_a_head(
    backbone: Backbone, scenes: SceneBatch, tmp_path: Path
) -> None:
    """What is trained is what Hugging Face's own generation class computes from the saved folder."""
    from transformers import AutoModelForImageTextToText

    encode = ConversationEncoder(backbone.encoder, end=backbone.encoder.tokenizer.eos_token_id)
    batch = encode(scenes.images[:2], [[Turn("where is the plate", "<area3><loc0012>")]] * 2)
    backbone.save(tmp_path)
    whole = AutoModelForImageTextToText.from_pretrained(
        tmp_path, attn_implementation=backbone.family.attention
    )
    with torch.no_grad():
        found = answer(backbone.vlm, backbone.native, batch)
        arguments = backbone.native(backbone.vlm, batch.input_ids, batch.images)
        expected = whole(**arguments, use_cache=False).logits[batch.targets >= 0]
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-4)


def test_dense_grounding_learns(backbone: Backbone, scenes: SceneBatch) -> None:
    dense = DenseGrounding(backbone.vlm, backbone.native, seed=0)
    parameters = [*backbone.vlm.parameters(), *dense.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    rows, losses = np.arange(16), []
    for _ in range(30):
        loss = dense(dense.image_features(torch.from_numpy(scenes.images[rows])), scenes, rows)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    with torch.no_grad():
        errors = dense.tokens.errors(
            dense.image_features(torch.from_numpy(scenes.images[rows])), scenes, rows
        )
    assert 0 <= errors.found <= 1
    assert 0 < errors.place < 0.5


def test_neighbours_share_the_target() -> None:
    table = neighbour_targets(10, [[2, 3, 4, 5]], deviation=0.8)
    torch.testing.assert_close(table.sum(1), torch.ones(10))
    assert table[0].tolist() == [1.0] + [0.0] * 9
    assert table[3, 3] > table[3, 2] == table[3, 4] > table[3, 5] > 0
    assert table[3, 6] == 0


def test_batches_continue_where_they_stopped() -> None:
    whole = shuffled(23, 4, seed=5)
    first = [next(whole).tolist() for _ in range(12)]
    later = shuffled(23, 4, seed=5, start=7)
    assert [next(later).tolist() for _ in range(5)] == first[7:]
    assert len({row for batch in first[:5] for row in batch}) == 20


def test_the_rate_follows_a_cosine() -> None:
    assert cosine_rate(0, steps=100, warmup=10, peak=1.0) == pytest.approx(0.1)
    assert cosine_rate(10, steps=100, warmup=10, peak=1.0) == pytest.approx(1.0)
    assert cosine_rate(100, steps=100, warmup=10, peak=1.0) == pytest.approx(0.05)


def test_a_short_pretraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pretrain.TINY_SIZES, "qwen3-vl", SIZE)
    made = pretrain.build(
        "tiny-qwen3-vl", tmp_path / "vlm", scenes=1100, steps=3, processes=1, progress=False
    )
    card = json.loads((made / pretrain.CARD).read_text())
    assert card["recipe"]["steps"] == 3
    assert card["scores"]["loss"] > 0
    backbone = Backbone.from_pretrained(made, prompt="short", image_size=64)
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        found = backbone(backbone.encode([Observation(image=image, instruction="lift the red block")]))
    assert found.isfinite().all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vlm"]
    again = pretrain.build(
        "tiny-qwen3-vl", tmp_path / "vlm", scenes=1100, steps=3, processes=1, progress=False
    )
    assert again == made
    with pytest.raises(RunError, match="another recipe"):
        pretrain.build("tiny-qwen3-vl", tmp_path / "vlm", scenes=1100, steps=4, processes=1, progress=False)
    with pytest.raises(RecipeError, match="tiny-qwen3-vl"):
        pretrain.build("tiny-qwen9", tmp_path / "other", processes=1, progress=False)
    with pytest.raises(RecipeError, match="at least"):
        pretrain.build("tiny-qwen3-vl", tmp_path / "other", scenes=10, processes=1, progress=False)
    assert not (tmp_path / "other").exists()
