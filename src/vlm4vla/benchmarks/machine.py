"""What this machine has for us: cores and memory, within the limits that a container sets (cgroups 1 and 2)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes."""

    total: int
    free: int
    """What can be used without anything being killed: caches count as free."""
    limited: bool
    """A container's limit, not the machine, sets one of them."""


def cores(root: Path = _ROOT) -> int:
    """Cores that this process may use: its affinity, and the quota of its container rounded up. At least 1."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = core_quota(root)
    return usable if quota is None else max(1, min(usable, -int(-quota // 1)))


def core_quota(root: Path = _ROOT) -> float | None:
    """Cores that a container's limit leaves, where there is one."""
    found = []
    for group in _groups("cpu", root):
        try:
            if (group / "cpu.max").exists():
                limit, period = (group / "cpu.max").read_text().split()
            else:
                limit = (group / "cpu.cfs_quota_us").read_text().strip()
                period = (group / "cpu.cfs_period_us").read_text()
        except (OSError, ValueError):
            continue
        if limit not in ("max", "-1"):
            found.append(int(limit) / int(period))
    return min(found, default=None)


def memory(root: Path = _ROOT) -> Memory:
    """Main memory, total and free; where nothing says how much is free, all of it."""
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Memory(total, total, limited=False)
    kilobytes = {m[1]: int(m[2]) for m in re.finditer(r"(\w+): +(\d+) kB", text)}
    total, free = kilobytes["MemTotal"] * 1024, kilobytes["MemAvailable"] * 1024
    limited = False
    for group in _groups("memory", root):
        new = (group / "memory.max").exists()
        names = (
            ("memory.max", "memory.current") if new else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        try:
            limit, used = (int((group / name).read_text()) for name in names)  # `max`: no limit here
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        cache = int(stat.get("inactive_file" if new else "total_inactive_file", 0))
        limited |= limit < total or limit - used + cache < free
        total, free = min(total, limit), min(free, max(0, limit - used + cache))
    return Memory(total, free, limited)


def resident(process: int, root: Path = _ROOT) -> int:
    """Bytes of memory that a process holds; 0 where that cannot be told."""
    try:
        text = (root / f"proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


def _groups(kind: str, root: Path) -> Iterator[Path]:
    """The control groups of this process for `cpu` or `memory`, itself and those around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and kind not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (kind if controllers else "")
        group = base / path.lstrip("/")
        # Inside a container the path is often that of the outside; then the root is our group.
        group = group if group.is_dir() else base
        yield from (place for place in (group, *group.parents) if place == base or base in place.parents)
