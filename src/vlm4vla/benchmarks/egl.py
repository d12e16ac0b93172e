"""Whether a simulator still draws, and what to do where it does not.

PyBullet and MuJoCo say nothing when their OpenGL context is lost.

Without a check PyBullet then returns its last picture again and again, in later episodes too, and MuJoCo a wrong one
(`test_a_lost_opengl_context_is_an_error_and_costs_nothing`).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

from vlm4vla.core.errors import SimulatorError

_CONTEXT_LOST = 0x0507
"""`GL_CONTEXT_LOST` (OpenGL 4.5): the driver was reset."""


def require_context(who: str) -> None:
    """Call after drawing with EGL. Raises: SimulatorError when this thread's OpenGL context is gone or was lost."""
    found = _library()
    if found is not None and (not found[0]() or (found[1] is not None and found[1]() == _CONTEXT_LOST)):
        raise SimulatorError(
            f"{who}: its OpenGL context was lost, so that its pictures show nothing of the episode: the graphics "
            "driver was reset, or something else took the context in this process"
        )


def instead(renderer: str) -> str:
    """How a user chooses another renderer, for the end of a message."""
    return f"`--renderer {renderer}` (evaluate, study, simulators) or `--set evaluation.renderer={renderer}` (train)"


@functools.cache
def _library() -> tuple[Callable[[], int | None], Callable[[], int] | None] | None:
    """`eglGetCurrentContext` and `glGetError`; None without EGL."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return None
    egl.eglGetCurrentContext.restype = ctypes.c_void_p
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(b"glGetError")
    return egl.eglGetCurrentContext, ctypes.CFUNCTYPE(ctypes.c_uint)(address) if address else None
