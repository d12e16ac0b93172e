"""Actions as answers: what the words mean, who is held out, and both ways of writing them."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_questions
import tiny_trials
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from vlm4vla.core.errors import RecipeError
from vlm4vla.core.recipes import TaskRecipe
from vlm4vla.policies.action_tokens import FastTokenizer
from vlm4vla.tuning.actions import FOLDER, ActionQuestions
from vlm4vla.tuning.answering import AnsweringVLM
from vlm4vla.tuning.loop import TuneTask, finish, tune
from vlm4vla.tuning.mixture import open_source
from vlm4vla.tuning.scoring import score, value_of


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_trials.packed(tmp_path_factory.mktemp("packed") / "walks", 12).folder


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_trials.tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny")


def test_an_answer_says_the_chunk_that_follows(demonstrations: Path) -> None:
    source = ActionQuestions(demonstrations, horizon=5, vocabulary=200)
    steps = [len(source.source[i].actions) for i in range(len(source.source))]
    assert len(source) == sum(steps)
    talk = source[steps[0] + 1]
    demonstration = source.source[1]
    assert np.array_equal(talk.images[0], demonstration.images[1])
    (exchange,) = talk.exchanges
    assert demonstration.instruction in exchange.question and demonstration.id in talk.id
    chunk = source.read(exchange.answer)
    assert chunk is not None
    normal = source.normalization.normalize(demonstration.actions[1:6])
    normal[:, 6] = 2 * normal[:, 6] - 1
    assert np.abs(chunk - normal).max() < 0.25, "rounded frequencies are near to the actions"
    assert value_of(exchange, exchange.answer) == pytest.approx(
        np.abs(chunk.clip(-1, 1) - normal).mean() / 2, abs=1e-6
    )
    assert value_of(exchange, "nothing of the kind") is None
    again = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert (
        again.fingerprint == source.fingerprint
        and again[3].exchanges[0].answer == source[3].exchanges[0].answer
    )
    assert ActionQuestions(demonstrations, horizon=4).fingerprint != source.fingerprint


def test_demonstrations_are_held_out_whole(vlm: Path, demonstrations: Path) -> None:
    recipe = replace(
        tiny_questions.tuning(vlm, demonstrations),
        tasks=(TaskRecipe(task="actions", path=str(demonstrations)),),
    )
    task = TuneTask(recipe, [open_source(recipe.tasks[0])])
    (source,) = task.mixture.sources
    assert isinstance(source, ActionQuestions)
    sides = [{source.group(int(i)) for i in part.chosen[0]} for part in (task.train_on, task.held_out)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


@pytest.mark.parametrize("tokens", ["added", "tail"])
def test_action_words_are_learned_and_kept(
    tokens: str, vlm: Path, demonstrations: Path, tmp_path: Path
) -> None:
    """The vocabulary grows only where words are added; what they mean lies beside the VLM; the error falls."""
    task = TaskRecipe(
        task="actions", path=str(demonstrations), options=(f"tokens={tokens}", "horizon=3", "vocabulary=80")
    )
    recipe = replace(
        tiny_questions.tuning(
            vlm, demonstrations, steps=40, batch_size=8, learning_rate=5e-3, checkpoint_every=40
        ),
        tasks=(task,),
        prompt="short",
    )
    source = open_source(task)
    assert isinstance(source, ActionQuestions)
    result = finish(recipe, tune(recipe, tmp_path / "run", progress=False), tmp_path / "run", provenance={})
    before, after = (load_file(folder / "model.safetensors") for folder in (vlm, result))
    rows = [next(v for n, v in w.items() if "embed_tokens" in n).shape[0] for w in (before, after)]
    assert rows[1] - rows[0] == (len(source.words) if tokens == "added" else 0)
    assert (
        AutoModelForImageTextToText.from_pretrained(result).get_input_embeddings().num_embeddings == rows[1]
    )
    known = AutoTokenizer.from_pretrained(result).get_vocab()
    assert (source.words[0] in known) == (tokens == "added")
    kept = FastTokenizer.load(result / FOLDER)
    assert kept.widths() == source.tokenizer.widths()
    assert json.loads((result / FOLDER / "actions.json").read_text())["normalization"]
    held_out = TuneTask(recipe, [source]).held_out
    asked = [held_out[i] for i in held_out.spread(10)]
    tuned = score(AnsweringVLM.from_pretrained(result, prompt="short"), asked)
    plain = score(AnsweringVLM.from_pretrained(vlm, prompt="short"), asked)
    assert not any(answer.readable for answer in plain)
    assert all(answer.readable for answer in tuned)
    assert np.mean([answer.value for answer in tuned]) < 0.3


def test_mistakes_are_told(demonstrations: Path) -> None:
    with pytest.raises(RecipeError, match="name the folder"):
        ActionQuestions(None)
    with pytest.raises(RecipeError, match="did you mean 'tail'"):
        ActionQuestions(demonstrations, tokens="tial")
    with pytest.raises(RecipeError, match="at least 1"):
        ActionQuestions(demonstrations, every=0)
