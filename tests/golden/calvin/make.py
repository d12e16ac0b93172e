"""Made traces.npz and verdicts.npz: what calvin_env itself does and says. README.md tells with what.

    PYTHONPATH=src:tests python tests/golden/calvin/make.py CALVIN_ENV tests/golden/calvin

Actions are planned in our own world; states and verdicts come from calvin_env alone, a process for every clip.
"""

import importlib
import math
import multiprocessing
import sys
from functools import partial
from pathlib import Path

import calvin_states
import numpy as np

from vlm4vla.benchmarks.calvin import expert
from vlm4vla.benchmarks.calvin.expert import Waypoint
from vlm4vla.benchmarks.calvin.oracle import TASKS
from vlm4vla.benchmarks.calvin.sequences import conditions, initial_state
from vlm4vla.benchmarks.calvin.world import SCENES, World

UP = 0.60
COLORS = ("red", "blue", "pink")


def turn(color, by, world):
    """Grasp a block and turn it where it lies."""
    plan = list(expert.PLANS[f"lift_{color}_block_table"](world))[:-1]
    last = plan[-1]
    return [*plan, Waypoint(last.place, False, last.yaw + by), Waypoint(last.place, True, steps=6)]


def switch(up, world):
    """Along the slope on which the lever slides, from below or from above."""
    low, high = expert._box(world, "switch_link")
    x = float(low[0] + high[0]) / 2
    way = (
        [(-0.10, 0.48), (0.012, 0.48), (0.07, 0.62)]
        if up
        else [(0.0, 0.70), (0.066, 0.68), (0.066, 0.64), (0.015, 0.54)]
    )
    return [
        *expert._over(world, x, way[0][0], opened=False),
        *(Waypoint(np.array([x, y, z]), False) for y, z in way),
    ]


def put(link, world):
    """What is held, into the middle of the drawer or onto a block."""
    if link == "drawer_link":
        low, high = expert._box(world, link)
        x, y, z = (low[0] + high[0]) / 2, low[1] + 0.10, 0.42
    elif link == "plank_link":
        low, _ = expert._box(world, link)
        x, y, z = low[0] + 0.12, 0.08, 0.48
    else:
        (x, y, z), _ = expert._block(world, link)
        z += 0.065
    return [
        *expert._over(world, x, y, opened=False),
        Waypoint(np.array([x, y, z + 0.03]), False),
        Waypoint(np.array([x, y, z]), False),
        Waypoint(np.array([x, y, z]), True, steps=8),
        Waypoint(np.array([x, y, UP]), True),
        Waypoint(np.array([x, y, UP]), True, steps=6),
    ]


def into_drawer(color, world):
    """Push a block over the desk's front edge."""
    (x, y, z), _ = expert._block(world, color)
    return [
        *expert._over(world, x, y + 0.075, opened=False),
        Waypoint(np.array([x, y + 0.075, z + 0.08]), False),
        Waypoint(np.array([x, y + 0.075, z + 0.005]), False),
        Waypoint(np.array([x, -0.17, z + 0.005]), False),
        Waypoint(np.array([x, -0.17, UP]), False),
    ]


def lift(color, world):
    return expert.PLANS[f"lift_{color}_block_table"](world)


def plans():
    """(scene, tasks in their order with their waypoints) of every clip."""
    for number, task in enumerate(expert.PLANS):
        yield "ABCD"[number % 4], [(task, expert.PLANS[task])]
    for number, color in enumerate(COLORS):
        for side, by in (("left", 1.35), ("right", -1.35)):
            yield "DBC"[number], [(f"rotate_{color}_block_{side}", partial(turn, color, by))]
        yield "ABC"[number], [(f"lift_{color}_block_slider", partial(lift, color))]
        tasks = ("table", partial(lift, color)), ("drawer", partial(lift, color))
        parts = [(f"lift_{color}_block_{place}", plan) for place, plan in tasks]
        yield "DAB"[number], [parts[0], ("place_in_drawer", partial(put, "drawer_link")), parts[1]]
    yield "A", [("turn_on_lightbulb", partial(switch, True))]
    yield "B", [("turn_off_lightbulb", partial(switch, False))]
    for scene in "CD":
        parts = [("lift_pink_block_table", partial(lift, "pink"))]
        yield scene, [*parts, ("place_in_slider", partial(put, "plank_link"))]
    for scene in "AD":
        parts = [("lift_blue_block_table", partial(lift, "blue")), ("stack_block", partial(put, "red"))]
        yield scene, [*parts, ("unstack_block", partial(lift, "blue"))]
    yield "C", [("push_into_drawer", partial(into_drawer, "pink"))]


def started(world, task, rng):
    """A desk on which the task can be begun, in numbers that are short to store."""
    while True:
        robot, desk = expert.fresh_state(world, rng)
        desk[3] = desk[4] = 0
        if task == "turn_off_lightbulb":
            desk[3], desk[4] = 0.088, 1
        if "slider" in task and "move" not in task:
            desk[0] = 0
        if "drawer" in task and not task.startswith(("open", "close")):
            desk[1] = 0.22
        if task.startswith("lift") and task.endswith("slider"):
            first = 6 + 6 * list(world.scene.blocks).index(f"block_{task.split('_')[1]}")
            desk[first : first + 3] = [-0.24 if world.name in "AD" else -0.05, 0.08, 0.461]
        if expert.possible(task, desk):
            return np.round(robot, 4), np.round(desk, 4)


def planned():
    """Clips whose tasks our own world solves, and in every scene one of random actions."""
    import pybullet
    from pybullet_utils.bullet_client import BulletClient

    assets = Path(sys.argv[1]) / "data"
    for number, (scene, parts) in enumerate(plans()):
        names = [task for task, _ in parts]
        chain = next((task for task in names if task.endswith(("drawer", "slider"))), names[0])
        for attempt in range(40):
            world = World(BulletClient(pybullet.DIRECT), scene, assets)
            robot, desk = started(world, chain, np.random.default_rng([number, attempt]))
            world.build(robot, desk, seed=attempt)
            actions, solved = [], True
            for task, plan in parts:
                start, solved = world.state(), False
                for action in expert.follow(plan(world), world):
                    action[:6] = np.round(action[:6] * 64) / 64
                    world.act(action)
                    actions.append(action)
                    solved = TASKS[task](start, world.state(), world)
                    if solved:
                        break
                if not solved:
                    break
            world.p.disconnect()
            if solved and len(actions) < 130:
                break
        else:
            sys.exit(f"{scene} {names}: not solved")
        print(scene, names, "attempt", attempt, len(actions), "steps", flush=True)
        yield scene, attempt, names, robot, desk, np.array(actions)
    for scene in "ABCD":
        rng = np.random.default_rng(ord(scene))
        robot, desk = initial_state(conditions()[int(rng.integers(192))])
        if scene != "D":
            robot, desk = started(World(None, scene, assets), "", rng)
        moves = np.round(rng.uniform(-1, 1, (60, 7)) * 64) / 64
        moves[:, 6] = np.where(rng.uniform(size=60) > 0.5, 1, -1)
        yield scene, 0, [], robot, desk, moves.astype(np.float32)


def played(upstream, clip):
    """The clip in calvin_env: states and what is done, after reset and after every action."""
    scene, seed, names, robot, desk, actions = clip
    import hydra
    from calvin_env.envs import play_table_env
    from omegaconf import OmegaConf

    play_table_env.get_git_commit_hash = lambda _: "a copy without git"
    conf = OmegaConf.create(
        {
            "env": OmegaConf.load(f"{upstream}/conf/env/play_table_env.yaml"),
            "robot": OmegaConf.load(f"{upstream}/conf/robot/panda.yaml"),
            "scene": OmegaConf.load(f"{upstream}/conf/scene/calvin_scene_{scene}.yaml"),
            "tasks": OmegaConf.load(f"{upstream}/conf/tasks/new_playtable_tasks.yaml"),
            "cameras": {},
            "use_vr": False,
            "data_path": f"{upstream}/data",
        }
    )
    fingers = OmegaConf.load(f"{upstream}/conf/robot/panda_longer_finger.yaml")
    conf.robot.update({key: value for key, value in fingers.items() if key != "defaults"})
    conf.env.update({"use_egl": False, "use_scene_info": True})
    # Where blocks are loaded before the reset moves them is drawn at random; these are our world's draws.
    rng, surfaces = np.random.default_rng(seed), list(SCENES[scene].surfaces.values())
    for block in SCENES[scene].blocks:
        surface = surfaces[int(rng.integers(3))]
        loaded = conf.scene.objects.movable_objects[block]
        loaded.initial_pos = rng.uniform(*surface).tolist()
        loaded.initial_orn = [0.0, 0.0, float(rng.uniform(-math.pi, math.pi))]
    env, tasks = hydra.utils.instantiate(conf.env), hydra.utils.instantiate(conf.tasks)
    assert list(TASKS) and set(tasks.tasks) == set(TASKS)

    def row(seen, start, now):
        done = tasks.get_task_info(start, now)
        return np.concatenate([seen["robot_obs"], seen["scene_obs"]]), [task in done for task in TASKS]

    seen = env.reset(robot, desk)
    start, left = env.get_info(), list(names)
    rows = [row(seen, start, start)]
    for action in actions.astype(np.float64):
        seen, _, _, now = env.step(action)
        rows.append(row(seen, start, now))
        if left and rows[-1][1][list(TASKS).index(left[0])]:
            start, left = now, left[1:]
    states, verdicts = zip(*rows, strict=True)
    return np.array(states), np.array(verdicts)


def our(clip, assets):
    """The same in our world: what the test compares, here to the last bit."""
    import pybullet
    from pybullet_utils.bullet_client import BulletClient

    scene, seed, _, robot, desk, actions = clip
    world = World(BulletClient(pybullet.DIRECT), scene, assets)
    world.build(robot, desk, seed=seed)
    states = [np.concatenate([world.robot_obs(), world.scene_obs()])]
    for action in actions:
        world.act(action)
        states.append(np.concatenate([world.robot_obs(), world.scene_obs()]))
    world.p.disconnect()
    return np.array(states)


def info(state, world):
    """A hand-made state as calvin_env tells it."""
    blocks = {
        name: {
            "current_pos": body.position,
            "current_orn": body.orientation,
            "current_lin_vel": body.velocity[:3],
            "current_ang_vel": body.velocity[3:],
            "contacts": [(0, world.blocks[name], other, -1, link) for other, link in body.contacts],
            "uid": world.blocks[name],
        }
        for name, body in state.blocks.items()
    }
    scene = {
        "fixed_objects": {"table": {"uid": world.table, "links": world.links}},
        "movable_objects": blocks,
        "doors": {name: {"current_state": value} for name, value in state.doors.items()},
        "lights": {name: {"logical_state": value} for name, value in state.lights.items()},
    }
    touched = [(0, world.robot, body, -1, -1) for body in state.robot_contacts]
    return {"scene_info": scene, "robot_info": {"uid": world.robot, "contacts": touched}}


def judged(upstream):
    """What calvin_env says of every pair of hand-made states of a group."""
    import hydra
    from omegaconf import OmegaConf

    tasks = hydra.utils.instantiate(OmegaConf.load(f"{upstream}/conf/tasks/new_playtable_tasks.yaml"))
    world, rows = calvin_states.world(), []
    for states in calvin_states.groups().values():
        told = [info(state, world) for state in states.values()]
        for start in told:
            for now in told:
                done = tasks.get_task_info(start, now)
                rows.append([task in done for task in TASKS])
    return np.array(rows)


def main():
    upstream, out = sys.argv[1], Path(sys.argv[2])
    sys.path.insert(0, upstream)
    importlib.import_module("calvin_env.envs.play_table_env")
    clips, found, worst = list(planned()), [], 0.0
    for clip in clips:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            found.append(pool.apply(played, (upstream, clip)))
        worst = max(worst, float(np.abs(our(clip, Path(upstream) / "data") - found[-1][0]).max()))
    print("largest difference of any number in any state:", worst)
    still = np.zeros((1, 7), np.float32)
    np.savez_compressed(
        out / "traces.npz",
        scenes=[scene for scene, *_ in clips],
        seeds=[seed for _, seed, *_ in clips],
        goals=[" ".join(names) for _, _, names, *_ in clips],
        robot_obs=[clip[3] for clip in clips],
        scene_obs=[clip[4] for clip in clips],
        rows=[len(states) for states, _ in found],
        actions=np.concatenate([(np.concatenate([still, c[5]]) * 64).astype(np.int8) for c in clips]),
        states=np.concatenate(
            [
                np.diff(np.round(s * 1e6).astype(np.int32), axis=0, prepend=np.int32([[0] * 39]))
                for s, _ in found
            ]
        ).T,
        done=np.packbits(np.concatenate([verdicts for _, verdicts in found]), axis=1).T,
        tasks=list(TASKS),
    )
    verdicts = judged(upstream)
    np.savez_compressed(out / "verdicts.npz", done=np.packbits(verdicts, axis=1).T, tasks=list(TASKS))
    fired = np.concatenate([verdicts for _, verdicts in found]).any(axis=0)
    print(
        len(clips),
        "clips,",
        sum(len(s) for s, _ in found),
        "states;",
        int(fired.sum()),
        "tasks done in them;",
    )
    print(len(verdicts), "hand-made pairs;", int(verdicts.any(axis=0).sum()), "tasks done in them")


if __name__ == "__main__":
    main()
