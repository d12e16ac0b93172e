"""What is shown while trials are at work, read from real run folders."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from vlm4vla.core.recipes import TaskRecipe, TrainRecipe, Trial, TuneRecipe, fingerprint
from vlm4vla.studies import display
from vlm4vla.studies.display import Display, TrialView, label
from vlm4vla.studies.parallel import next_trial
from vlm4vla.studies.presets import quickstart
from vlm4vla.studies.runs import RunStore, Seconds, TrialRun

FACTS = {"demonstrations": None, "backbone": None}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def trial() -> Trial:
    return quickstart(steps=1000)[0]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path)


def seen(trial: Trial, run: TrialRun) -> str:
    return TrialView(trial, run.folder).line()


def entry(step: int, split: str, loss: float | None) -> str:
    line = {"step": step, "split": split, "loss": loss, "samples_per_second": 320.0}
    return json.dumps(line) + "\n"


def test_before_it_begins_a_trial_waits(trial: Trial, store: RunStore) -> None:
    assert TrialView(trial, store.folder(trial)).line(width=20) == f"{'tiny-qwen3-vl':<20}   waiting"


def test_training_shows_steps_losses_and_time(trial: Trial, store: RunStore) -> None:
    with store.open(trial, facts=FACTS) as run, run.phase("train"):
        assert "0 of 1000" in seen(trial, run)
        cut = entry(300, "train", 0.2)[:20]
        lines = entry(250, "train", 0.5) + entry(250, "held_out", 0.625)
        (run.folder / "metrics.jsonl").write_text(lines + cut)
        shown = seen(trial, run)
    assert "250 of 1000" in shown
    assert "loss 0.500, held out 0.625" in shown
    assert "1:15 left" in shown  # 750 steps of 32 samples, 320 a second


def tuned_on(task: str, trial: Trial) -> Trial:
    recipe = TuneRecipe(
        backbone="tiny-qwen3-vl", tasks=(TaskRecipe(task=task),), train=TrainRecipe(steps=400)
    )
    return replace(trial, name=f"after {task}", tuning=recipe)


def test_while_its_vlm_is_tuned_a_trial_shows_that(trial: Trial, store: RunStore) -> None:
    trial = tuned_on("tabletop-vica", trial)
    assert trial.tuning is not None
    with store.open(trial, facts=FACTS) as run, store.open(trial.tuning, facts=FACTS) as tuning:
        run.begin()
        assert seen(trial, run).endswith("waiting")
        tuning.begin()
        (tuning.folder / "metrics.jsonl").write_text(entry(100, "train", 2.5))
        assert "tuning       100 of 400   loss 2.500" in seen(trial, run)
        tuning.update(state="done")
        assert seen(trial, run).endswith("waiting")


def test_no_trial_waits_for_a_tuning_while_another_could_run(trial: Trial, store: RunStore) -> None:
    first, again, other = (tuned_on(f"tabletop-{task}", trial) for task in ("vica", "vica", "robopoint"))
    again = replace(again, name="the same, frozen")
    assert next_trial([first, again], [], store) == first
    assert next_trial([again, other], [first], store) == other
    assert next_trial([again], [first], store) == again, "else nobody would work"
    assert next_trial([trial, again], [first], store) == trial
    assert first.tuning is not None
    with store.open(first.tuning, facts=FACTS) as run:
        run.update(state="done")
    assert next_trial([again, other], [first], store) == again


def test_a_loss_that_is_no_number_is_shown_as_such(trial: Trial, store: RunStore) -> None:
    with store.open(trial, facts=FACTS) as run, run.phase("train"):
        (run.folder / "metrics.jsonl").write_text(entry(10, "train", None))
        assert "loss not finite" in seen(trial, run)


def test_rollouts_show_how_many_of_how_many(trial: Trial, store: RunStore) -> None:
    with store.open(trial, facts=FACTS) as run, run.phase("evaluate"):
        assert "starting" in seen(trial, run)
        run.update(episodes=270)
        folder = run.folder / "evaluations" / fingerprint(trial.evaluations[0])
        folder.mkdir(parents=True)
        (folder / "episodes.jsonl").write_text("{}\n{}\n{")
        assert "2 of 270" in seen(trial, run)


def test_the_end_shows_the_time_or_the_failure(trial: Trial, store: RunStore) -> None:
    with store.open(trial, facts=FACTS) as run:
        run.update(state="done", seconds=Seconds(demonstrations=3, train=100, evaluate=20))
        assert seen(trial, run).endswith("done in 2:03")
        run.update(state="failed", error="no")
        assert seen(trial, run).endswith("failed")


def test_labels() -> None:
    pretrained, chance = quickstart(["a/b"])
    random, _ = quickstart(["a/b"], weights="random")
    assert [label(trial) for trial in (pretrained, random, chance)] == [
        "b",
        "b, random weights",
        "random policy",
    ]


def test_a_log_file_gets_plain_lines_now_and_then() -> None:
    stream = io.StringIO()
    with Display(shown=True, stream=stream) as shown:
        shown.show(["too   soon"])
        shown.show(["one   1", "two   2"], last=True)
        shown.show(["one   1", "two   2"], last=True)
    assert stream.getvalue() == "one 1; two 2\n"


def test_a_terminal_is_rewritten_and_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(display, "REWRITE_SECONDS", 0.0)
    stream = Terminal()
    with Display(shown=True, stream=stream) as shown:
        shown.show(["first", "x" * 50])
        shown.show(["second", "y"])
    text = stream.getvalue()
    assert f"{'x' * 19}\n" in text
    assert "x" * 20 not in text
    assert "\033[2F\033[Ksecond\n" in text


def test_quiet_is_silent() -> None:
    stream = Terminal()
    with Display(shown=False, stream=stream) as shown:
        shown.say("hello")
        shown.show(["line"], last=True)
    assert stream.getvalue() == ""
