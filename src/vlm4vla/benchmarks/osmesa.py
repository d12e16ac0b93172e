"""Mesa's OSMesa in a simulator's own folder, for machines without the EGL that LIBERO draws with."""

from __future__ import annotations

import ctypes
import ctypes.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from vlm4vla.benchmarks import debian

_PACKAGE, _LIBRARY, _FOLDER = "libosmesa6", "libOSMesa.so.8", "osmesa"
_EGL = """
from ctypes import CDLL, CFUNCTYPE, POINTER, byref, c_char_p, c_int, c_uint, c_void_p
egl = CDLL("libEGL.so.1")
egl.eglGetProcAddress.argtypes, egl.eglGetProcAddress.restype = [c_char_p], c_void_p
devices, count = (c_void_p * 16)(), c_int()
query = CFUNCTYPE(c_uint, c_int, c_void_p, POINTER(c_int))(egl.eglGetProcAddress(b"eglQueryDevicesEXT"))
assert query(16, devices, byref(count))
display = CFUNCTYPE(c_void_p, c_uint, c_void_p, c_void_p)(egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT"))
egl.eglInitialize.argtypes = [c_void_p, c_void_p, c_void_p]
EGL_PLATFORM_DEVICE_EXT = 0x313F
shown = (display(EGL_PLATFORM_DEVICE_EXT, devices[i], None) for i in range(count.value))
assert any(egl.eglInitialize(one, None, None) for one in shown)
"""
_SECONDS = 60
"""A driver that has not answered by then hangs."""


def egl_works() -> bool:
    """Whether a display of EGL can be opened."""
    return not egl_fault()


def egl_fault() -> str:
    """Why none can be; empty: one can. Asked in a process of its own, since drivers that are broken crash or hang."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _EGL], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"its driver hangs: no display in {_SECONDS} s"
    told = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
    return f"opens no display: {told[-1]}" if done.returncode else ""


def install(folder: Path, say: Callable[[str], None]) -> None:
    """Fetch OSMesa where neither it nor EGL is there. Raises: SimulatorError when apt fails."""
    target = folder / _FOLDER
    if target.is_dir() or ctypes.util.find_library("OSMesa") or egl_works():
        return
    if shutil.which("apt-get") is None:
        say("OpenGL: this machine has no EGL; install Mesa's EGL or OSMesa with its own package manager")
        return
    say(f"OpenGL: no EGL here, so {_PACKAGE} into {target}, for `--renderer osmesa`")
    partial = folder / f".{_FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        command = debian.apt(partial, "Debug::NoLocking=1")
        # With whatever of its dependencies this machine does not have.
        debian.run(
            [*command, "install", "--download-only", "--yes", "--no-install-recommends", _PACKAGE], partial
        )
        unpacked = debian.unpack(sorted((partial / "archives").glob("*.deb")), partial)
        (partial / _FOLDER).mkdir()
        for library in unpacked.glob("usr/lib/*/*.so.*"):
            shutil.copy(library, partial / _FOLDER / library.name, follow_symlinks=False)
        (partial / _FOLDER).rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(folder: Path, name: str = _LIBRARY) -> None:
    """Load what `install` put there, and what it needs and the system lacks, so that PyOpenGL finds it by its name."""
    library = folder / _FOLDER / name
    while library.exists():
        try:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            return
        except OSError as error:
            needed = str(error).partition(":")[0]
            if needed == name or not (folder / _FOLDER / needed).exists():
                raise
            load(folder, needed)
