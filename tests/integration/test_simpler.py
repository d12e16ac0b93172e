"""SimplerEnv-Bridge for real, in the environment that `vlm4vla simulators install simpler` made."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vlm4vla.benchmarks.rollout import RandomPredictor, evaluate
from vlm4vla.benchmarks.simpler.benchmark import Simpler
from vlm4vla.benchmarks.simulators import interpreter
from vlm4vla.benchmarks.workers import SOURCE_ROOT
from vlm4vla.cli import main
from vlm4vla.core.errors import SimulatorError
from vlm4vla.core.recipes import DemonstrationRecipe
from vlm4vla.core.types import EpisodeSpec
from vlm4vla.demonstrations.sources import make, open_demonstrations

try:
    PYTHON = interpreter("simpler")
except SimulatorError as error:
    pytest.skip(str(error), allow_module_level=True)


def in_simulator(program: str) -> str:
    """What a program prints, run by the Python that has ManiSkill."""
    assert PYTHON is not None
    boot = f"import sys; sys.path.append({SOURCE_ROOT!r})\n{program}"
    done = subprocess.run([PYTHON, "-c", boot], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_pictures_and_scripted_solutions(capsys: pytest.CaptureFixture[str]) -> None:
    """All four tasks: the first frame is the one that is kept, and the expert reaches success at the last step."""
    assert main(["simulators", "check", "simpler", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["works"] and found["mani_skill"] == "3.0.1" and found["sapien"] == "3.0.3"
    for task in ("carrot", "eggplant", "spoon", "cube"):
        assert found[task]["solved"] and found[task]["apart"] < 2, found


def test_the_contract() -> None:
    """Fresh, used and in a worker: equal to the bit. It looks where the robot goes: up."""
    program = """
import numpy as np
from vlm4vla.benchmarks.simpler.benchmark import Simpler
from vlm4vla.testing import check_benchmark
up = np.array([0, 0, 0.03, 0, 0, 0, -1], dtype=np.float32)
check_benchmark(Simpler(["eggplant", "cube"], 1, image_size=64), steps=3, raising=up)
print("kept")
"""
    assert in_simulator(program).strip().endswith("kept")


def test_settled_controlled_and_judged_as_in_maniskill_2() -> None:
    """The hand goes where it is told in the robot's axes, the gripper opens late, and only the last step is judged."""
    program = """
import json
import numpy as np
from vlm4vla.benchmarks.simpler.benchmark import Simpler
from vlm4vla.core.types import EpisodeSpec
benchmark = Simpler(["cube"])
environment = benchmark.make_environment()
spec = benchmark.episodes()[3]
environment.reset(spec)
scene = environment.scene("cube")
start, hand = scene.center(0).tolist(), scene.hand()
opened = []
for _ in range(6):
    environment.advance(np.array([0.01, -0.005, 0, 0, 0, 0.05, 1], np.float32))
    opened.append(float(scene.state()[6]))
for _ in range(4):
    environment.advance(np.array([0, 0, 0, 0, 0, 0, 1], np.float32))
moved, turned = scene.hand()[:3, 3] - hand[:3, 3], scene.hand()[:3, :3] @ hand[:3, :3].T
short = EpisodeSpec(id="x", goals=spec.goals, max_steps_per_goal=2, setup=spec.setup)
environment.reset(short)
scene._bodies[0].pose = type(scene._bodies[0].pose)(scene.center(1) + [0, 0, 0.03])
still = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
judged = [environment.advance(still), scene.solved(), environment.advance(still)]
yaw = float(np.arctan2(turned[1, 0], turned[0, 0]))
print(json.dumps({"start": start, "moved": moved.tolist(), "yaw": yaw, "opened": opened, "judged": judged}))
"""
    found = json.loads(in_simulator(program).strip().splitlines()[-1])
    np.testing.assert_allclose(found["start"], [-0.21, 0.05, 0.8845], atol=1e-3)
    np.testing.assert_allclose(found["moved"], [0.06, -0.03, 0.0], atol=4e-3)
    assert found["yaw"] == pytest.approx(0.3, abs=0.02)
    assert found["opened"][0] < 0.8 < found["opened"][2]
    assert found["judged"] == [0, True, 1]


def test_a_policy_plays_it(tmp_path: Path) -> None:
    benchmark = Simpler(["spoon"], 2, image_size=96)
    shorter = [
        EpisodeSpec(id=spec.id, goals=spec.goals, max_steps_per_goal=3, setup=spec.setup)
        for spec in benchmark.episodes()
    ]
    results = evaluate(
        RandomPredictor(benchmark.action_spec, 4, seed=0),
        benchmark,
        execute=2,
        folder=tmp_path,
        episodes=shorter,
        environments=1,
        workers=1,
        videos=1,
        progress=False,
        python=PYTHON,
    )
    assert [(result.error, result.steps, result.success) for result in results] == [(None, 3, False)] * 2
    assert list(tmp_path.rglob("*.mp4"))


def test_scripted_demonstrations_train_as_bridges_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    command = ["simulators", "demonstrate", "simpler", str(out), "--episodes", "2", "--tasks", "cube,carrot"]
    assert main(command) == 0
    assert "not simpler's own" in capsys.readouterr().out
    recipe = DemonstrationRecipe(source="bridge", path=(str(out),), episodes=0, looks=())
    source = open_demonstrations(make(recipe, tmp_path / "read"))
    assert len(source) == 2 and "not Bridge's" in (out / "scripted.json").read_text()
    for index, instruction in enumerate(("stack the green block on the yellow block", "put carrot on plate")):
        found = source[index]
        assert found.instruction == instruction and 20 < len(found.actions) <= 60
        assert np.abs(found.actions[:, :3]).max() < 0.05
        assert set(found.actions[:, 6]) == {-1.0, 1.0} and found.actions[-1, 6] == 1
        assert np.asarray(found.images[-1]).std() > 20
