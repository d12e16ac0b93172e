"""Installing without a network: a repository on this disk, no packages; what fails half-way does not pass for done."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from vlm4vla.benchmarks import installing, osmesa, simulators
from vlm4vla.benchmarks.installing import _packages, install
from vlm4vla.benchmarks.simulators import (
    SIMULATORS,
    Simulator,
    constraints,
    differences,
    interpreter,
    models_record,
    other_models,
    other_packages,
    pins,
    state,
)
from vlm4vla.core.errors import RecipeError, SimulatorError

_create = venv.create


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Simulator:
    """A simulator whose module nobody has, whose models are in a git repository here."""
    repository = tmp_path / "repository"
    (repository / "data").mkdir(parents=True)
    (repository / "data" / "model.urdf").write_text("<robot/>")

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "uploadpack.allowAnySHA1InWant=true"]
        command = ["git", *identity, "-C", str(repository), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("config", "uploadpack.allowAnySHA1InWant", "true")
    git("add", ".")
    git("commit", "--quiet", "-m", "x")
    entry = Simulator(
        name="toy",
        module="no_such_simulator",
        requirements=(),
        pythons=((3, 11), (3, 12), (3, 13)),
        source=str(repository),
        commit=git("rev-parse", "HEAD"),
        needed=("data",),
        licence="MIT",
        benchmark="toy",
    )
    monkeypatch.setattr(simulators, "SIMULATORS", {"toy": entry})
    (tmp_path / "toy.txt").write_text("# exact\n")
    monkeypatch.setattr(simulators, "_CONSTRAINTS", tmp_path)
    monkeypatch.setattr(installing, "_WORKER", ())
    # Without pip, which takes seconds.
    monkeypatch.setattr(installing.venv, "create", lambda path, with_pip, clear: _create(path, clear=clear))
    monkeypatch.setenv("VLM4VLA_SIMULATORS", str(tmp_path / "simulators"))
    monkeypatch.setattr(installing, "_packages", lambda *arguments: ["toy==1"])
    return entry


def test_models_and_an_environment_are_made_and_found(toy: Simulator) -> None:
    with pytest.raises(SimulatorError, match="vlm4vla simulators install toy"):
        interpreter("toy")
    said: list[str] = []
    folder = install("toy", say=said.append)
    assert (folder / "data" / "model.urdf").read_text() == "<robot/>"
    assert models_record("toy") == {"origin": toy.source, "commit": toy.commit, "wanted": toy.commit}
    python = interpreter("toy")
    assert python is not None
    assert (
        subprocess.run([python, "-c", "print(1)"], capture_output=True, text=True, check=True).stdout == "1\n"
    )
    assert state("toy")["models"] and not state("toy")["here"]
    said.clear()
    install("toy", say=said.append)
    assert said == [f"toy is installed: {folder}"]


def test_a_copy_is_taken_and_a_wrong_one_refused(toy: Simulator, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SimulatorError, match="has no folder 'data'; give a copy of"):
        install("toy", copy_from=tmp_path / "empty", say=str)
    assert not state("toy")["models"]
    folder = install("toy", copy_from=Path(toy.source), say=str)
    assert (folder / "data" / "model.urdf").exists()
    shutil.rmtree(folder)
    with tarfile.open(tmp_path / "copy.tar.xz", "w:xz") as archive:
        archive.add(Path(toy.source) / "data", "data")
    assert (install("toy", copy_from=tmp_path / "copy.tar.xz", say=str) / "data" / "model.urdf").exists()


def test_files_are_laid_where_the_simulator_looks_for_them(
    toy: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its repository, from a clone of that, and from a copy of what is installed; and what else it needs."""
    elsewhere = replace(toy, places={"data/model.urdf": "models/robots/a.urdf"}, needed=("models",))
    monkeypatch.setattr(simulators, "SIMULATORS", {"toy": elsewhere})
    folders = []
    for number, origin in enumerate((None, Path(toy.source), tmp_path / "0" / "toy")):
        monkeypatch.setenv("VLM4VLA_SIMULATORS", str(tmp_path / str(number)))
        folders.append(install("toy", copy_from=origin, say=str))
        assert (folders[-1] / "models" / "robots" / "a.urdf").read_text() == "<robot/>"
        assert not list(folders[-1].glob(".models*"))
    prepared: list[Path] = []
    monkeypatch.setattr(installing, "load", lambda address: lambda folder, say: prepared.append(folder))
    monkeypatch.setattr(simulators, "SIMULATORS", {"toy": replace(elsewhere, prepare="toys:prepare")})
    install("toy", say=str)
    assert prepared == [folders[-1]]


def test_what_failed_is_no_installation_and_is_done_again(
    toy: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> list[str]:
        raise SimulatorError("toy: its packages failed: no network")

    with monkeypatch.context() as patch:
        patch.setattr(installing, "_packages", broken)
        with pytest.raises(SimulatorError, match="no network"):
            install("toy", say=str)
    with pytest.raises(SimulatorError, match="not installed"):
        interpreter("toy")
    install("toy", say=str)
    assert interpreter("toy")


def test_another_version_is_installed_anew(toy: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    install("toy", say=str)
    monkeypatch.setattr(simulators, "SIMULATORS", {"toy": replace(toy, requirements=("toy==2",))})
    install("toy", say=str)
    assert state("toy")["installed"]["requirements"] == ["toy==2"]


def committed(toy: Simulator, text: str) -> str:
    """Another commit of its models."""
    (Path(toy.source) / "data" / "model.urdf").write_text(text)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", toy.source]
    subprocess.run([*git, "commit", "--quiet", "-am", "y"], check=True)
    done = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_models_of_another_commit_are_fetched_anew_and_lost_never(
    toy: Simulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = install("toy", say=str) / "data" / "model.urdf"
    later = replace(toy, commit=committed(toy, "<robot later/>"))
    monkeypatch.setattr(simulators, "SIMULATORS", {"toy": later})
    assert other_models("toy") == f"of {toy.commit[:7]}, not of {later.commit[:7]}"
    with pytest.raises(SimulatorError, match="nowhere"):
        install("toy", url=str(tmp_path / "nowhere"), say=str)
    assert model.read_text() == "<robot/>" and models_record("toy")["commit"] == toy.commit
    assert interpreter("toy")
    install("toy", say=str)
    assert model.read_text() == "<robot later/>" and models_record("toy")["commit"] == later.commit
    assert other_models("toy") == ""


def test_a_copy_passes_for_no_commit_and_stays_until_another_origin_is_named(
    toy: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(Path(toy.source) / "data", copy / "data")
    (copy / "data" / "model.urdf").write_text("<robot mine/>")
    (copy / "data" / "sub").mkdir()
    (copy / "data" / "sub").chmod(0o555)
    said: list[str] = []
    folder = install("toy", copy_from=copy, say=said.append)
    assert models_record("toy") == {"origin": str(copy), "commit": "", "wanted": toy.commit}
    assert (folder / "data" / "sub").stat().st_mode & 0o200
    install("toy", say=said.append)
    assert (folder / "data" / "model.urdf").read_text() == "<robot mine/>"
    assert said[-2:] == [
        f"toy: models: of an unknown commit, in a copy of {copy}, not of {toy.commit[:7]}. "
        f"`--url {toy.source}` fetches the published ones",
        f"toy is installed: {folder}",
    ]
    (difference,) = differences("toy")
    assert difference.what == "models" and f"install toy --url {toy.source}" in difference.remedy
    install("toy", url=toy.source, say=str)
    assert differences("toy") == []
    assert (folder / "data" / "model.urdf").read_text() == "<robot/>" and other_models("toy") == ""
    (folder / "models.json").write_text("{")
    install("toy", say=str)
    assert models_record("toy")["commit"] == toy.commit
    # Before there was a record, the commit that was wanted was all that was written down.
    (folder / "models.json").unlink()
    (folder / "data" / "model.urdf").write_text("<robot mine/>")
    written = json.loads((folder / "installed.json").read_text()) | {"commit": toy.commit}
    (folder / "installed.json").write_text(json.dumps(written))
    install("toy", say=str)
    assert "mine" in (folder / "data" / "model.urdf").read_text() and "unknown" in other_models("toy")


def test_files_of_calvin_that_are_not_the_published_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The offline copy in tests/ is file by file what the pinned commit has."""
    monkeypatch.setenv("VLM4VLA_SIMULATORS", str(tmp_path))
    assert other_models("calvin") == "missing"
    with tarfile.open(Path(__file__).parents[1] / "assets" / "calvin.tar.xz") as archive:
        archive.extractall(tmp_path / "calvin", filter="data")
    assert other_models("calvin") == ""
    (tmp_path / "calvin" / "data" / "plane" / "plane.urdf").write_text("<robot/>")
    for path in (tmp_path / "calvin" / "data" / "blocks").glob("*_big.urdf"):
        path.unlink()
    told = other_models("calvin")
    assert "4 of 161 files are not the published ones" in told
    assert "data/plane/plane.urdf" in told and "data/blocks/block_red_big.urdf" in told


def wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    """A package of nothing."""
    information = f"{name}-{version}.dist-info"
    needed = "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(
            f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}"
        )
        file.writestr(
            f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{information}/RECORD", "")


def test_everything_that_packages_bring_is_at_its_pin(
    toy: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real pip; and torch is the one without CUDA, where there is no GPU and such a build."""
    wheels, said = tmp_path / "wheels", list[str]()
    wheels.mkdir()
    wheel(wheels, "toy", "1.0", "brought", "torch")
    for version in ("1.0", "2.0"):
        wheel(wheels, "brought", version)
    for version in ("1.0", "1.0+cpu", "2.0"):
        wheel(wheels, "torch", version)
    (tmp_path / "toy.txt").write_text("# exact\nbrought==1.0\ntorch==1.0\ntoy==1.0\n")
    own = replace(toy, source="", needed=(), requirements=("toy==1.0",), torch="1.0")
    monkeypatch.setattr(simulators, "SIMULATORS", {"toy": own})
    monkeypatch.setattr(installing, "_packages", _packages)
    monkeypatch.setattr(installing.venv, "create", _create)
    monkeypatch.setattr(installing, "_NVIDIA", tmp_path / "none")
    assert not state("toy")["models"]
    with pytest.raises(SimulatorError, match=r"pip wheel -w FOLDER -c \S+toy.txt toy==1.0` makes them"):
        install("toy", copy_from=tmp_path, say=str)
    folder = install("toy", copy_from=wheels, say=said.append)
    frozen = json.loads((folder / "installed.json").read_text())["packages"]
    assert [line.partition(" ")[0] for line in frozen] == ["brought==1.0", "torch==1.0+cpu", "toy==1.0"]
    assert state("toy")["models"] and other_packages("toy", here=False) == []
    assert not any("CUDA" in line for line in said)
    (wheels / "torch-1.0+cpu-py3-none-any.whl").unlink()
    (tmp_path / "toy.txt").write_text("# exact\nbrought==2.0\ntorch==1.0\ntoy==1.0\n")
    (difference,) = differences("toy")
    assert difference.found == "brought 1.0 instead of 2.0" and "simulators install toy`" in difference.remedy
    install("toy", copy_from=wheels, say=said.append)
    assert other_packages("toy", here=False) == [] and "PIP_EXTRA_INDEX_URL" in " ".join(said)
    assert other_packages("toy", here=True) == ["toy missing instead of 1.0"]


@pytest.mark.parametrize("name", SIMULATORS)
def test_every_simulator_has_its_exact_versions_in_the_wheel(name: str) -> None:
    from hatchling.builders.wheel import WheelBuilder

    lines = [line for line in constraints(name).read_text().splitlines() if not line.startswith("#")]
    assert lines and all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    versions = {package.lower(): version for package, _, version in (line.partition("==") for line in lines)}
    assert pins(name).items() <= versions.items() and {"numpy", "jaxtyping"} <= versions.keys()
    assert versions.get("torch", "") == SIMULATORS[name].torch
    root = Path(__file__).parents[2]
    shipped = {file.distribution_path for file in WheelBuilder(str(root)).recurse_project_files()}
    assert f"vlm4vla/benchmarks/constraints/{name}.txt" in shipped


def test_what_cannot_be_is_told(toy: Simulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SimulatorError, match=r"fetching .*nowhere.*--from FOLDER"):
        install("toy", url=str(tmp_path / "nowhere"), say=str)
    monkeypatch.setattr(simulators, "SIMULATORS", {"toy": replace(toy, pythons=((2, 7),))})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SimulatorError, match=r"Python 2\.7 only.*uv python install 2\.7"):
        install("toy", copy_from=Path(toy.source), say=str)
    with pytest.raises(RecipeError, match="toy"):
        install("tyo", say=str)


def test_a_damaged_marker_is_shown(toy: Simulator) -> None:
    folder = install("toy", say=str)
    (folder / "installed.json").write_text("{")
    assert "damaged" in state("toy")["installed"]
    install("toy", say=str)
    assert state("toy")["installed"]["packages"] == ["toy==1"]


@pytest.mark.parametrize("required, passes", [("", True), ("libero", True), ("libero,calvin", False)])
def test_a_required_simulator_that_is_not_there_is_a_failure(
    tmp_path: Path, required: str, passes: bool
) -> None:
    (tmp_path / "integration").mkdir()
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    test = "import pytest\n\ndef test_it(): pytest.skip('not installed')\n"
    (tmp_path / "integration" / "test_calvin.py").write_text(test)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "VLM4VLA_REQUIRE": required}
    )
    assert (done.returncode == 0) == passes, done.stdout
    assert (
        "VLM4VLA_REQUIRE names calvin, and this was not run: Skipped: not installed" in done.stdout
    ) != passes


def test_osmesa_is_fetched_where_nothing_else_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has neither it, nor EGL, nor apt is told; a file that is no library is not taken for one."""
    said: list[str] = []
    monkeypatch.setattr(osmesa.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(osmesa, "egl_works", lambda: True)
    osmesa.install(tmp_path, said.append)
    assert said == []
    monkeypatch.setattr(osmesa, "egl_works", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    osmesa.install(tmp_path, said.append)
    assert "no EGL" in said[0]
    osmesa.load(tmp_path)
    (tmp_path / "osmesa").mkdir()
    (tmp_path / "osmesa" / "libOSMesa.so.8").write_bytes(b"")
    with pytest.raises(OSError, match="libOSMesa"):
        osmesa.load(tmp_path)
