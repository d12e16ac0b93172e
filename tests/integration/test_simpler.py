"""SimplerEnv-Bridge for real, in the environment that `vlm4vla simulators install simpler` made."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlm4vla.benchmarks.records import kept_software
from vlm4vla.benchmarks.replay import replay
from vlm4vla.benchmarks.rollout import RandomPredictor, evaluate
from vlm4vla.benchmarks.simpler.benchmark import Simpler
from vlm4vla.benchmarks.simulators import interpreter
from vlm4vla.benchmarks.workers import SOURCE_ROOT
from vlm4vla.cli import main
from vlm4vla.core.errors import SimulatorError
from vlm4vla.core.recipes import DemonstrationRecipe
from vlm4vla.core.types import EpisodeSpec
from vlm4vla.demonstrations.sources import make, open_demonstrations

PLAYED = Path(__file__).parents[1] / "golden" / "simpler" / "maniskill2.npz"

pytestmark = [pytest.mark.simulators, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    try:
        interpreter("simpler")
    except SimulatorError as error:
        pytest.skip(str(error))


def in_simulator(program: str) -> str:
    """What a program prints, run by the Python that has ManiSkill."""
    python = interpreter("simpler") or sys.executable
    boot = f"import sys; sys.path.append({SOURCE_ROOT!r})\n{program}"
    done = subprocess.run([python, "-c", boot], capture_output=True, text=True, check=False)
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
    """Fresh, used and in a worker: equal to the bit."""
    program = """
from vlm4vla.benchmarks.simpler.benchmark import Simpler
from vlm4vla.testing import check_benchmark
check_benchmark(Simpler(["eggplant", "cube"], 1, image_size=64), steps=3)
print("kept")
"""
    assert in_simulator(program).strip().endswith("kept")


def test_an_episode_goes_as_in_maniskill_2() -> None:
    """The paper's own simulator (SAPIEN 2.2.2, numpy 1.26) played these actions: its frames, its hand, its verdicts."""
    program = f"""
import json
import numpy as np
from PIL import Image
from vlm4vla.benchmarks.simpler.rules import TASKS, LateOpening
from vlm4vla.benchmarks.simpler.scene import Scene
kept = np.load({str(PLAYED)!r})
found = {{}}
for name, task in TASKS.items():
    then = {{key.removeprefix(name + "_"): kept[key] for key in kept.files if key.startswith(name)}}
    scene, gripper = Scene(task), LateOpening()
    scene.begin(task.starts[11])
    frame = np.asarray(Image.fromarray(scene.picture()).resize((64, 64), Image.Resampling.BICUBIC))
    off = [np.abs(scene.center(0) - then["start"]).max(), np.abs(scene.center(1) - then["target"]).max()]
    hand, solved = [], []
    for action in then["actions"]:
        scene.act(action, gripper(float(action[6])))
        hand.append(scene.hand()[:3, 3])
        solved.append(scene.solved())
    found[name] = {{
        "frame": float(np.abs(frame.astype(int) - then["image"]).mean()),
        "start": float(max(off)),
        "hand": float(np.abs(np.array(hand) - then["hand"]).max()),
        "verdicts": int((np.array(solved) == then["solved"]).sum()),
        "success": [solved[-1], bool(then["solved"][-1])],
    }}
print(json.dumps(found))
"""
    found = json.loads(in_simulator(program).strip().splitlines()[-1])
    for task, apart in found.items():
        assert apart["frame"] < 1 and apart["hand"] < 3e-3, (task, apart)
        assert apart["start"] < (8e-3 if task == "eggplant" else 5e-4), (task, apart)
        assert apart["verdicts"] >= 57 and apart["success"] == [True, True], (task, apart)


def test_the_gripper_opens_late_and_the_last_step_is_judged() -> None:
    program = """
import json
import numpy as np
from vlm4vla.benchmarks.simpler.benchmark import Simpler
from vlm4vla.core.types import EpisodeSpec
benchmark = Simpler(["cube"])
environment = benchmark.make_environment()
spec = benchmark.episodes()[3]
short = EpisodeSpec(id="x", goals=spec.goals, max_steps_per_goal=4, setup=spec.setup)
environment.reset(short)
scene, still = environment.scene("cube"), np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
opened = [float(scene.state()[6])]
judged = []
for step in range(4):
    if step == 2:
        scene._bodies[0].pose = type(scene._bodies[0].pose)(scene.center(1) + [0, 0, 0.03])
    judged.append([environment.advance(still), scene.solved()])
    opened.append(float(scene.state()[6]))
print(json.dumps({"opened": opened, "judged": judged}))
"""
    found = json.loads(in_simulator(program).strip().splitlines()[-1])
    assert found["opened"][1] < 0.8 < found["opened"][0] and found["opened"][4] > 0.9
    assert found["judged"] == [[0, False], [0, False], [0, True], [1, True]]


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
        python=interpreter("simpler"),
    )
    assert [(result.error, result.steps, result.success) for result in results] == [(None, 3, False)] * 2
    assert list(tmp_path.rglob("*.mp4"))
    again = replay(benchmark, tmp_path, workers=1, environments=1, python=interpreter("simpler"))
    assert [(each.identical, each.difference) for each in again] == [(True, "")] * 2
    software = kept_software(tmp_path, results[0])
    assert (software["mani_skill"], software["sapien"]) == ("3.0.1", "3.0.3")


def test_results_do_not_depend_on_workers_or_order(tmp_path: Path) -> None:
    """A worker that plays three episodes one after the other, and two that play them backwards side by side."""
    benchmark = Simpler(["spoon"], 3, image_size=96)
    specs = [replace(spec, max_steps_per_goal=3) for spec in benchmark.episodes()]
    one, two = (
        evaluate(
            RandomPredictor(benchmark.action_spec, 4, seed=0),
            benchmark,
            execute=2,
            folder=tmp_path / str(workers),
            episodes=episodes,
            environments=workers,
            workers=workers,
            time_limit=600,
            progress=False,
            python=interpreter("simpler"),
        )
        for workers, episodes in ((1, specs), (2, specs[::-1]))
    )
    assert [replace(result, seconds=0) for result in one] == [replace(r, seconds=0) for r in two[::-1]]
    assert [(result.error, result.steps) for result in one] == [(None, 3)] * 3
    assert len({result.last_image for result in one}) == 3


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
