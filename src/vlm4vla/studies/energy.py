"""How many joules the machine spends while something runs, where it tells: processors (RAPL) and NVIDIA GPUs.

It is what the whole machine spends, whatever else runs on it: trials side by side each count the same joules.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

POWERCAP = Path("/sys/class/powercap")
"""Linux's counters, one a processor package. Many machines let only root read them."""
EVERY = 5.0
"""Seconds between two looks: counters start again after some 260 kJ, and GPUs tell power, not energy."""


class EnergyMeter:
    """Joules from entering to leaving."""

    def __init__(self, *, powercap: Path = POWERCAP, every: float = EVERY) -> None:
        self.joules: float | None = None
        """So far; None where nothing can be read."""
        names = powercap.glob(
            "intel-rapl:*/name"
        )  # beside packages: their parts, and the platform that has them in it
        self._packages = sorted(path.parent for path in names if path.read_text().startswith("package"))
        self._every, self._ended = every, threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._time = time.monotonic()
        self._counters, self._watts = self._read(), gpu_watts()
        if self._counters or self._watts is not None:
            self.joules = 0.0
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._look()

    def _watch(self) -> None:
        while not self._ended.wait(self._every):
            self._look()

    def _look(self) -> None:
        """Add what was spent since the last look."""
        now, counters, watts = time.monotonic(), self._read(), gpu_watts()
        spent = 0.0
        for package, count in counters.items():
            before = self._counters.get(package, count)
            spent += (count - before if count >= before else count - before + _range(package)) / 1e6
        if watts is not None:
            spent += (now - self._time) * (watts if self._watts is None else (watts + self._watts) / 2)
        assert self.joules is not None
        self.joules += spent
        self._time, self._counters, self._watts = now, {**self._counters, **counters}, watts

    def _read(self) -> dict[Path, int]:
        """Microjoules of every package that may be read."""
        found = {}
        for package in self._packages:
            try:
                found[package] = int((package / "energy_uj").read_text())
            except (OSError, ValueError):
                continue
        return found


def gpu_watts() -> float | None:
    """What all NVIDIA GPUs of this machine draw now; None where there is none, or it does not tell."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
        return sum(map(float, told.split())) if told.strip() else None
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _range(package: Path) -> int:
    return int((package / "max_energy_range_uj").read_text())
