"""What plays an episode: the versions that decide what it looks like, as they are in the process that steps it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from vlm4vla import __version__
from vlm4vla.core.interfaces import Benchmark, Versioned


def software_of(benchmark: Benchmark) -> dict[str, str]:
    """Versions here by name: this package, Python, numpy, the processor, and the packages that the benchmark names."""
    found = {
        "vlm4vla": __version__,
        "benchmark": benchmark.name,
        "python": platform.python_version(),
        "processor": processor(),
    }
    named = benchmark.software if isinstance(benchmark, Versioned) else {}
    for name in sorted({"numpy", *named}):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def unpinned(benchmark: Benchmark, software: Mapping[str, str]) -> str:
    """A sentence about versions that are not those that the benchmark names; empty where all are."""
    wanted = benchmark.software if isinstance(benchmark, Versioned) else {}
    others = [
        f"{name} {software[name]} instead of {version}"
        for name, version in sorted(wanted.items())
        if version and name in software and software[name] != version
    ]
    if not others:
        return ""
    return (
        f"{benchmark.name} is played with {', '.join(others)}: its numbers may not be comparable with those of others. "
        "`vlm4vla simulators install` gives the versions that were tested"
    )


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """`mujoco 3.2.0 then, 4.0.1 now` for everything that changed."""
    return [
        f"{name} {then.get(name, 'unknown')} then, {now.get(name, 'unknown')} now"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]


def processor() -> str:
    """The processor's name, e.g. `AMD EPYC 7763`."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
