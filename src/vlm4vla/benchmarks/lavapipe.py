"""A Vulkan driver that draws on the processor, in a simulator's own folder: nothing of the system is changed.

SAPIEN refuses the one of Debian 12 (Mesa 22.3). Debian's backports have a newer one, built against libraries that
Debian 12 has; installing that in the ordinary way would also replace the OpenGL that other simulators draw with, and
change their pictures. So apt and dpkg fetch, check and unpack one package, and only the process that draws is told.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from vlm4vla.benchmarks import debian
from vlm4vla.core.errors import SimulatorError

_FOLDER, _DESCRIPTION = "lavapipe", "lvp.json"
_SUITE = "bookworm"
_PACKAGE = "mesa-vulkan-drivers"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def driver(folder: Path) -> Path | None:
    """What to set VK_ICD_FILENAMES to; None: nothing, since the system's driver is used, or the user named one."""
    description = folder / _FOLDER / _DESCRIPTION
    named = {"VK_ICD_FILENAMES", "VK_DRIVER_FILES"} & set(os.environ)
    return description if description.exists() and not named else None


def version(folder: Path) -> str:
    """Of the driver in a simulator's folder; empty when there is none."""
    note = folder / _FOLDER / "version"
    return note.read_text(encoding="utf-8").strip() if note.exists() else ""


def mesa(description: Path) -> str:
    """Version of the Mesa that a driver is of, `25.0.7`, read out of its library; empty where it is not Mesa's."""
    try:
        named = str(json.loads(description.read_text(encoding="utf-8"))["ICD"]["library_path"])
    except (ValueError, KeyError, TypeError):
        return ""
    library = description.parent / named
    if "/" not in named:  # the loader's own search
        library = next(
            (path for where in ("lib*", "lib/*") for path in Path("/usr").glob(f"{where}/{named}")), library
        )
    found = re.search(rb"Mesa (\d+\.\d+(?:\.\d+)?)", library.read_bytes()) if library.is_file() else None
    return found[1].decode() if found else ""


def install(folder: Path, say: Callable[[str], None]) -> None:
    """Fetch the driver, where the system is one whose own does not do. Raises: SimulatorError."""
    target = folder / _FOLDER
    if (target / _DESCRIPTION).exists():
        return
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    if codename != _SUITE or shutil.which("apt-get") is None:
        say(
            "Vulkan: the system's own driver is used. Without a graphics card that is Mesa's lavapipe, version 25 or "
            f"newer (Debian, Ubuntu: {_PACKAGE}); `vlm4vla simulators check simpler` tries it"
        )
        return
    mirror = _mirror()
    say(f"Vulkan: {_PACKAGE} of {_SUITE}-backports from {mirror} into {target} (the system is not changed)")
    partial = target.with_name(f".{_FOLDER}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        source = partial / "backports.list"
        source.write_text(f"deb [signed-by={_KEYRING}] {mirror} {_SUITE}-backports main\n", encoding="utf-8")
        command = debian.apt(partial, f"Dir::Etc::sourcelist={source}", "Dir::Etc::sourceparts=-")
        debian.run([*command, "download", _PACKAGE], partial)
        (package,) = partial.glob(f"{_PACKAGE}_*.deb")
        unpacked = debian.unpack([package], partial)
        (library,) = unpacked.glob("usr/lib/*/libvulkan_lvp.so")
        (described,) = unpacked.glob("usr/share/vulkan/icd.d/lvp_icd*.json")
        missing = re.findall(r"(\S+) => not found", debian.run(["ldd", str(library)], partial))
        if missing:
            raise SimulatorError(f"{_PACKAGE} needs {', '.join(missing)}: apt-get install what has them")
        content = json.loads(described.read_text(encoding="utf-8"))
        content["ICD"]["library_path"] = str(target / library.name)
        (partial / _DESCRIPTION).write_text(json.dumps(content, indent=1), encoding="utf-8")
        (partial / "version").write_text(package.name.split("_")[1].replace("%3a", ":"), encoding="utf-8")
        library.rename(partial / library.name)
        for rest in ("unpacked", "lists", "archives"):
            shutil.rmtree(partial / rest)
        for file in (*partial.glob("*.bin"), package, source):
            file.unlink()
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _mirror() -> str:
    """The first Debian mirror that this machine's own apt names. Raises: SimulatorError when it names none."""
    folder = Path("/etc/apt")
    for path in (folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))):
        if path.suffix in (".list", ".sources") and path.is_file():
            for uri in re.findall(r"\bhttps?://\S+", path.read_text(encoding="utf-8")):
                if uri.rstrip("/").endswith("/debian") and "snapshot" not in uri:
                    return str(uri.rstrip("/"))
    raise SimulatorError(
        f"/etc/apt names no Debian mirror to fetch {_PACKAGE} from: add one, or install Mesa's lavapipe, version 25 "
        "or newer, and name its description in VK_ICD_FILENAMES"
    )
