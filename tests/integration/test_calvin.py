"""CALVIN for real: PyBullet, its own models, its protocol. Pictures with TinyRenderer, which is the same everywhere."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from vlm4vla.benchmarks.calvin import demonstrate as demonstrate_module
from vlm4vla.benchmarks.calvin import expert
from vlm4vla.benchmarks.calvin.benchmark import Calvin, CalvinEnvironment
from vlm4vla.benchmarks.calvin.demonstrate import demonstrations, write
from vlm4vla.benchmarks.calvin.demonstrate import main as demonstrate
from vlm4vla.benchmarks.calvin.oracle import TASKS, turned
from vlm4vla.benchmarks.calvin.sequences import (
    chains,
    chains_from,
    conditions,
    generate,
    initial_state,
    instructions,
)
from vlm4vla.benchmarks.registry import make_benchmark
from vlm4vla.benchmarks.replay import replay
from vlm4vla.benchmarks.rollout import RandomPredictor, evaluate
from vlm4vla.benchmarks.simulators import simulator_folder
from vlm4vla.cli import main
from vlm4vla.core.errors import RecipeError, SimulatorError
from vlm4vla.core.recipes import EvaluationRecipe, fingerprint
from vlm4vla.core.types import Goal
from vlm4vla.demonstrations.calvin import CalvinSource
from vlm4vla.demonstrations.scripted import SCRIPTED, labelled
from vlm4vla.reports.scores import score
from vlm4vla.reports.study_page import write_study_report
from vlm4vla.studies.checks import Resources
from vlm4vla.studies.execute import run_trial
from vlm4vla.studies.runs import RunStore
from vlm4vla.studies.scripted import scripted
from vlm4vla.studies.study import Study, StudyRow
from vlm4vla.testing import check_benchmark

ARCHIVE = Path(__file__).parents[1] / "assets" / "calvin.tar.xz"
PUBLISHED = "604957a8a2d3102941b278df07df4950bc41f340ed959077b20467d5f692318a"
"""SHA-256 of the published list (eval_sequences.json of VLM4VLA, RoboVLMs and starVLA) without spaces."""
STATES = "2db0a533c3ca6603f801b10ba4636d65f1ebfbcfcba25c320ea6a573787776c8"
"""SHA-256 of all initial states as calvin_agent's own function gives them with pyhash's own C code (mees/calvin
fa03f01, flier/pyfasthash d4aede2): 192 times robot_obs and scene_obs in double precision."""
INSTALLED = simulator_folder("calvin")
"""By `vlm4vla simulators install calvin`, before this module looks elsewhere."""
needs_pybullet = pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="PyBullet has no wheel for this Python"
)


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """CALVIN's models, as an offline copy gives them."""
    folder = tmp_path_factory.mktemp("simulators")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder / "calvin", filter="data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM4VLA_SIMULATORS", str(folder))
        yield folder / "calvin"


def goal(task: str) -> list[Goal]:
    return [Goal(task=task, instruction=instructions()[task])]


def test_the_protocol_is_the_published_one() -> None:
    """1,000 chains over 192 states; those of a state are the ones that its seed draws."""
    everything, states = chains(), conditions()
    told = json.dumps([[dict(c.condition), list(c.tasks)] for c in everything], separators=(",", ":"))
    assert hashlib.sha256(told.encode()).hexdigest() == PUBLISHED
    assert len(everything) == 1000 and len(states) == 192 and len(instructions()) == len(TASKS) == 34
    assert set(instructions()) == set(TASKS)
    assert {task for chain in everything for task in chain.tasks} <= set(TASKS)
    for seed in (0, 5, 191):
        published = [chain.tasks for chain in everything if dict(chain.condition) == dict(states[seed])]
        assert sorted(chains_from(states[seed], len(published), seed=seed)) == sorted(published)
    first = everything[0]
    assert first.tasks[0] == "rotate_blue_block_right"
    assert list(first.condition) == [
        *("led", "lightbulb", "slider", "drawer", "red_block", "blue_block", "pink_block", "grasped")
    ]


def test_initial_states_are_the_published_ones_to_the_bit() -> None:
    states = np.array([np.concatenate(initial_state(condition)) for condition in conditions()])
    assert states.shape == (192, 39) and hashlib.sha256(states.tobytes()).hexdigest() == STATES


@pytest.mark.slow
def test_all_chains_are_generated_anew() -> None:
    assert [(dict(c.condition), c.tasks) for c in generate()] == [
        (dict(c.condition), c.tasks) for c in chains()
    ]


def test_initial_states() -> None:
    """The hash is pyhash's: against the usual replacement it swaps the two places on the table in 107 of 192 states."""
    swapped = 0
    for condition in conditions():
        robot, scene = initial_state(condition)
        assert robot.shape == (15,) and scene.shape == (24,)
        assert scene[4:6].tolist() == [condition["lightbulb"], condition["led"]]
        text = f"dict_values([{', '.join(map(repr, condition.values()))}])"
        usual = 0x811C9DC5
        for byte in text.encode():
            usual = (usual * 0x01000193) & 0xFFFFFFFF ^ byte
        order = [0, 1]
        np.random.RandomState(usual).shuffle(order)
        on_table = [
            i
            for i, name in enumerate(("red_block", "blue_block", "pink_block"))
            if condition[name] == "table"
        ]
        first_place = min(on_table)
        x = scene[6 + 6 * first_place]
        took_first = {0: 0, 1: 0 if condition["red_block"] != "table" else 1, 2: 1}[first_place]
        used = [0.0500000896, 0.229995412].index(
            min((0.0500000896, 0.229995412), key=lambda place: abs(place - x))
        )
        swapped += order[took_first] != used
        assert (
            (scene[[11, 17, 23]] >= np.pi / 2 - np.pi / 8) & (scene[[11, 17, 23]] <= np.pi / 2 + np.pi / 8)
        ).all()
    assert swapped == 107


def test_turns_are_scipys() -> None:
    from scipy.spatial.transform import Rotation

    for seed in range(50):
        before, after = (Rotation.random(rng=np.random.default_rng([seed, i])) for i in range(2))
        expected = (after * before.inv()).as_euler("xyz", degrees=True)
        np.testing.assert_allclose(turned(before.as_quat(), after.as_quat()), expected, atol=1e-9)


def test_single_tasks_are_the_chains_that_begin_with_them() -> None:
    recipe = EvaluationRecipe(benchmark="calvin-d-tasks", look="", episodes_per_task=2, renderer="tiny")
    benchmark = make_benchmark(replace(recipe, tasks=("turn_on_led", "open_drawer")))
    assert benchmark.name == "calvin-d-tasks-tiny-v2"
    specs = benchmark.episodes()
    assert [spec.goals[0].task for spec in specs] == ["turn_on_led"] * 2 + ["open_drawer"] * 2
    for spec in specs:
        chain = chains()[int(spec.id.rsplit("/")[-1])]
        assert len(spec.goals) == 1 and chain.tasks[0] == spec.goals[0].task
        assert spec.setup["condition"] == dict(chain.condition) and spec.max_steps_per_goal == 360
    assert Calvin(**benchmark.recipe()[1]).episodes() == specs
    assert {s.goals[0].task for s in make_benchmark(recipe).episodes()} == set(expert.PLANS)
    with pytest.raises(RecipeError, match="task that a chain of CALVIN begins with"):
        make_benchmark(replace(recipe, tasks=("turn_on_leds",)))


@needs_pybullet
def test_a_study_on_scripted_demonstrations_from_files_to_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlm4vla.benchmarks.calvin.benchmark.MAX_STEPS", 20)
    made = demonstrations("D", ["open_drawer", "turn_on_led"], 2, seed=2, renderer="tiny")
    write(made, tmp_path / "set" / "training", note="made in a test")
    study = scripted("calvin", steps=2, folder=str(tmp_path / "set"))

    def shorter(row: StudyRow) -> StudyRow:
        (trial,) = row.trials.values()
        evaluation = replace(trial.evaluations[0], episodes_per_task=1, renderer="tiny")
        return replace(row, trials={"seed 0": replace(trial, evaluations=(evaluation,))})

    study = replace(study, rows=tuple(map(shorter, study.rows)))
    for trial in study.trials:
        status = run_trial(trial, RunStore(tmp_path / "runs"), resources=Resources(workers=0, progress=False))
        assert status.state == "done"
    found = score(study, tmp_path / "runs")
    assert not found.problems
    rows = [labelled("tiny-qwen3-vl", SCRIPTED), "random policy"]
    assert {key: cell.episodes for key, cell in found.cells.items()} == {
        (row, task): 1 for row in rows for task in ("open_drawer", "turn_on_led")
    }
    assert [(pair.first, pair.comparison.paired) for pair in found.pairs] == [(rows[0], True)] * 2
    assert_told_everywhere(study, tmp_path / "runs", capsys)


def assert_told_everywhere(study: Study, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mark of the set is in the trial's folder and its checkpoint, and beside every score."""
    trained, chance = (runs / "trials" / fingerprint(trial) for trial in study.trials)
    assert json.loads((trained / "provenance.json").read_text())["scripted"] == "made in a test"
    assert "scripted" not in json.loads((chance / "provenance.json").read_text())
    (checkpoint,) = (trained / "checkpoints").glob("step-*")
    policy = json.loads((checkpoint / "policy.json").read_text())
    assert policy["provenance"]["scripted"] == "made in a test"
    page = write_study_report(study, runs, runs / "reports")
    shown = [page, *(page.parent / name for name in ("tables.md", "tables.tex", "scores.json"))]
    assert [path.name for path in shown if SCRIPTED not in path.read_text()] == []
    assert main(["report", str(runs)]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "tiny-qwen3-vl" in line]
    assert told and all(SCRIPTED in line for line in told)
    assert SCRIPTED in (runs / "report.html").read_text()
    results = json.loads((runs / "results.json").read_text())
    assert {(row["backbone"], row["note"]) for row in results} == {
        ("tiny-qwen3-vl", SCRIPTED),
        ("random-policy", ""),
    }
    with (runs / "results.csv").open(newline="") as file:
        assert [row["note"] for row in csv.DictReader(file)] == [row["note"] for row in results]
    common = ["evaluate", str(checkpoint), "--benchmark", "calvin-d-tasks", "--workers", "0"]
    assert main([*common, "--tasks", "turn_on_led", "--episodes", "1", "--execute", "5"]) == 0
    printed = capsys.readouterr()
    assert f"calvin-d-tasks, look  ({SCRIPTED})" in printed.out and SCRIPTED in printed.err
    assert main([*common, "--tasks", "turn_on_led", "--episodes", "1", "--execute", "5", "--json"]) == 0
    assert [row["note"] for row in json.loads(capsys.readouterr().out)] == [SCRIPTED]
    assert main(["evaluate", str(checkpoint), "--execute", "5,10", "--workers", "0"]) == 0
    table = capsys.readouterr().out
    assert table.count(SCRIPTED) == 2, table


@needs_pybullet
def test_the_contract() -> None:
    up = np.array([0, 0, 1, 0, 0, 0, 1], dtype=np.float32)
    shows = ("wrist_image", "state")
    check_benchmark(Calvin(3, renderer="tiny", shows=shows), steps=4, raising=up)
    environment = Calvin(3, renderer="tiny", shows=shows).make_environment()
    seen = environment.reset(Calvin(3).episodes()[2])
    assert seen.wrist_image is not None and seen.wrist_image.shape == (84, 84, 3) and seen.state is not None
    published = [0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963, 1]
    np.testing.assert_allclose(seen.state, published, atol=2e-3)
    moved = environment.step(np.array([1, 0, 0, 0, 0, 0, 1], np.float32)).observation.wrist_image
    assert moved is not None and (moved != seen.wrist_image).mean() > 0.2


@needs_pybullet
@pytest.mark.parametrize("scene", "ABCD")
def test_scripted_solutions_are_solutions(scene: str) -> None:
    """In every scene; before the task is done the oracle says that it is not."""
    environment = CalvinEnvironment(scene, "tiny")
    for task in ("turn_on_led", "open_drawer", "move_slider_right", "lift_blue_block_table"):
        rng = np.random.default_rng([ord(scene), 3])
        while True:
            robot, desk = expert.fresh_state(environment.world, rng)
            if expert.possible(task, desk):
                break
        environment.begin(robot, desk, goals=goal(task), seed=1)
        done = [environment.advance(action) for action in expert.actions(task, environment.world)]
        assert done[0] == 0 and done[-1] == 1, (scene, task)
    environment.close()


@needs_pybullet
def test_an_episode_does_not_depend_on_those_before_and_looking_changes_nothing() -> None:
    specs = Calvin(4, renderer="tiny").episodes()
    rng = np.random.default_rng(0)
    moves = rng.uniform(-1, 1, (40, 7)).astype(np.float32)

    def played(environment: CalvinEnvironment, *, look: bool) -> list[np.ndarray]:
        environment.reset(specs[3])
        found = []
        for move in moves:
            environment.step(move) if look else environment.advance(move)
            found.append(np.concatenate([environment.world.robot_obs(), environment.world.scene_obs()]))
        return [*found, environment.observe().image]

    fresh, used = CalvinEnvironment("D", "tiny"), CalvinEnvironment("D", "tiny")
    for spec in specs[:3]:
        used.reset(spec)
        for move in moves[:15]:
            used.advance(move)
    for first, second in zip(played(fresh, look=True), played(used, look=False), strict=True):
        np.testing.assert_array_equal(first, second)


@needs_pybullet
def test_chains_count_goals_and_the_instruction_moves_on() -> None:
    environment = CalvinEnvironment("D", "tiny")
    robot, desk = expert.fresh_state(environment.world, np.random.default_rng(2))
    desk[1], desk[5] = 0, 0
    environment.begin(robot, desk, goals=[*goal("turn_on_led"), *goal("open_drawer")])
    assert environment.observe().instruction == instructions()["turn_on_led"]
    for task, count in (("turn_on_led", 1), ("open_drawer", 2)):
        completed = count - 1
        for action in expert.actions(task, environment.world):
            completed = environment.advance(action)
            if completed == count:
                break
        assert completed == count
    assert environment.observe().instruction == instructions()["open_drawer"]


@needs_pybullet
def test_rollouts_in_workers(tmp_path: Path) -> None:
    """Two workers and another order: every field of every result but its seconds is the same, the last picture too."""
    benchmark = Calvin(2, renderer="tiny")
    shorter = [replace(spec, max_steps_per_goal=20) for spec in benchmark.episodes()]
    results = [
        evaluate(
            RandomPredictor(benchmark.action_spec, 10, seed=0),
            benchmark,
            execute=10,
            folder=tmp_path / str(workers),
            episodes=episodes,
            environments=max(1, workers),
            workers=workers,
            progress=False,
        )
        for workers, episodes in ((0, shorter), (2, shorter[::-1]))
    ]
    assert [r.error for r in results[0]] == [None, None]
    again = replay(benchmark, tmp_path / "2", workers=2)
    assert [(each.identical, each.difference) for each in again] == [(True, "")] * 2
    assert [replace(r, seconds=0) for r in results[0]] == [replace(r, seconds=0) for r in results[1][::-1]]
    assert all(r.actions and r.last_image for r in results[0])


def test_a_rollout_in_the_python_that_install_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = INSTALLED / "venv" / "bin" / "python"
    if not (python.exists() and (INSTALLED / "installed.json").exists()):
        pytest.skip("`vlm4vla simulators install calvin` was not run")
    monkeypatch.setenv("VLM4VLA_SIMULATORS", str(INSTALLED.parent))
    benchmark = Calvin(2, renderer="tiny")
    found = evaluate(
        RandomPredictor(benchmark.action_spec, 10, seed=0),
        benchmark,
        execute=10,
        folder=tmp_path,
        episodes=[replace(spec, max_steps_per_goal=20) for spec in benchmark.episodes()],
        environments=2,
        workers=2,
        progress=False,
        python=str(python),
    )
    assert [(result.error, result.steps, result.goals_completed) for result in found] == [(None, 20, 0)] * 2


@needs_pybullet
def test_scripted_demonstrations_are_read_as_calvins_own(tmp_path: Path) -> None:
    tasks = ["turn_on_led", "turn_off_led"]
    made = list(demonstrations("AC", tasks, 3, seed=1, renderer="tiny"))
    assert write(iter(made), tmp_path / "set" / "training", note="made in a test") == 3
    assert json.loads((tmp_path / "set" / "training" / "scripted.json").read_text())["scripted"]
    source = CalvinSource(tmp_path / "set")
    assert len(source) == 3 and not source.missing
    for index, expected in enumerate(made):
        found = source[index]
        assert (found.task, found.instruction) == (expected.task, instructions()[expected.task])
        np.testing.assert_array_equal(found.actions.astype(np.float32), expected.actions)
        np.testing.assert_array_equal(found.images[-1], expected.images[-1])
        assert found.facts["scene"] == f"calvin_scene_{expected.scene}"
    with np.load(tmp_path / "set" / "training" / "episode_0000000.npz", allow_pickle=False) as frame:
        asked = frame["robot_obs"][:6] + frame["rel_actions"][:6] * ([0.02] * 3 + [0.05] * 3)
        np.testing.assert_allclose(frame["actions"][:6], asked, atol=1e-3)
        assert frame["actions"].shape == (7,) and frame["actions"][6] == frame["rel_actions"][6]
    again = list(demonstrations("AC", tasks, 3, seed=1, renderer="tiny"))
    np.testing.assert_array_equal(again[2].actions, made[2].actions)
    with pytest.raises(SimulatorError, match="exists already"):
        write(iter(made), tmp_path / "set" / "training", note="")
    with pytest.raises(SimulatorError, match="cannot 'stack_block'"):
        next(demonstrations("A", ["stack_block"], 1))


@needs_pybullet
def test_demonstrations_made_in_shares_are_those_made_at_once(tmp_path: Path) -> None:
    common = ["--scenes", "AD", "--tasks", "turn_on_led", "--episodes", "4", "--renderer", "tiny"]
    assert demonstrate([str(tmp_path / "whole"), *common]) == 0
    pieces = ["--pieces", str(tmp_path / "pieces")]
    for share in ("1/3", "0/3", "2/3"):
        assert demonstrate([str(tmp_path / "shared"), *common, *pieces, "--share", share]) == 0
        assert not (tmp_path / "shared").exists()
    assert demonstrate([str(tmp_path / "shared"), *common, *pieces]) == 0
    whole, shared = (CalvinSource(tmp_path / name) for name in ("whole", "shared"))
    assert [whole[i].task for i in range(4)] == [shared[i].task for i in range(4)] == ["turn_on_led"] * 4
    files = [sorted((tmp_path / name).rglob("ep*")) for name in ("whole", "shared")]
    assert len(files[0]) == len(files[1]) > 20
    for first, second in zip(*files, strict=True):
        assert first.name == second.name and first.read_bytes() == second.read_bytes()


@needs_pybullet
def test_the_dataset_renderer_draws_the_desk(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """EGL on Mesa, in a process of its own: PyBullet's and MuJoCo's OpenGL take each other's context away."""
    unused = models / "data" / "blocks" / "block_blue.urdf"
    text = unused.read_text()
    unused.write_text(f"{text} ")
    try:
        status = main(["simulators", "check", "calvin", "--json"])
    finally:
        unused.write_text(text)
    shown = capsys.readouterr()
    if "EGL renderer does not load" in shown.err:
        pytest.skip("EGL does not work on this machine")
    found = json.loads(shown.out)
    assert status == 0 and found["works"], found
    assert found["pybullet"] == metadata.version("pybullet")
    assert "1 of 161 files are not the published ones: data/blocks/block_blue.urdf" in found["models"]
    assert all(found[f"scene {scene}"]["apart"] < 3 for scene in "ABCD")


@needs_pybullet
def test_another_picture_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by its brightness: the scene may be another one, or have no shadows."""
    golden = np.load(demonstrate_module.GOLDEN, allow_pickle=False)
    np.save(tmp_path / "golden.npy", golden[:, [0, 1, 3, 2]])
    monkeypatch.setattr(demonstrate_module, "GOLDEN", tmp_path / "golden.npy")
    found = demonstrate_module.check("tiny")
    assert not found["works"] and all(found[f"scene {scene}"]["solved"] for scene in "ABCD")
    assert [found[f"scene {scene}"]["apart"] < 1 for scene in "ABCD"] == [True, True, False, False]


@needs_pybullet
def test_the_contract_with_the_dataset_renderer() -> None:
    """The first pictures of an OpenGL context have no shadows: none of them may be an episode's."""
    program = (
        "from vlm4vla.benchmarks.calvin.benchmark import Calvin\n"
        "from vlm4vla.testing import check_benchmark\n"
        "check_benchmark(Calvin(3), steps=4)\n"
        "print('kept')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if "EGL renderer does not load" in done.stderr:
        pytest.skip("EGL does not work on this machine")
    assert "kept" in done.stdout.splitlines(), done.stderr


def test_errors_of_a_benchmark_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="egl or tiny, not with 'ray'"):
        Calvin(renderer="ray")
    with pytest.raises(RecipeError, match="1,000 chains"):
        Calvin(1001)
    with pytest.raises(RecipeError, match="scenes A, B, C, D"):
        Calvin(scene="E")
    monkeypatch.setenv("VLM4VLA_SIMULATORS", str(tmp_path))
    with pytest.raises(SimulatorError, match="simulators install calvin"):
        CalvinEnvironment()


@needs_pybullet
def test_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["simulators", "--json"]) == 0
    state = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}["calvin"]
    assert state["here"] and state["models"]
    assert main(["simulators", "check", "calvn"]) == 1
    assert "calvin" in capsys.readouterr().err
