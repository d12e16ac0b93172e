"""Run folders as training and evaluation leave them, with invented outcomes: what the tests of reports read."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np

from vlm4vla.benchmarks.registry import BENCHMARKS, outline
from vlm4vla.benchmarks.rollout import task_and_tier
from vlm4vla.core.recipes import (
    DemonstrationRecipe,
    EvaluationRecipe,
    PolicyRecipe,
    TrainRecipe,
    Trial,
    fingerprint,
    to_json,
)
from vlm4vla.core.types import EpisodeResult
from vlm4vla.studies.paper import table_10
from vlm4vla.studies.study import Column, Study, StudyRow

TASKS = {
    "fixed-target": ("press", "open", "close"),
    "single-block": ("reach", "lift", "push_left", "push_right"),
    "two-object": ("place", "stack"),
}
INSTRUCTIONS = {
    "press": "press the pink button",
    "open": "open the drawer",
    "close": "push the drawer shut",
    "reach": "move the gripper to the yellow block",
    "lift": "pick up the red block",
    "push_left": "push the blue block to the left",
    "push_right": "slide the green block right",
    "place": "put the yellow block on the plate",
    "stack": "stack the red block on the blue block",
}
EASE = {"fixed-target": 1.0, "single-block": 0.72, "two-object": 0.5}
SKILL = {
    ("tiny-qwen3-vl", "pretrained"): 0.97,
    ("tiny-qwen3-vl", "random"): 0.62,
    ("tiny-paligemma-2", "pretrained"): 0.84,
    ("tiny-paligemma-2", "random"): 0.55,
    ("random-policy", "pretrained"): 0.07,
}
TRAIN = TrainRecipe(steps=3000, batch_size=64, learning_rate=1e-3, warmup_steps=200)


def make_trial(backbone: str, weights: str = "pretrained", **changes: object) -> Trial:
    steps = 0 if backbone == "random-policy" else TRAIN.steps
    trial = Trial(
        name=f"tabletop {backbone} {weights}",
        policy=PolicyRecipe(backbone=backbone, weights=weights, image_size=64, horizon=5),  # type: ignore[arg-type]
        demonstrations=DemonstrationRecipe(episodes=8000),
        train=replace(TRAIN, steps=steps),
        evaluations=(EvaluationRecipe(look="A", episodes_per_task=20, execute=3),),
    )
    return replace(trial, **changes)  # type: ignore[arg-type]


def write_study(out: Path, *, episodes_per_task: int = 20, videos: int = 0, looks: str = "A") -> None:
    """Two backbones from pretrained and random weights, the random policy, errors, and a trial cut short."""
    evaluations = tuple(
        EvaluationRecipe(look=look, episodes_per_task=episodes_per_task, execute=3) for look in looks
    )
    for backbone, weights in SKILL:
        trial = make_trial(backbone, weights, evaluations=evaluations)
        broken = 2 if (backbone, weights) == ("tiny-paligemma-2", "random") else 0
        write_trial(out, trial, skill=SKILL[backbone, weights], broken=broken, videos=videos)
    unfinished = make_trial("tiny-kosmos-2", evaluations=evaluations)
    write_trial(out, unfinished, skill=None, state="running", steps=1300)


def write_trial(
    out: Path,
    trial: Trial,
    *,
    skill: float | None,
    broken: int = 0,
    videos: int = 0,
    state: str = "done",
    error: str | None = None,
    steps: int | None = None,
) -> Path:
    """One trial folder; no evaluation when `skill` is None, `videos` recorded episodes per task otherwise."""
    folder = out / "trials" / fingerprint(trial)
    folder.mkdir(parents=True)
    write_json(folder / "trial.json", to_json(trial))
    write_json(
        folder / "provenance.json",
        {
            "versions": {
                "vlm4vla": "0.1.0",
                "python": "3.11.9",
                "torch": "2.13.0+cpu",
                "transformers": "5.23.0",
            },
            "commit": "1f8c327d0a9b",
            "dirty": False,
            "machine": "Linux x86_64, AMD EPYC",
            "cpus": 2,
            "demonstrations": "5d41402abc4b",
            "started": "2026-11-22T12:00:00+00:00",
        },
    )
    seconds = {"demonstrations": 184.2, "train": 0.0 if trial.train.steps == 0 else 431.7, "evaluate": 96.4}
    write_json(folder / "status.json", {"state": state, "error": error, "seconds": seconds})
    if trial.train.steps:
        reach = trial.train.steps if steps is None else steps
        write_lines(folder / "metrics.jsonl", metrics(trial, reach))
    for recipe in trial.evaluations if skill is not None else ():
        drop = 0.45 if recipe.look == "D" else 1.0
        write_evaluation(folder, recipe, skill=skill * drop, broken=broken, videos=videos)
    return folder


def write_evaluation(
    folder: Path, recipe: EvaluationRecipe, *, skill: float, broken: int = 0, videos: int = 0
) -> Path:
    where = folder / "evaluations" / fingerprint(recipe)
    where.mkdir(parents=True)
    write_json(where / "evaluation.json", to_json(recipe))
    results, index = [], []
    known = recipe.benchmark in BENCHMARKS and recipe.benchmark != "tabletop"
    for spec in (outline(recipe) or ()) if known else ():
        goals, (task, tier) = len(spec.goals), task_and_tier(spec)
        done = goals * (difficulty(spec.id, skill) < skill)
        result = episode_result(spec.id, task, tier, bool(done))
        results.append(replace(result, goals=goals, goals_completed=done))
    for tier, tasks in TASKS.items() if not known else ():
        for task in tasks:
            for number in range(recipe.episodes_per_task):
                episode = f"{recipe.look}/{task}/{recipe.seed}/{number:04d}"
                luck = difficulty(episode, skill)
                success = bool(luck < skill * EASE[tier] ** (0.3 + 1.2 * (1 - skill)))
                results.append(episode_result(episode, task, tier, success))
                if number < videos:
                    name = episode.replace("/", "-") + ".mp4"
                    write_video(where / "videos" / name, success=success, seed=number)
                    index.append(
                        {
                            "episode": episode,
                            "task": task,
                            "instruction": INSTRUCTIONS[task],
                            "success": success,
                            "file": name,
                        }
                    )
    for number in range(broken):
        results[-1 - number] = replace(
            results[-1 - number], goals_completed=0, error="SimulatorError: the physics diverged at step 11"
        )
    write_lines(where / "episodes.jsonl", [asdict(result) for result in results])
    if videos:
        write_json(where / "videos" / "videos.json", index)
    return where


LOOK_A = Column(name="look A", trial="tabletop", look="A")


def small_study(*rows: tuple[str, dict[str, Trial]], columns: tuple[Column, ...] = (LOOK_A,)) -> Study:
    """Invented rows; 50 is published for each."""
    made = tuple(StudyRow(name=name, trials=trials, published={"look A": 50.0}) for name, trials in rows)
    return Study(name="invented", title="Table 0", question="Which?", columns=columns, rows=made)


def two_rows(out: Path) -> Study:
    """A good row and a bad one with three broken episodes."""
    good, bad = make_trial("tiny-qwen3-vl"), make_trial("tiny-paligemma-2")
    write_trial(out, good, skill=0.95)
    write_trial(out, bad, skill=0.45, broken=3)
    return small_study(("good", {"tabletop": good}), ("bad", {"tabletop": bad}))


def difficulty(episode: str, skill: float) -> float:
    """In [0, 1]; mostly the episode's own, so that two policies tend to fail on the same ones."""
    shared = np.random.default_rng([ord(c) for c in episode]).random()
    own = np.random.default_rng([ord(c) for c in episode] + [int(1000 * skill)])
    return float(shared if own.random() < 0.7 else own.random())


def episode_result(episode: str, task: str, tier: str, success: bool) -> EpisodeResult:
    return EpisodeResult(
        episode=episode,
        task=task,
        tier=tier,
        goals=1,
        goals_completed=int(success),
        steps=14 if success else 40,
        seconds=0.4,
    )


def chain_result(number: int) -> EpisodeResult:
    """Five goals in a row, of which 0 to 5 are reached."""
    result = episode_result(
        f"A/chain/10000/{number:04d}", "lift" if number % 2 else "open", "", success=False
    )
    return replace(result, goals=5, goals_completed=number % 6)


def metrics(trial: Trial, steps: int) -> list[dict[str, object]]:
    """Plausible curves: pretrained weights learn faster, and the held-out loss stops falling first."""
    random = np.random.default_rng(len(trial.name))
    pace = (420 if trial.policy.weights == "pretrained" else 760) + 12 * len(trial.policy.backbone)
    lines = []
    for step in range(trial.train.log_every, steps + 1, trial.train.log_every):
        loss = (
            0.022
            + 0.001 * len(trial.policy.backbone)
            + 0.4 * math.exp(-step / pace)
            + 0.02 / (1 + step / pace)
        )
        lines.append(metric(step, "train", loss * float(random.normal(1, 0.04))))
        if step % trial.train.validate_every == 0 or step == steps:
            lines.append(metric(step, "held_out", loss * 1.08 + 0.004 * step / pace / 2))
    return lines


def metric(step: int, split: str, loss: float) -> dict[str, object]:
    return {
        "step": step,
        "split": split,
        "loss": loss,
        "pose": loss * 0.7,
        "gripper": loss * 0.3,
        "learning_rate": 1e-3,
        "gradient_norm": 0.8,
        "samples_per_second": 410.0,
        "seconds": step * 0.15,
    }


def write_video(path: Path, *, success: bool, seed: int, size: int = 96, frames: int = 8) -> None:
    """A gripper that reaches a block, or wanders past it, over a table."""
    path.parent.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    block = random.uniform(0.3, 0.7, 2) * size
    start = np.array([random.uniform(0.2, 0.8), 0.2]) * size
    goal = block if success else block + random.choice([-1, 1], 2) * size * 0.2
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for t in np.linspace(0, 1, frames):
            image = np.full((size, size, 3), (176, 140, 104), dtype=np.uint8)
            image[: size // 6] = (196, 178, 150)
            x, y = block.astype(int)
            image[y - 5 : y + 5, x - 5 : x + 5] = (226, 192, 40)
            x, y = (start + (goal - start) * t).astype(int)
            image[y - 13 : y - 8, x - 9 : x + 9] = (235, 235, 235)
            for side in (-8, 6):
                image[y - 8 : y + 3, x + side : x + side + 3] = (190, 90, 30)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def write_lines(path: Path, entries: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def waiting_study(scale: str) -> Study:
    """A row whose VLM is tuned on files that nobody has named."""
    row = table_10("paper").rows[2]
    return Study(name="waiting", title="", question="", columns=(Column(name="calvin"),), rows=(row,))
