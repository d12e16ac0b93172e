"""The pretraining of the tiny backbones: from random weights to knowing what things are called and where they are.

Two stages on the same pictures of random Tabletop scenes, never those of episodes or demonstrations:

1. dense grounding of vision tower and projector (`tuning.dense`);
2. conversations (`tuning.questions`) through the whole model, with dense grounding beside them.

The result is an ordinary Hugging Face folder in bf16, with `pretraining.json`: recipe, scores, software, time.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel

from vlm4vla import __version__
from vlm4vla.backbones import loading
from vlm4vla.backbones.backbone import Backbone
from vlm4vla.backbones.encoding import Encoder
from vlm4vla.backbones.tiny import TINY_SIZES, build_tiny
from vlm4vla.benchmarks.tabletop.scenes import SceneBatch, sample_scenes
from vlm4vla.benchmarks.tabletop.tasks import instructions
from vlm4vla.core.errors import BackboneError, RecipeError, RunError, unknown_name
from vlm4vla.core.recipes import fingerprint, to_json
from vlm4vla.tuning.dense import DenseGrounding
from vlm4vla.tuning.questions import AnswerTokens, SceneQuestions, example_texts
from vlm4vla.tuning.tune import Answers, ConversationEncoder, answer, cosine_rate, neighbour_targets, shuffled

CARD = "pretraining.json"
_STATE = "unfinished.safetensors"
_SAVE_SECONDS = 60.0
_HELD_OUT = 512
"""Scenes on which scores are measured and nothing is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainRecipe:
    """Whatever decides the weights."""

    family: str
    scenes: int = 60_000
    dense_steps: int = 3000
    dense_rate: float = 3e-3
    steps: int = 1600
    learning_rate: float = 2e-3
    stable: float = 0.6
    """Share of the steps after which the rate of the answers falls; 0: it falls along a cosine from the start."""
    batch_size: int = 32
    turns: int = 5
    """Questions per picture."""
    dense_weight: float = 0.5
    """Of dense grounding beside the answers' loss."""
    weight_decay: float = 0.01
    seed: int = 0


def build(
    name: str,
    folder: Path,
    *,
    scenes: int = 60_000,
    steps: int | None = None,
    seed: int = 0,
    processes: int = 2,
    progress: bool = True,
) -> Path:
    """Pretrain the tiny member of a family from random weights and return its folder.

    `name` is `tiny-qwen3-vl` or `qwen3-vl`; `steps` shortens both stages to as many; `processes` make pictures.
    An interrupted call goes on where it last saved, once a minute; a finished folder is left as it is.

    Raises: RecipeError for an unknown name or too few scenes; RunError when the folder holds something else.
    """
    family = name.removeprefix("tiny-")
    if family not in TINY_SIZES:
        raise unknown_name("tiny backbone", name, [f"tiny-{known}" for known in TINY_SIZES])
    if scenes < 2 * _HELD_OUT:
        raise RecipeError(f"pretraining needs at least {2 * _HELD_OUT} scenes, not {scenes}")
    recipe = PretrainRecipe(family=family, scenes=scenes, seed=seed, **_CHOSEN.get(f"tiny-{family}", {}))
    if steps is not None:
        recipe = dataclasses.replace(recipe, dense_steps=steps, steps=steps)
    if (folder / CARD).exists():
        made = json.loads((folder / CARD).read_text(encoding="utf-8"))
        if made["recipe"] != to_json(recipe):
            raise RunError(
                f"{folder}: holds a VLM of another recipe ({folder / CARD}); choose another folder"
            )
        return folder
    if folder.exists():
        raise RunError(f"{folder}: exists and is no finished pretraining; choose another folder")
    partial = folder.with_name(f".{folder.name}.{fingerprint(recipe)}.partial")
    if not (partial / "config.json").exists():
        shutil.rmtree(partial, ignore_errors=True)
        texts = [*example_texts(), *instructions()]
        begun = partial.with_suffix(".begun")
        shutil.rmtree(begun, ignore_errors=True)
        build_tiny(family, None, begun, texts=texts, seed=seed, extra_tokens=AnswerTokens().extra())
        begun.rename(partial)
    if progress:
        print(f"{name}: {scenes:,} pictures", flush=True)
    pictures = _pictures(scenes, TINY_SIZES[family].image_size, seed, processes)
    run = _Pretraining(recipe, partial, pictures, progress=progress)
    run.run()
    scores = run.scores()
    _save_with_head(run.vlm, partial)
    card = {
        "recipe": to_json(recipe),
        "scores": scores,
        "seconds": round(run.seconds),
        "vlm4vla": __version__,
    }
    card |= {"torch": torch.__version__.partition("+")[0]}
    (partial / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (partial / _STATE).unlink(missing_ok=True)
    partial.rename(folder)
    return folder


_CHOSEN: Mapping[str, Mapping[str, Any]] = {
    "tiny-qwen3-vl": {"steps": 5000},
    "tiny-kosmos-2": {"steps": 3000},
}
"""Where the recipe is another: the quickstart's two backbones were trained for longer."""


class _Pretraining:
    """Model, optimizer and where they are."""

    def __init__(self, recipe: PretrainRecipe, folder: Path, pictures: SceneBatch, *, progress: bool) -> None:
        self.recipe, self.folder, self.pictures = recipe, folder, pictures
        self.progress = progress
        self.seconds = 0.0
        backbone = Backbone.from_pretrained(
            folder, prompt="short", image_size=TINY_SIZES[recipe.family].image_size, seed=recipe.seed
        )
        encoder = backbone.encoder
        assert backbone.native is not None and isinstance(encoder, Encoder)  # tiny families have their facts
        self.native, tokenizer = backbone.native, encoder.tokenizer
        self.vlm = backbone.vlm
        self.dense = DenseGrounding(self.vlm, self.native, seed=recipe.seed)
        tokens = AnswerTokens()
        self.questions = SceneQuestions(tokens)
        self.encode = ConversationEncoder(encoder, end=tokenizer.eos_token_id)
        groups = [
            [int(tokenizer.convert_tokens_to_ids(token)) for token in group] for group in tokens.ordered()
        ]
        self.targets = neighbour_targets(len(tokenizer), groups)
        self.groups = {"place": groups[0], "offset": groups[1]}
        self.parameters = [*self.vlm.parameters(), *self.dense.parameters()]

    def run(self) -> None:
        """Both stages, from where they were interrupted."""
        recipe = self.recipe
        stages = (
            ("dense", recipe.dense_steps, recipe.dense_rate, 0.0),
            ("answers", recipe.steps, recipe.learning_rate, recipe.stable),
        )
        decay = recipe.weight_decay
        optimizers = [
            torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.98), weight_decay=decay, fused=True)
            for _, _, rate, _ in stages
        ]
        begun, done = self._restore(optimizers)
        for number in range(begun, len(stages)):
            self._stage(number, *stages[number], optimizers[number], done if number == begun else 0)

    def _stage(
        self,
        number: int,
        name: str,
        steps: int,
        rate: float,
        stable: float,
        optimizer: torch.optim.Optimizer,
        start: int,
    ) -> None:
        recipe = self.recipe
        train_on = recipe.scenes - _HELD_OUT
        self.vlm.train()
        mark = saved = told = time.monotonic()
        batches = shuffled(train_on, recipe.batch_size, seed=recipe.seed + number, start=start)
        for step, rows in zip(range(start, steps), batches, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = cosine_rate(
                    step, steps=steps, warmup=min(100, steps // 10), peak=rate, stable=stable
                )
            loss = self._dense_loss(rows) if name == "dense" else self._answer_loss(rows, step)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            now = time.monotonic()
            self.seconds += now - mark
            mark = now
            if self.progress and (now - told > 10 or step + 1 == steps):
                told = now
                print(f"{recipe.family} {name} {step + 1:5} of {steps}   loss {loss.item():.3f}", flush=True)
            if now - saved > _SAVE_SECONDS:
                saved = now
                self._save(number, step + 1, optimizer)

    def _dense_loss(self, rows: Int64[np.ndarray, " batch"]) -> Float[Tensor, ""]:
        features = self.dense.image_features(torch.from_numpy(self.pictures.images[rows]))
        loss: Tensor = self.dense(features, self.pictures, rows)
        return loss

    def _answer_loss(self, rows: Int64[np.ndarray, " batch"], step: int) -> Float[Tensor, ""]:
        given = self._answers(rows, np.random.default_rng([self.recipe.seed, 1, step]))
        dense = self.dense(given.image_states, self.pictures, rows)
        return given.loss(self.targets) + self.recipe.dense_weight * dense

    def _answers(self, rows: Int64[np.ndarray, " batch"], rng: np.random.Generator) -> Answers:
        turns = [self.questions.draw(self.pictures, int(row), self.recipe.turns, rng) for row in rows]
        return answer(self.vlm, self.native, self.encode(self.pictures.images[rows], turns))

    @torch.no_grad()
    def scores(self) -> dict[str, float]:
        """On scenes that were not trained on: loss, and mean absolute errors of places and distances in bins."""
        self.vlm.eval()
        rng = np.random.default_rng([self.recipe.seed, 2])
        every: dict[str, list[float]] = {}
        for rows in np.arange(self.recipe.scenes - _HELD_OUT, self.recipe.scenes).reshape(-1, 64):
            given = self._answers(rows, rng)
            every.setdefault("loss", []).append(given.loss(self.targets).item())
            right = (given.logits.argmax(-1) == given.targets).float()
            exact = torch.ones_like(right, dtype=torch.bool)
            for kind, ids in self.groups.items():
                asked = torch.isin(given.targets, torch.tensor(ids))
                exact &= ~asked
                shares = given.logits[asked][:, ids].softmax(-1)
                expected = shares @ torch.arange(len(ids), dtype=torch.float32)
                error = (expected - (given.targets[asked] - ids[0])).abs().mean()
                every.setdefault(f"{kind}_error", []).append(error.item())
            every.setdefault("other_tokens_right", []).append(right[exact].mean().item())
            dense = self.dense.tokens.errors(given.image_states, self.pictures, rows)
            for name, value in dataclasses.asdict(dense).items():
                every.setdefault(f"dense_{name}", []).append(value)
        return {name: round(float(np.mean(values)), 4) for name, values in every.items()}

    def _save(self, stage: int, step: int, optimizer: torch.optim.Optimizer) -> None:
        tensors = {f"parameter/{i}": parameter.detach() for i, parameter in enumerate(self.parameters)}
        for index, parameter in enumerate(self.parameters):
            moments = optimizer.state.get(parameter, {})
            tensors |= {f"{kind}/{index}": value for kind, value in moments.items()}
        facts = {"stage": stage, "step": step, "seconds": self.seconds}
        unfinished = self.folder / f".{_STATE}"
        save_file(tensors, unfinished, metadata={"facts": json.dumps(facts)})
        unfinished.replace(self.folder / _STATE)

    def _restore(self, optimizers: Sequence[torch.optim.Optimizer]) -> tuple[int, int]:
        """Go back to what was saved last, if anything was: stage and step from which to go on."""
        path = self.folder / _STATE
        if not path.exists():
            return 0, 0
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise RunError(f"{path}: damaged ({error}); delete {self.folder} and start again") from error
        for key, value in tensors.items():
            kind, index = key.split("/")
            parameter = self.parameters[int(index)]
            if kind == "parameter":
                with torch.no_grad():
                    parameter.copy_(value)
            else:
                optimizers[facts["stage"]].state[parameter][kind] = value
        self.seconds = facts["seconds"]
        return facts["stage"], facts["step"]


def _save_with_head(vlm: PreTrainedModel, folder: Path) -> None:
    """Write a base model's weights into the folder of the class with a language head, which is tied to its words."""
    with loading.quiet():
        whole = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.bfloat16, use_safetensors=True
        )
        state = vlm.state_dict()
        report = whole.base_model.load_state_dict(state, strict=False)
        if report.unexpected_keys or any("lm_head" not in name for name in report.missing_keys):
            raise BackboneError(f"{type(whole).__name__}: the base model's weights are other ones ({report})")
        whole.tie_weights()
        whole.save_pretrained(folder)


@functools.lru_cache(maxsize=1)
def _pictures(count: int, size: int, seed: int, processes: int) -> SceneBatch:
    """Kept for the next family."""
    batches = list(sample_scenes(count, seed=seed, image_size=size, processes=processes))
    columns = [field.name for field in dataclasses.fields(SceneBatch)]
    return SceneBatch(
        **{name: np.concatenate([getattr(batch, name) for batch in batches]) for name in columns}
    )
