from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import ActionSpecMismatch, RecipeError, RunError
from vlm4vla.core.types import Observation
from vlm4vla.serving import codec
from vlm4vla.serving.layout import PRESETS, Layout, actions_of, layout_for, parts_of, resized

LIBERO = ActionSpec(rotation="axis_angle", gripper="open_positive", unit="controller")
BRIDGE = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="metres_radians")
IMAGE = np.arange(20 * 20 * 3, dtype=np.uint8).reshape(20, 20, 3)


@pytest.mark.parametrize("dialect", ["openpi", "vla-eval"])
def test_what_is_packed_comes_back(dialect: codec.Dialect) -> None:
    value = {
        "image": IMAGE,
        "state": np.linspace(0, 1, 8),
        "flags": [np.True_, np.float32(2.5)],
        "text": "lift",
    }
    found = codec.unpack(codec.pack(value, dialect))
    assert found["text"] == "lift" and found["flags"] == [True, 2.5]
    for name in ("image", "state"):
        np.testing.assert_array_equal(found[name], value[name])
        assert found[name].dtype == value[name].dtype
    raw = msgpack.unpackb(codec.pack({"image": IMAGE}, dialect))["image"]
    assert list(raw) == (
        ["__ndarray__", "data", "dtype", "shape"]
        if dialect == "vla-eval"
        else [b"__ndarray__", b"data", b"dtype", b"shape"]
    )
    scalar = codec.unpack(msgpack.packb({b"__npgeneric__": True, b"data": 3, b"dtype": "<i4"}))
    assert scalar == 3 and scalar.dtype == np.int32


def _array(**changes: Any) -> bytes:
    array = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2]} | changes
    return msgpack.packb({"actions": array})


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"\x93\x01", "no message in msgpack"),
        (b"not msgpack at all", "no message in msgpack"),
        (b"\x91" * 5000, "no message in msgpack"),
        (_array(dtype="|O"), "booleans, integers and floats"),
        (_array(dtype="<c8"), "booleans, integers and floats"),
        (_array(dtype="f4,f4"), "booleans, integers and floats"),
        (_array(dtype="nonsense"), "no message in msgpack"),
        (_array(dtype=4), "booleans, integers and floats"),
        (_array(shape=[3]), "another size"),
        (_array(shape=[-1, -2]), "another size"),
        (_array(shape=[2**40, 2**40]), "another size"),
        (_array(shape=2), "another size"),
        (_array(data="text"), "another size"),
        (msgpack.packb(msgpack.ExtType(5, b"x")), "extension of type 5"),
        (bytes(codec.LARGEST + 1), "more than 67,108,864"),
    ],
)
def test_what_arrives_malformed_is_named(message: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        codec.unpack(message)
    with pytest.raises(TypeError, match="cannot be sent"):
        codec.pack({"x": np.array(["text"])}, "openpi")


def test_metadata_can_be_written_down_as_json() -> None:
    found = codec.plain({b"pose": np.ones(2), "n": (1, float("nan")), 3: b"x", "none": None})
    assert found == {"pose": [1.0, 1.0], "n": [1, "nan"], "3": "x", "none": None}


def test_presets_are_the_names_of_the_originals() -> None:
    libero = layout_for("openpi", "libero-long", {}, {})
    assert (libero.image, libero.wrist_image) == ("observation/image", "observation/wrist_image")
    assert (libero.state, libero.prompt, libero.image_size) == ("observation/state", "prompt", 224)
    assert libero.spec(LIBERO).gripper == "close_positive"
    assert layout_for("openpi", "simpler-bridge", {}, {}).image == "observation/primary_image"
    assert layout_for("openpi", "tabletop-d", {}, {}) == PRESETS["openpi", ""]
    asked = {"observation_params": {"send_wrist_image": True, "send_state": True}}
    calvin = layout_for("vla-eval", "calvin-abc-d", asked, {"image_size": "96"})
    assert (calvin.image, calvin.wrist_image, calvin.state) == ("rgb_static", "rgb_gripper", "states")
    assert (calvin.prompt, calvin.image_size) == ("task_description", 96)
    assert layout_for("vla-eval", "calvin-abc-d", asked, {"wrist_image": ""}).wrist_image == ""
    with pytest.raises(RecipeError, match=r"--wire: unknown field 'wrist': did you mean 'wrist_image'"):
        layout_for("openpi", "tabletop", {}, {"wrist": "x"})


def test_what_a_server_declares_decides_unless_the_user_does() -> None:
    spec = {
        "position": {"format": "delta_xyz"},
        "rotation": {"format": "euler_xyz"},
        "gripper": {"format": "binary_close_negative"},
    }
    found = layout_for("vla-eval", "tabletop", {"action_spec": spec}, {})
    assert (found.rotation, found.gripper) == ("euler_xyz", "open_positive")
    changed = layout_for("vla-eval", "tabletop", {"action_spec": spec}, {"gripper": "close_one"})
    assert changed.gripper == "close_one"
    assert layout_for("vla-eval", "simpler-bridge", {"action_spec": spec}, {}).gripper == "open_one"
    for part, word in (
        ("position", "absolute_xyz"),
        ("rotation", "quaternion_xyzw"),
        ("gripper", "continuous_01"),
    ):
        with pytest.raises(ActionSpecMismatch, match=word):
            layout_for("vla-eval", "tabletop", {"action_spec": spec | {part: {"format": word}}}, {})
    for nonsense in ("text", {"position": "text"}, {"position": {}}):
        assert layout_for("vla-eval", "tabletop", {"action_spec": nonsense}, {}).rotation == ""


def test_a_server_of_ours_is_sent_what_the_benchmark_shows() -> None:
    for benchmark in ("libero-goal", "simpler-bridge"):
        found = layout_for("openpi", benchmark, {"action_spec": LIBERO.to_json()}, {})
        assert found == Layout(image="observation/image", rotation="axis_angle", gripper="open_positive")
    told = LIBERO.to_json() | {"gripper": "close_one"}
    assert layout_for("openpi", "libero-goal", {"action_spec": told}, {}).gripper == "close_one"
    others = ("text", {}, {"gripper": 3}, {"gripper": "open_positive"})
    assert all(layout_for("openpi", "x", {"action_spec": o}, {}) == PRESETS["openpi", ""] for o in others)


def test_actions_are_taken_to_the_benchmarks_convention() -> None:
    chunk = np.zeros((4, 7))
    chunk[:, 6] = [1, -1, 0.2, 0]
    closes = Layout(image="i", rotation="axis_angle", gripper="close_positive")
    np.testing.assert_allclose(actions_of(chunk, closes, LIBERO, count=3)[:, 6], [-1, 1, -0.2], rtol=1e-6)
    chunk[:, 6] = [1, 0, 0.6, 0.4]
    opens = Layout(image="i", gripper="open_one")
    assert actions_of(chunk, opens, BRIDGE, count=4)[:, 6].tolist() == [1, -1, 1, -1]
    closes = Layout(image="i", gripper="close_one")
    assert actions_of(chunk, closes, BRIDGE, count=4)[:, 6].tolist() == [-1, 1, -1, 1]
    chunk[:, 3:6] = [0.1, -0.2, 0.3]
    turned = actions_of(chunk, Layout(image="i", rotation="axis_angle"), BRIDGE, count=1)
    assert 0 < np.abs(turned[0, 3:6] - chunk[0, 3:6]).max() < 0.05
    with pytest.raises(ActionSpecMismatch, match="rotation: euler_xyz against axis_angle"):
        actions_of(chunk, Layout(image="i", rotation="euler_xyz"), LIBERO, count=1)
    assert actions_of(chunk[0], Layout(image="i"), BRIDGE, count=1).shape == (1, 7)


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (np.zeros((3, 6)), r"shape \(3, 6\)"),
        (np.zeros((2, 3, 7)), r"shape \(2, 3, 7\)"),
        ("text", "type <U4"),
        (np.full((4, 7), np.nan), "not finite"),
        (np.full((4, 7), 1e300), "not finite"),
        (np.zeros((2, 7)), r"2 actions at a time; `--execute` 2"),
        (np.zeros(7), r"1 actions at a time"),
        (None, "type object"),
    ],
)
def test_actions_that_cannot_be_carried_out_are_named(reply: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        actions_of(reply, Layout(image="i"), BRIDGE, count=4)


def test_what_the_benchmark_does_not_show_is_an_error_or_asked_to_be_zeros() -> None:
    seen = Observation(IMAGE, "lift")
    layout = Layout(image="i", wrist_image="w", state="s")
    with pytest.raises(RunError, match=r"wrist image \('w'\).*`--wire wrist_image=`"):
        parts_of(seen, layout)
    parts = parts_of(seen, Layout(image="i", wrist_image="w", state="s", absent="zeros", state_size=7))
    assert parts.wrist_image is not None and not parts.wrist_image.any()
    assert parts.state is not None and parts.state.shape == (7,)
    assert parts_of(seen, Layout(image="i")).wrist_image is None
    shown = Observation(IMAGE, "lift", wrist_image=IMAGE[::-1], state=np.ones(3, np.float32))
    np.testing.assert_array_equal(parts_of(shown, layout).wrist_image, IMAGE[::-1])


def test_images_are_resized_with_black_borders() -> None:
    assert resized(IMAGE, 0) is IMAGE and resized(IMAGE, 20) is IMAGE
    wide = np.full((10, 20, 3), 200, np.uint8)
    square = resized(wide, 8)
    assert square.shape == (8, 8, 3)
    assert square[:2].max() == square[6:].max() == 0 and square[2:6].min() == 200
