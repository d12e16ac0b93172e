"""Checkpoints: self-contained policy folders that a training can go on from exactly.

    checkpoints/latest             the name of the newest one
    checkpoints/step-000500/       a policy folder (`Learner.save`), and beside it
        training_state/
            optimizer.safetensors  AdamW's moments, by parameter name, whole however many processes wrote them
            state.json             RunState, what is trained on what, sha256 of the other file

The order of samples and the random numbers of a step follow from (seed, step), so no generator's state is kept.
A folder named step-* is complete: it is written under another name and renamed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlm4vla.core.errors import RunError
from vlm4vla.policies.learner import Learner
from vlm4vla.training.distributed import Processes
from vlm4vla.training.progress import RunState

FORMAT = 1
KEPT = 2
"""How many checkpoints stay to be continued from; older ones are deleted, or keep their policy alone."""
_STATE = "training_state"


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint under a `checkpoints` folder."""
    return next(reversed(_oldest_first(folder)), None)


def step_of(checkpoint: Path) -> int:
    """After how many steps it was written."""
    return int(checkpoint.name.removeprefix("step-"))


class Checkpoints:
    """The checkpoints of one training."""

    def __init__(
        self, folder: Path, *, identity: str, provenance: Mapping[str, Any], keep_every: int = 0
    ) -> None:
        """`identity` says what is trained on what: a checkpoint with another one is refused.

        Of every `keep_every` steps the policy stays, without what continuing needs; 0: of none.
        """
        self.folder, self._identity, self._provenance = folder, identity, provenance
        self._keep_every = keep_every

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.folder / f"step-{step:06d}"

    def save(
        self, learner: Learner, optimizer: torch.optim.Optimizer, state: RunState, processes: Processes
    ) -> Path:
        """Write a checkpoint and delete the oldest. Every process must call it; the main one writes."""
        target = self.path(state.step)
        processes.settle(learner)
        moments = _moments(learner, optimizer, processes)
        weights = {}
        for name, tensor in learner.state_dict().items():
            whole = processes.whole(tensor)  # every process takes part in putting it together
            if processes.is_main:
                weights[name] = whole.detach().cpu()
        if processes.is_main:
            self._write(target, learner, weights, moments, state)
        processes.barrier()
        return target

    def read(self, path: Path) -> RunState:
        """How far a checkpoint is.

        Raises: RunError when it is damaged or belongs to another training.
        """
        file, state_file = path / _STATE / "optimizer.safetensors", path / _STATE / "state.json"
        try:
            saved = json.loads(state_file.read_text(encoding="utf-8"))
            if saved["format"] != FORMAT:
                raise RunError(
                    f"{state_file}: format {saved['format']}, this version reads {FORMAT}; "
                    "use the version that wrote it"
                )
            if saved["identity"] != self._identity:
                raise RunError(
                    f"{path}: was trained by another recipe or on other demonstrations "
                    f"({saved['identity']}, not {self._identity}); choose another folder"
                )
            state, digest = RunState(**saved["state"]), _sha256(file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{state_file}: damaged ({error}). {how_to_go_on(path)}") from error
        if digest != saved["sha256"]:
            raise RunError(f"{file}: damaged (its content is not what was written). {how_to_go_on(path)}")
        return state

    def restore(
        self, path: Path, learner: Learner, optimizer: torch.optim.Optimizer, processes: Processes
    ) -> None:
        """Bring the optimizer to where it was; the learner is loaded from `path` itself."""
        with safe_open(path / _STATE / "optimizer.safetensors", framework="pt") as tensors:
            kinds: dict[str, list[str]] = {}
            for key in tensors.keys():  # noqa: SIM118
                kind, name = key.split("/", 1)
                kinds.setdefault(name, []).append(kind)
            for name, parameter in learner.named_parameters():
                for kind in kinds.get(name, ()):
                    value = tensors.get_tensor(f"{kind}/{name}")
                    same_shape = value.shape == parameter.shape
                    optimizer.state[parameter][kind] = (
                        processes.like(value, parameter) if same_shape else value.to(parameter.device)
                    )

    def _write(
        self,
        target: Path,
        learner: Learner,
        weights: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        state: RunState,
    ) -> None:
        for leftover in self.folder.glob(".*partial*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        partial = self.folder / f".{target.name}.partial"
        learner.save(partial, provenance={**self._provenance, "step": state.step}, state=weights)
        (partial / _STATE).mkdir()
        file = partial / _STATE / "optimizer.safetensors"
        save_file(dict(moments), file)
        saved = {
            "format": FORMAT,
            "identity": self._identity,
            "sha256": _sha256(file),
            "state": dataclasses.asdict(state),
        }
        (partial / _STATE / "state.json").write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        pointer = self.folder / ".latest.partial"
        pointer.write_text(target.name + "\n", encoding="utf-8")
        pointer.replace(self.folder / "latest")
        for old in _oldest_first(self.folder)[:-KEPT]:
            kept = self._keep_every and step_of(old) % self._keep_every == 0
            shutil.rmtree(old / _STATE if kept else old, ignore_errors=bool(kept))


def how_to_go_on(path: Path) -> str:
    """What to do about a damaged checkpoint."""
    others = [other for other in _oldest_first(path.parent) if other != path and (other / _STATE).is_dir()]
    then = f"go on from {others[-1].name}" if others else "start again"
    return f"Delete {path} and run the same command again to {then}."


def _oldest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), key=step_of)


def _moments(learner: Learner, optimizer: torch.optim.Optimizer, processes: Processes) -> dict[str, Tensor]:
    """Everything AdamW remembers, by `kind/parameter name`; empty in all but the main process."""
    moments = {}
    for name, parameter in learner.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            whole = processes.whole(value)
            if processes.is_main:
                moments[f"{kind}/{name}"] = whole.detach().cpu()
    return moments


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
