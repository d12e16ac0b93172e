"""Every probe finds what is there, and with the thing taken away says so and what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from vlm4vla import cli_doctor
from vlm4vla.benchmarks.machine import Memory
from vlm4vla.cli import main
from vlm4vla.cli_doctor import Finding, libraries


def test_this_machine_can_run_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)
    assert status == 0, [finding for finding in findings if finding["state"] == "problem"]
    named = {finding["what"]: finding for finding in findings}
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
    } <= named.keys()
    assert all(finding["found"] for finding in findings)
    assert all(finding["remedy"] for finding in findings if finding["state"] == "problem")


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
    usage = namedtuple("usage", "total used free")
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


def test_opengl_that_ends_the_process_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = subprocess.CompletedProcess([], -11, "", "")
    monkeypatch.setattr(cli_doctor.subprocess, "run", lambda *arguments, **options: broken)
    finding = cli_doctor.opengl()
    assert finding.state == "note" and "code -11" in finding.found and "libegl1" in finding.remedy


def test_vulkan_drivers_are_those_that_are_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver = tmp_path / "lvp.json"
    monkeypatch.setenv("VK_ICD_FILENAMES", str(driver))
    assert cli_doctor.vulkan().state == "note"
    driver.write_text("{}")
    assert cli_doctor.vulkan() == Finding(what="Vulkan", state="ok", found="drivers: lvp.json")
