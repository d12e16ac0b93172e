"""Installing without a network: a repository on this disk, no packages; what fails half-way does not pass for done."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from vlm4vla.benchmarks import osmesa, simulators
from vlm4vla.benchmarks.simulators import Simulator, install, interpreter, state
from vlm4vla.core.errors import RecipeError, SimulatorError


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
    monkeypatch.setattr(simulators, "_WORKER", ())
    monkeypatch.setenv("VLM4VLA_SIMULATORS", str(tmp_path / "simulators"))
    monkeypatch.setattr(simulators, "_packages", lambda entry, python, here, wheels: ["toy==1"])
    return entry


def test_models_and_an_environment_are_made_and_found(toy: Simulator) -> None:
    with pytest.raises(SimulatorError, match="vlm4vla simulators install toy"):
        interpreter("toy")
    said: list[str] = []
    folder = install("toy", say=said.append)
    assert (folder / "data" / "model.urdf").read_text() == "<robot/>"
    assert json.loads((folder / "installed.json").read_text())["commit"] == toy.commit
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
    monkeypatch.setattr(simulators, "load", lambda address: lambda folder, say: prepared.append(folder))
    monkeypatch.setattr(simulators, "SIMULATORS", {"toy": replace(elsewhere, prepare="toys:prepare")})
    install("toy", say=str)
    assert prepared == [folders[-1]]


def test_what_failed_is_no_installation_and_is_done_again(
    toy: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(entry: Simulator, python: str, here: bool, wheels: Path | None) -> list[str]:
        raise SimulatorError("toy: its packages failed: no network")

    with monkeypatch.context() as patch:
        patch.setattr(simulators, "_packages", broken)
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


def test_what_cannot_be_is_told(toy: Simulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SimulatorError, match=r"fetching .*nowhere.*--from FOLDER"):
        install("toy", url=str(tmp_path / "nowhere"), say=str)
    monkeypatch.setattr(simulators, "SIMULATORS", {"toy": replace(toy, pythons=((2, 7),))})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SimulatorError, match=r"Python 2\.7 only"):
        install("toy", copy_from=Path(toy.source), say=str)
    with pytest.raises(RecipeError, match="toy"):
        install("tyo", say=str)


def test_a_damaged_marker_is_shown(toy: Simulator) -> None:
    folder = install("toy", say=str)
    (folder / "installed.json").write_text("{")
    assert "damaged" in state("toy")["installed"]
    install("toy", say=str)
    assert state("toy")["installed"]["commit"] == toy.commit


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
