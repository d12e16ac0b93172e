"""The paper's matrix: as many rows and columns as it prints, every number where it stands, every trial possible."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import write_trial

from vlm4vla.cli import main
from vlm4vla.core.errors import RecipeError
from vlm4vla.core.recipes import fingerprint
from vlm4vla.studies import published
from vlm4vla.studies.checks import check_kept, check_recipe
from vlm4vla.studies.mini import OWN_STUDIES
from vlm4vla.studies.paper import STUDIES
from vlm4vla.studies.runs import RunStore
from vlm4vla.studies.study import Study, seconds_left, with_checkpoints, with_data

TEXT = {  # rows, columns, distinct trials at the paper's scale
    "figure-1": (9, 12, 27),
    "table-1": (11, 6, 11),
    "table-2": (12, 6, 22),
    "figure-3": (9, 3, 27),
    "figure-4": (9, 6, 9),
    "table-3": (9, 2, 18),
    "table-4": (3, 2, 6),
    "table-5": (3, 4, 12),
    "table-6": (4, 2, 8),
    "table-7": (4, 3, 12),
    "table-8": (6, 2, 12),
    "table-10": (9, 6, 9),
}


@pytest.mark.parametrize("name", STUDIES)
def test_the_matrix_is_the_papers(name: str) -> None:
    study = STUDIES[name]("paper")
    assert (len(study.rows), len(study.columns), len(study.trials)) == TEXT[name]
    for row in study.rows:
        assert set(study.column_names) <= set(row.published) or name == "figure-3"
        assert row.trials or row.name == "thinkact"
    for trial in study.trials:
        check_recipe(trial, processes=8)
    names = [trial.name for trial in study.trials]
    assert len(set(names)) == len(names)
    assert len({fingerprint(trial) for trial in study.trials}) == len(names)


@pytest.mark.parametrize("name", STUDIES)
def test_the_page_of_its_reproduction_is_what_the_command_prints(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", name, "--reproduction"]) == 0
    page = Path(__file__).parents[2] / "docs" / "reproductions" / f"{name}.md"
    assert page.read_text() == capsys.readouterr().out


def test_demonstrations_are_read_where_the_user_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["study", "table-3", "--plan", "--out", str(tmp_path), "--json"]
    assert main([*command, "--data", "calvin=/data/calvin"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(command) == 0  # kept beside the runs
    assert json.loads(capsys.readouterr().out) == first
    trials = with_data(STUDIES["table-3"]("paper"), {"calvin": "/data/calvin"}).trials
    assert {t.demonstrations.path for t in trials if t.demonstrations.source == "calvin"} == {
        ("/data/calvin",)
    }
    assert main([*command, "--data", "libero_10=/data"]) == 1
    assert main([*command, "--data", "calvin"]) == 1
    assert "SOURCE=FOLDER is expected" in capsys.readouterr().err


def test_time_left_is_judged_by_what_is_done(tmp_path: Path) -> None:
    study = STUDIES["table-8"]("tabletop")
    store = RunStore(tmp_path)
    assert seconds_left(study, store) is None
    for trial in study.trials[::2]:
        write_trial(tmp_path, trial, skill=None)  # 431.7 s of training, 96.4 s of evaluation
    left = seconds_left(study, store)
    assert left == pytest.approx(len(study.trials[1::2]) * (431.7 + 96.4))


def test_studies_share_what_they_have_in_common() -> None:
    """The baseline of tables 3, 5, 6, 7, 8 and 10 is the row of table 1."""
    common = STUDIES["table-1"]("paper").rows[2].trials["calvin"]
    for name in ("table-3", "table-5", "table-6", "table-7", "table-8", "table-10", "figure-3", "figure-4"):
        assert common in STUDIES[name]("paper").trials, name


def test_figure_4_scores_the_papers_checkpoints() -> None:
    figure = STUDIES["figure-4"]("paper")
    assert figure.checkpoints == (10_000, 15_000, 20_000, 25_000, 30_000)
    assert (
        figure.trials == STUDIES["table-10"]("paper").trials and not STUDIES["table-10"]("paper").checkpoints
    )
    small = {"tabletop": (5000, 7500, 10_000, 12_500, 14_000), "mini": (1000, 1500, 2000, 2400)}
    for scale, steps in small.items():
        made = STUDIES["figure-4"](scale)  # type: ignore[arg-type]
        assert made.name == f"figure-4-{scale}" and made.checkpoints == steps
        for trial in made.trials:
            check_kept(trial, steps)
    mixed = replace(figure, rows=(*figure.rows, *STUDIES["table-8"]("mini").rows))
    with pytest.raises(RecipeError, match="no common length"):
        with_checkpoints(mixed)


@pytest.mark.parametrize("name", STUDIES)
def test_the_small_matrix_asks_the_same_with_tiny_backbones(name: str) -> None:
    study = STUDIES[name]("tabletop")
    several = {"table-4": ("frozen", "trained"), "table-5": ("1e-05", "2e-05", "5e-05", "0.0001")}
    several["table-7"] = ("224", "512", "768")
    names = [f"{trial}, look {look}" for trial in several.get(name, ()) for look in "AD"]
    assert study.rows and list(study.column_names) == (names or ["look A", "look D"])
    for trial in study.trials:
        check_recipe(trial)
        assert trial.policy.backbone.startswith("tiny-")
        assert all(e.image_size == trial.demonstrations.image_size for e in trial.evaluations)
    assert not any(row.published for row in study.rows)
    names = [trial.name for trial in study.trials]
    assert len(set(names)) == len(names)


def test_what_differs_between_rows_is_what_the_table_is_about() -> None:
    def differing(study: Study, first: int, second: int, cell: str) -> set[str]:
        a, b = (json.loads(json.dumps(study.rows[i].trials[cell], default=vars_of)) for i in (first, second))
        return {f"{s}.{k}" for s in ("policy", "train") for k in a[s] if a[s][k] != b[s][k]}

    assert differing(STUDIES["table-3"]("paper"), 0, 1, "calvin") == {"policy.freeze"}
    assert differing(STUDIES["table-8"]("paper"), 0, 1, "simpler") == {"policy.weights"}
    assert differing(STUDIES["table-6"]("paper"), 0, 1, "calvin") == {"policy.prompt"}
    assert differing(STUDIES["table-6"]("tabletop"), 0, 1, "tabletop") == {"policy.prompt"}
    assert differing(STUDIES["table-1"]("paper"), 2, 3, "calvin") == {"policy.backbone"}
    assert differing(STUDIES["table-7"]("paper"), 0, 1, "512") == {"policy.freeze"}


def vars_of(value: object) -> object:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}  # type: ignore[attr-defined]


def test_the_printed_numbers_are_in_the_papers_text_and_consistent() -> None:
    """Rates fall from task to task and add up to the chain length, but for the slips that are told."""
    odd = []
    for table in (published.TABLE_1, published.TABLE_10):
        for key, cells in table.items():
            rates = [cells[f"task-{number}"] for number in range(1, 6)]
            if abs(sum(rates) - cells["calvin"]) > 0.0026 or rates != sorted(rates, reverse=True):
                odd.append(key)
    assert odd == ["pi0", ("qwen2.5-vl-7b", "omni-generation")]
    for cells in published.TABLE_2.values():
        scenes = [cells[name] for name in ("carrot", "eggplant", "spoon", "cube")]
        assert sum(scenes) / 4 == pytest.approx(cells["simpler"], abs=0.15)
    percents = {name: cells for name, cells in published.TABLE_2.items() if name != "thinkact"}
    for cells in percents.values():
        for scene in ("carrot", "eggplant", "spoon", "cube"):
            trials = cells[scene] * 24 / 100
            assert abs(trials - round(trials)) < 0.02
    for (name, frozen), cells in published.TABLE_3.items():
        if not frozen:
            assert cells["calvin"] == published.TABLE_1[name]["calvin"]


def test_slips_stand_with_their_tables() -> None:
    notes = {name: STUDIES[name]("paper").notes for name in STUDIES}
    assert len(notes["table-1"]) == 1 and "pi0" in notes["table-1"][0]
    assert any("Omni" in note for note in notes["table-10"])
    assert any("96 trials" in note for note in notes["table-8"])
    assert not notes["table-5"]


def test_commands_print_the_matrix_without_a_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    assert main(["study", "--list", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == [*STUDIES, *OWN_STUDIES]
    for name in STUDIES:
        for scale in ("paper", "tabletop", "mini"):
            assert main(["study", name, "--plan", "--scale", scale, "--out", str(tmp_path)]) == 0
            told = capsys.readouterr().out
            assert "missing" in told and ("one seed a row" in told) == (scale != "paper")
    assert main(["study", "--list", "--scale", "tabletop"]) == 0
    assert "prompts table-6" in " ".join(capsys.readouterr().out.split())
    assert main(["study", "table-11", "--plan"]) == 1
    assert "table-1" in capsys.readouterr().err
    assert main(["study", "table-3", "--plan", "--json", "--out", str(tmp_path)]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["rows"]) == 9 and plan["states"] == {"missing": 18}
