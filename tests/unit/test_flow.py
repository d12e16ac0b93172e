"""Flow matching against its facts: times, targets, the gripper's threshold, noise of its own for each row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jaxtyping import Bool, Float64

from vlm4vla.core.errors import RecipeError
from vlm4vla.core.recipes import PolicyRecipe, check_policy
from vlm4vla.policies.flow import FlowHead, flow_time
from vlm4vla.policies.heads import Features, LossWeights, centred, uncentred


def small(seed: int = 0) -> FlowHead:
    return FlowHead(8, 3, layers=3, width=16, mlp=32, heads=2, head_width=8, seed=seed)


def features(batch: int = 4, length: int = 5) -> Features:
    generator = torch.Generator().manual_seed(0)
    layers = tuple(torch.randn(batch, length, 8, generator=generator) for _ in range(2))
    valid = torch.arange(length) < torch.arange(2, 2 + batch)[:, None]
    return Features(layers=layers, valid=valid, seeds=tuple(range(batch)))


def by_hand(
    head: FlowHead,
    actions: Float64[np.ndarray, "horizon 7"],
    time: float,
    states: Float64[np.ndarray, "layers length 8"],
    hidden: Bool[np.ndarray, " horizon"],
) -> Float64[np.ndarray, "horizon 7"]:
    """The velocity of one row without padding, written again with numpy; `hidden` actions are not looked at.

    The third expert layer of three reads the second of two layers, as does the second.
    """
    weights = {name: value.detach().double().numpy() for name, value in head.state_dict().items()}

    def linear(name: str, rows: Float64[np.ndarray, "rows into"]) -> Float64[np.ndarray, "rows out"]:
        bias = weights.get(f"{name}.bias")
        return rows @ weights[f"{name}.weight"].T + (0 if bias is None else bias)

    def norm(name: str, rows: Float64[np.ndarray, "rows size"]) -> Float64[np.ndarray, "rows size"]:
        scale = np.sqrt((rows**2).mean(-1, keepdims=True) + np.finfo(np.float32).eps)
        return rows / scale * weights[f"{name}.weight"]

    width = head.width
    angles = time * 100.0 ** (-np.arange(width // 2) / (width // 2 - 1))
    moment = np.tile(np.concatenate([np.sin(angles), np.cos(angles)]), (len(actions), 1))
    mixed = linear("time_in", np.concatenate([linear("action_in", actions), moment], axis=1))
    tokens = linear("mixed", mixed / (1 + np.exp(-mixed))) + weights["place"]
    for index, layer in enumerate((states[0], states[1], states[1])):
        name = f"layers.{index}"
        own = linear(f"{name}.own", norm(f"{name}.before_attention", tokens))
        queries, keys, values = np.split(own, 3, axis=1)
        prompt_keys, prompt_values = np.split(
            linear(f"{name}.prompt", norm(f"{name}.of_prompt", layer)), 2, axis=1
        )
        keys, values = np.concatenate([prompt_keys, keys]), np.concatenate([prompt_values, values])
        seen = np.concatenate([np.ones(len(layer), dtype=bool), ~hidden])
        mixes = []
        for part in np.split(np.arange(queries.shape[1]), 2):
            scores = np.exp(queries[:, part] @ keys[seen][:, part].T / np.sqrt(len(part)))
            mixes.append(scores / scores.sum(1, keepdims=True) @ values[seen][:, part])
        tokens = tokens + linear(f"{name}.out", np.concatenate(mixes, axis=1))
        gate, up = np.split(linear(f"{name}.gate_up", norm(f"{name}.before_mlp", tokens)), 2, axis=1)
        gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        tokens = tokens + linear(f"{name}.down", gelu * up)
    return linear("action_out", norm("norm", tokens))


def drawn(seed: int) -> tuple[Float64[np.ndarray, "horizon 7"], float]:
    """A row's noise and uniform number."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, 7, generator=generator).double().numpy()
    return noise, float(torch.rand((), generator=generator))


def rows_of(seen: Features) -> list[Float64[np.ndarray, "layers length 8"]]:
    """Each row's layers without its padding."""
    assert seen.valid is not None
    stacked = torch.stack(seen.layers, dim=1).double().numpy()
    return [layers[:, mask] for layers, mask in zip(stacked, seen.valid.numpy(), strict=True)]


def test_times_are_mostly_early() -> None:
    """t = 0.999 (1 - z), z ~ Beta(1.5, 1), whose mean is 0.6."""
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    times = flow_time(uniform)
    assert times.mean().item() == pytest.approx(0.999 * 0.4, abs=0.005)
    assert times.min() >= 0
    assert times.max() <= 0.999
    beta = np.random.default_rng(0).beta(1.5, 1, 100_000)
    expected = torch.tensor(np.quantile(0.999 * (1 - beta), [0.1, 0.5, 0.9]), dtype=torch.float32)
    torch.testing.assert_close(times.quantile(torch.tensor([0.1, 0.5, 0.9])), expected, atol=0.01, rtol=0)


def test_the_gripper_is_centred_and_cut_in_the_middle() -> None:
    """-1 and 1 inside, 0 and 1 outside: trained on closed or open grippers, the head predicts the same side of 1/2."""
    target = torch.zeros(1, 3, 7)
    target[0, 1, 6] = 1
    assert centred(target)[0, :, 6].tolist() == [-1, 1, -1]
    assert torch.equal(uncentred(centred(target)), target)
    head, seen = small(), features()
    target = torch.zeros(4, 3, 7)
    target[:2, :, 6] = 1
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    torch.manual_seed(0)
    for _ in range(150):
        head.loss(seen, target, torch.ones(4, 3, dtype=torch.bool), weights=LossWeights())["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        gripper = head.predict(seen)[..., 6]
    assert (gripper[:2] > 0.75).all()
    assert (gripper[2:] < 0.25).all()


def test_a_prediction_is_ten_euler_steps_from_noise() -> None:
    head, seen = small(), features()
    with torch.no_grad():
        found = head.predict(seen)
    for row, states in enumerate(rows_of(seen)):
        actions, _ = drawn(seen.seeds[row])
        for step in range(10):
            actions = actions + by_hand(head, actions, step / 10, states, np.zeros(3, dtype=bool)) / 10
        expected = np.clip(actions, -1, 1)
        expected[:, 6] = (expected[:, 6] + 1) / 2
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-4)
    assert (found[..., :6].abs() < 1).any()


def test_the_loss_is_the_squared_error_of_the_velocity() -> None:
    """At psi = (1 - 0.999 t) x0 + t x1 the velocity is x1 - 0.999 x0; steps not valid are hidden."""
    head, seen = small(), features()
    target = torch.rand(4, 3, 7, generator=torch.Generator().manual_seed(1)) * 2 - 1
    target[..., 6] = (target[..., 6] > 0).float()
    valid = torch.arange(3) < torch.tensor([[3], [1], [2], [3]])
    torch.manual_seed(5)
    losses = head.loss(seen, target, valid, weights=LossWeights(pose=2.0, gripper=0.5))
    torch.manual_seed(5)
    errors = []
    for row, (seed, states) in enumerate(
        zip(torch.randint(2**62, (4,)).tolist(), rows_of(seen), strict=True)
    ):
        noise, uniform = drawn(seed)
        time = 0.999 * (1 - uniform ** (2 / 3))
        actions, mask = centred(target[row]).double().numpy(), valid[row].numpy()
        point = (1 - 0.999 * time) * noise + time * actions
        velocity = by_hand(head, point, time, states, ~mask)
        errors.append(((velocity - (actions - 0.999 * noise)) ** 2)[mask])
    squared = np.concatenate(errors)
    assert len(squared) == 9
    assert losses["pose"].item() == pytest.approx(squared[:, :6].mean(), rel=1e-4)
    assert losses["gripper"].item() == pytest.approx(squared[:, 6].mean(), rel=1e-4)
    assert losses["loss"].item() == pytest.approx(
        (2 * squared[:, :6].sum() + 0.5 * squared[:, 6].sum()) / 9 / 7, rel=1e-4
    )


def test_padding_of_the_prompt_is_not_seen() -> None:
    head, seen = small(), features()
    before = head.predict(seen)
    assert seen.valid is not None
    changed = tuple(layer.masked_fill(~seen.valid[..., None], 9.0) for layer in seen.layers)
    after = head.predict(Features(layers=changed, valid=seen.valid, seeds=seen.seeds))
    torch.testing.assert_close(after, before)


def test_every_action_sees_every_other() -> None:
    head, seen = small(), features(1)
    actions = torch.zeros(1, 3, 7, requires_grad=True)
    prompt, mask = head._read(seen), head._mask(seen)
    for step in range(3):
        (gradient,) = torch.autograd.grad(
            head._velocity(actions, torch.zeros(1), prompt, mask)[0, step].sum(), actions
        )
        assert (gradient[0].abs().sum(-1) > 0).all()


def test_noise_belongs_to_a_row_and_not_to_the_batch() -> None:
    head = small()
    like = torch.zeros(1)
    together, _ = head._noise([7, 8, 9], like)
    assert torch.equal(head._noise([8], like)[0][0], together[1])
    assert not torch.equal(together[0], together[1])


def test_defaults_are_those_of_pi0() -> None:
    recipe = PolicyRecipe(backbone="any")
    sizes = (recipe.expert_layers, recipe.expert_width, recipe.expert_mlp)
    assert sizes == (18, 1024, 4096)


@pytest.mark.parametrize("change", [{"expert_width": 33}, {"expert_layers": 0}])
def test_sizes_nothing_can_be_built_with_are_errors(change: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match=next(iter(change))):
        check_policy(PolicyRecipe(backbone="any", **change))  # type: ignore[arg-type]
