"""Run folders: found again, guarded against changes, one process at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vlm4vla.core.errors import RunError
from vlm4vla.core.recipes import Trial, fingerprint
from vlm4vla.studies.presets import random_policy, tabletop
from vlm4vla.studies.runs import RunStore, Seconds, locked, read_json, read_status, read_trial, write_json

FACTS = {"demonstrations": "d1", "backbone": "b1"}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "out")


@pytest.fixture
def trial() -> Trial:
    return tabletop()


def test_a_new_trial_gets_recipe_and_provenance(store: RunStore, trial: Trial) -> None:
    with store.open(trial, facts=FACTS, notes={"command": "vlm4vla train"}) as run:
        run.begin()
        assert run.folder == store.root / "trials" / fingerprint(trial)
    assert read_trial(store.folder(trial)) == trial
    kept = read_json(store.folder(trial) / "provenance.json")
    assert {"versions", "machine", "started", "command"} <= kept.keys()
    assert FACTS.items() <= kept.items()


def test_opening_again_changes_no_file(store: RunStore, trial: Trial) -> None:
    with store.open(trial, facts=FACTS) as run:
        run.begin()
        run.update(state="done", phase="evaluate")
    before = {path.name: path.read_bytes() for path in store.folder(trial).iterdir()}
    with store.open(trial, facts=FACTS, notes={"command": "another"}) as run:
        assert run.is_done(evaluated=True)
    assert {path.name: path.read_bytes() for path in store.folder(trial).iterdir()} == before


def test_trained_only_is_done_unless_rollouts_are_asked_for(store: RunStore, trial: Trial) -> None:
    with store.open(trial, facts=FACTS) as run:
        run.update(state="done", phase="train")
        assert run.is_done(evaluated=False)
        assert not run.is_done(evaluated=True)


def test_another_recipe_is_another_folder(store: RunStore, trial: Trial) -> None:
    longer = replace(trial, train=replace(trial.train, steps=trial.train.steps + 1))
    assert store.folder(trial) != store.folder(longer)
    assert store.folder(trial) == store.folder(tabletop())


def test_what_the_result_depends_on_must_stay_the_same(store: RunStore, trial: Trial) -> None:
    with store.open(trial, facts=FACTS):
        pass
    with (
        pytest.raises(RunError, match=r"backbone b1 then, b2 now.*another --out"),
        store.open(trial, facts={**FACTS, "backbone": "b2"}),
    ):
        pytest.fail("opened")


def test_a_recipe_changed_by_hand_is_refused(store: RunStore, trial: Trial) -> None:
    with store.open(trial, facts=FACTS):
        pass
    path = store.folder(trial) / "trial.json"
    changed = json.loads(path.read_text())
    changed["train"]["steps"] = 3
    path.write_text(json.dumps(changed))
    with pytest.raises(RunError, match="changed by hand"), store.open(trial, facts=FACTS):
        pytest.fail("opened")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "asleep"}', '{"stat": "done"}'])
def test_a_damaged_status_names_its_file(store: RunStore, trial: Trial, text: str) -> None:
    with store.open(trial, facts=FACTS) as run:
        run.begin()
    (store.folder(trial) / "status.json").write_text(text)
    with pytest.raises(RunError, match=r"status\.json"):
        read_status(store.folder(trial))


def test_an_error_is_recorded_and_the_next_attempt_forgets_it(store: RunStore, trial: Trial) -> None:
    with pytest.raises(RunError, match="diverged"), store.open(trial, facts=FACTS) as run, run.phase("train"):
        raise RunError("the loss diverged")
    status = read_status(store.folder(trial))
    assert status is not None
    assert (status.state, status.phase, status.error) == ("failed", "train", "the loss diverged")
    with store.open(trial, facts=FACTS) as run:
        run.begin()
        assert (run.status.state, run.status.error) == ("running", None)


def test_an_interrupted_trial_has_not_failed(store: RunStore, trial: Trial) -> None:
    with pytest.raises(KeyboardInterrupt), store.open(trial, facts=FACTS) as run:
        run.begin()
        raise KeyboardInterrupt
    status = read_status(store.folder(trial))
    assert status is not None
    assert (status.state, status.error) == ("running", None)


def test_time_adds_up_over_resumes(store: RunStore, trial: Trial) -> None:
    with store.open(trial, facts=FACTS) as run:
        run.update(seconds=Seconds(train=100.0))
        with run.phase("train"):
            pass
    status = read_status(store.folder(trial))
    assert status is not None
    assert 100.0 <= status.seconds.train < 101.0
    assert status.seconds.evaluate == 0.0


def test_another_process_is_refused_by_name(store: RunStore, trial: Trial) -> None:
    """A real second process holds the folder until it is told to end."""
    lock = store.folder(trial) / ".lock"
    program = (
        "import sys; from pathlib import Path; from vlm4vla.studies.runs import locked\n"
        "with locked(Path(sys.argv[1]), what='it'): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(RunError, match=rf"another process \(id {other.pid}\) is working on the trial"),
            locked(lock, what="the trial", patience=0.0),
        ):
            pytest.fail("locked twice")
        other.stdin.close()
        other.wait(timeout=30)
    with locked(lock, what="the trial", patience=0.0):
        pass


def test_json_is_written_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"text": "größer", "number": 1})
    write_json(tmp_path / "a.json", {"number": 2})
    assert read_json(tmp_path / "a.json") == {"number": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run folder"):
        read_trial(tmp_path)


def test_the_random_policy_is_a_trial_like_others(store: RunStore) -> None:
    chance = random_policy(tabletop().evaluations)
    with store.open(chance, facts={"demonstrations": None, "backbone": None}):
        pass
    assert read_trial(store.folder(chance)) == chance
