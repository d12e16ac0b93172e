"""What the programs in perf/ share: arguments, timing side by side, output."""

from __future__ import annotations

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before numpy and torch load; one thread measures the code, not the load

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def arguments(description: str) -> argparse.Namespace:
    """`--json FILE`, which every program takes. Torch is held to one thread, which measures code, not cores."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    return parser.parse_args()


def seconds(*works: Callable[[], object], rounds: int = 5) -> list[float]:
    """Median seconds of each piece of work; they take turns, so that a busy machine slows all of them alike."""
    times: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    for _ in range(rounds):
        for work, taken in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def publish(
    name: str, figures: Mapping[str, float], path: Path | None, *, skipped: Mapping[str, str] | None = None
) -> None:
    """Print the figures, and write them with the machine they were measured on; and why others are missing."""
    skipped = skipped or {}
    width = max(map(len, (*figures, *skipped)))
    for label, value in figures.items():
        print(f"{label:<{width}}  {value:12,.3f}")
    for label, reason in skipped.items():
        print(f"{label:<{width}}  skipped: {reason}")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        machine = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        }
        content = {"program": name, "figures": dict(figures), "skipped": dict(skipped), "machine": machine}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
