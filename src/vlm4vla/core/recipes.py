"""Recipes: what is trained on what, and how it is scored, as frozen values with a fingerprint.

Functions that return them live in `studies.presets`; whatever can change a result is a field here, whatever
cannot (worker count, folders, progress display) is not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from vlm4vla.core.errors import RecipeError, unknown_name

Recipe = TypeVar("Recipe")

HEADS = ("mlp", "flow", "tokens", "fast")
"""Names of action heads; `policies.registry` has one class for each."""


LEARNERS = ("vision", "projector", "word_embedding", "language", "query", "head")
"""What a policy is made of: the parts of its VLM, the query and the head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationRecipe:
    """Which demonstrations to train on."""

    source: str = "tabletop"
    """`tabletop` makes its own; other names are data sets on disk (`demonstrations.datasets`)."""
    path: tuple[str, ...] = ()
    """Where they lie: a folder or URL; several are trained on together, each as `FOLDER` or `SOURCE=FOLDER`."""
    weights: tuple[float, ...] = ()
    """Of several: the share of samples from each; none: every sample once an epoch."""
    camera: str = ""
    """Whose images are used; empty: the one that the source's facts name."""
    format: str = ""
    """Of the files; empty: the source's own."""
    transforms: tuple[str, ...] | None = None
    """What is done to every episode; None: what the source's facts say."""
    actions: str = ""
    """What the actions mean where the files do not say: the name of a source with the same convention."""
    episodes: int = 1600
    """How many to make or to read; 0 reads all."""
    tasks: tuple[str, ...] = ()
    """Empty: every task of the source."""
    looks: tuple[str, ...] = ("A", "B", "C")
    image_size: int = 64
    """Side of the square frames as stored, in pixels."""
    renderer: str = "ray"
    """Tabletop: `ray` needs no OpenGL and draws the same pixels everywhere, `opengl` is quicker for large frames."""
    held_out: float = 0.05
    """Share of the episodes whose loss is measured and never trained on."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRecipe:
    """A backbone, how it is prompted, and the head on it. Defaults are the paper's (3.2, A.2, Table 9)."""

    backbone: str
    """A registry name, a hub id or a folder."""
    weights: Literal["pretrained", "random"] = "pretrained"
    image_size: int = 224
    """Every image is first brought to this square size, then to the VLM's own (Paper 3.3)."""
    enlarge: bool = True
    """VLMs of any image size (Qwen): small images are enlarged as the released code does, 224 to 448 pixels, which
    costs 3 to 3.6 times the compute and adds no information; false keeps `image_size`, whatever bounds the
    checkpoint's own preprocessing has."""
    prompt: Literal["long", "short"] = "long"
    """Qwen's scheme 1 or 2 (Paper A.2.3); other families have one prompt."""
    horizon: int = 10
    """Actions per chunk."""
    head: str = "mlp"
    head_trunk: int | None = None
    """Width after the query feature; None: half the hidden size, as the reference does."""
    head_width: int = 1024
    """Width of the trunk's output and of the bodies' first layer."""
    head_body: tuple[int, ...] = (1024, 512, 256)
    expert_layers: int = 18
    """Of `flow`'s action expert, which reads the VLM layer by layer; sizes are pi0's."""
    expert_width: int = 1024
    """Even."""
    expert_mlp: int = 4096
    expert_heads: int = 8
    expert_head_width: int = 256
    fast_vocabulary: int = 1024
    """The most tokens that `fast` learns from the training chunks; it finds fewer in few."""
    normalization: tuple[str, ...] = ("quantiles",)
    """Steps from the demonstrations' pose to [-1, 1], in order: `quantiles` (1 and 99 %, of the training actions),
    `quantiles=NAME` (published ones) or `clip=LIMIT` (clip at +-LIMIT and scale)."""
    query_init: Literal["normal", "zeros"] = "normal"
    """The reference uses zeros, which lets the query dominate a clipped gradient."""
    freeze: tuple[Literal["vision", "projector", "word_embedding", "language", "released_vision"], ...] = ()
    """Parts that do not learn. `released_vision` is what the released code froze as vision: Hugging Face's whole vision
    tower, which contains the mergers of some VLMs and the projector of none (Paper Table 3)."""
    lora_rank: int = 0
    """0: no LoRA. Else `lora_parts` keep their weights, and matrices of this rank beside their linear layers learn."""
    lora_alpha: float | None = None
    """The matrices' product counts `lora_alpha / lora_rank` times. None: once, as in peft's and openpi's settings, and
    OpenVLA's up to rank 16."""
    lora_dropout: float = 0.0
    """Of what enters the matrices, in training."""
    lora_parts: tuple[Literal["vision", "projector", "language"], ...] = ("language",)
    """The other parts learn as a whole, unless `freeze` names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRecipe:
    """How a policy is trained. Defaults are the paper's CALVIN setting (A.2.1)."""

    steps: int = 30_000
    batch_size: int = 128
    """Global: over all processes and accumulated micro-batches."""
    micro_batch_size: int = 0
    """Samples per forward pass and process; 0: the whole share of a process at once."""
    learning_rate: float = 2e-5
    part_rates: tuple[str, ...] = ()
    """`PART=FACTOR` each: this part learns with so many times the learning rate. Parts are those of `LEARNERS`."""
    warmup_steps: int = 2058
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    """Of the whole gradient; 0: not clipped, as in the released code."""
    pose_weight: float = 1.0
    gripper_weight: float = 1.0
    """Paper Eq. 1: 1; the released code: 0.01."""
    huber_delta: float = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass instead of keeping them: a third more time, far less memory."""
    augmentation: Literal["none", "shift", "crop_and_color"] = "none"
    """Of the training images: CALVIN's random shift, or Bridge's and LIBERO's crop and colours, as released."""
    seed: int = 0
    log_every: int = 50
    validate_every: int = 500
    checkpoint_every: int = 500
    keep_every: int = 0
    """Checkpoints of every so many steps stay, to be scored later; 0: the last two only, which always stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecipe:
    """Questions and answers of one kind."""

    task: str
    """A name that `vlm4vla tune` knows, or `module:callable`, which gets folder and options and returns a source."""
    path: str = ""
    """The folder with its files, where it has some."""
    options: tuple[str, ...] = ()
    """`NAME=VALUE` each; what there is says the task."""
    demonstrations: DemonstrationRecipe | None = None
    """Of `actions`, instead of `path`: what is asked about, made or read as a policy's demonstrations are."""
    weight: float = 0.0
    """Share of the conversations drawn, among those of all tasks; 0 for all: every conversation once an epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRecipe:
    """How a VLM is tuned on questions before it becomes a policy (Paper 4.2, 4.4)."""

    backbone: str
    """A registry name, a hub id or a folder."""
    tasks: tuple[TaskRecipe, ...]
    weights: Literal["pretrained", "random"] = "pretrained"
    prompt: Literal["chat", "short"] = "chat"
    """`chat`: the VLM's own chat template, where it has one; `short`: the bare question (of Qwen: Paper A.2.3, 2)."""
    freeze: tuple[Literal["vision", "projector", "word_embedding", "language"], ...] = ()
    """Parts that do not learn. A vocabulary head that is tied to the words belongs to them."""
    lora_rank: int = 0
    """0: no LoRA. Else as in `PolicyRecipe`; the result has it merged in."""
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_parts: tuple[Literal["vision", "projector", "language"], ...] = ("language",)
    held_out: float = 0.05
    """Share of every task's conversations that are scored and never trained on."""
    generation_weight: float = 1.0
    """Of the diffusion loss beside the one on answers. This and what follows: where a task's answers are drawings."""
    generation_size: int = 32
    """Side of what is drawn, in pixels, a multiple of 4."""
    generation_width: int = 128
    """Of the branch, a multiple of 32; its parameters are the part `head` of `train.part_rates`."""
    generation_layers: int = 4
    generation_steps: int = 20
    """Of denoising, when it draws."""
    train: TrainRecipe = TrainRecipe(
        steps=2000, batch_size=64, learning_rate=1e-5, warmup_steps=60, schedule="cosine"
    )
    """The paper tells nothing of these numbers. Fields about actions must stay at their defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecipe:
    """Which episodes score a policy, and how many actions of each chunk are carried out."""

    benchmark: str = "tabletop"
    look: str = "D"
    tasks: tuple[str, ...] = ()
    episodes_per_task: int = 50
    execute: int = 10
    """How many of a chunk's actions are carried out before the next prediction."""
    image_size: int = 64
    """Side of the square frames that the benchmark renders; the same as the demonstrations'."""
    renderer: str = "ray"
    """Likewise."""
    seed: int = 10_000
    repeats: int = 1
    """How often every episode is played; more than once only for policies that draw noise."""
    shows: tuple[Literal["wrist_image", "state"], ...] = ()
    """What is observed beside the third-person picture, for policies that ask for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One row of a study: train once, evaluate in one or more ways."""

    name: str
    policy: PolicyRecipe
    demonstrations: DemonstrationRecipe
    train: TrainRecipe
    evaluations: tuple[EvaluationRecipe, ...]
    tuning: TuneRecipe | None = None
    """How the policy's VLM is tuned before; its backbone is the policy's."""


def rate_factors(recipe: TrainRecipe) -> dict[str, float]:
    """By part, 1 where nothing is said. Raises: RecipeError for what is no part or no positive number."""
    factors = dict.fromkeys(LEARNERS, 1.0)
    for text in recipe.part_rates:
        part, equals, number = text.partition("=")
        if part not in factors:
            raise RecipeError(f"train.part_rates: {unknown_name('part', part, LEARNERS)}")
        try:
            factors[part] = float(number)
        except ValueError:
            factors[part] = math.nan
        if not equals or not 0 < factors[part] < math.inf:
            raise RecipeError(
                f"train.part_rates {text!r}: write PART=FACTOR with a positive number; to keep a part as it is, set "
                "policy.freeze"
            )
    return factors


def normalization_step(text: str) -> tuple[str, str]:
    """`clip=0.65` as `("clip", "0.65")`. Raises: RecipeError for any other form than those of `normalization`."""
    name, equals, value = text.partition("=")
    known = (name == "quantiles" and bool(value) == bool(equals)) or name == "clip"
    if name == "clip":
        try:
            known = 0 < float(value) < math.inf
        except ValueError:
            known = False
    if not known:
        raise RecipeError(
            f"policy.normalization {text!r}: write quantiles, quantiles=NAME or clip=LIMIT with a positive number"
        )
    return name, value


def check_policy(recipe: PolicyRecipe) -> None:
    """Raises: RecipeError naming a field that no policy can be built with."""
    for name in ("image_size", "horizon", "head_trunk", "head_width", "head_body"):
        value = getattr(recipe, name)
        if value is not None and min(value if isinstance(value, tuple) else (value,), default=1) < 1:
            raise RecipeError(f"policy.{name} must be at least 1, not {value}")
    sizes = ("expert_layers", "expert_width", "expert_mlp", "expert_heads", "expert_head_width")
    for name in (*sizes, "fast_vocabulary"):
        if getattr(recipe, name) < 1:
            raise RecipeError(f"policy.{name} must be at least 1, not {getattr(recipe, name)}")
    if recipe.expert_width % 2:
        raise RecipeError(f"policy.expert_width must be even, not {recipe.expert_width}")
    for step in recipe.normalization:
        normalization_step(step)
    if recipe.head not in HEADS:
        raise unknown_name("head", recipe.head, HEADS)
    check_lora(recipe)


def check_lora(recipe: PolicyRecipe | TuneRecipe) -> None:
    """Raises: RecipeError for LoRA settings out of range or against `freeze`, and where peft is not installed."""
    where = "policy" if isinstance(recipe, PolicyRecipe) else "tune"
    rank, alpha, dropout = recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout
    if rank < 0:
        raise RecipeError(f"{where}.lora_rank must not be negative, but is {rank}; 0 means no LoRA")
    if alpha is not None and not 0 < alpha < math.inf:
        raise RecipeError(f"{where}.lora_alpha must be positive, not {alpha}")
    if not 0 <= dropout < 1:
        raise RecipeError(f"{where}.lora_dropout must be at least 0 and below 1, not {dropout}")
    if rank == 0:
        if alpha is not None or dropout:
            raise RecipeError(
                f"{where}.lora_alpha and {where}.lora_dropout do nothing without {where}.lora_rank; set it too"
            )
        return
    frozen = {*recipe.freeze, *(("vision", "projector") if "released_vision" in recipe.freeze else ())}
    both = [part for part in recipe.lora_parts if part in frozen]
    if both or not recipe.lora_parts:
        raise RecipeError(
            f"{where}.lora_parts: {', '.join(both) or 'no part'} {'is frozen' if both else 'is named'}, so that "
            f"nothing would learn there; change it or {where}.freeze (LoRA keeps a part's own weights by itself)"
        )
    if importlib.util.find_spec("peft") is None:
        raise RecipeError(f"{where}.lora_rank: LoRA needs the package peft; pip install 'vlm4vla[lora]'")


def check_tune(recipe: TuneRecipe, *, processes: int = 1) -> None:
    """Raises: RecipeError naming a field that nothing can be tuned with."""
    if not recipe.tasks:
        raise RecipeError("tune.tasks: name at least one task")
    weighted = [task.weight for task in recipe.tasks if task.weight]
    if weighted and (len(weighted) < len(recipe.tasks) or not all(0 < w < math.inf for w in weighted)):
        raise RecipeError("tune.tasks: give every task a positive weight, or none")
    for task in recipe.tasks:
        if task.demonstrations is not None and task.path:
            raise RecipeError(
                f"tune.tasks: {task.task} has both demonstrations and a folder ({task.path}); name one"
            )
    if not 0 <= recipe.held_out < 1:
        raise RecipeError(f"tune.held_out must be at least 0 and below 1, not {recipe.held_out}")
    learning = {"vision", "projector", "word_embedding", "language"} - set(recipe.freeze)
    if not learning:
        raise RecipeError("tune.freeze: every part is frozen, so that nothing would learn")
    default = TrainRecipe()
    for name in ("pose_weight", "gripper_weight", "huber_delta", "augmentation"):
        if getattr(recipe.train, name) != getattr(default, name):
            raise RecipeError(f"tune.train.{name}: answers have no such thing; leave it at its default")
    for text in recipe.train.part_rates:
        if text.partition("=")[0] == "query":
            raise RecipeError(f"tune.train.part_rates {text!r}: a VLM has no such part")
    for name, unit in (("size", 4), ("width", 32), ("layers", 1), ("steps", 1)):
        value = getattr(recipe, f"generation_{name}")
        if value < unit or value % unit:
            raise RecipeError(f"tune.generation_{name} must be a positive multiple of {unit}, not {value}")
    if not 0 < recipe.generation_weight < math.inf:
        raise RecipeError(f"tune.generation_weight must be positive, not {recipe.generation_weight}")
    check_lora(recipe)
    check_train(recipe.train, processes=processes)


def check_train(recipe: TrainRecipe, *, processes: int = 1) -> None:
    """Raises: RecipeError naming a field that no training can be run with."""
    positive = ["steps", "batch_size", "learning_rate", "huber_delta"]
    positive += ["log_every", "validate_every", "checkpoint_every"]
    for name in positive:
        if not 0 < getattr(recipe, name) < math.inf:
            raise RecipeError(f"train.{name} must be positive, not {getattr(recipe, name)}")
    for name in ("micro_batch_size", "warmup_steps", "weight_decay", "clip_norm", "keep_every", "seed"):
        if not 0 <= getattr(recipe, name) < math.inf:
            raise RecipeError(f"train.{name} must not be negative, but is {getattr(recipe, name)}")
    rate_factors(recipe)
    share_of(recipe.batch_size, processes)


def share_of(batch_size: int, processes: int) -> int:
    """Samples per process and step. Raises: RecipeError when they do not come out even."""
    if batch_size % processes:
        raise RecipeError(
            f"train.batch_size {batch_size} is not divisible by {processes} processes; change one of the two"
        )
    return batch_size // processes


def to_json(recipe: Any) -> dict[str, Any]:
    """A recipe as a JSON object (tuples become lists)."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(recipe))))


def from_json(kind: type[Recipe], data: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """The inverse of `to_json`, strict: unknown or missing fields and wrong types raise RecipeError naming them."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in data:
        if name not in names:
            raise RecipeError(f"{where}: {unknown_name('field', name, names)}")
    values = {name: _read(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise RecipeError(f"{where}: {error}") from error


def override(recipe: Recipe, settings: Mapping[str, str], *, where: str = "recipe") -> Recipe:
    """A copy with fields replaced from `name=value` strings as typed on a command line.

    Values are read as JSON where that works, else as text; `a,b` makes a tuple field.
    """
    data = to_json(recipe)
    hints = typing.get_type_hints(type(recipe))
    for name, text in settings.items():
        if name not in data:
            raise RecipeError(f"{where}: {unknown_name('field', name, data)}")
        data[name] = _parse(hints[name], text)
    return from_json(type(recipe), data, where=where)


def fingerprint(*recipes: Any) -> str:
    """Twelve hexadecimal digits that change with any field of any of the recipes or JSON values."""
    plain = [to_json(recipe) if dataclasses.is_dataclass(recipe) else recipe for recipe in recipes]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _parse(hint: Any, text: str) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType) and text not in ("null", "None"):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return [_parse(inner, part) for part in text.split(",") if part]
    if hint is str or typing.get_origin(hint) is Literal:
        return text
    try:
        return None if text == "None" else json.loads(text)
    except json.JSONDecodeError:
        return text


def _read(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_json(typing.cast(type[Any], hint), value, where=where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_read(typing.get_args(hint)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise RecipeError(
                f"{where}: {unknown_name('value', str(value), map(str, typing.get_args(hint)))}"
            )
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(hint):
            return None
        return _read(next(arg for arg in typing.get_args(hint) if arg is not type(None)), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise RecipeError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r}")
    return value
