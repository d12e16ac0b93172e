"""Tuning a VLM on answers: what is asked, what learns, what stays, and that nothing is lost on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_questions
import tiny_trials
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForImageTextToText

from vlm4vla.backbones.tiny import build_tiny
from vlm4vla.core.errors import BackboneError, DataError, RecipeError, RunError
from vlm4vla.core.normalization import ClipScale, Normalization
from vlm4vla.core.recipes import TaskRecipe, TuneRecipe, check_tune
from vlm4vla.policies.vla import VLA
from vlm4vla.training.distributed import join
from vlm4vla.tuning.answering import AnsweringVLM
from vlm4vla.tuning.collate import collate
from vlm4vla.tuning.examples import Conversation, Exchange
from vlm4vla.tuning.loop import TuneTask, finish, tune
from vlm4vla.tuning.mixture import open_source
from vlm4vla.tuning.scoring import score

PICTURE = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
TALKS = (
    Conversation(
        "a", (PICTURE,), (Exchange("<image>\nwhere is it", "(0.25, 0.50)"), Exchange("is it bright", "yes"))
    ),
    Conversation("b", (PICTURE,), (Exchange("<image>\nwhere", "over at the spot"),)),
)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm") / "tiny"
    return build_tiny("qwen3-vl", tiny_trials.SIZE, folder, texts=tiny_questions.TEXTS, seed=0)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_questions.write(tmp_path_factory.mktemp("questions") / "colours")


def quiet(recipe: TuneRecipe, folder: Path, **more: Any) -> Path:
    return tune(recipe, folder, progress=False, **more)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma's processor
@pytest.mark.parametrize("family", ["qwen3-vl", "paligemma-2", "kosmos-2", "smolvlm"])
def test_the_loss_is_the_one_transformers_computes_for_labels(family: str, tmp_path: Path) -> None:
    folder = build_tiny(family, tiny_trials.SIZE, tmp_path / "vlm", texts=tiny_trials.SAYINGS, seed=0)
    for prompt in ("chat", "short"):
        model = AnsweringVLM.from_pretrained(folder, prompt=prompt).eval()
        rows = [row for talk in TALKS for row in model.encoder(talk)]
        asked_for = []
        for batch in collate(rows, pad_id=model.encoder.pad_id):
            asked = batch.targets >= 0
            ours = functional.cross_entropy(model(batch), batch.targets[asked])
            labels = torch.full_like(batch.targets, -100)
            labels[:, 1:] = torch.where(asked, batch.targets, -100)[:, :-1]
            assert torch.allclose(ours, model.vlm(**batch.arguments, labels=labels).loss, atol=1e-5)
            for row, wanted in zip(batch.targets, asked, strict=True):
                asked_for.append(model.encoder.tokenizer.decode(row[wanted]))
        answers = " ".join(asked_for)
        assert all(exchange.answer in answers for talk in TALKS for exchange in talk.exchanges), answers


@pytest.mark.parametrize("family", ["qwen2.5-vl", "smolvlm", "internvl"])
def test_several_images_and_questions_make_the_prompt_of_the_processor(family: str, tmp_path: Path) -> None:
    """As if the whole conversation were given to it at once."""
    folder = build_tiny(family, tiny_trials.SIZE, tmp_path / "vlm", texts=tiny_trials.SAYINGS, seed=0)
    encoder = AnsweringVLM.from_pretrained(folder).encoder
    other = PICTURE[::-1].copy()
    asked = (
        Exchange("<image>\nthen <image>\nwhat moved", "the light"),
        Exchange("and in <image>", "the spot"),
    )
    ((row, targets),) = encoder(Conversation("two", (PICTURE, other, PICTURE), asked))
    image: dict[str, Any] = {"type": "image"}
    messages = []
    for content, answer in (
        (
            [image, {"type": "text", "text": "then"}, image, {"type": "text", "text": "what moved"}],
            "the light",
        ),
        ([{"type": "text", "text": "and in"}, image], "the spot"),
    ):
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    template = encoder.processor.chat_template
    text = encoder.tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    whole = encoder.processor(text=[text], images=[[PICTURE, other, PICTURE]], return_tensors="pt")
    length = row["input_ids"].shape[1]
    assert 0 <= whole["input_ids"].shape[1] - length <= 1, "but for a line's end behind the last answer"
    assert torch.equal(row["input_ids"], whole["input_ids"][:, :length])
    assert torch.equal(row["pixel_values"], whole["pixel_values"])
    said = encoder.tokenizer.decode(targets[targets >= 0])
    assert "the light" in said and "the spot" in said and "moved" not in said


def test_an_answer_depends_on_no_other(vlm: Path) -> None:
    model = AnsweringVLM.from_pretrained(vlm).eval()
    rows = [row for talk in TALKS for row in model.encoder.questions(talk)]
    alone = [model.answer([row], most_tokens=6) for row in rows]
    assert [model.answer([row, row], most_tokens=6) for row in rows] == [2 * said for said in alone]


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_stopped_tuning_goes_on_bit_for_bit(
    lora_rank: int, vlm: Path, questions: Path, tmp_path: Path
) -> None:
    recipe = tiny_questions.tuning(
        vlm, questions, fields={"lora_rank": lora_rank, "lora_dropout": 0.1 if lora_rank else 0.0}
    )
    whole = quiet(recipe, tmp_path / "whole")
    quiet(recipe, tmp_path / "parts", stop_after=4)
    parts = quiet(recipe, tmp_path / "parts")
    for checkpoint in ("model.safetensors", "training_state/optimizer.safetensors"):
        assert (whole / checkpoint).read_bytes() == (parts / checkpoint).read_bytes()
    losses = [tiny_trials.metrics(tmp_path / name, "step", "loss", "right") for name in ("whole", "parts")]
    assert losses[0] == losses[1] and len(losses[0]) == 8


def test_the_loss_depends_neither_on_micro_batches_nor_on_what_is_computed_again(
    vlm: Path, questions: Path, tmp_path: Path
) -> None:
    losses = []
    for size in (0, 1):
        again = {"micro_batch_size": size, "checkpoint_activations": size > 0}
        recipe = tiny_questions.tuning(vlm, questions, steps=4, **again)
        quiet(recipe, tmp_path / str(size))
        losses.append(np.array(tiny_trials.metrics(tmp_path / str(size), "loss", "gradient_norm")))
    assert np.allclose(*losses, rtol=1e-4)


def test_frozen_vision_keeps_every_bit_and_the_rest_learns(
    vlm: Path, questions: Path, tmp_path: Path
) -> None:
    recipe = tiny_questions.tuning(vlm, questions, fields={"freeze": ("vision",)})
    result = finish(recipe, quiet(recipe, tmp_path / "run"), tmp_path / "run", provenance={})
    before, after = (load_file(folder / "model.safetensors") for folder in (vlm, result))
    model = AnsweringVLM.from_pretrained(vlm)
    names = {id(parameter): name for name, parameter in model.vlm.named_parameters()}
    vision = {names[id(parameter)] for parameter in model.learners()["vision"]}
    assert len(vision) > 10 and vision <= set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in vision)
    learned = [name for name in before if name not in vision]
    assert all(not torch.equal(before[name], after[name]) for name in learned)


@pytest.mark.parametrize("lora_rank", [0, 8])
def test_it_learns_and_the_result_is_a_vlm_as_any_other(
    lora_rank: int, vlm: Path, questions: Path, tmp_path: Path
) -> None:
    """Held-out colours are told apart after 80 steps; transformers loads the folder, and a policy starts from it."""
    fields = {"prompt": "short", "lora_rank": lora_rank}
    if lora_rank:
        fields["lora_parts"] = ("vision", "projector", "language")
    recipe = tiny_questions.tuning(
        vlm, questions, fields=fields, steps=80, batch_size=8, learning_rate=5e-3, checkpoint_every=80
    )
    task = TuneTask(recipe, [open_source(part) for part in recipe.tasks])
    held_out = [
        replace(talk, exchanges=tuple(replace(e, measure="exact") for e in talk.exchanges))
        for talk in map(task.held_out.__getitem__, range(len(task.held_out)))
    ]
    result = finish(recipe, quiet(recipe, tmp_path / "run"), tmp_path / "run", provenance={"by": "test"})
    share = []
    for folder in (vlm, result):
        answers = score(AnsweringVLM.from_pretrained(folder, prompt="short"), held_out)
        share.append(np.mean([answer.value for answer in answers]))
    assert share[0] == 0 and share[1] >= 0.8
    assert json.loads((result / "tuning.json").read_text())["by"] == "test"
    plain = AutoModelForImageTextToText.from_pretrained(result)
    mine = AnsweringVLM.from_pretrained(result, prompt="short").eval()
    (batch,) = collate(mine.encoder(TALKS[1]), pad_id=0)
    logits = plain.eval()(**batch.arguments).logits[batch.targets >= 0]
    assert torch.allclose(logits, mine(batch), atol=1e-5)
    policy = replace(tiny_trials.trial(result).policy, backbone=str(result))
    acting = VLA.from_recipe(
        policy, action_spec=tiny_trials.SPEC, normalization=Normalization((ClipScale(1.0),)), seed=0
    )
    table = plain.get_input_embeddings().weight
    assert torch.equal(acting.backbone.vlm.get_input_embeddings().weight, table)


def _marks(rows: list[dict[str, Any]], folder: Path) -> None:
    rows[7]["conversations"][0]["value"] = "<image> and <image>\nwhat colour"


def _empty(rows: list[dict[str, Any]], folder: Path) -> None:
    rows[7]["conversations"][1]["value"] = " "


def _missing(rows: list[dict[str, Any]], folder: Path) -> None:
    (folder / "7.png").unlink()


def _cut(rows: list[dict[str, Any]], folder: Path) -> None:
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:200])


@pytest.mark.parametrize(
    "spoil, said",
    [
        (_marks, "2 image marks, but 1 image"),
        (_empty, "answer 0 is empty"),
        (_missing, "7.png"),
        (_cut, "image"),
    ],
)
def test_a_faulty_row_is_named_before_anything_is_trained(
    spoil: Callable[[list[dict[str, Any]], Path], None], said: str, vlm: Path, tmp_path: Path
) -> None:
    folder = tiny_questions.write(tmp_path / "colours", 12)
    rows = json.loads((folder / "questions.json").read_text())
    spoil(rows, folder)
    (folder / "questions.json").write_text(json.dumps(rows))
    recipe = replace(tiny_questions.tuning(vlm, folder), held_out=0.0)
    with pytest.raises(DataError, match=said) as error:
        quiet(recipe, tmp_path / "run")
    assert "questions.json" in str(error.value) and "row 7" in str(error.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_token_outside_the_vocabulary_is_named(vlm: Path) -> None:
    model = AnsweringVLM.from_pretrained(vlm)
    model.encoder.rows = 300
    with pytest.raises(DataError, match=r"b: token \d+ .* outside the VLM's vocabulary of 300"):
        model.encoder(replace(TALKS[1], exchanges=(Exchange("<image>\nwhat colour is it", "white"),)))


def test_a_vlm_without_a_vocabulary_head_is_refused(tmp_path: Path) -> None:
    folder = build_tiny("prismatic", tiny_trials.SIZE, tmp_path / "vlm", texts=tiny_trials.SAYINGS, seed=0)
    with pytest.raises(BackboneError, match="no class of prismatic with a vocabulary head"):
        AnsweringVLM.from_pretrained(folder)


def test_a_damaged_checkpoint_is_named(vlm: Path, questions: Path, tmp_path: Path) -> None:
    recipe = tiny_questions.tuning(vlm, questions)
    checkpoint = quiet(recipe, tmp_path / "run", stop_after=4)
    (checkpoint / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(RunError, match="step-000004"):
        quiet(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"tasks": ()}, "at least one task"),
        ({"freeze": ("vision", "projector", "word_embedding", "language")}, "every part is frozen"),
        ({"held_out": 1.0}, "held_out"),
        ({"lora_rank": 4, "freeze": ("language",)}, "tune.lora_parts: language is frozen"),
    ],
)
def test_recipes_that_tune_nothing_are_refused(fields: dict[str, Any], said: str) -> None:
    recipe = TuneRecipe(backbone="tiny-qwen3-vl", tasks=(TaskRecipe(task="llava"),))
    with pytest.raises(RecipeError, match=said):
        check_tune(replace(recipe, **fields))


def test_weights_decide_how_often_a_task_is_drawn(vlm: Path, questions: Path) -> None:
    base = tiny_questions.tuning(vlm, questions)
    tasks = tuple(replace(base.tasks[0], weight=weight) for weight in (3.0, 1.0))
    recipe = replace(base, tasks=tasks)
    task = TuneTask(recipe, [open_source(part) for part in tasks])
    with join("cpu") as processes:
        batches, _ = task.batches(task.begin(), processes)
    drawn = np.concatenate([batches._order.batch(step=step, batch_size=4)[1] for step in range(500)])
    assert abs((drawn < task.train_on.counts[0]).mean() - 0.75) < 0.01
