"""A backbone that acts: VLM + query token + action head, saved as one self-contained folder.

policy.json          recipe, action convention, normalisation, provenance, digests of all other files
policy.safetensors   query, head and LoRA's adapters
head/                what a head learned beside its parameters (FAST's tokenizer)
backbone/            an ordinary Hugging Face checkpoint of the (fine-tuned) VLM, with tokenizer and processor files;
                     with LoRA its own weights, which the adapters stand beside
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlm4vla.backbones import lora
from vlm4vla.backbones.backbone import Backbone
from vlm4vla.backbones.discover import PARTS
from vlm4vla.backbones.encoding import BackboneInputs
from vlm4vla.backbones.images import resize
from vlm4vla.core import recipes
from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import BackboneError, DataError, RecipeError, RunError
from vlm4vla.core.normalization import Normalization
from vlm4vla.core.recipes import PolicyRecipe
from vlm4vla.core.types import Observation
from vlm4vla.policies.heads import ActionHead, Features, LossWeights
from vlm4vla.policies.learner import Learner
from vlm4vla.policies.registry import make_head

FORMAT = 1
_MANIFEST = "policy.json"
_WEIGHTS = "policy.safetensors"
_BACKBONE = "backbone"
_VLM = "backbone.vlm."
_HEAD = "head"


class VLA(Learner):
    """A policy: observations to normalised action chunks."""

    def __init__(
        self,
        backbone: Backbone,
        head: ActionHead,
        *,
        recipe: PolicyRecipe,
        action_spec: ActionSpec,
        normalization: Normalization,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.recipe = recipe
        self.action_spec = action_spec
        self.normalization = normalization
        self.provenance = dict(provenance or {})
        for part in recipe.freeze:
            for parameter in backbone.part(part):
                parameter.requires_grad_(False)

    @classmethod
    def from_recipe(
        cls, recipe: PolicyRecipe, *, action_spec: ActionSpec, normalization: Normalization, seed: int
    ) -> VLA:
        """An untrained policy on the recipe's VLM; query, head, adapters and random weights are drawn from `seed`.

        Raises: RecipeError, BackboneError.
        """
        backbone = Backbone.from_pretrained(
            recipe.backbone,
            weights=recipe.weights,
            prompt=recipe.prompt,
            image_size=recipe.image_size,
            enlarge=recipe.enlarge,
            query_init=recipe.query_init,
            seed=seed,
        )
        if recipe.lora_rank:
            lora.add_adapters(backbone.vlm, backbone.family, recipe, seed=seed)
        head = make_head(recipe, hidden_size=backbone.hidden_size, seed=seed)
        return cls(backbone, head, recipe=recipe, action_spec=action_spec, normalization=normalization)

    @property
    def horizon(self) -> int:
        """Actions per chunk."""
        return self.head.horizon

    def learners(self) -> Mapping[str, list[nn.Parameter]]:
        """All parameters by what they belong to: the VLM's parts, the query, the head."""
        parts = {str(name): self.backbone.part(name) for name in PARTS}
        return {**parts, "query": [self.backbone.query], "head": list(self.head.parameters())}

    def new_parameter_share(self) -> float:
        """Query, head and LoRA's adapters over the VLM's own parameters, frozen ones included."""
        sizes = {name: parameter.numel() for name, parameter in self.named_parameters()}
        new = sum(size for name, size in sizes.items() if _is_own(name))
        return new / (sum(sizes.values()) - new)

    def encode(self, observations: Sequence[Observation], *, length: int | None = None) -> BackboneInputs:
        """A batch on the CPU, the same for training and rollout."""
        return self.backbone.encode(observations, length=length)

    def forward(
        self,
        inputs: BackboneInputs,
        target: Float[Tensor, "batch horizon 7"],
        valid: Bool[Tensor, "batch horizon"],
        weights: LossWeights | None = None,
        count: Tensor | float | None = None,
    ) -> Mapping[str, Tensor]:
        """The losses `loss` (differentiable), `pose` and `gripper` on normalised targets.

        `count`: valid steps of the whole batch when this is one of its micro-batches; their losses then add up.
        """
        features = self._features(inputs)
        return self.head.loss(features, target, valid, weights=weights or LossWeights(), count=count)

    def predict(
        self, inputs: BackboneInputs, repeats: Sequence[int] = ()
    ) -> Float[Tensor, "batch horizon 7"]:
        """Normalised pose and gripper probability. `repeats`: by row, which play of its episode it is, from 0."""
        return self.head.predict(self._features(inputs, repeats))

    def _features(self, inputs: BackboneInputs, repeats: Sequence[int] = ()) -> Features:
        if self.head.needs == "query":
            return Features(query=self.backbone(inputs))
        if self.head.needs == "follow":
            return Features(
                follow=lambda embeddings: self.backbone.follow(inputs, embeddings),
                read_on=None if self.training else self.backbone.continuation(inputs),
            )
        states = self.backbone.layers(inputs)
        places = torch.arange(states[-1].shape[1], device=states[-1].device)
        return Features(
            layers=states,
            valid=places < inputs.lengths[:, None],
            seeds=() if self.training else _seeds(inputs, self.recipe.image_size, repeats),
        )

    def save(
        self,
        folder: Path,
        *,
        provenance: Mapping[str, Any] | None = None,
        state: Mapping[str, Tensor] | None = None,
        merge: bool = False,
    ) -> None:
        """Write the policy folder, whole or not at all; a folder of that name is replaced.

        `state`: a full state dict of this module to write instead of its own (sharded) parameters. `merge`: add LoRA's
        adapters to the VLM's weights, for a policy without LoRA that acts alike, to rounding.
        """
        assert not (merge and state)
        recipe = self.recipe
        state = self.state_dict() if state is None else state
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        vlm = {key.removeprefix(_VLM): value for key, value in state.items() if key.startswith(_VLM)}
        self.backbone.save(partial / _BACKBONE, state=None if merge else lora.own_weights(vlm))
        own = {key: value.contiguous() for key, value in state.items() if _is_own(key)}
        if merge:
            recipe = dataclasses.replace(recipe, lora_rank=0, lora_alpha=None, lora_dropout=0.0)
            own = {key: value for key, value in own.items() if not lora.is_adapter(key)}
        save_file(own, partial / _WEIGHTS)
        self.head.save(partial / _HEAD)
        manifest = {
            "format": FORMAT,
            "family": self.backbone.family.name,
            "recipe": recipes.to_json(recipe),
            "action_spec": self.action_spec.to_json(),
            "normalization": self.normalization.to_json(),
            "new_parameter_share": self.new_parameter_share(),
            "provenance": {**self.provenance, **(provenance or {})},
            "sha256": _digests(partial),
        }
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        replaced = folder.with_name(f".{folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)

    @classmethod
    def from_pretrained(cls, folder: Path) -> VLA:
        """Load a policy folder, in evaluation mode.

        Raises: RunError naming the missing or damaged file; RecipeError where LoRA's package is not installed.
        """
        manifest = _read_manifest(folder)
        weights = folder / _WEIGHTS
        try:
            recipe = recipes.from_json(PolicyRecipe, manifest["recipe"], where=str(folder / _MANIFEST))
            action_spec = ActionSpec(**manifest["action_spec"])
            normalization = Normalization.from_json(manifest["normalization"])
            backbone = Backbone.from_pretrained(
                folder / _BACKBONE,
                prompt=recipe.prompt,
                image_size=recipe.image_size,
                enlarge=recipe.enlarge,
            )
            head = make_head(recipe, hidden_size=backbone.hidden_size, seed=0)
            head.load(folder / _HEAD)
            own = load_file(weights)
        except (KeyError, TypeError, RecipeError, DataError) as error:
            raise _damaged(folder / _MANIFEST, f"{type(error).__name__}: {error}") from error
        except (BackboneError, SafetensorError) as error:
            where = folder / _BACKBONE if isinstance(error, BackboneError) else weights
            raise _damaged(where, str(error)) from error
        if recipe.lora_rank:
            lora.add_adapters(backbone.vlm, backbone.family, recipe, seed=0)
        vla = cls(
            backbone,
            head,
            recipe=recipe,
            action_spec=action_spec,
            normalization=normalization,
            provenance=manifest["provenance"],
        )
        expected = {key: value.shape for key, value in vla.state_dict().items() if _is_own(key)}
        if expected != {key: value.shape for key, value in own.items()}:
            raise _damaged(weights, "its tensors are not those the recipe in policy.json describes")
        vla.load_state_dict(own, strict=False)  # complete: checked above; the VLM was loaded strictly
        return vla.eval()


def _is_own(key: str) -> bool:
    """Whether a weight is this module's to save, and none of the VLM's own."""
    return not key.startswith(_VLM) or lora.is_adapter(key)


def _seeds(inputs: BackboneInputs, image_size: int, repeats: Sequence[int]) -> tuple[int, ...]:
    """From each row's picture and tokens, which are the same whatever stands beside them, and its repeat.

    Pictures count at standard size, or as the pixels that the VLM's own processor made of them.
    """
    if inputs.images.numel():
        pixels = [resize(inputs.images.cpu(), image_size)]
    else:
        pixels = [value.cpu() for value in inputs.arguments.values() if value.is_floating_point()]
    count = len(inputs)
    pictures = [value.reshape(count, -1) for value in pixels]
    seeds = []
    for row, (ids, length) in enumerate(zip(inputs.input_ids.cpu(), inputs.lengths.tolist(), strict=True)):
        digest = hashlib.sha256()
        for picture in pictures:
            digest.update(picture[row].contiguous().numpy().tobytes())
        digest.update(ids[:length].numpy().tobytes())
        if repeats and repeats[row]:
            digest.update(b"repeat %d" % repeats[row])
        seeds.append(int.from_bytes(digest.digest()[:7], "big"))
    return tuple(seeds)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Read policy.json and check every other file against it."""
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(
            f"{path}: missing; {folder} is no policy folder, or its writing was interrupted"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise RunError(
            f"{path}: format {found!r}, but this version reads {FORMAT}; use the version that wrote it"
        )
    expected = manifest.get("sha256")
    if not isinstance(expected, dict):
        raise _damaged(path, "it lists no digests")
    for name, digest in expected.items():
        file = folder / name
        if not file.is_file():
            raise RunError(f"{file}: missing; copy the whole policy folder or train again")
        if _digest(file) != digest:
            raise _damaged(file, "its content is not what was written")
    return manifest


def _damaged(path: Path, why: str) -> RunError:
    return RunError(f"{path}: damaged ({why}). Restore it from a copy, or use an earlier checkpoint.")


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _digest(path) for path in files}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
