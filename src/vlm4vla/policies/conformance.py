"""The conformance battery: does a VLM, taken as a backbone, do what a policy relies on?

Every check states what it measured and why it matters. Differences are relative to the largest component of the
features compared, so that the bounds mean the same for every VLM.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vlm4vla.backbones.backbone import Backbone
from vlm4vla.backbones.discover import PARTS
from vlm4vla.backbones.encoding import BackboneInputs, Encoder
from vlm4vla.backbones.loading import quiet
from vlm4vla.core.errors import BackboneError
from vlm4vla.core.recipes import PolicyRecipe
from vlm4vla.core.types import Observation
from vlm4vla.policies.registry import make_head

SAYINGS = ("lift the red block", "press the button", "push the blue block to the left")
SAME, DIFFERENT = 1e-4, 1e-6
"""Relative: what rounding may do, and the least that counts as a reaction."""
REAL_SIZE = 100_000_000
"""Parameters from which the share of new ones is judged."""
CELLS = 4
"""The image is changed in CELLS x CELLS places, one after the other."""
MOST_ROWS = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    passed: bool
    measured: str
    why: str
    """Why it matters."""


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    why: str
    run: Callable[[Backbone], tuple[bool, str]]


def examine(backbone: Backbone) -> Iterator[Finding]:
    """Run the battery, one finding after the other; the backbone is left as it was."""
    training = backbone.training
    backbone.eval()
    for check in CHECKS:
        try:
            passed, measured = check.run(backbone)
        except (
            BackboneError,
            RuntimeError,
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
        ) as error:
            passed, measured = False, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        backbone.zero_grad(set_to_none=True)
        yield Finding(check.name, passed, measured, check.why)
    backbone.train(training)


def _picture(backbone: Backbone, seed: int) -> np.ndarray:
    """A colourful picture of the standard size, coarse enough to survive resizing."""
    size = backbone.encoder.image_size
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    repeats = -(-size // 8)
    return np.ascontiguousarray(coarse.repeat(repeats, 0).repeat(repeats, 1)[:size, :size])


def _seen(backbone: Backbone, image: int = 0, saying: int = 0) -> Observation:
    return Observation(image=_picture(backbone, image), instruction=SAYINGS[saying])


@torch.no_grad()
def _features(backbone: Backbone, inputs: BackboneInputs) -> Float[Tensor, "batch hidden"]:
    return backbone(inputs.to(backbone.query.device))[:, 0].float()


def _of(backbone: Backbone, *seen: Observation, length: int | None = None) -> Float[Tensor, "batch hidden"]:
    return _features(backbone, backbone.encode(seen, length=length))


def _apart(a: Tensor, b: Tensor) -> float:
    """Largest difference of each row of `b` from `a`, relative; of these the smallest."""
    scale = max(a.abs().max().item(), b.abs().max().item(), 1e-30)
    return ((a - b).abs().amax(-1).min() / scale).item()


def _furthest(a: Tensor, b: Tensor) -> float:
    scale = max(a.abs().max().item(), b.abs().max().item(), 1e-30)
    return ((a - b).abs().max() / scale).item()


def _shape(backbone: Backbone) -> tuple[bool, str]:
    found = _of(backbone, _seen(backbone), _seen(backbone, 1, 1))
    right = found.shape == (2, backbone.hidden_size) and bool(found.isfinite().all())
    return right, f"{tuple(found.shape)}, {'finite' if found.isfinite().all() else 'NOT finite'}"


def _whole_image(backbone: Backbone) -> tuple[bool, str]:
    original, side = _picture(backbone, 0), backbone.encoder.image_size
    cells = []
    for row in range(CELLS):
        for column in range(CELLS):
            image = original.copy()
            place = np.s_[
                row * side // CELLS : (row + 1) * side // CELLS,
                column * side // CELLS : (column + 1) * side // CELLS,
            ]
            image[place] = 255 - image[place]
            cells.append(Observation(image=image, instruction=SAYINGS[0]))
    before = _of(backbone, _seen(backbone))
    changed = torch.cat([_of(backbone, *cells[i : i + MOST_ROWS]) for i in range(0, len(cells), MOST_ROWS)])
    reached = [_apart(before, row[None]) > DIFFERENT for row in changed]
    return all(reached), f"{sum(reached)} of {len(reached)} places"


def _text_places(backbone: Backbone, ids: Int64[Tensor, " length"]) -> list[int]:
    """Places of the instruction: where the ids of two instructions of one length would differ, found by exclusion."""
    other = torch.from_numpy(backbone.encoder.tokens(SAYINGS[1]))
    shorter = min(len(ids), len(other))
    first = next((i for i in range(shorter) if ids[i] != other[i]), 0)
    behind = next((i for i in range(1, shorter) if ids[-i] != other[-i]), 1)
    return list(range(first, max(first + 1, len(ids) - behind + 1)))


def _whole_text(backbone: Backbone) -> tuple[bool, str]:
    inputs = backbone.encode([_seen(backbone)])
    places = _text_places(backbone, inputs.input_ids[0])
    other = int(
        backbone.encoder.tokens(SAYINGS[2])[
            _text_places(backbone, torch.from_numpy(backbone.encoder.tokens(SAYINGS[2])))[0]
        ]
    )
    before, reached = _features(backbone, inputs), []
    for place in places:
        ids = inputs.input_ids.clone()
        ids[0, place] = other if ids[0, place] != other else ids[0, places[0]] + 1
        reached.append(_apart(before, _features(backbone, replace(inputs, input_ids=ids))) > DIFFERENT)
    return all(reached), f"{sum(reached)} of {len(reached)} tokens of the instruction"


def _seen_by_none(backbone: Backbone) -> tuple[bool, str]:
    inputs = backbone.encode([_seen(backbone)])
    with torch.no_grad():
        before = backbone.states(inputs.to(backbone.query.device))
        kept = backbone.query.clone()
        backbone.query.add_(backbone.query.std() + 1.0)
        after = backbone.states(inputs.to(backbone.query.device))
        backbone.query.copy_(kept)
    place = int(backbone.query_places(inputs, before)[0])
    moved = _furthest(before[:, :place], after[:, :place]) if place else 0.0
    return moved <= SAME, f"others move by {moved:.1e} when the query changes"


def _query_learns(backbone: Backbone) -> tuple[bool, str]:
    inputs = backbone.encode([_seen(backbone), _seen(backbone, 1, 1)])
    backbone(inputs.to(backbone.query.device)).float().square().sum().backward()
    gradient = 0.0 if backbone.query.grad is None else backbone.query.grad.norm().item()
    words = backbone.vlm.get_input_embeddings().weight.grad
    row = 0.0 if words is None else words[backbone.encoder.query_id].abs().max().item()
    return gradient > 0 and row == 0, f"gradient {gradient:.1e}; of the vocabulary row {row:.1e}"


def _alone(backbone: Backbone) -> tuple[bool, str]:
    seen = [_seen(backbone, 3, 2), _seen(backbone), _seen(backbone, 2, 1)]
    length = max(len(backbone.encoder.tokens(o.instruction)) for o in seen) + 5
    together = _of(backbone, *seen, length=length)
    apart = torch.cat([_of(backbone, one) for one in seen])
    turned = _of(backbone, *reversed(seen), length=length).flip(0)
    worst = max(_furthest(together, apart), _furthest(together, turned))
    return worst <= SAME, f"difference {worst:.1e}"


def _image_matters(backbone: Backbone) -> tuple[bool, str]:
    found = _apart(_of(backbone, _seen(backbone)), _of(backbone, _seen(backbone, 1)))
    return found > DIFFERENT, f"another image moves the feature by {found:.1e}"


def _words_matter(backbone: Backbone) -> tuple[bool, str]:
    found = _apart(_of(backbone, _seen(backbone)), _of(backbone, _seen(backbone, 0, 1)))
    return found > DIFFERENT, f"another instruction moves the feature by {found:.1e}"


def _partition(backbone: Backbone) -> tuple[bool, str]:
    sizes = {name: sum(p.numel() for p in backbone.part(name)) for name in PARTS}
    ids = [id(p) for name in PARTS for p in backbone.part(name)]
    whole = {id(p) for p in backbone.parameters()} - {id(backbone.query)}
    text = ", ".join(f"{name} {size / 1e6:.3g} M" for name, size in sizes.items())
    return len(ids) == len(set(ids)) and set(ids) == whole, text


def _frozen(backbone: Backbone) -> tuple[bool, str]:
    inputs, wrong = backbone.encode([_seen(backbone)]).to(backbone.query.device), []
    for name in PARTS:
        part = backbone.part(name)
        needed = [p.requires_grad for p in part]
        for parameter in part:
            parameter.requires_grad_(False)
        backbone.zero_grad(set_to_none=True)
        backbone(inputs).float().square().sum().backward()
        if any(p.grad is not None for p in part) or backbone.query.grad is None:
            wrong.append(name)
        for parameter, was in zip(part, needed, strict=True):
            parameter.requires_grad_(was)
    return not wrong, f"wrong: {', '.join(wrong)}" if wrong else "each part in turn"


def _new_parameters(backbone: Backbone) -> tuple[bool, str]:
    with torch.device("meta"):
        head = make_head(PolicyRecipe(backbone=""), hidden_size=backbone.hidden_size, seed=0)
    new = sum(p.numel() for p in head.parameters()) + backbone.query.numel()
    old = sum(p.numel() for p in backbone.vlm.parameters())
    judged = "" if old >= REAL_SIZE else "; not judged at this size"
    return (
        new / old < 0.01 or old < REAL_SIZE,
        f"{new / 1e6:.2f} M of {old / 1e6:,.1f} M, {new / old:.2%}{judged}",
    )


def _prompt(backbone: Backbone) -> tuple[bool, str]:
    encoder = backbone.encoder
    ids = encoder.tokens(SAYINGS[0]).tolist()
    decoded = encoder.tokenizer.decode(ids)
    if not isinstance(encoder, Encoder):
        return SAYINGS[0] in decoded, "the instruction stands in it"
    text = encoder.tokenizer.decode(ids[: encoder.image_start]) + "{image}"
    text += encoder.tokenizer.decode(ids[encoder.image_start + encoder.image_tokens : -1])
    return text == encoder.prompt.format(image="{image}", instruction=SAYINGS[0]), repr(text)


def _saved(backbone: Backbone) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory(prefix="vlm4vla-") as folder:
        backbone.save(Path(folder) / "saved")
        again = backbone.like_this(Path(folder) / "saved")
    again.query.data.copy_(backbone.query)
    difference = _furthest(_of(backbone, _seen(backbone)), _of(again.eval(), _seen(backbone)))
    return difference == 0, f"difference {difference:.1e}"


def _attention(backbone: Backbone) -> tuple[bool, str]:
    vlm = backbone.vlm
    used = vlm.config._attn_implementation
    if not vlm._supports_sdpa or backbone.family.attention == "eager":
        return True, "eager only"
    before = _of(backbone, _seen(backbone), _seen(backbone, 1, 1))
    with quiet():
        vlm.set_attn_implementation("eager" if used != "eager" else "sdpa")
    after = _of(backbone, _seen(backbone), _seen(backbone, 1, 1))
    with quiet():
        vlm.set_attn_implementation(used)
    difference = _furthest(before, after)
    return difference <= 10 * SAME, f"difference {difference:.1e}"


CHECKS: Sequence[_Check] = (
    _Check("output", "the head takes one finite vector per observation", _shape),
    _Check("image matters", "else the policy is blind", _image_matters),
    _Check("instruction matters", "else the policy is deaf", _words_matter),
    _Check("whole image", "a part of the scene that does not arrive cannot be acted on", _whole_image),
    _Check("whole instruction", "a word that does not arrive cannot be obeyed", _whole_text),
    _Check("query seen by none", "else the VLM's own features change with training", _seen_by_none),
    _Check("query learns", "the query is a parameter of its own, no row of the vocabulary", _query_learns),
    _Check("alone or in a batch", "else results depend on batch size, padding and order", _alone),
    _Check("parts", "freezing and learning rates are given per part", _partition),
    _Check("frozen parts", "a frozen part must not move, and the query must learn all the same", _frozen),
    _Check(
        "new parameters",
        "under 1 %, so that the VLM is compared and not the head (Paper 3.2)",
        _new_parameters,
    ),
    _Check("prompt", "the tokenizer must read the prompt as it is written (Paper A.2.3)", _prompt),
    _Check("saved and loaded", "a checkpoint must be the policy that was trained", _saved),
    _Check("eager = SDPA", "else results depend on the attention backend", _attention),
)
