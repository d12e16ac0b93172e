"""Training in other processes: killed in the middle, and two of them together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_trials

from vlm4vla.core.recipes import HEADS, Trial
from vlm4vla.demonstrations.packed import PackedSource
from vlm4vla.training.train import train
from vlm4vla.training.worker import launch_command

TERMS = ("step", "loss", "pose", "gripper", "gradient_norm")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("processes")
    return tiny_trials.tiny_vlm(base / "vlm"), tiny_trials.packed(base / "walks").folder


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def together(trial: Trial, walks: Path, folder: Path, sharding: str) -> None:
    """Train in two processes."""
    recipe = tiny_trials.write_trial(trial, folder.with_suffix(".json"))
    done = subprocess.run(
        launch_command(2, [str(recipe), str(walks), str(folder), "--sharding", sharding, "--quiet"]),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("head", "sharding"), [("mlp", "none"), *((head, "full") for head in HEADS if head != "flow")]
)
def test_two_processes_give_the_losses_of_one(
    world: tuple[Path, Path], tmp_path: Path, head: str, sharding: str
) -> None:
    """Gloo on CPUs: `none` averages gradients, `full` is FSDP2."""
    vlm, walks = world
    trial = tiny_trials.trial(vlm, head=head, steps=4, checkpoint_every=2, validate_every=2)
    train(trial, PackedSource(walks), tmp_path / "one", progress=False)
    together(trial, walks, tmp_path / "two", sharding)
    for split in ("train", "held_out"):
        names = TERMS if split == "train" else TERMS[:-1]
        one, two = (tiny_trials.metrics(tmp_path / where, *names, split=split) for where in ("one", "two"))
        assert len(one) == len(two) > 0
        for first, second in zip(one, two, strict=True):
            assert first == pytest.approx(second, rel=2e-4)


def test_a_flow_does_not_depend_on_how_two_processes_share_it(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    """Each process draws noise of its own, so one process is no reference."""
    vlm, walks = world
    trial = tiny_trials.trial(vlm, head="flow", steps=4, checkpoint_every=4, validate_every=2)
    for sharding in ("none", "full"):
        together(trial, walks, tmp_path / sharding, sharding)
    none, full = (tiny_trials.metrics(tmp_path / sharding, *TERMS) for sharding in ("none", "full"))
    assert len(none) == len(full) == 4
    for first, second in zip(none, full, strict=True):
        assert first == pytest.approx(second, rel=2e-4)


def test_killed_in_the_middle_it_goes_on_exactly(world: tuple[Path, Path], tmp_path: Path) -> None:
    vlm, walks = world
    trial = tiny_trials.trial(vlm, steps=60, checkpoint_every=5, validate_every=20)
    train(trial, PackedSource(walks), tmp_path / "whole", progress=False)
    recipe = tiny_trials.write_trial(trial, tmp_path / "trial.json")
    command = launch_command(1, [str(recipe), str(walks), str(tmp_path / "killed"), "--quiet"])
    with subprocess.Popen(command, env=environment()) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "killed" / "checkpoints" / "latest").exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert 0 < len(tiny_trials.metrics(tmp_path / "killed", "step")) < 60
    again = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert again.returncode == 0, again.stderr[-2000:]
    whole, killed = (tiny_trials.metrics(tmp_path / where, *TERMS) for where in ("whole", "killed"))
    assert whole == killed


def test_an_error_is_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "vlm4vla.training.worker",
        str(tmp_path / "no.json"),
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert "no.json" in done.stderr
