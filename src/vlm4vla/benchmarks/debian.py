"""Debian's packages, fetched by its own apt into a folder of ours: nothing of the system is changed, nobody is root."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vlm4vla.core.errors import SimulatorError


def apt(folder: Path, *options: str) -> list[str]:
    """The command `apt-get` with lists and downloads below `folder`, and the lists up to date."""
    for part in ("lists/partial", "archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    own = (f"Dir::State::lists={folder / 'lists'}", f"Dir::Cache={folder}", "APT::Sandbox::User=")
    command = ["apt-get", *(part for option in (*own, *options) for part in ("-o", option))]
    run([*command, "update"], folder)
    return command


def unpack(packages: list[Path], folder: Path) -> Path:
    """The files of some packages, below the folder that is returned."""
    for package in packages:
        run(["dpkg-deb", "-x", str(package), "unpacked"], folder)
    return folder / "unpacked"


def run(command: list[str], folder: Path) -> str:
    """Output of a command. Raises: SimulatorError with the end of what it said."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise SimulatorError(
            f"{folder.name.strip('.').split('.')[0]}: {command[0]} failed: {' / '.join(told)}"
        )
    return done.stdout
