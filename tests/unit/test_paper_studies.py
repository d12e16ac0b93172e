"""The paper's matrix: as many rows and columns as it prints, every number where it stands, every trial possible."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import write_trial

from vlm4vla.backbones.backbone import Backbone
from vlm4vla.cli import main
from vlm4vla.core.errors import RecipeError
from vlm4vla.core.recipes import fingerprint
from vlm4vla.studies import published
from vlm4vla.studies.checks import check_kept, check_recipe
from vlm4vla.studies.costs import cost_of, count, counted
from vlm4vla.studies.forecast import forecast, side_by_side
from vlm4vla.studies.mini import OWN_STUDIES
from vlm4vla.studies.paper import STUDIES
from vlm4vla.studies.runs import RunStore
from vlm4vla.studies.study import Scale, Study, sources_of, with_checkpoints, with_data
from vlm4vla.tuning.tasks import TASKS

SCALES: tuple[Scale, ...] = ("paper", "tabletop", "mini")
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
    assert main(["study", name, "--reproduction", "--scale", "mini"]) == 1
    assert "leave --scale away" in capsys.readouterr().err
    assert main(["study", name, "--reproduction"]) == 0
    page = Path(__file__).parents[2] / "docs" / "reproductions" / f"{name}.md"
    assert page.read_text() == capsys.readouterr().out


@pytest.mark.parametrize("name", ["table-2", "table-4", "table-10"])
def test_the_page_goes_from_downloads_to_report(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own command for the plan leaves nothing out but what is said to be; everything read is downloaded."""
    page = (Path(__file__).parents[2] / "docs" / "reproductions" / f"{name}.md").read_text()
    commands = page.partition("```bash\n")[2].partition("```")[0].replace("\\\n", " ").splitlines()
    command = next(shlex.split(line, comments=True) for line in commands if "--plan" in line)
    gpus = command.index("--gpus")
    assert main([*command[1:gpus], *command[gpus + 2 :], "--json", "--out", str(tmp_path)]) == 0
    left_out = json.loads(capsys.readouterr().out)["left_out"]
    assert len(left_out) == (name == "table-10") and all("omni-generation" in text for text in left_out)
    study = STUDIES[name]("paper")
    read = sources_of(study) - {trial.demonstrations.source for trial in study.trials}
    for task in read | {part for name in read for part in TASKS[name].parts}:
        folder = next(line for line in commands if f"/{task}" in line and not line.startswith("vlm4vla"))
        assert TASKS[task].hub in folder
    assert "GPU-hours" in page and "H100" in page


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
    before = forecast(study, store)
    assert before.train > before.evaluate > 0 and "4 trainings are judged by their operations" in (
        before.assumption
    )
    assert "one core does" in before.assumption and "H100" not in before.assumption
    for number, trial in enumerate(study.trials[::2]):
        write_trial(tmp_path, trial, skill=None)  # 431.7 s of training, 96.4 s of evaluation
        left = forecast(study, store)
        if number == 0:  # the other VLM's two trainings by their operations, at the pace of the first's
            first, second = (cost_of(study.trials[place]) for place in (0, 2))
            assert first is not None and second is not None
            assert left.train == pytest.approx(431.7 * (1 + 2 * second.flops / first.flops))
            assert "what finished ones took for theirs" in left.assumption
    assert left.seconds == pytest.approx(len(study.trials[1::2]) * (431.7 + 96.4))
    assert "2 trainings are judged by finished ones of the same kind" in left.assumption


def test_a_tuning_that_trials_share_is_counted_once_and_not_when_done(tmp_path: Path) -> None:
    study, store = STUDIES["table-4"]("tabletop"), RunStore(tmp_path)
    tunings = {trial.tuning for trial in study.trials} - {None}
    assert len(tunings) == 2
    cost = cost_of(study.trials[0])
    assert cost is not None
    each = 1500 * 32 * cost.flops / 70e9
    assert forecast(study, store).tune == pytest.approx(2 * each)
    folder = store.folder(tunings.pop())  # type: ignore[arg-type]
    folder.mkdir(parents=True)
    (folder / "status.json").write_text('{"state": "done", "seconds": {"train": 1234.5}}')
    assert forecast(study, store).tune == pytest.approx(1234.5)


def test_the_paper_is_predicted_in_gpu_hours_and_gigabytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "table-1", "--plan", "--json", "--out", str(tmp_path)]) == 0
    told = json.loads(capsys.readouterr().out)["forecast"]
    assert told["unknown"] == [] and told["tune"] == 0
    assert told["seconds"] == told["train"] + told["evaluate"]
    memory = {(need["backbone"], need["head"]): need for need in told["memory"]}
    assert len(memory) == 11
    need = memory["qwen2.5-vl-3b", "mlp"]
    assert need["samples"] == 128 and need["gpus"] == 1
    assert 80e9 < need["again"] < 120e9 < need["kept"]
    # Six operations for every parameter and token of an OpenVLA's sample (256 of the image, 48 of text), about.
    cost = cost_of(STUDIES["table-1"]("paper").rows[0].trials["calvin"])
    assert cost is not None and cost.flops == pytest.approx(6 * 7.5e9 * (256 + 48), rel=0.3)
    trials = STUDIES["table-1"]("paper").trials
    operations = sum(128 * 30_000 * cost.flops for trial in trials if (cost := cost_of(trial)))
    assert told["train"] == pytest.approx(operations / (0.4 * 989e12))
    assert "H100 does 40% of its peak" in told["assumption"]


def test_every_study_is_predicted_without_counting_anew(tmp_path: Path) -> None:
    for make in (*STUDIES.values(), *OWN_STUDIES.values()):
        for scale in SCALES:
            study = make(scale)
            large = [trial for trial in study.trials if trial.policy.image_size > 224]
            assert bool(large) == (study.name == "table-7")
            for trial in study.trials:
                assert trial in large or trial.train.steps == 0 or cost_of(trial), trial.name
            if make in STUDIES.values():
                found = forecast(study, RunStore(tmp_path))
                assert found.train > 0 < found.evaluate
                assert found.unknown == tuple(trial.name for trial in large)  # said, not passed over
                for need in found.memory:
                    if need.image_size > 224:
                        assert need.kept is need.again is None
                    else:
                        assert need.kept and need.again and need.kept > need.again


@pytest.mark.parametrize(
    "backbone",
    ["tiny-kosmos-2", pytest.param("", marks=pytest.mark.slow)],
)
def test_costs_are_what_is_counted_anew(backbone: str) -> None:
    makers = (*STUDIES.values(), *OWN_STUDIES.values())
    trials = [trial for make in makers for scale in SCALES for trial in make(scale).trials]
    chosen = [trial for trial in counted(trials) if backbone in ("", trial.policy.backbone)]
    assert chosen
    for trial in chosen:
        assert count(trial) == cost_of(trial), trial.name


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_planned_for_eight_gpus(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", name, "--plan", "--gpus", "8", "--json", "--out", str(tmp_path)]) == 0
    memory = json.loads(capsys.readouterr().out)["forecast"]["memory"]
    known = [need for need in memory if need["image_size"] <= 224]
    assert known and all(need["gpus"] == 8 and need["kept"] > need["again"] > 0 for need in known)


def test_rows_that_wait_for_questions_say_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["study", "table-10", "--plan", "--out", str(tmp_path)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "5 trials are left out" in told and "--data robopoint=FOLDER" in told
    assert "nothing to tune on: calvin qwen2.5-vl-7b pretrained after omni-generation" in told
    assert main([*command, "--json", "--data", "robopoint=/data/robopoint"]) == 0
    waiting, never = json.loads(capsys.readouterr().out)["left_out"]
    assert waiting.startswith("4 trials are left out") and "--data robopoint" not in waiting
    assert "public" in never
    assert main(["study", "run_folders:waiting_study", "--run", "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "none of its trials can be run yet" in told and "--data vica-332k=FOLDER" in told


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


def test_no_more_trainings_side_by_side_than_fit() -> None:
    large = STUDIES["table-1"]("paper").trials[2:4]
    fitting, told = side_by_side(large, 2, cores=8, free=1_200_000_000_000)
    assert fitting == 1 and "1 of 2 trials at a time" in told and "1200.0 GB are free" in told
    small = STUDIES["table-8"]("mini").trials
    assert side_by_side(small, 2, cores=2, free=8_000_000_000) == (2, "")
    assert side_by_side(small, 4, cores=8, free=1_500_000_000)[0] == 2
    fitting, told = side_by_side(small, 4, cores=2, free=8_000_000_000)
    assert fitting == 4 and "4 trials at a time share 2 cores" in told and "--processes 2" in told
    other = replace(large[0], policy=replace(large[0].policy, enlarge=False))  # not counted
    assert cost_of(other) is None
    assert side_by_side([other], 2, cores=2, free=200_000_000_000)[0] == 2
    assert side_by_side([other], 2, cores=2, free=100_000_000_000)[0] == 1


def test_table_7_in_small_shows_larger_pictures_to_tiny_vlms() -> None:
    recipes = [trial.policy for trial in STUDIES["table-7"]("mini").rows[0].trials.values()]
    seen = {
        recipe.image_size: Backbone.from_pretrained(
            recipe.backbone, prompt="short", image_size=recipe.image_size, enlarge=recipe.enlarge
        ).encoder.image_tokens
        for recipe in recipes
    }
    assert seen == {64: 16, 128: 64, 192: 144}
    assert any("64 pixels" in note for note in STUDIES["table-7"]("mini").notes)
    assert not any("64 pixels" in note for note in STUDIES["table-7"]("paper").notes)
