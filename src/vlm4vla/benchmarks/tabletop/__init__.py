"""MuJoCo is imported first here, so that a missing OpenGL library is told in one line."""

import os

from vlm4vla.core.errors import SimulatorError

try:
    import mujoco  # noqa: F401 - it loads what MUJOCO_GL names when it is imported first
except (AttributeError, ImportError, RuntimeError) as error:
    if "MUJOCO_GL" not in os.environ:
        raise
    raise SimulatorError(
        f"MuJoCo cannot load the OpenGL library that MUJOCO_GL={os.environ['MUJOCO_GL']} names ({error}). Install it "
        "(Debian: libegl1 for egl, libosmesa6 for osmesa), or unset MUJOCO_GL: the renderer 'ray' needs none"
    ) from error
