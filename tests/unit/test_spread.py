"""Workers and memory: what fits is told before anything starts, within a container's limits."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_trials
from point_world import PointWorld, Seeker

from vlm4vla.benchmarks import machine
from vlm4vla.benchmarks.machine import Memory, core_quota, cores, memory, resident
from vlm4vla.benchmarks.pool import Pool
from vlm4vla.benchmarks.registry import BENCHMARKS
from vlm4vla.benchmarks.rollout import evaluate
from vlm4vla.benchmarks.wire import Request
from vlm4vla.cli import build_parser
from vlm4vla.core.errors import RecipeError
from vlm4vla.core.recipes import EvaluationRecipe
from vlm4vla.studies.checks import AUTO, Resources
from vlm4vla.studies.execute import planned
from vlm4vla.studies.spread import memory_of, spread
from vlm4vla.training import memory as counted
from vlm4vla.training.train import train

CALVIN = EvaluationRecipe(benchmark="calvin-abc-d")
GB = 10**9


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


MEMINFO = {"proc/meminfo": "MemTotal:       8000000 kB\nMemAvailable:   6000000 kB"}


def test_without_limits_the_machine_is_what_it_says(tmp_path: Path) -> None:
    root = write(tmp_path, MEMINFO)
    assert memory(root) == Memory(8_192_000_000, 6_144_000_000, limited=False)
    assert core_quota(root) is None and cores(root) >= 1
    assert memory(tmp_path / "nothing").total > GB // 4, "elsewhere than on Linux"


def test_limits_of_cgroups_2_count_at_every_level_and_caches_are_free(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/user/job"
    root = write(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "0::/user/job",
            f"{group}/memory.max": "max",
            f"{group}/memory.current": 0,
            f"{group}/memory.stat": "inactive_file 0",
            "sys/fs/cgroup/user/memory.max": 3 * GB,
            "sys/fs/cgroup/user/memory.current": 2 * GB,
            "sys/fs/cgroup/user/memory.stat": f"anon 5\ninactive_file {GB // 2}",
            f"{group}/cpu.max": "150000 100000",
            "sys/fs/cgroup/user/cpu.max": "max 100000",
        },
    )
    assert memory(root) == Memory(3 * GB, 3 * GB // 2, limited=True)
    assert core_quota(root) == 1.5 and cores(root) == min(2, cores(tmp_path / "nothing"))


def test_limits_of_cgroups_1_count_too_seen_from_inside_a_container(tmp_path: Path) -> None:
    """The path in /proc/self/cgroup is that of the outside, and is not there."""
    root = write(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 4 * GB,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": 3 * GB,
            "sys/fs/cgroup/memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {GB}",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": 50_000,
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100_000,
        },
    )
    assert memory(root) == Memory(4 * GB, 2 * GB, limited=True)
    assert core_quota(root) == 0.5 and cores(root) == 1


def given(monkeypatch: pytest.MonkeyPatch, free: float, count: int = 8) -> None:
    monkeypatch.setattr(machine, "memory", lambda: Memory(16 * GB, int(free * GB), limited=True))
    monkeypatch.setattr(machine, "cores", lambda: count)


def test_auto_takes_what_cores_and_memory_allow_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Resources(workers=AUTO)
    given(monkeypatch, free=5.0)
    assert spread([CALVIN], asked, told=True).workers == 4
    assert capsys.readouterr().err == (
        "4 workers of calvin-abc-d: 4 x 1 GB, 5.0 GB of 16.0 are free (the limit of this container), 8 cores\n"
    )
    assert spread([CALVIN], asked, policy=2 * GB).workers == 2
    given(monkeypatch, free=50.0, count=3)
    assert spread([CALVIN], asked).workers == 3
    # The largest simulator decides; none is needed where nothing steps beside this process.
    given(monkeypatch, free=5.5)
    assert spread([CALVIN, EvaluationRecipe(benchmark="libero-long"), EvaluationRecipe()], asked).workers == 2
    assert spread([CALVIN], replace(asked, workers=0)).workers == 0
    assert capsys.readouterr().err == ""


def test_more_than_fits_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(monkeypatch, free=5.0)
    with pytest.raises(
        RecipeError, match=r"that is 6\.0 GB at their peak\. Use `--workers 4`, or `--workers auto`"
    ):
        spread([CALVIN], Resources(workers=6))
    assert spread([CALVIN], Resources(workers=4)).workers == 4
    given(monkeypatch, free=0.5)
    with pytest.raises(RecipeError, match="Use `--workers 1`, which may be killed"):
        spread([CALVIN], Resources(workers=2))
    assert spread([CALVIN], Resources(workers=1)).workers == 1
    assert "it may be killed, close other programs" in capsys.readouterr().err


def test_the_option() -> None:
    parser = build_parser()
    assert parser.parse_args(["evaluate", "run", "--workers", "auto"]).workers == AUTO
    assert parser.parse_args(["evaluate", "run", "--workers", "3"]).workers == 3
    assert memory_of(EvaluationRecipe(benchmark="point_world:PointWorld")) == GB
    assert all(0 < entry.memory < 3 for entry in BENCHMARKS.values())


def test_the_policy_counts_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The count without weights against the files, which hold every parameter."""
    trial = tiny_trials.trial(tiny_trials.tiny_vlm(tmp_path / "vlm"), steps=1)
    checkpoint = train(trial, tiny_trials.packed(tmp_path / "walks"), tmp_path / "run", progress=False)
    own, working = counted.rollout(replace(trial.policy, backbone=str(checkpoint / "backbone")), samples=16)
    files = [checkpoint / "policy.safetensors", *(checkpoint / "backbone").glob("*.safetensors")]
    assert abs(own - sum(file.stat().st_size for file in files)) < 0.1 * own
    assert working > 0
    more = counted.rollout(replace(trial.policy, backbone=str(checkpoint / "backbone")), samples=32)[1]
    assert 1.5 * working < more < 2.5 * working

    asked = Resources(workers=AUTO, device="cpu", progress=False)
    given(monkeypatch, free=3.4)
    assert planned([CALVIN], None, asked).workers == 3
    given(monkeypatch, free=(3 * GB + 1000) / 0.9 / GB)
    assert planned([CALVIN], None, asked).workers == 3
    assert planned([CALVIN], checkpoint, asked).workers == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_worker_that_leaks_is_replaced_between_episodes(tmp_path: Path) -> None:
    """Results are the same, and nothing is an error."""
    pool = Pool(PointWorld(), places=1, workers=1, time_limit=60, memory=1)
    seen = set()
    for spec in PointWorld().episodes()[:3]:
        pool.send(Request(place=0, episode=spec))
        (reply,) = pool.wait()
        assert reply.error is None
        worker = pool._seats[0].worker
        seen.add(worker._process.pid)  # type: ignore[union-attr]
    pool.close()
    assert len(seen) == 3
    results = [
        evaluate(
            Seeker(),
            PointWorld(),
            execute=3,
            folder=None,
            workers=2,
            environments=2,
            progress=False,
            memory=limit,
        )
        for limit in (0, 1)
    ]
    assert [replace(r, seconds=0.0) for r in results[0]] == [replace(r, seconds=0.0) for r in results[1]]
    assert [r.error for r in results[1]] == [None] * 12


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_what_a_process_holds() -> None:
    program = "x = bytearray(50_000_000); print('made', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "made\n"
        assert 50_000_000 < resident(process.pid) < 150_000_000
        process.communicate("\n")
    assert resident(process.pid) == 0


def test_where_a_report_is_made_episodes_are_recorded() -> None:
    commands = ("quickstart", "train tabletop", "study mini", "evaluate run")
    assert [build_parser().parse_args(command.split()).videos for command in commands] == [2, 2, 2, 0]
