"""Under which names an observation travels to a policy server, and what the actions that come back mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from vlm4vla.core.actions import GRIPPER, ActionSpec, convert
from vlm4vla.core.errors import ActionSpecMismatch, RecipeError, RunError
from vlm4vla.core.recipes import from_json, override
from vlm4vla.core.types import Observation
from vlm4vla.serving.codec import Dialect


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """An empty name: this is not sent. An empty convention: the benchmark's own."""

    image: str
    wrist_image: str = ""
    state: str = ""
    prompt: str = "prompt"
    image_size: int = 0
    """Side of the images sent, in pixels, resized as openpi's client does; 0: as the benchmark shows them."""
    absent: Literal["error", "zeros"] = "error"
    """What is sent for a wrist image or a state that the benchmark does not show: nothing, or zeros (black)."""
    state_size: int = 8
    """Of a state of zeros."""
    rotation: Literal["", "euler_xyz", "axis_angle"] = ""
    gripper: Literal["", "open_positive", "close_positive", "open_one", "close_one"] = ""
    """The last two: between 0 and 1, decided at 0.5."""

    def spec(self, benchmark: ActionSpec) -> ActionSpec:
        """What the policy means, where the benchmark means `benchmark`; a gripper of 0 to 1 is taken to -1 to 1."""
        sign: Any = self.gripper.replace("one", "positive") or benchmark.gripper
        return replace(benchmark, rotation=self.rotation or benchmark.rotation, gripper=sign)


PRESETS: Mapping[tuple[Dialect, str], Layout] = {
    # openpi: examples/libero/main.py; LIBERO's own gripper, which closes at +1.
    ("openpi", "libero"): Layout(
        image="observation/image",
        wrist_image="observation/wrist_image",
        state="observation/state",
        image_size=224,
        rotation="axis_angle",
        gripper="close_positive",
    ),
    # openpi itself has no policy for Bridge; these are the names of HaomingSong/openpi, whose actions are Bridge's.
    ("openpi", "simpler"): Layout(
        image="observation/primary_image",
        state="observation/state",
        image_size=224,
        rotation="euler_xyz",
        gripper="open_one",
    ),
    ("openpi", ""): Layout(image="observation/image"),
    # vla-eval: benchmarks/*/benchmark.py, make_obs and step.
    ("vla-eval", "libero"): Layout(image="agentview", rotation="axis_angle", gripper="close_positive"),
    ("vla-eval", "simpler"): Layout(image="primary", rotation="euler_xyz", gripper="open_one"),
    ("vla-eval", "calvin"): Layout(image="rgb_static", rotation="euler_xyz", gripper="open_positive"),
    ("vla-eval", ""): Layout(image="primary"),
}
"""By protocol and by the beginning of a benchmark's name; the empty one is for every other."""
_WRISTS = {"agentview": "wrist", "rgb_static": "rgb_gripper"}
_GRIPPERS = {
    "binary_close_positive": "close_positive",
    "binary_close_negative": "open_positive",
    "binary_close_01": "close_one",
}


def layout_for(
    dialect: Dialect, benchmark: str, metadata: Mapping[str, Any], changes: Mapping[str, str]
) -> Layout:
    """The preset, with what a vla-eval server says it needs and means, with the user's changes.

    Raises: RecipeError for a change to a field that there is not, ActionSpecMismatch for actions that are not relative.
    """
    key = next(
        (key for key in PRESETS if key[0] == dialect and key[1] and benchmark.startswith(key[1])), None
    )
    layout = PRESETS[key or (dialect, "")]
    if dialect == "vla-eval":
        layout = _declared(replace(layout, prompt="task_description"), metadata, changes)
    elif (ours := declared_spec(metadata)) is not None:
        # `vlm4vla serve`: its policies see what the benchmark shows, as in an evaluation without a server.
        gripper = metadata["action_spec"]["gripper"]
        layout = replace(PRESETS["openpi", ""], rotation=ours.rotation, gripper=gripper)
    return override(layout, changes, where="--wire")


def declared_spec(metadata: Mapping[str, Any]) -> ActionSpec | None:
    """What a server of this project says that its actions mean, a gripper of 0 to 1 as one of -1 to 1; None for other
    servers.
    """
    found = metadata.get("action_spec")
    try:
        gripper = str(found["gripper"]).replace("one", "positive")  # type: ignore[index]
        return from_json(ActionSpec, {**found, "gripper": gripper})  # type: ignore[dict-item]
    except (RecipeError, KeyError, TypeError):
        return None


def _declared(layout: Layout, metadata: Mapping[str, Any], given: Mapping[str, str]) -> Layout:
    wanted, spec = (
        found if isinstance(found, dict) else {}
        for found in (metadata.get("observation_params"), metadata.get("action_spec"))
    )
    words = {
        name: str(part["format"])
        for name, part in spec.items()
        if isinstance(part, dict) and part.get("format", "raw") != "raw"
    }
    for name, taken in (("position", ("delta_xyz",)), ("rotation", ("euler_xyz", "axis_angle"))):
        if words.get(name, taken[0]) not in taken:
            raise ActionSpecMismatch(
                f"the server's actions have a {name} of the kind {words[name]!r}; what can be carried out is "
                f"{' or '.join(taken)}"
            )
    changes: dict[str, Any] = {}
    if wanted.get("send_wrist_image"):
        changes["wrist_image"] = _WRISTS.get(layout.image, "wrist")
    if wanted.get("send_state"):
        changes["state"] = "states"
    if "rotation" in words:
        changes["rotation"] = words["rotation"]
    # vla-eval's own benchmark takes SimplerEnv's gripper from 0 to 1 whatever the server says.
    if layout.gripper != "open_one" and "gripper" in words and "gripper" not in given:
        if words["gripper"] not in _GRIPPERS:
            raise ActionSpecMismatch(
                f"the server's gripper is {words['gripper']!r}, which does not say what opens it; say it with "
                "`--wire gripper=`"
            )
        changes["gripper"] = _GRIPPERS[words["gripper"]]
    return replace(layout, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What is sent of an observation; None: not sent."""

    image: UInt8[np.ndarray, "height width 3"]
    wrist_image: UInt8[np.ndarray, "height width 3"] | None
    state: Float32[np.ndarray, " dim"] | None


def parts_of(observation: Observation, layout: Layout) -> Parts:
    """Raises: RunError for what the layout asks for and the benchmark does not show."""
    found = {}
    for name in ("wrist_image", "state"):
        value = getattr(observation, name) if getattr(layout, name) else None
        if getattr(layout, name) and value is None:
            if layout.absent == "error":
                raise RunError(
                    f"the policy is to be sent a {name.replace('_', ' ')} ({getattr(layout, name)!r}), which this "
                    f"benchmark does not show. `--wire {name}=` leaves it out, `--wire absent=zeros` sends zeros; a "
                    "policy that was trained with it acts worse without"
                )
            value = (
                np.zeros(layout.state_size, np.float32)
                if name == "state"
                else np.zeros_like(observation.image)
            )
        found[name] = value
    wrist = found["wrist_image"]
    return Parts(
        image=resized(observation.image, layout.image_size),
        wrist_image=None if wrist is None else resized(wrist, layout.image_size),
        state=found["state"],
    )


def resized(image: UInt8[np.ndarray, "height width 3"], side: int) -> UInt8[np.ndarray, "rows columns 3"]:
    """Bilinear, black around what is not square, as openpi's client resizes; 0: as it is."""
    height, width = image.shape[:2]
    if side in (0, height) and (side == 0 or width == side):
        return image
    from PIL import Image

    ratio = max(width, height) / side
    columns, rows = int(width / ratio), int(height / ratio)
    small = Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR)
    square = Image.new("RGB", (side, side))
    square.paste(small, ((side - columns) // 2, (side - rows) // 2))
    return np.asarray(square)


def told(
    actions: Float32[np.ndarray, "horizon 7"], layout: Layout, spec: ActionSpec
) -> Float32[np.ndarray, "horizon 7"]:
    """The inverse: actions that mean `spec`, as the layout says them. Raises: ActionSpecMismatch when it cannot."""
    chunk = convert(actions, spec, layout.spec(spec))
    if layout.gripper.endswith("one"):
        chunk[:, GRIPPER] = (chunk[:, GRIPPER] + 1) / 2
    return chunk


def actions_of(
    reply: Any, layout: Layout, benchmark: ActionSpec, *, count: int
) -> Float32[np.ndarray, "count 7"]:
    """The first `count` actions of a reply, in the benchmark's convention.

    `reply` is [7], one action, or [actions, 7]. Raises: ValueError for another shape, for too few and for numbers that
    are not finite.
    """
    chunk = np.asarray(reply)
    if chunk.dtype.kind not in "iuf" or chunk.ndim not in (1, 2) or chunk.shape[-1] != 7:
        raise ValueError(f"actions of shape {chunk.shape} and type {chunk.dtype}; [actions, 7] is expected")
    with np.errstate(over="ignore"):  # what becomes infinite is told below
        chunk = np.atleast_2d(chunk).astype(np.float32)[:count]
    if len(chunk) < count:
        raise ValueError(
            f"{len(chunk)} actions at a time; `--execute` {len(chunk)} or fewer of them, not {count}"
        )
    if not np.isfinite(chunk).all():
        raise ValueError("actions that are not finite")
    if layout.gripper.endswith("one"):
        chunk[:, GRIPPER] = np.where(chunk[:, GRIPPER] > 0.5, 1, -1)
    return convert(chunk, layout.spec(benchmark), benchmark)
