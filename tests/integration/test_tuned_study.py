"""Table 4 in very small: VLMs are tuned on actions, then become policies; six cells, two tunings, one command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from smoke_study import tuned

from vlm4vla.studies.runs import RunStore, read_tuning

TESTS = Path(__file__).parents[1]


def run(out: Path, *arguments: str) -> str:
    command = [
        sys.executable,
        "-m",
        "vlm4vla.cli",
        "study",
        "smoke_study:tuned",
        "--out",
        str(out),
        *arguments,
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def vision_of(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if "visual." in name and "merger" not in name}


def test_six_cells_are_tuned_trained_and_scored(tmp_path: Path) -> None:
    study = tuned("tabletop")
    assert [len(row.trials) for row in study.rows] == [2, 2, 2]
    tunings = {trial.tuning for trial in study.trials if trial.tuning is not None}
    assert {tuning.freeze for tuning in tunings} == {(), ("vision",)} and len(tunings) == 2
    run(tmp_path, "--run", "--quiet")
    folders = sorted((tmp_path / "tunings").iterdir())
    assert {read_tuning(folder) for folder in folders} == tunings
    scores = json.loads((tmp_path / "reports" / study.name / "scores.json").read_text())["cells"]
    assert len([cell for cell in scores if cell["ours"] is not None]) == 6

    store = RunStore(tmp_path)
    for name in ("frozen", "trained"):
        start = [store.folder(row.trials[name]) for row in study.rows]
        vision = [
            vision_of(load_file(next(f.glob("checkpoints/step-*")) / "backbone" / "model.safetensors"))
            for f in start
        ]
        assert len(vision[0]) > 5

        def alike(first: int, second: int, vision: list[dict[str, torch.Tensor]] = vision) -> bool:
            return all(torch.equal(tensor, vision[second][key]) for key, tensor in vision[first].items())

        # Frozen twice is what it was; trained in the tuning it is another one, which the policy starts from.
        assert alike(0, 1) == (name == "frozen")
        assert not alike(0, 2)
    asking = ("--ask", "tabletop-pretraining", "scenes=12", "image_size=64", "split=test", "--quiet")
    run(tmp_path, *asking)
    asked = sorted(tmp_path.glob("trials/*/asked/*.json"))
    assert len(asked) == 6, "every policy's VLM"
    assert len(list(tmp_path.glob("answers/*.jsonl"))) == 3, "that many VLMs: untuned, and two tunings"
    assert "what tuning taught" in (tmp_path / "reports" / study.name / "index.html").read_text()
    kept = [path.stat().st_mtime_ns for path in asked]
    run(tmp_path, *asking)
    assert kept == [path.stat().st_mtime_ns for path in asked]

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("tunings/*/vlm/model.safetensors")}
    run(tmp_path, "--run", "--quiet")
    assert before == {path: path.stat().st_mtime_ns for path in before} and len(before) == 2
