"""The optional renderer: MuJoCo's own, over EGL (a GPU, or Mesa) or OSMesa.

MuJoCo reads the environment variable MUJOCO_GL (`egl` or `osmesa`) when it is imported, so set it before the start.

For large pictures, where rays are slow. Its pixels depend on the OpenGL library, so whoever uses it keeps to it: the
benchmark's name and the recipes say which renderer made a picture.
"""

from __future__ import annotations

import os

import mujoco
import numpy as np
from jaxtyping import Int, UInt8

from vlm4vla.benchmarks.tabletop.render import AMBIENT, WALL_SHADE, Look, camera_xml, check_opengl, palette
from vlm4vla.benchmarks.tabletop.scene import XML, Scene
from vlm4vla.core.errors import SimulatorError

_WORLD = "<worldbody>"
_DIFFUSE = 1 - AMBIENT
_EXTRA = f"""
<asset><texture name="wall" type="skybox" builtin="flat" width="4" height="24" rgb1="1 1 1"/></asset>
{_WORLD}{camera_xml()}
<light name="sun" type="directional" castshadow="false" specular="0 0 0"
  ambient="{AMBIENT} {AMBIENT} {AMBIENT}" diffuse="{_DIFFUSE} {_DIFFUSE} {_DIFFUSE}"/>"""
_SHOWN_GROUPS = [1, 1, 1, 1, 0, 0]


class OpenGLRenderer:
    """As `RayRenderer`: the same camera and light, no shadows."""

    def __init__(self, scene: Scene, size: int) -> None:
        """Raises: SimulatorError when OpenGL does not start."""
        check_opengl()
        self.size = size
        self._scene = scene
        self._model = mujoco.MjModel.from_xml_string(XML.replace(_WORLD, _EXTRA, 1))
        self._model.vis.headlight.active = 0
        self._data = mujoco.MjData(self._model)
        self._names = [self._model.geom(i).name for i in range(self._model.ngeom)]
        self._options = mujoco.MjvOption()
        self._options.geomgroup[:] = _SHOWN_GROUPS
        self._look: Look | None = None
        try:
            self._renderer = mujoco.Renderer(self._model, size, size)
        except (AttributeError, ImportError, RuntimeError, mujoco.FatalError) as error:
            raise SimulatorError(
                f"OpenGL does not start (MUJOCO_GL is {os.environ.get('MUJOCO_GL')}; {error}). Install EGL (Debian: "
                "libegl1) or OSMesa (libosmesa6) and set MUJOCO_GL to egl or osmesa, or use the renderer 'ray'"
            ) from error

    def dress(self, look: Look) -> None:
        """Choose the colours of the following pictures."""
        if look is self._look:
            return
        self._model.geom_rgba[:, :3] = palette(self._names, look)
        self._model.geom_rgba[:, 3] = 1
        self._model.light_dir[:] = -np.asarray(look.light) / np.linalg.norm(look.light)
        wall = np.round(255 * WALL_SHADE * np.asarray(look.wall)).astype(np.uint8)
        self._model.tex_data.reshape(-1, 3)[:] = wall
        mujoco.mjr_uploadTexture(self._model, self._renderer._mjr_context, 0)
        self._look = look

    def image(self) -> UInt8[np.ndarray, "size size 3"]:
        """RGB of the scene as it is now."""
        self._update()
        return self._renderer.render()

    def segmentation(self) -> Int[np.ndarray, "size size"]:
        """Geom id per pixel of the scene as it is now, -1 for the wall; names by `geom_name`."""
        self._update()
        self._renderer.enable_segmentation_rendering()
        ids = self._renderer.render()[..., 0]
        self._renderer.disable_segmentation_rendering()
        return ids

    def geom_name(self, geom: int) -> str:
        """Name of a geom id of `segmentation`."""
        return self._names[geom] if geom >= 0 else "wall"

    def _update(self) -> None:
        self._data.qpos[:] = self._scene.data.qpos
        self._data.mocap_pos[:] = self._scene.data.mocap_pos
        self._data.mocap_quat[:] = self._scene.data.mocap_quat
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        self._renderer.update_scene(self._data, "front", self._options)
