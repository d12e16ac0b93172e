"""Installing a simulator: packages at exact versions, models from where their authors publish them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable
from pathlib import Path

from vlm4vla.benchmarks.registry import load
from vlm4vla.benchmarks.simulators import (
    INSTALLED,
    MODELS,
    Simulator,
    constraints,
    models_record,
    other_models,
    other_packages,
    simulator,
    simulator_folder,
    state,
)
from vlm4vla.core.errors import SimulatorError

_WORKER = ("numpy", "jaxtyping")
"""What our side of a worker needs beside the simulator."""
_NVIDIA = Path("/proc/driver/nvidia/version")
Say = Callable[[str], None]


def install(
    name: str, *, copy_from: Path | None = None, here: bool = False, say: Say = print, url: str | None = None
) -> Path:
    """Install a simulator and its models; what is there already is not done again.

    `copy_from` is an offline copy of its repository (a folder, or an archive of it), or a folder of its wheels where it
    has none; `here` installs the packages into this Python instead of one of its own; `url` is another place of the
    repository. Models of another commit, and packages that are not at their pins, are brought anew; a copy is kept
    until another origin is named. Nothing passes for installed before all is there.

    Raises: SimulatorError with what failed and what to do.
    """
    entry, folder = simulator(name), simulator_folder(name)
    if here and not entry.shared:
        raise SimulatorError(
            f"{name} needs other versions of packages that this Python has (numpy, mujoco); leave `--here` out, and it "
            "gets a Python of its own"
        )
    folder.mkdir(parents=True, exist_ok=True)
    copy_from = copy_from.resolve() if copy_from else None
    named, record = str(copy_from or url or ""), models_record(name)
    there = state(name)["models"] and record["wanted"] == entry.commit and named in ("", record["origin"])
    if entry.needed and not (there and (not record["commit"] or not other_models(name))):
        _models(entry, folder, copy_from, url or entry.source, say)
    if others := other_models(name):
        say(f"{name}: models: {others}. `--url {entry.source}` fetches the published ones")
    if entry.prepare:
        load(entry.prepare)(folder, say)
    wanted = {"requirements": _requirements(entry), "here": here}
    marker, found = folder / INSTALLED, state(name)["installed"] or {}
    if {key: found.get(key) for key in wanted} == wanted and not other_packages(name, here=here):
        say(f"{name} is installed: {folder}")
        return folder
    marker.unlink(missing_ok=True)
    python = sys.executable if here else _environment(entry, folder, say)
    say(f"{name}: packages {', '.join(_requirements(entry))}")
    frozen = _packages(entry, python, here, None if entry.source else copy_from, say)
    _write(marker, {**wanted, "packages": frozen})
    say(f"{name} is installed: {folder}")
    return folder


def _requirements(entry: Simulator) -> list[str]:
    return [*([f"torch=={entry.torch}"] if entry.torch else []), *entry.requirements]


def _packages(entry: Simulator, python: str, here: bool, wheels: Path | None, say: Say) -> list[str]:
    """Install, from a folder of wheels if there is one; the exact versions of all that is there then."""
    # This Python's own packages stay as they are: pins of what a simulator brings are for its own environment.
    ours, pinned = ((), []) if here else (_WORKER, ["-c", str(constraints(entry.name))])
    if wheels is not None and not any(wheels.glob("*.whl")):
        raise SimulatorError(
            f"{wheels}: has no wheels; where there is a network, "
            f"`{' '.join(['pip wheel -w FOLDER', *pinned, *entry.requirements, *ours])}` makes them with Python "
            f"{'.'.join(map(str, entry.pythons[0]))}"
        )
    offline = [] if wheels is None else ["--no-index", "--find-links", str(wheels)]
    pip = [python, "-m", "pip", "install", "--quiet", *offline, *pinned]
    if entry.torch:
        _torch(entry, pip, say)
    _run([*pip, *entry.requirements, *ours], f"{entry.name}: its packages")
    return _run([python, "-m", "pip", "freeze"], f"{entry.name}: listing its packages").splitlines()


def _torch(entry: Simulator, pip: list[str], say: Say) -> None:
    """Without CUDA where there is no NVIDIA GPU and an index has such a build, as `make setup` does it."""
    if not _NVIDIA.exists() and shutil.which("nvidia-smi") is None:
        try:
            _run([*pip, f"torch=={entry.torch}+cpu"], "torch")
            return
        except SimulatorError:
            say(
                f"{entry.name}: no index that pip knows offers torch {entry.torch}+cpu, so the default build, which "
                "may bring some GB of CUDA libraries. To avoid that, interrupt, set PIP_EXTRA_INDEX_URL to the index "
                "for CPUs that PyTorch's installation page shows, and run the command again"
            )
    _run([*pip, f"torch=={entry.torch}"], f"{entry.name}: torch")


def _models(entry: Simulator, folder: Path, copy_from: Path | None, url: str, say: Say) -> None:
    """Fetch or copy them, then put them in place of those that are there, which stay until then."""
    partial, staged, replaced = (folder / f".models.{word}" for word in ("partial", "staged", "replaced"))
    for rest in (partial, staged, replaced):
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
        for path in staged.rglob("*"):
            if path.is_dir():  # a copy may be read-only, and could then not be moved
                path.chmod(path.stat().st_mode | 0o200)
        (folder / MODELS).unlink(missing_ok=True)
        for part in entry.needed:
            (replaced / part).parent.mkdir(parents=True, exist_ok=True)
            if (folder / part).exists():
                (folder / part).rename(replaced / part)
            (staged / part).rename(folder / part)
        commit = "" if copy_from else entry.commit
        _write(folder / MODELS, {"origin": str(copy_from or url), "commit": commit, "wanted": entry.commit})
    finally:
        for rest in (partial, staged, replaced):
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
    versions = [f"{major}.{minor}" for major, minor in entry.pythons]
    raise SimulatorError(
        f"{entry.name} has packages for Python {', '.join(versions)} only, and none of them is on the path. Install "
        f"one (Debian 12: apt-get install python{versions[0]}-venv; anywhere: pip install uv, then "
        f"uv python install {versions[0]}), and run the command again with `python{versions[0]}` on the path"
    )


def _write(path: Path, content: dict[str, object]) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.rename(path)


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
