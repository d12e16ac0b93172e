"""What layers hold: measured once, the same again, told beside success."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_trials
from run_folders import LOOK_A, make_trial, small_study, write_json, write_trial

from vlm4vla.benchmarks.tabletop.frames import labelled_frames
from vlm4vla.cli import main
from vlm4vla.core.errors import RunError
from vlm4vla.core.recipes import Trial, to_json
from vlm4vla.reports import why as reported
from vlm4vla.reports.scores import score
from vlm4vla.reports.study_page import write_study_report
from vlm4vla.studies.representation import FramesRecipe, Layer, Measured, Reading, Why
from vlm4vla.studies.study import Study
from vlm4vla.studies.why import runs_in, why
from vlm4vla.training.train import train


def around(value: float) -> Measured:
    return Measured(value=value, low=value * 0.9, high=value * 1.1)


def invented(
    *, drift: float = 0.1, error: float = 0.04, look: str = "A", checkpoint: str = "step-1 x"
) -> Why:
    """Two layers of vision, one of language; the goal is known at the query only."""

    def layer(place: str, moved: float) -> Layer:
        told = [
            Reading(target=t, error=around(error), r_squared=around(0.5)) for t in ("gripper", "red block")
        ]
        return Layer(
            place=place,
            similarity=Measured(value=1 - moved, low=0.99 - moved, high=1.01 - moved),
            chance=0.1,
            before=tuple(told),
            after=tuple(told),
        )

    places = {"vision 1": 0, "vision 2": drift, "language 1 image": drift, "language 1 query": 2 * drift}
    return Why(
        recipe=FramesRecipe(look=look, checkpoint=checkpoint),
        reference="the pretrained VLM",
        scenes=100,
        layers=tuple(layer(place, moved) for place, moved in places.items()),
    )


def keep(folder: Path, measured: Why, name: str = "0123456789ab") -> Path:
    path = folder / "why" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, to_json(measured))
    return path


def five_rows(out: Path) -> Study:
    """The better a row, the less it drifts and the better a probe reads."""
    rows = []
    for number in range(5):
        trial = dataclasses.replace(make_trial("tiny-qwen3-vl"), name=f"row {number}")
        folder = write_trial(out, trial, skill=0.95 - 0.15 * number)
        keep(folder, invented(drift=0.06 + 0.05 * number, error=0.03 + 0.02 * number))
        keep(folder, invented(look="D", error=9.0), "another-look")
        rows.append((f"row {number}", {"tabletop": trial}))
    return small_study(*rows)


def test_what_goes_with_success_is_told_with_n_and_interval(tmp_path: Path) -> None:
    study = five_rows(tmp_path)
    found, problems = reported.read(score(study, tmp_path), tmp_path)
    assert not problems and list(found) == ["look A"]
    assert all(run.why.recipe.look == "A" for run in found["look A"])
    rows, correlations = reported.tables(found)
    assert [row[0] for row in rows.rows] == [f"row {n}" for n in range(5)]
    assert rows.rows[0][rows.columns.index("drift of vision")] == "0.03 [0.02, 0.04]"
    by_name = {row[0]: row for row in correlations.rows}
    assert set(by_name) == {
        "drift of vision",
        "drift of language, at the picture",
        "gripper at the query, cm off",
        "red block at the picture, cm off",
    }
    assert all(row[2].startswith("-0.9") and row[3] > "0.81" and row[5] == "5" for row in by_name.values())
    assert {row[1] for row in correlations.rows} == {"all runs"}  # there is one seed of every row


def test_with_several_seeds_what_rows_have_in_common_is_told_apart(tmp_path: Path) -> None:
    rows = []
    for number in range(3):
        trials = {}
        for seed in range(3):
            trial = make_trial("tiny-qwen3-vl")
            trial = dataclasses.replace(
                trial, name=f"row {number} {seed}", train=dataclasses.replace(trial.train, seed=seed)
            )
            folder = write_trial(tmp_path, trial, skill=0.9 - 0.2 * number - 0.02 * seed)
            keep(folder, invented(drift=0.1 + 0.1 * number - 0.01 * seed))
            trials[f"seed {seed}"] = trial
        rows.append((f"row {number}", trials))
    study = small_study(*rows, columns=(dataclasses.replace(LOOK_A, trial=""),))
    found, _ = reported.read(score(study, tmp_path), tmp_path)
    _, correlations = reported.tables(found)
    drift = {row[1]: float(row[2].split()[0]) for row in correlations.rows if row[0] == "drift of vision"}
    assert drift["all runs"] < -0.8 < 0 < drift["within rows"]


def test_the_page_has_the_section_its_figures_and_no_claim_of_cause(tmp_path: Path) -> None:
    study = five_rows(tmp_path)
    page = write_study_report(study, tmp_path, tmp_path / "report").read_text()
    assert '<section id="why">' in page and 'href="#why"' in page
    assert "Correlations are over runs" in page
    figures = {path.name for path in (tmp_path / "report" / "figures").iterdir()}
    assert {"why-look-a.svg", "why-look-a.pdf", "why-success-look-a.svg"} <= figures
    assert "Why: look A" in (tmp_path / "report" / "tables.md").read_text()


def test_without_measurements_there_is_no_section(tmp_path: Path) -> None:
    trial = make_trial("tiny-qwen3-vl")
    write_trial(tmp_path, trial, skill=0.9)
    study = small_study(("only", {"tabletop": trial}))
    page = write_study_report(study, tmp_path, tmp_path / "report").read_text()
    assert 'id="why"' not in page


def test_damage_is_told_and_the_last_checkpoint_counts(tmp_path: Path) -> None:
    trial = make_trial("tiny-qwen3-vl")
    folder = write_trial(tmp_path, trial, skill=0.9)
    keep(folder, invented(checkpoint="step-000100 a", drift=0.5), "early")
    keep(folder, invented(checkpoint="step-000200 b", drift=0.2), "late")
    (folder / "why" / "broken.json").write_text("{")
    study = small_study(("only", {"tabletop": trial}))
    found, problems = reported.read(score(study, tmp_path), tmp_path)
    assert found["look A"][0].why.recipe.checkpoint == "step-000200 b"
    assert problems[0][0] == trial.name and "broken.json" in problems[0][1]
    assert [w.recipe.step for w in found["look A"][0].course] == [100, 200]
    assert "broken.json" in write_study_report(study, tmp_path, tmp_path / "report").read_text()
    drawn = (tmp_path / "report" / "figures" / "why-steps-look-a.svg").read_text()
    assert drawn.count("<circle") == 4 * 3 + 1  # four measures before training and twice, and the legend's


def test_frames_are_held_out_equally_long_and_hold_what_they_say() -> None:
    def draw(look: str = "D") -> object:
        return labelled_frames(
            look=look,
            tasks=("reach", "press"),
            scenes=6,
            frames=3,
            seed=30_000,
            image_size=32,
            renderer="ray",
        )

    frames = draw()
    assert len(frames.observations) == 18 and len(set(frames.scenes)) == 6  # type: ignore[attr-defined]
    labelled_frames.cache_clear()
    again = draw()
    for name, places in frames.positions.items():  # type: ignore[attr-defined]
        assert places.shape == (18, 3)
        np.testing.assert_array_equal(places, again.positions[name])  # type: ignore[attr-defined]
    gripper, way = frames.positions["gripper"], frames.positions["way to the goal"]  # type: ignore[attr-defined]
    pressing = [row for row, seen in enumerate(frames.observations) if "button" in seen.instruction]  # type: ignore[attr-defined]
    assert pressing and np.ptp((gripper + way)[pressing], axis=0).max() < 1e-9
    moved = np.abs(np.diff(gripper.reshape(6, 3, 3), axis=1)).max(axis=2)
    assert (moved > 0.001).mean() > 0.8


def walked(out: Path, vlm: Path, *, weights: str = "pretrained") -> tuple[Trial, Path]:
    """A policy trained for a few steps on demonstrations that have no ground truth."""
    trial = tiny_trials.trial(vlm)
    policy = dataclasses.replace(trial.policy, weights=weights)  # type: ignore[arg-type]
    trial = dataclasses.replace(trial, policy=policy)
    folder = out / "trials" / weights
    folder.mkdir(parents=True)
    source = tiny_trials.packed(out / "demonstrations" / "walks")
    tiny_trials.write_trial(trial, folder / "trial.json")
    write_json(folder / "provenance.json", {"demonstrations": "walks"})
    train(trial, source, folder, device="cpu", progress=False, provenance={})
    return trial, folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("walks")
    _, folder = walked(out, tiny_trials.tiny_vlm(out / "vlm"))
    return folder


def test_any_data_set_has_drift_and_it_is_measured_once(trained: Path) -> None:
    said: list[str] = []
    ((path, measured),) = why(trained, told=said.append)
    assert len(said) == 1 and "held-out demonstrations" in said[0]
    assert measured.reference == "the pretrained VLM" and measured.recipe.look == ""
    assert all(0 <= layer.similarity.value <= 1 and not layer.after for layer in measured.layers)
    assert min(layer.similarity.value for layer in measured.layers) < 1
    before = path.read_bytes()
    assert list(why(trained, told=said.append)) == [(path, measured)] and len(said) == 1
    path.unlink()
    list(why(trained))
    assert path.read_bytes() == before


def test_every_kept_checkpoint_is_measured_in_order(trained: Path) -> None:
    steps = [measured.recipe.step for _, measured in why(trained, every=True)]
    assert steps == [4, 8]
    ((_, last),) = why(trained)
    assert last.recipe.step == 8


def test_a_frozen_tower_has_not_moved_and_its_probes_read_the_same(trained: Path, tmp_path: Path) -> None:
    """Before any step, nothing has: the reference is exactly what training starts from, also from scratch."""
    for weights in ("pretrained", "random"):
        trial = tiny_trials.trial(tiny_trials.tiny_vlm(tmp_path / weights / "vlm"), steps=1)
        policy = dataclasses.replace(
            trial.policy,
            weights=weights,  # type: ignore[arg-type]
            freeze=("vision", "projector", "word_embedding", "language"),
        )
        trial = dataclasses.replace(trial, policy=policy)
        folder = tmp_path / weights / "trials" / "one"
        folder.mkdir(parents=True)
        source = tiny_trials.packed(tmp_path / weights / "demonstrations" / "walks")
        tiny_trials.write_trial(trial, folder / "trial.json")
        write_json(folder / "provenance.json", {"demonstrations": "walks"})
        train(trial, source, folder, device="cpu", progress=False, provenance={})
        ((_, measured),) = why(folder)
        same = [layer for layer in measured.layers if "query" not in layer.place]
        assert same and all(layer.similarity.value == 1 for layer in same)
        moved = [layer.similarity.value for layer in measured.layers if "query" in layer.place]
        assert all(0 < value < 1 for value in moved)
        expected = "the pretrained VLM" if weights == "pretrained" else "its own initialisation"
        assert measured.reference == expected


def test_ground_truth_is_probed_where_there_is_some(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["why", str(trained), "--look", "D", "--scenes", "8", "--json", "--quiet"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    targets = [reading["target"] for reading in told["layers"][0]["after"]]
    assert targets == ["gripper", "red block", "way to the goal"]
    assert main(["why", str(trained.parents[1]), "--look", "D", "--scenes", "8", "--quiet"]) == 0
    assert "gripper, cm off" in capsys.readouterr().out


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no trained trial"):
        runs_in(tmp_path)
    trial = make_trial("tiny-qwen3-vl")
    folder = write_trial(tmp_path, trial, skill=None)
    with pytest.raises(RunError, match="no checkpoint"):
        list(why(folder))
    assert main(["study", "mini", "--why", "--out", str(tmp_path)]) == 1
