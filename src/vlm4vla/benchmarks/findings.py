"""What this machine has and lacks for simulators: which are there, at which versions, and what draws."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlm4vla.benchmarks import lavapipe, osmesa
from vlm4vla.benchmarks.simulators import SIMULATORS, differences, simulator_folder, state

State = Literal["ok", "note", "problem"]
_SECONDS = 60
"""A driver that has not drawn by then hangs."""
_OLDEST = 25
"""Mesa whose lavapipe SAPIEN is known to take; it refuses 22.3."""
_DRIVERS = (Path("/usr/share/vulkan/icd.d"), Path("/etc/vulkan/icd.d"))
_MUJOCO = """
import mujoco
mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16).render()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: State
    """`note`: works, but slower or with less; `problem`: something will fail."""
    found: str
    remedy: str = ""


def simulators() -> Iterator[Finding]:
    """Of each whether it is installed; of what is there, what is not at its pin."""
    for name in SIMULATORS:
        there, install = state(name), f"vlm4vla simulators install {name}"
        kept = there["installed"]
        python = simulator_folder(name) / "venv" / "bin" / "python"
        if not there["here"] and kept is not None and ("damaged" in kept or not python.exists()):
            yield Finding(
                what=name,
                state="problem",
                found=f"damaged: {there['folder']}",
                remedy=f"`{install}` mends it",
            )
        elif not there["here"] and kept is None:
            yield Finding(what=name, state="note", found="not installed", remedy=f"`{install}`")
        else:
            others = differences(name)
            for other in others:
                yield Finding(
                    what=f"{name}: {other.what}", state="note", found=other.found, remedy=other.remedy
                )
            if not others:
                where = "this Python" if there["here"] else there["folder"]
                yield Finding(what=name, state="ok", found=f"packages and models as pinned, in {where}")


def opengl() -> Iterator[Finding]:
    """What draws without a display, each in a process of its own, since a broken driver can end it, or hang."""
    egl = osmesa.egl_fault()
    install = "apt-get install libegl1 libgl1-mesa-dri"
    yield Finding(
        what="EGL",
        state="note" if egl else "ok",
        found=egl or "opens a display",
        remedy=f"CALVIN and LIBERO draw with it. Debian, Ubuntu: `{install}`" if egl else "",
    )
    private = simulator_folder("libero") / "osmesa"
    found = ctypes.util.find_library("OSMesa") or (str(private) if private.is_dir() else "")
    if found or egl:
        yield Finding(
            what="OSMesa",
            state="ok" if found else "note",
            found=found or "not there",
            remedy="" if found else "`vlm4vla simulators install libero` brings it, where there is no EGL",
        )
    kind = os.environ.get("MUJOCO_GL", "egl")
    fault = _drawing_fault(kind)
    yield Finding(
        what="OpenGL",
        state="note" if fault else "ok",
        found=f"does not draw with MUJOCO_GL={kind}: {fault}"[:110]
        if fault
        else f"draws without a display (MUJOCO_GL={kind})",
        remedy=f"Tabletop draws without it; other simulators need it. Debian, Ubuntu: `{install}`"
        if fault
        else "",
    )


def _drawing_fault(kind: str) -> str:
    """Why MuJoCo does not draw; empty: it does."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _MUJOCO],
            env={**os.environ, "MUJOCO_GL": kind},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the driver hangs: no picture in {_SECONDS} s"
    lines = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
    return lines[-1] if done.returncode else ""


def vulkan() -> Finding:
    """A Vulkan driver that SAPIEN takes, which SimplerEnv draws with."""
    folder = simulator_folder("simpler")
    if lavapipe.driver(folder):
        return Finding(
            what="Vulkan", state="ok", found=f"SimplerEnv's own lavapipe {lavapipe.version(folder)}"
        )
    named = os.environ.get("VK_ICD_FILENAMES") or os.environ.get("VK_DRIVER_FILES")
    listed = named.split(":") if named else [str(path) for f in _DRIVERS for path in sorted(f.glob("*.json"))]
    drivers = [Path(driver) for driver in listed if Path(driver).is_file()]
    remedy = (
        "only SimplerEnv needs it: `vlm4vla simulators install simpler` brings one on Debian 12; elsewhere a GPU's "
        f"driver, or lavapipe of Mesa {_OLDEST} or newer: `apt-get install mesa-vulkan-drivers`"
    )
    if not drivers:
        loader = ctypes.util.find_library("vulkan")
        found = f"no driver{'' if loader else ' and no loader'}"
        return Finding(what="Vulkan", state="note", found=found, remedy=remedy)
    found = f"drivers: {', '.join(driver.name for driver in drivers)}"[:110]
    versions = [lavapipe.mesa(driver) for driver in drivers]
    if all(version and int(version.split(".")[0]) < _OLDEST for version in versions):
        found = f"Mesa {versions[0]}, whose lavapipe SAPIEN may refuse (it refuses 22.3)"
        return Finding(what="Vulkan", state="note", found=found, remedy=remedy)
    return Finding(what="Vulkan", state="ok", found=found)
