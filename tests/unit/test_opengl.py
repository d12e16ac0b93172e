"""The optional renderer, in a process of its own: MuJoCo chooses its OpenGL library when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vlm4vla.benchmarks.tabletop.benchmark import Tabletop, TabletopChain
from vlm4vla.benchmarks.tabletop.render import make_renderer
from vlm4vla.benchmarks.tabletop.scene import Scene
from vlm4vla.core.errors import RecipeError

COMPARE = """
import numpy as np
from vlm4vla.benchmarks.tabletop.benchmark import Tabletop, TabletopEnvironment
rays, opengl = TabletopEnvironment(96), TabletopEnvironment(96, "opengl")
for look in "AD":
    episode = Tabletop(look=look, tasks=["place"], episodes_per_task=1).episodes()[0]
    first, second = (e.reset(episode).image.astype(int) for e in (rays, opengl))
    same = (rays.renderer.segmentation() == opengl.renderer.segmentation()).mean()
    print(np.abs(first - second).mean(), same)
"""


def run(program: str, backend: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MUJOCO_GL": backend}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_opengl_shows_what_the_rays_show_or_says_what_is_missing() -> None:
    done = run(COMPARE, "egl")
    if done.returncode:
        told = done.stderr.strip().splitlines()[-1]
        assert "SimulatorError" in told and "Install" in told, done.stderr
        pytest.skip(f"EGL does not work on this machine: {told}")
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for difference, same in (map(float, line.split()) for line in lines):
        assert difference < 2  # grey levels of 255, mean over the picture
        assert same > 0.98


def test_without_a_library_the_remedy_is_named() -> None:
    done = run(
        "from vlm4vla.benchmarks.tabletop.benchmark import TabletopEnvironment as T; T(8, 'opengl')",
        "disabled",
    )
    assert done.returncode
    assert "or use the renderer 'ray'" in done.stderr


def test_a_library_that_mujoco_cannot_load_is_told_in_one_line() -> None:
    environment = {**os.environ, "MUJOCO_GL": "nonsense"}
    command = [sys.executable, "-m", "vlm4vla.cli", "evaluate", "nowhere"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "MUJOCO_GL=nonsense" in done.stderr and "or unset MUJOCO_GL" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_renderer_is_answered_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="'opengl'"):
        make_renderer(Scene(), 8, "open-gl")
    with pytest.raises(RecipeError, match="renderer"):
        Tabletop(renderer="rays")


def test_the_name_tells_the_renderer_apart() -> None:
    assert Tabletop(look="A").name == "tabletop-a-v1"
    assert Tabletop(look="A", renderer="opengl").name == "tabletop-a-opengl-v1"
    assert TabletopChain(renderer="opengl").name == "tabletop-chain-d-opengl-v1"
    assert Tabletop(renderer="opengl").recipe()[1]["renderer"] == "opengl"
