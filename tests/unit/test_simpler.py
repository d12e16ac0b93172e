"""SimplerEnv-Bridge without a simulator: episodes, actions, success, models, the files of demonstrations."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from vlm4vla.benchmarks import lavapipe
from vlm4vla.benchmarks.published import published, substitutes
from vlm4vla.benchmarks.registry import make_benchmark
from vlm4vla.benchmarks.simpler.benchmark import Simpler
from vlm4vla.benchmarks.simpler.models import places, separate_parts
from vlm4vla.benchmarks.simpler.rules import (
    EPISODES,
    TASKS,
    LateOpening,
    Start,
    controller_action,
    lies_on,
)
from vlm4vla.benchmarks.simpler.tfds import SIDE, BridgeEpisode, write
from vlm4vla.core.errors import RecipeError, SimulatorError
from vlm4vla.core.recipes import EvaluationRecipe
from vlm4vla.demonstrations.datasets import DATA_SETS, open_reader
from vlm4vla.demonstrations.rlds import RldsSource
from vlm4vla.demonstrations.transforms import apply, transforms_named
from vlm4vla.studies.paper_presets import bridge


@pytest.fixture(autouse=True)
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM4VLA_SIMULATORS", str(tmp_path / "simulators"))


def test_four_tasks_of_24_published_episodes() -> None:
    assert list(TASKS) == ["carrot", "eggplant", "spoon", "cube"]
    assert [task.steps for task in TASKS.values()] == [60, 120, 60, 60]
    for task in TASKS.values():
        assert len(set(task.starts)) == len(task.starts) == EPISODES
    first, last = TASKS["carrot"].starts[0], TASKS["carrot"].starts[-1]
    assert first == Start(source=(-0.235, -0.075), target=(-0.235, 0.075), yaw=math.pi)
    assert last.source == pytest.approx((-0.085, 0.075)) and last.yaw == -math.pi / 2
    assert TASKS["cube"].starts[0].source == pytest.approx((-0.21, -0.05))
    assert TASKS["cube"].starts[12].source == pytest.approx((-0.26, -0.1))
    eggplant = TASKS["eggplant"].starts[5]
    assert eggplant.source == pytest.approx((-0.115, 0.201)) and eggplant.yaw == -math.pi / 4


def test_the_gripper_opens_at_the_second_command_in_a_row() -> None:
    gripper = LateOpening()
    assert [gripper(command) for command in (1, 1, 1, -1, 1, -1, 1, 1)] == [-1, 1, 1, -1, -1, -1, -1, 1]
    assert LateOpening()(1.0) == -1  # nothing is left of the episode before


def test_the_controller_is_told_what_makes_its_target_maniskill_2s() -> None:
    """ManiSkill 2: T(reached) dT T(-reached) target. ManiSkill 3: angles about moving axes, turned about the target."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        action = rng.uniform(-0.5, 0.5, 7).astype(np.float32)
        target, reached = rng.uniform(-1, 1, 3), rng.uniform(-1, 1, 3)
        told = controller_action(action, 1.0, target=target, reached=reached)
        roll, pitch, yaw = action[3:6].astype(float)
        about_fixed = (
            Rotation.from_euler("z", yaw) * Rotation.from_euler("y", pitch) * Rotation.from_euler("x", roll)
        )
        about_moving = (
            Rotation.from_euler("x", told[3])
            * Rotation.from_euler("y", told[4])
            * Rotation.from_euler("z", told[5])
        )
        np.testing.assert_allclose(about_moving.as_matrix(), about_fixed.as_matrix(), atol=1e-12)
        in_maniskill_2 = reached + action[:3] + about_fixed.apply(target - reached)
        np.testing.assert_allclose(target + told[:3], in_maniskill_2, atol=1e-12)
        assert told[6] == 1.0


def test_an_object_lies_on_its_target() -> None:
    cube = np.full(3, 0.03)
    assert lies_on(np.array([0.0, 0.0, 0.03]), cube, cube, slack=0.02)
    assert lies_on(np.array([0.024, 0.0, 0.049]), cube, cube, slack=0.02)
    assert not lies_on(np.array([0.025, 0.0, 0.03]), cube, cube, slack=0.02)
    assert not lies_on(np.array([0.0, 0.0, 0.051]), cube, cube, slack=0.02)
    assert not lies_on(np.array([0.0, 0.0, -0.03]), cube, cube, slack=0.02)


def test_the_benchmark_by_name() -> None:
    recipe = bridge().evaluations[0]
    benchmark = make_benchmark(recipe)
    specs = benchmark.episodes()
    assert benchmark.name == "simpler-bridge-v1" and len(specs) == 96
    assert specs[24].id == "simpler-bridge-v1/eggplant/00" and specs[24].max_steps_per_goal == 120
    assert specs[0].goals[0].instruction == "put carrot on plate"
    chosen = Simpler(["cube"], 2).episodes()
    assert [spec.setup["episode"] for spec in chosen] == [0, 1] and chosen[0].goals[0].task == "cube"
    with pytest.raises(RecipeError, match="cube"):
        Simpler(["cubes"])
    with pytest.raises(RecipeError, match="24 episodes a task"):
        Simpler(episodes_per_task=25)
    with pytest.raises(RecipeError, match="lavapipe"):
        make_benchmark(EvaluationRecipe(benchmark="simpler-bridge", episodes_per_task=0, renderer="egl"))
    with pytest.raises(SimulatorError, match="simulators install simpler"):
        benchmark.make_environment()


def test_files_that_are_not_the_published_ones_are_named(tmp_path: Path) -> None:
    assert len(published("simpler")) == len(places()) == 73
    assert (
        places()["data/hab2_bench_assets/stages/bridge_table_1_v1.glb"]
        == "data/tasks/bridge_v2_real2sim_dataset/stages/bridge_table_1_v1.glb"
    )
    assert substitutes("simpler", tmp_path) == []
    (tmp_path / "data" / "robots" / "widowx").mkdir(parents=True)
    (tmp_path / "data" / "robots" / "widowx" / "wx250s.urdf").write_text("<robot/>")
    assert len(substitutes("simpler", tmp_path)) == 73


def test_a_collision_file_is_taken_apart_where_parts_share_no_point(tmp_path: Path) -> None:
    corners = ["0 0 0", "1 0 0", "0 1 0", "0 0 1"]
    near = ["1.000002 0 0", "2 0 0", "1 1 0"]
    touching = ["0 0 1", "0 0 2", "0 1 2"]
    text = [f"v {place}" for place in (*corners, *near, *touching)]
    text += ["f 1/1/1 2/1/1 3/1/1", "f 1//1 2//1 4//1", "f 5 6 7", "f 8 9 10"]
    (tmp_path / "collision.obj").write_text("\n".join(text))
    parts = separate_parts(tmp_path / "collision.obj")
    assert sorted(len(part) for part in parts) == [3, 6]


def test_scores_with_substitutes_have_another_name(tmp_path: Path) -> None:
    (tmp_path / "simulators" / "simpler" / "data").mkdir(parents=True)
    assert Simpler().name == "simpler-bridge-substitutes-v1"


def test_the_drivers_description_is_used_unless_the_user_named_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
        monkeypatch.delenv(name, raising=False)
    assert lavapipe.driver(tmp_path) is None and lavapipe.version(tmp_path) == ""
    (tmp_path / "lavapipe").mkdir()
    (tmp_path / "lavapipe" / "lvp.json").write_text("{}")
    assert lavapipe.driver(tmp_path) == tmp_path / "lavapipe" / "lvp.json"
    monkeypatch.setenv("VK_DRIVER_FILES", "another.json")
    assert lavapipe.driver(tmp_path) is None


def test_on_other_systems_the_driver_is_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lavapipe.platform, "freedesktop_os_release", lambda: {"VERSION_CODENAME": "noble"})
    said: list[str] = []
    lavapipe.install(tmp_path, said.append)
    assert "system's own driver" in said[0] and not list(tmp_path.iterdir())


def episode(seed: int) -> BridgeEpisode:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(6):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)).save(file, "JPEG")
        images.append(file.getvalue())
    actions = rng.uniform(-1, 1, (6, 7)).astype(np.float32)
    actions[:, 6] = [0, 1, 1, 0, 0, 1]
    states = rng.uniform(-1, 1, (6, 7)).astype(np.float32)
    return BridgeEpisode(instruction=f"do {seed}", images=images, states=states, actions=actions)


def test_demonstrations_are_read_as_bridges_are(tmp_path: Path) -> None:
    made = [episode(seed) for seed in range(53)]
    assert write(iter(made), 53, tmp_path / "set", note="made in a test") == 53
    assert len(list((tmp_path / "set").glob("*.tfrecord-*"))) == 2
    source = RldsSource(tmp_path / "set", camera="image_0", checksums=True)
    assert len(source) == 53 and not source.missing and source[52].instruction == "do 52"
    recording = open_reader("bridge", tmp_path / "set")[0]
    np.testing.assert_array_equal(recording.actions, made[0].actions)
    changed = apply(transforms_named(DATA_SETS["bridge"].transforms), recording)
    assert changed is not None and len(changed.images) == 4
    np.testing.assert_array_equal(changed.actions[:, :6], np.diff(made[0].states[1:, :6], axis=0))
    assert changed.actions[:, 6].tolist() == [1, 1, -1, -1]
    with pytest.raises(SimulatorError, match="exists already"):
        write(iter(made), 53, tmp_path / "set", note="")
