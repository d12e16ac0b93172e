"""The default renderer: rays, Lambert shading, no OpenGL. Bit-identical wherever the same MuJoCo runs.

One ray through every pixel's centre finds the geom and its normal; pixels on the outline of something get
four more rays, so that a small picture still tells positions below a pixel.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import mujoco
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from vlm4vla.benchmarks.tabletop.scene import Scene
from vlm4vla.core.errors import SimulatorError, unknown_name

Color = tuple[float, float, float]
BLOCK_COLORS: Mapping[str, Color] = {
    "red": (0.86, 0.12, 0.12),
    "green": (0.10, 0.62, 0.16),
    "blue": (0.12, 0.28, 0.90),
    "yellow": (0.96, 0.86, 0.10),
}
RENDERERS = ("ray", "opengl")
_CAMERA_POSITION = np.array([0.0, -0.42, 0.56])
_CAMERA_TARGET = np.array([0.0, 0.035, 0.02])
_FIELD_OF_VIEW = 40.0
"""Degrees, vertical and horizontal: pictures are square."""
AMBIENT = 0.5
WALL_SHADE = 0.9
_GEOM_GROUPS = np.array([1, 1, 1, 1, 0, 0], dtype=np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The colours of everything that carries no meaning, and where the light is."""

    table: Color
    wall: Color
    cabinet: Color = (0.42, 0.26, 0.18)
    drawer: Color = (0.86, 0.68, 0.46)
    handle: Color = (0.12, 0.11, 0.11)
    plate: Color = (0.94, 0.94, 0.95)
    button: Color = (0.88, 0.16, 0.78)
    gripper: Color = (0.80, 0.81, 0.83)
    finger: Color = (0.90, 0.38, 0.06)
    light: tuple[float, float, float] = field(default=(0.25, -0.45, 0.85))
    """Direction towards the light."""


LOOKS: Mapping[str, Look] = {
    "A": Look(table=(0.72, 0.55, 0.41), wall=(0.70, 0.67, 0.62)),
    "B": Look(table=(0.48, 0.57, 0.66), wall=(0.36, 0.42, 0.50), light=(-0.35, -0.35, 0.87)),
    "C": Look(
        table=(0.78, 0.76, 0.71), wall=(0.55, 0.47, 0.52), plate=(0.99, 0.99, 0.99), light=(0.0, -0.6, 0.8)
    ),
    "D": Look(
        table=(0.36, 0.50, 0.42),
        wall=(0.62, 0.66, 0.70),
        cabinet=(0.30, 0.24, 0.30),
        drawer=(0.72, 0.62, 0.55),
        light=(0.45, -0.25, 0.86),
    ),
}
"""Train on A, B and C; D is held out, as scene D is in CALVIN ABC-D."""


def look_named(name: str) -> Look:
    """A look of LOOKS; an unknown name is answered with the known ones."""
    if name not in LOOKS:
        raise unknown_name("look", name, LOOKS)
    return LOOKS[name]


def random_look(rng: np.random.Generator) -> Look:
    """A look drawn from a wide range: for pretraining scenes, which never show looks A to D themselves."""

    def any_color(low: float = 0.25, high: float = 0.95) -> Color:
        grey = rng.uniform(low, high)
        tint = rng.uniform(-0.18, 0.18, size=3)
        r, g, b = np.clip(grey + tint, 0.05, 1.0)
        return float(r), float(g), float(b)

    direction = np.array([*rng.uniform(-0.6, 0.6, size=2), 0.9])
    direction /= np.linalg.norm(direction)
    return Look(
        table=any_color(0.3, 0.85),
        wall=any_color(),
        cabinet=any_color(0.15, 0.5),
        drawer=any_color(0.5, 0.9),
        plate=(float(rng.uniform(0.88, 1.0)),) * 3,
        gripper=(float(rng.uniform(0.65, 0.95)),) * 3,
        light=(float(direction[0]), float(direction[1]), float(direction[2])),
    )


def jitter(look: Look, rng: np.random.Generator, *, amount: float = 0.05) -> Look:
    """A look nearby: per-episode variation of table, wall and brightness."""
    gain = 1 + rng.uniform(-amount, amount)

    def near(color: Color) -> Color:
        r, g, b = np.clip(np.asarray(color) * gain + rng.uniform(-amount, amount, size=3), 0, 1)
        return float(r), float(g), float(b)

    return Look(
        table=near(look.table),
        wall=near(look.wall),
        cabinet=near(look.cabinet),
        drawer=near(look.drawer),
        handle=look.handle,
        plate=look.plate,
        button=look.button,
        gripper=look.gripper,
        finger=look.finger,
        light=look.light,
    )


class Renderer(Protocol):
    """Square RGB pictures of one scene, upright, with their ground truth."""

    @property
    def size(self) -> int:
        """Side in pixels."""
        ...

    def dress(self, look: Look) -> None:
        """Choose the colours of the following pictures."""
        ...

    def image(self) -> UInt8[np.ndarray, "size size 3"]:
        """RGB of the scene as it is now."""
        ...

    def segmentation(self) -> Int[np.ndarray, "size size"]:
        """Geom id per pixel of the last `image()`, -1 for the wall."""
        ...

    def geom_name(self, geom: int) -> str:
        """Name of a geom id of `segmentation`."""
        ...


def make_renderer(scene: Scene, size: int, kind: str = "ray") -> Renderer:
    """`ray` needs no OpenGL; `opengl` needs EGL or OSMesa, and its pictures differ from machine to machine.

    Raises: RecipeError for another kind; SimulatorError when OpenGL does not start.
    """
    check_renderer(kind)
    if kind == "opengl":
        from vlm4vla.benchmarks.tabletop.opengl import OpenGLRenderer

        return OpenGLRenderer(scene, size)
    return RayRenderer(scene, size)


def check_renderer(kind: str) -> None:
    """Raises: RecipeError for a name that is not in RENDERERS."""
    if kind not in RENDERERS:
        raise unknown_name("renderer", kind, RENDERERS)


def check_opengl() -> None:
    """Raises: SimulatorError where MuJoCo must be told which OpenGL library to load (Linux) and was not."""
    if sys.platform == "linux" and not os.environ.get("MUJOCO_GL"):
        raise SimulatorError(
            "the renderer 'opengl' needs MUJOCO_GL to be set before the start: MUJOCO_GL=egl (Debian: libegl1) or "
            "MUJOCO_GL=osmesa (libosmesa6). The renderer 'ray' needs none"
        )


def palette(names: Sequence[str], look: Look) -> Float[np.ndarray, "geoms 3"]:
    """The colour of every geom."""
    parts = {
        "table": look.table,
        "cabinet": look.cabinet,
        "drawer": look.drawer,
        "handle": look.handle,
        "plate": look.plate,
        "button_cap": look.button,
        "button_base": (0.25, 0.22, 0.25),
        "palm": look.gripper,
        "wrist": look.gripper,
        "finger": look.finger,
        "disc": tuple(0.35 * channel for channel in look.table),
        **BLOCK_COLORS,
    }
    keys = (next((key for key in parts if name.startswith(key)), None) for name in names)
    return np.array([parts[key] if key else look.wall for key in keys])


class RayRenderer:
    """Square RGB pictures of one scene, upright, seen from the front and above."""

    def __init__(self, scene: Scene, size: int) -> None:
        self._scene = scene
        self.size = size
        self._names = [scene.model.geom(i).name for i in range(scene.model.ngeom)]
        self._rays = _camera_rays(size, np.zeros(2)).reshape(-1, 3)
        # A rotated grid inside the pixel, whose width is 2 / size here.
        offsets = np.array([[-0.25, -0.75], [0.75, -0.25], [-0.75, 0.25], [0.25, 0.75]]) / size
        self._fine_rays = np.stack([_camera_rays(size, offset).reshape(-1, 3) for offset in offsets])
        self._ids = np.empty(size * size, dtype=np.int32)
        self._distances = np.full(size * size, np.inf)
        self._look: Look | None = None
        self._palette = np.zeros((len(self._names) + 1, 3))
        self._light = np.zeros(3)

    def dress(self, look: Look) -> None:
        """Choose the colours of the following pictures."""
        if look is self._look:
            return
        self._palette[:-1] = palette(self._names, look)
        self._palette[-1] = look.wall
        self._light = np.asarray(look.light) / np.linalg.norm(look.light)
        self._look = look

    def image(self) -> UInt8[np.ndarray, "size size 3"]:
        """RGB of the scene as it is now."""
        ids, distances, colors = self._shade(self._rays)
        np.copyto(self._ids, ids)
        np.copyto(self._distances, np.where(ids >= 0, distances, np.inf))
        edges = np.flatnonzero(_outlines(ids.reshape(self.size, self.size)).ravel())
        if len(edges):
            fine = self._fine_rays[:, edges].reshape(-1, 3)
            colors[edges] = self._shade(fine)[2].reshape(4, len(edges), 3).mean(axis=0)
        return (colors * 255 + 0.5).astype(np.uint8).reshape(self.size, self.size, 3)

    def segmentation(self) -> Int[np.ndarray, "size size"]:
        """Geom id per pixel of the last `image()`, -1 for the wall; names by `geom_name`."""
        return self._ids.reshape(self.size, self.size).copy()

    def distances(self) -> Float[np.ndarray, "size size"]:
        """Metres from the camera per pixel of the last `image()`, infinite for the wall."""
        return self._distances.reshape(self.size, self.size).copy()

    def geom_name(self, geom: int) -> str:
        """Name of a geom id of `segmentation`."""
        return self._names[geom] if geom >= 0 else "wall"

    def _shade(
        self, rays: Float[np.ndarray, "rays 3"]
    ) -> tuple[Int[np.ndarray, " rays"], Float[np.ndarray, " rays"], Float[np.ndarray, "rays 3"]]:
        count = len(rays)
        ids = np.empty(count, dtype=np.int32)
        distances = np.empty(count)
        normals = np.zeros(count * 3)
        mujoco.mj_multiRay(
            self._scene.model,
            self._scene.data,
            _CAMERA_POSITION,
            np.ascontiguousarray(rays).reshape(-1),
            _GEOM_GROUPS,
            True,
            -1,
            ids,
            distances,
            normals,
            count,
            mujoco.mjMAXVAL,
        )
        lambert = np.clip(normals.reshape(-1, 3) @ self._light, 0, 1)
        shade = np.where(ids >= 0, AMBIENT + (1 - AMBIENT) * lambert, WALL_SHADE)
        return ids, distances, self._palette[ids] * shade[:, None]


def camera_xml() -> str:
    """The same camera for MuJoCo's own renderer."""
    right, up, _ = _camera_axes()
    axes = " ".join(f"{value:.9g}" for value in (*right, *up))
    place = " ".join(map(str, _CAMERA_POSITION))
    return f'<camera name="front" pos="{place}" xyaxes="{axes}" fovy="{_FIELD_OF_VIEW}"/>'


def project(points: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 2"]:
    """Where points of the scene (metres) appear: (x, y) in [0, 1] from the picture's top-left corner."""
    right, up, forward = _camera_axes()
    relative = np.asarray(points) - _CAMERA_POSITION
    depth = relative @ forward
    half = np.tan(np.radians(_FIELD_OF_VIEW / 2))
    x = relative @ right / depth / half
    y = relative @ up / depth / half
    return np.stack([(x + 1) / 2, (1 - y) / 2], axis=-1)


def camera_distance(points: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch"]:
    """Metres from the camera to points of the scene."""
    return np.asarray(np.linalg.norm(np.asarray(points) - _CAMERA_POSITION, axis=-1))


def _camera_axes() -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    forward = _CAMERA_TARGET - _CAMERA_POSITION
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right = right / np.linalg.norm(right)
    return right, np.cross(right, forward), forward


def _camera_rays(size: int, offset: Float[np.ndarray, "2"]) -> Float[np.ndarray, "size size 3"]:
    right, up, forward = _camera_axes()
    half = np.tan(np.radians(_FIELD_OF_VIEW / 2))
    centres = (np.arange(size) + 0.5) / size * 2 - 1
    x = (centres + offset[0]) * half
    y = -(centres + offset[1]) * half
    rays = forward + x[None, :, None] * right + y[:, None, None] * up
    return np.asarray(rays / np.linalg.norm(rays, axis=-1, keepdims=True))


def _outlines(ids: Int[np.ndarray, "size size"]) -> Bool[np.ndarray, "size size"]:
    edge = np.zeros(ids.shape, dtype=bool)
    across = ids[:, 1:] != ids[:, :-1]
    down = ids[1:] != ids[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge
