"""The vocabulary: rotations, action conventions, normalization, recipes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vlm4vla.core.actions import ActionSpec, convert, require_same
from vlm4vla.core.errors import ActionSpecMismatch, DataError, RecipeError, unknown_name
from vlm4vla.core.normalization import ClipScale, Normalization, Quantiles
from vlm4vla.core.recipes import (
    DemonstrationRecipe,
    EvaluationRecipe,
    PolicyRecipe,
    TrainRecipe,
    Trial,
    fingerprint,
    from_json,
    override,
    to_json,
)
from vlm4vla.core.rotations import (
    axis_angle_to_euler_xyz,
    euler_xyz_to_axis_angle,
    wxyz_to_xyzw,
    xyzw_to_wxyz,
)

EULER = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="metres_radians")
TRIAL = Trial(
    name="t",
    policy=PolicyRecipe(backbone="tiny-qwen3-vl"),
    demonstrations=DemonstrationRecipe(),
    train=TrainRecipe(),
    evaluations=(EvaluationRecipe(),),
)


def test_euler_angles_are_extrinsic_and_come_back() -> None:
    angles = np.random.default_rng(0).uniform(-1.4, 1.4, (5, 4, 3))
    vectors = euler_xyz_to_axis_angle(angles)
    np.testing.assert_allclose(axis_angle_to_euler_xyz(vectors), angles, atol=1e-9)
    x, y, z = (Rotation.from_rotvec(angles[0, 0, i] * np.eye(3)[i]) for i in range(3))
    # Extrinsic: about the fixed x axis first, so x stands rightmost.
    np.testing.assert_allclose((z * y * x).as_rotvec(), vectors[0, 0], atol=1e-9)


def test_quaternion_orders() -> None:
    first = np.arange(8.0).reshape(2, 4)
    assert wxyz_to_xyzw(first)[0].tolist() == [1, 2, 3, 0]
    assert np.array_equal(xyzw_to_wxyz(wxyz_to_xyzw(first)), first)


def test_conversion_between_conventions() -> None:
    other = replace(EULER, rotation="axis_angle", gripper="close_positive")
    actions = np.random.default_rng(1).uniform(-1, 1, (6, 7)).astype(np.float32)
    there = convert(actions, EULER, other)
    assert np.array_equal(there[:, :3], actions[:, :3])
    assert np.array_equal(there[:, 6], -actions[:, 6])
    assert not np.allclose(there[:, 3:6], actions[:, 3:6], atol=1e-3)
    np.testing.assert_allclose(convert(there, other, EULER), actions, atol=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        replace(EULER, frame="tool"),
        replace(EULER, unit="controller"),
    ],
)
def test_what_cannot_be_converted_is_refused(other: ActionSpec) -> None:
    with pytest.raises(ActionSpecMismatch, match=r"frame|unit"):
        convert(np.zeros((1, 7), np.float32), EULER, other)


def test_scaled_angles_are_no_rotation() -> None:
    scaled = replace(EULER, unit="controller")
    with pytest.raises(ActionSpecMismatch, match="rotation"):
        convert(np.zeros((1, 7), np.float32), scaled, replace(scaled, rotation="axis_angle"))
    assert convert(np.ones((1, 7), np.float32), scaled, replace(scaled, gripper="close_positive"))[0, 6] == -1


def test_a_mismatch_names_every_field() -> None:
    with pytest.raises(ActionSpecMismatch, match=r"rotation: euler_xyz against axis_angle.*gripper"):
        require_same(EULER, replace(EULER, rotation="axis_angle", gripper="close_positive"), who="A and B")


def test_normalization_goes_and_comes_back() -> None:
    rng = np.random.default_rng(2)
    actions = rng.normal(size=(2000, 7)).astype(np.float32)
    actions[:, 3] = 0.25
    chain = Normalization((Quantiles.fit(actions, low=0.0, high=1.0), ClipScale(2.0)))
    chain = Normalization.from_json(chain.to_json())
    there = chain.normalize(actions)
    assert there.dtype == np.float32
    assert np.abs(there[:, :6]).max() <= 1
    assert set(np.unique(there[:, 6])) == {0.0, 1.0}
    back = chain.denormalize(there)
    np.testing.assert_allclose(back[:, :6], actions[:, :6], atol=1e-5)
    assert np.array_equal(back[:, 6], np.where(actions[:, 6] > 0, 1, -1))


def test_calvin_clips_and_scales() -> None:
    chain = Normalization((ClipScale(0.65),))
    actions = np.array([[1.0, -1.0, 0.325, 0, 0, 0, -1]], np.float32)
    assert chain.normalize(actions)[0].tolist() == pytest.approx([1, -1, 0.5, 0, 0, 0, 0])
    assert chain.denormalize(chain.normalize(actions))[0, :3].tolist() == pytest.approx([0.65, -0.65, 0.325])


def test_quantiles_are_exact_and_need_data() -> None:
    actions = np.tile(np.arange(101, dtype=np.float32)[:, None], (1, 7))
    assert Quantiles.fit(actions).low == (1.0,) * 6
    assert Quantiles.fit(actions).high == (99.0,) * 6
    with pytest.raises(DataError, match="zero actions"):
        Quantiles.fit(actions[:0])


def test_an_unknown_step_is_named() -> None:
    with pytest.raises(DataError, match="whiten"):
        Normalization.from_json([{"step": "whiten"}])


def test_recipes_come_back_from_their_file() -> None:
    assert from_json(Trial, to_json(TRIAL)) == TRIAL


def test_every_field_changes_the_fingerprint() -> None:
    prints = {fingerprint(TRIAL)}
    changed = [
        replace(TRIAL, train=replace(TRIAL.train, **{name: value}))
        for name, value in {"steps": 1, "learning_rate": 0.1, "schedule": "cosine", "seed": 5}.items()
    ]
    changed.append(replace(TRIAL, policy=replace(TRIAL.policy, freeze=("vision",))))
    changed.append(replace(TRIAL, evaluations=()))
    prints |= {fingerprint(trial) for trial in changed}
    assert len(prints) == len(changed) + 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stepz": 3}, "stepz.*steps"),
        ({"steps": "many"}, r"steps: expected int, got 'many'"),
        ({"steps": True}, "steps: expected int"),
        ({"schedule": "cosin"}, "cosin.*cosine"),
        ({"learning_rate": None}, "learning_rate"),
    ],
)
def test_wrong_recipes_name_the_field(change: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        from_json(TrainRecipe, {**to_json(TRIAL.train), **change})


def test_fields_from_a_command_line() -> None:
    recipe = override(TRIAL.policy, {"freeze": "vision,word_embedding", "head_body": "8,4", "horizon": "3"})
    assert recipe.freeze == ("vision", "word_embedding")
    assert (recipe.head_body, recipe.horizon) == ((8, 4), 3)
    assert override(TRIAL.policy, {"head_trunk": "null"}).head_trunk is None
    assert override(TRIAL.demonstrations, {"tasks": ""}).tasks == ()
    with pytest.raises(RecipeError, match=r"horizn.*horizon"):
        override(TRIAL.policy, {"horizn": "3"})


def test_unknown_names_are_answered_with_the_nearest() -> None:
    assert "tiny-qwen3-vl" in str(unknown_name("backbone", "tiny-qwen3-vI", ["tiny-qwen3-vl", "kosmos"]))
