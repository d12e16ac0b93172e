"""Every named step against an independent, literal reading of the code it cites."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vlm4vla.core.errors import DataError, RecipeError
from vlm4vla.demonstrations.datasets import DATA_SETS
from vlm4vla.demonstrations.recordings import Recording
from vlm4vla.demonstrations.transforms import TRANSFORMS, apply, transforms_named


def recording(actions: np.ndarray, *, state: np.ndarray | None = None, instruction: str = "go") -> Recording:
    images = [np.full((2, 3, 3), step, dtype=np.uint8) for step in range(len(actions))]
    images = [image + np.arange(18, dtype=np.uint8).reshape(2, 3, 3) for image in images]
    return Recording(id="r", instruction=instruction, images=images, actions=actions, state=state)


def with_gripper(values: list[float]) -> np.ndarray:
    actions = np.random.default_rng(0).normal(size=(len(values), 7))
    actions[:, 6] = values
    return actions


def gripper_after(name: str, values: list[float]) -> list[float]:
    changed = TRANSFORMS[name](recording(with_gripper(values)))
    assert changed is not None
    np.testing.assert_array_equal(changed.actions[:, :6], with_gripper(values)[:, :6])
    return changed.actions[:, 6].tolist()


def steps_of(changed: Recording) -> list[int]:
    return [int(image[0, 0, 0]) for image in changed.images]


@given(
    arrays(
        np.float64, st.integers(1, 12), elements=st.sampled_from([0.0, 0.02, 0.05, 0.3, 0.5, 0.95, 0.97, 1.0])
    )
)
def test_gripper_is_decided_backwards(values: np.ndarray) -> None:
    carry, expected = values[-1], []
    for value in values[::-1]:
        if value > 0.95:
            carry = 1.0
        elif value < 0.05:
            carry = 0.0
        expected.append(carry)
    assert gripper_after("decide_gripper_backwards", values.tolist()) == expected[::-1]


@given(arrays(np.float64, st.integers(1, 12), elements=st.sampled_from([-1.0, -0.1, 0.0, 0.1, 1.0])))
def test_gripper_changes_become_its_state(values: np.ndarray) -> None:
    changes = [1.0 if value < -0.1 else -1.0 if value > 0.1 else 0.0 for value in values]
    first = next((change for change in changes if change), 0.0)
    carry, expected = (-first if first else 1.0), []
    for change in changes:
        carry = change or carry
        expected.append(carry / 2 + 0.5)
    assert gripper_after("gripper_from_changes", values.tolist()) == expected


def test_gripper_of_libero_is_clipped_and_inverted_and_gets_a_sign() -> None:
    assert gripper_after("flip_gripper", [-1.0, 1.0, 0.25, 2.0]) == [1.0, 0.0, 0.75, 0.0]
    assert gripper_after("gripper_sign", [0.0, 0.5, 0.51, 1.0]) == [-1.0, -1.0, 1.0, 1.0]


def test_movement_is_what_the_states_show() -> None:
    rng = np.random.default_rng(1)
    actions, state = rng.normal(size=(5, 7)), rng.normal(size=(5, 8)).astype(np.float32)
    changed = TRANSFORMS["relabel_movement"](recording(actions, state=state))
    assert changed is not None
    np.testing.assert_array_equal(changed.actions[:, :6], np.diff(state[:, :6], axis=0).astype(np.float64))
    np.testing.assert_array_equal(changed.actions[:, 6], actions[:4, 6])
    assert steps_of(changed) == [0, 1, 2, 3]
    for bad in (None, state[:, :3]):
        with pytest.raises(DataError, match="r: its movement cannot be relabelled"):
            TRANSFORMS["relabel_movement"](recording(actions, state=bad))


def test_still_steps_go_unless_the_gripper_moves() -> None:
    actions = np.zeros((7, 7))
    actions[:, 6] = [-1, -1, -1, 1, 1, -1, -1]
    actions[1, 2] = actions[6, 0] = 0.5
    changed = TRANSFORMS["drop_still_steps"](recording(actions))
    assert changed is not None
    # 0: still, nothing kept before; 2: still, gripper as at 1; 3: gripper moves; 4: as at 3; 5: moves; 6: movement
    assert steps_of(changed) == [1, 3, 5, 6]
    assert apply((TRANSFORMS["drop_still_steps"],), recording(np.zeros((3, 7)))) is None


def test_first_step_instruction_and_turning() -> None:
    actions = with_gripper([0, 0, 0])
    changed = TRANSFORMS["drop_first_step"](recording(actions))
    assert changed is not None and steps_of(changed) == [1, 2]
    assert TRANSFORMS["with_instruction"](recording(actions, instruction=" \n")) is None
    assert TRANSFORMS["with_instruction"](recording(actions)) is not None
    turned = TRANSFORMS["turn_images"](recording(actions))
    assert turned is not None
    original = recording(actions).images[2]
    np.testing.assert_array_equal(turned.images[2], np.rot90(original, 2))


def test_chains_end_where_nothing_is_left_and_need_seven_numbers() -> None:
    chain = transforms_named(DATA_SETS["bridge"].transforms)
    one_step = recording(with_gripper([1.0]), state=np.zeros((1, 7)))
    assert apply(chain, one_step) is None
    with pytest.raises(DataError, match=r"r: actions of shape \[2, 6\]; expected 7 numbers a step"):
        apply((), recording(np.zeros((2, 6))))
    with pytest.raises(RecipeError, match="turn_image"):
        transforms_named(["turn_image"])


def test_bridge_as_a_whole() -> None:
    """First step dropped, gripper decided, movement from states, last step dropped, sign: by hand."""
    state = np.cumsum(np.arange(35, dtype=np.float64).reshape(5, 7), axis=0)
    changed = apply(
        transforms_named(DATA_SETS["bridge"].transforms),
        recording(with_gripper([0.0, 1.0, 0.5, 0.0, 1.0]), state=state),
    )
    assert changed is not None
    assert steps_of(changed) == [1, 2, 3]
    np.testing.assert_array_equal(changed.actions[:, :6], np.diff(state[1:, :6], axis=0))
    assert changed.actions[:, 6].tolist() == [1, -1, -1]


@pytest.mark.parametrize("name", DATA_SETS)
def test_facts_are_complete(name: str) -> None:
    facts = DATA_SETS[name]
    transforms_named(facts.transforms)
    assert facts.about and (facts.action_spec is not None or name in ("lerobot", "packed", "folder"))
