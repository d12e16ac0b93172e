"""Energy is read from real files and a real program, or said to be unreadable."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest
from run_folders import make_trial, small_study, write_trial

from vlm4vla.reports.account import energy
from vlm4vla.reports.study_page import write_study_report
from vlm4vla.reports.tables import DASH
from vlm4vla.studies import energy as metered
from vlm4vla.studies import runs
from vlm4vla.studies.energy import EnergyMeter, gpu_watts
from vlm4vla.studies.runs import RunStore, read_status


def package(folder: Path, microjoules: int, name: str = "package-0", most: int = 1_000_000_000) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def test_packages_add_up_and_counters_that_start_again_go_on(tmp_path: Path, no_gpu: None) -> None:
    one = package(tmp_path / "intel-rapl:0", 5_000_000)
    two = package(tmp_path / "intel-rapl:1", 999_000_000, "package-1")
    package(tmp_path / "intel-rapl:0:0", 0, "core")
    package(tmp_path / "intel-rapl:2", 0, "psys")
    with EnergyMeter(powercap=tmp_path, every=0.02) as meter:
        package(one, 7_000_000)
        package(two, 2_000_000, "package-1")
        package(tmp_path / "intel-rapl:2", 900_000_000, "psys")
        time.sleep(0.1)
        package(one, 8_500_000)
    assert meter.joules == pytest.approx(3.5 + 3.0)


def test_what_cannot_be_read_is_none(tmp_path: Path, no_gpu: None) -> None:
    with EnergyMeter(powercap=tmp_path / "none") as meter:
        pass
    assert meter.joules is None
    (package(tmp_path / "intel-rapl:0", 1) / "energy_uj").unlink()
    with EnergyMeter(powercap=tmp_path) as meter:
        pass
    assert meter.joules is None


def test_power_of_gpus_becomes_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 200.5\necho 99.5\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert gpu_watts() == 300
    start = time.monotonic()
    with EnergyMeter(powercap=tmp_path / "none", every=0.05) as meter:
        time.sleep(0.3)
    assert meter.joules is not None
    assert 300 * 0.3 <= meter.joules <= 300 * (time.monotonic() - start)
    program.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert gpu_watts() is None


def test_phases_keep_joules_over_resumes_but_not_over_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_gpu: None
) -> None:
    folder = package(tmp_path / "intel-rapl:0", 0)
    store, trial = RunStore(tmp_path / "runs"), make_trial("tiny-qwen3-vl")

    def work(joules: int, readable: bool = True) -> dict[str, float] | None:
        where = tmp_path if readable else tmp_path / "none"
        monkeypatch.setattr(runs, "EnergyMeter", lambda: EnergyMeter(powercap=where))
        with store.open(trial, facts={}) as run, run.phase("train"):
            before = int((folder / "energy_uj").read_text())
            package(folder, before + joules * 1_000_000)
            time.sleep(0.002)
        status = read_status(store.folder(trial))
        assert status is not None
        return None if status.joules is None else dataclasses.asdict(status.joules)

    assert work(2) == {"demonstrations": 0.0, "train": 2.0, "evaluate": 0.0}
    assert work(3) == {"demonstrations": 0.0, "train": 5.0, "evaluate": 0.0}
    assert work(1, readable=False) is None
    assert work(1) is None


def test_the_report_shows_energy_or_says_that_there_is_none(tmp_path: Path) -> None:
    trial = make_trial("tiny-qwen3-vl")
    folder = write_trial(tmp_path, trial, skill=0.9)
    study = small_study(("only", {"tabletop": trial}))
    page = write_study_report(study, tmp_path, tmp_path / "report").read_text()
    assert "Energy: not readable on this machine" in page
    status = json.loads((folder / "status.json").read_text())
    status["joules"] = {"demonstrations": 500_000.0, "train": 12_000.0, "evaluate": 345.0}
    (folder / "status.json").write_text(json.dumps(status))
    page = write_study_report(study, tmp_path, tmp_path / "report").read_text()
    assert "12.3 kJ" in page and "Energy: not readable" not in page
    assert (energy(None), energy(431), energy(4_560_000)) == (DASH, "431 J", "4.56 MJ")


def test_here_the_meter_tells_a_number_or_nothing() -> None:
    with EnergyMeter(every=0.01) as meter:
        time.sleep(0.05)
    assert meter.joules is None or meter.joules >= 0
    assert Path("/sys") in metered.POWERCAP.parents
