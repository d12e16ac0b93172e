"""Every probe finds what is there, and with the thing taken away says so and what to do."""

from __future__ import annotations

import json
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from vlm4vla import cli_doctor
from vlm4vla.benchmarks import findings, osmesa
from vlm4vla.benchmarks.findings import Finding
from vlm4vla.benchmarks.machine import Memory
from vlm4vla.benchmarks.simulators import constraints, pins
from vlm4vla.cli import build_parser, main
from vlm4vla.cli_doctor import libraries

usage = namedtuple("usage", "total used free")


def test_this_machine_can_run_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert status == 0, [finding for finding in told if finding["state"] == "problem"]
    named = {finding["what"]: finding for finding in told}
    assert {
        "Python",
        "torch",
        "transformers",
        "numpy",
        "mujoco",
        "cores",
        "memory",
        "video",
        "OpenGL",
        "EGL",
        "disk: simulators",
    } <= named.keys()
    assert all(finding["found"] for finding in told)
    assert all(finding["remedy"] for finding in told if finding["state"] == "problem")


def test_a_problem_is_told_and_the_command_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    version_info = namedtuple("version_info", "major minor micro")
    monkeypatch.setattr(sys, "version_info", version_info(3, 9, 1))
    assert main(["doctor"]) == 1
    shown = capsys.readouterr()
    assert "PROBLEM" in shown.out and "use a Python from 3.11" in shown.out
    assert "1 problems: Python" in shown.err


def test_libraries_that_are_missing_or_too_old_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["numpy>=999", "no-such-thing>=1", "torch", "extra-only>=1; extra == 'dev'"]
    monkeypatch.setattr(cli_doctor.importlib.metadata, "requires", lambda name: needed)
    found = {finding.what: finding for finding in libraries()}
    assert found.keys() == {"numpy", "no-such-thing", "torch"}
    assert found["numpy"].state == "problem" and ">=999 is needed" in found["numpy"].found
    assert found["no-such-thing"].remedy == "pip install 'no-such-thing>=1'"
    assert found["torch"].state == "ok"


def test_more_threads_than_cores_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert cli_doctor.cores().state == "note"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cli_doctor.cores().state == "ok"


def test_little_memory_and_little_room_are_notes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli_doctor, "_memory", lambda: Memory(8 << 30, 1 << 30, limited=True))
    assert cli_doctor.memory() == Finding(
        what="memory", state="note", found="1.0 of 8.0 GiB free", remedy=cli_doctor.memory().remedy
    )
    monkeypatch.setattr(cli_doctor.shutil, "disk_usage", lambda path: usage(1 << 40, 1 << 40, 1 << 20))
    assert {finding.state for finding in cli_doctor.disks()} == {"note"}


def test_a_gpu_that_torch_does_not_see_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cli_doctor, "_output", lambda command: "NVIDIA H100, 80 GiB, 550")
    (finding,) = cli_doctor.accelerator()
    assert finding.state == "problem" and "torch" in finding.found
    monkeypatch.setattr(cli_doctor, "_output", lambda command: "")
    (finding,) = cli_doctor.accelerator()
    assert finding.state == "note"


@pytest.mark.parametrize(
    "does, told",
    [
        ("kill -SEGV $$", "code -11"),
        ("exec sleep 60", "hangs: no"),
        ("echo it is so >&2; exit 1", "it is so"),
    ],
)
def test_a_driver_that_ends_or_hangs_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, told: str
) -> None:
    monkeypatch.setenv("VLM4VLA_SIMULATORS", str(tmp_path))
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(findings, "_SECONDS", 1)
    monkeypatch.setattr(osmesa, "_SECONDS", 1)
    found = {finding.what: finding for finding in findings.opengl()}
    assert found["EGL"].state == found["OpenGL"].state == "note"
    assert told in found["EGL"].found and told in found["OpenGL"].found
    assert "libegl1" in found["EGL"].remedy and "libegl1" in found["OpenGL"].remedy
    (tmp_path / "libero" / "osmesa").mkdir(parents=True)
    assert {finding.what: finding.state for finding in findings.opengl()}["OSMesa"] == "ok"


def test_vulkan_drivers_are_those_that_are_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLM4VLA_SIMULATORS", str(tmp_path))
    driver = tmp_path / "lvp.json"
    monkeypatch.setenv("VK_ICD_FILENAMES", str(driver))
    assert findings.vulkan().state == "note"
    driver.write_text("{}")
    assert findings.vulkan() == Finding(what="Vulkan", state="ok", found="drivers: lvp.json")
    driver.write_text(json.dumps({"ICD": {"library_path": "./libvulkan_lvp.so"}}))
    (tmp_path / "libvulkan_lvp.so").write_bytes(b"\0llvmpipe\0Mesa 22.3.6 (LLVM 15.0.6)\0")
    finding = findings.vulkan()
    assert finding.state == "note" and "Mesa 22.3.6" in finding.found and "install simpler" in finding.remedy
    (tmp_path / "libvulkan_lvp.so").write_bytes(b"\0Mesa 25.0.7-2 (LLVM")
    assert findings.vulkan().state == "ok"
    # What `simulators install simpler` brings counts, unless another one is named.
    monkeypatch.delenv("VK_ICD_FILENAMES")
    monkeypatch.delenv("VK_DRIVER_FILES", raising=False)
    (tmp_path / "simpler" / "lavapipe").mkdir(parents=True)
    (tmp_path / "simpler" / "lavapipe" / "lvp.json").write_text("{}")
    (tmp_path / "simpler" / "lavapipe" / "version").write_text("25.0.7-2")
    found = findings.vulkan()
    assert found == Finding(what="Vulkan", state="ok", found="SimplerEnv's own lavapipe 25.0.7-2")


def test_simulators_are_found_with_what_is_not_at_its_pin(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLM4VLA_SIMULATORS", str(tmp_path))
    folder = tmp_path / "libero"
    packages = folder / "venv" / "lib" / "python3.11" / "site-packages"
    for name, version in {**pins("libero"), "numpy": "2.0.0", "Pillow": "1.0", "numba": ""}.items():
        if version:
            information = packages / f"{name}-{version}.dist-info"
            information.mkdir(parents=True)
            (information / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            )
    (folder / "installed.json").write_text("{}")
    (folder / "venv" / "bin").mkdir()
    (folder / "venv" / "bin" / "python").touch()
    found = {finding.what: finding for finding in findings.simulators()}
    pillow = next(
        line for line in constraints("libero").read_text().splitlines() if line.startswith("pillow")
    )
    told = found["libero: packages"]
    assert told.state == "note" and told.found.split(", ") == [
        "numba missing instead of 0.68.1",
        "numpy 2.0.0 instead of 1.26.4",
        f"pillow 1.0 instead of {pillow.partition('==')[2]}",
    ]
    assert found["simpler"].found == "not installed"
    assert found.get("calvin") or found["calvin: models"].found == "missing"
    (folder / "venv" / "bin" / "python").unlink()
    found |= {f"later {finding.what}": finding for finding in findings.simulators()}
    assert found["later libero"].state == "problem" and "damaged" in found["later libero"].found
    commands = [finding.remedy.split("`")[1].split() for finding in found.values()]
    for command in commands:
        assert command[:3] == ["vlm4vla", "simulators", "install"] and build_parser().parse_args(command[1:])
    monkeypatch.setattr(cli_doctor.shutil, "disk_usage", lambda path: usage(1 << 40, 1 << 40, 1 << 20))
    (disk,) = (finding for finding in cli_doctor.disks() if finding.what == "disk: simulators")
    assert disk.state == "note" and "VLM4VLA_SIMULATORS" in disk.remedy
