"""What every action head promises, as code: run it over whatever you plug in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vlm4vla.backbones.encoding import BackboneInputs
from vlm4vla.core.actions import ACTION_SIZE, GRIPPER
from vlm4vla.core.errors import ContractError
from vlm4vla.core.types import Observation
from vlm4vla.policies.vla import VLA


def check_head(vla: VLA, observations: Sequence[Observation], *, steps: int = 150) -> None:
    """Check an action head on a tiny, untrained VLA that computes in float32; it is trained for `steps` steps.

    `observations`: at least four, all different.
    """
    _require(len(observations) >= 4, "check_head needs at least four observations to split and to learn")
    inputs, rows = vla.encode(observations), len(observations)
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(rows, vla.horizon, ACTION_SIZE, generator=generator) * 1.8 - 0.9
    target[..., GRIPPER] = (target[..., GRIPPER] > 0).float()
    valid = torch.ones(rows, vla.horizon, dtype=torch.bool)
    valid[0, -1] = False
    vla.head.fit(lambda: target.numpy())
    vla.train()
    losses = _losses(vla, inputs, target, valid)
    _require(
        set(losses) >= {"loss", "pose", "gripper"}, f"the terms are {sorted(losses)}: logs need all three"
    )
    _require(all(bool(term.isfinite()) for term in losses.values()), "a term of the loss is not finite")
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    for name, parameter in [("query", vla.backbone.query), *vla.head.named_parameters()]:
        _require(
            parameter.grad is not None and bool((parameter.grad != 0).any()),
            f"{name} gets no gradient: it never learns",
        )
    changed = target.clone()
    changed[0, -1] = 0.25
    _require(
        torch.allclose(_losses(vla, inputs, changed, valid)["loss"], losses["loss"]),
        "a step that is not valid changes the loss: the padding of short chunks would be learned",
    )
    torch.manual_seed(0)
    half, count = rows // 2, float(valid.sum())
    parts = [
        vla(vla.encode(observations[part]), target[part], valid[part], None, count)["loss"]
        for part in (slice(half), slice(half, None))
    ]
    _require(
        torch.allclose(parts[0] + parts[1], losses["loss"], rtol=1e-4),
        "losses of micro-batches do not add up: a result would depend on micro_batch_size",
    )
    _check_learning(vla, inputs, target, valid, steps)


def _losses(
    vla: VLA, inputs: BackboneInputs, target: Tensor, valid: Tensor, seed: int = 0
) -> Mapping[str, Tensor]:
    torch.manual_seed(seed)
    found: Mapping[str, Tensor] = vla(inputs, target, valid)
    return found


def _check_learning(vla: VLA, inputs: BackboneInputs, target: Tensor, valid: Tensor, steps: int) -> None:
    def error() -> float:
        vla.eval()
        with torch.no_grad():
            found = vla.predict(inputs)
        vla.train()
        _require(
            found.shape == target.shape and bool(found.isfinite().all()),
            f"predictions are {tuple(found.shape)} or not finite, expected {tuple(target.shape)}",
        )
        pose, gripper = found[..., :GRIPPER], found[..., GRIPPER]
        _require(
            bool((pose.abs() <= 1).all() and (gripper >= 0).all() and (gripper <= 1).all()),
            "a prediction is outside [-1, 1], or a gripper's probability outside [0, 1]",
        )
        return float((found - target)[valid].square().mean())

    before = error()
    vla.zero_grad(set_to_none=True)
    optimizer = torch.optim.AdamW(vla.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(steps):
        _losses(vla, inputs, target, valid, seed=step)["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    after = error()
    _require(
        after < before / 2,
        f"{steps} steps on {len(target)} samples took the predictions' squared error from {before:.3f} to {after:.3f} "
        "only: loss and prediction do not belong together",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)
