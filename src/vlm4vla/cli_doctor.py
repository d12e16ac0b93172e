"""`vlm4vla doctor`: what this machine has and lacks, each finding with its remedy."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from packaging.requirements import Requirement

from vlm4vla.benchmarks.findings import Finding, opengl, simulators, vulkan
from vlm4vla.benchmarks.machine import core_quota as _quota
from vlm4vla.benchmarks.machine import memory as _memory
from vlm4vla.core.errors import VLAError

_GIB = 1 << 30
_SUPPORTED = ((3, 11), (3, 14))
"""From, up to but not including."""


def doctor(options: argparse.Namespace) -> None:
    """Look at everything. Raises: VLAError when there is a problem, after all is told."""
    from vlm4vla.reports.tables import Table

    findings = list(examine())
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        marks = {"ok": "ok", "note": "note", "problem": "PROBLEM"}
        rows = tuple((f.what, marks[f.state], f.found) for f in findings)
        print(Table("This machine", ("what", "", "found"), rows).text(width=140))
        for finding in findings:
            if finding.remedy:
                print(f"\n{finding.what}: {finding.remedy}")
    problems = [finding.what for finding in findings if finding.state == "problem"]
    if problems:
        raise VLAError(f"{len(problems)} problems: {', '.join(problems)}")


def examine() -> Iterator[Finding]:
    """Every finding, one after another."""
    yield python()
    yield from libraries()
    yield from accelerator()
    yield cores()
    yield memory()
    yield from disks()
    yield video()
    yield from opengl()
    yield vulkan()
    yield from simulators()


def python() -> Finding:
    """The interpreter's version."""
    version = sys.version.split()[0]
    low, high = (".".join(map(str, bound)) for bound in _SUPPORTED)
    if _SUPPORTED[0] <= sys.version_info[:2] < _SUPPORTED[1]:
        return Finding(what="Python", state="ok", found=f"{version} ({sys.executable})")
    return Finding(
        what="Python",
        state="problem",
        found=version,
        remedy=f"use a Python from {low} up to, not including, {high}",
    )


def libraries() -> Iterator[Finding]:
    """Every required distribution against the versions that this package asks for, and whether it loads."""
    for text in importlib.metadata.requires("vlm4vla") or []:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                what=needed.name,
                state="problem",
                found="is missing",
                remedy=f"pip install '{needed}'",
            )
            continue
        if not needed.specifier.contains(version, prereleases=True):
            yield Finding(
                what=needed.name,
                state="problem",
                found=f"{version}, {needed.specifier} is needed",
                remedy=f"pip install '{needed}'",
            )
        else:
            yield Finding(what=needed.name, state="ok", found=version)


def accelerator() -> Iterator[Finding]:
    """GPUs, as the driver and as torch see them."""
    import torch

    listed = _output(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    if not torch.cuda.is_available():
        if listed:
            yield Finding(
                what="GPU",
                state="problem",
                found=f"the driver sees {listed.splitlines()[0]}, torch {torch.__version__} does not",
                remedy="install a CUDA build of torch that the driver supports, or set CUDA_VISIBLE_DEVICES",
            )
        else:
            yield Finding(
                what="GPU",
                state="note",
                found="none: the tiny backbones train in minutes, billions of parameters do not",
            )
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        half = torch.cuda.is_bf16_supported()
        yield Finding(
            what=f"GPU {index}",
            state="ok" if half else "note",
            found=f"{facts.name}, {facts.total_memory / _GIB:.0f} GiB, {'with' if half else 'without'} bf16",
            remedy="" if half else "train with train.precision=fp32: this GPU has no bf16",
        )


def cores() -> Finding:
    """Cores that this process may use, and how many threads each of our processes would start."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    threads = os.environ.get("OMP_NUM_THREADS")
    found = f"{usable}{f', held to {quota:g}' if quota else ''}; OMP_NUM_THREADS is {threads or 'not set'}"
    if threads and threads.isdecimal() and int(threads) > usable:
        return Finding(
            what="cores",
            state="note",
            found=found,
            remedy=f"OMP_NUM_THREADS={usable} or less: more threads than cores wait for one another",
        )
    return Finding(what="cores", state="ok", found=found)


def memory() -> Finding:
    """Main memory that is free, within the limit of a container."""
    now = _memory()
    found = f"{now.free / _GIB:.1f} of {now.total / _GIB:.1f} GiB free"
    if now.free < 2 * _GIB:
        return Finding(
            what="memory",
            state="note",
            found=found,
            remedy="rollouts in several processes may be killed: close programs, or use --workers 1",
        )
    return Finding(what="memory", state="ok", found=found)


def disks() -> Iterator[Finding]:
    """Room where runs, downloads and shared memory go."""
    from vlm4vla.benchmarks.simulators import simulator_folder
    from vlm4vla.demonstrations.remote import cache_folder

    hub = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    for what, folder, least in (
        ("disk: this folder", Path.cwd(), 2),
        ("disk: downloads", cache_folder(), 2),
        ("disk: models", hub, 10),
        ("disk: simulators", simulator_folder("libero").parent, 3),
        ("shared memory", Path("/dev/shm"), 1),
    ):
        nearest = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
        free = shutil.disk_usage(nearest).free / _GIB
        writable = os.access(nearest, os.W_OK)
        found = f"{free:.1f} GiB free{'' if writable else ', not writable'}"
        if writable and free >= least:
            yield Finding(what=what, state="ok", found=found)
        else:
            yield Finding(
                what=what,
                state="note",
                found=found,
                remedy=f"{least} GiB in a folder that you may write to: free some, or use another place "
                "(--out, VLM4VLA_CACHE, HF_HOME, VLM4VLA_SIMULATORS; of a container --shm-size)",
            )


def video() -> Finding:
    """Decoders of demonstration videos."""
    import av

    missing = [name for name in ("h264", "av1") if name not in av.codecs_available]
    if missing:
        return Finding(
            what="video",
            state="note",
            found=f"PyAV {av.__version__} has no {', '.join(missing)}",
            remedy="pip install --force-reinstall av (its wheels carry both decoders)",
        )
    return Finding(what="video", state="ok", found=f"PyAV {av.__version__} reads H.264 and AV1")


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
