"""A study's cells, pairs, letters and unfair differences, from run folders with known outcomes."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import run_folders
from run_folders import make_trial, small_study, two_rows, write_evaluation, write_trial
from scipy import stats

from vlm4vla.benchmarks.records import REPEAT
from vlm4vla.core.recipes import EvaluationRecipe, fingerprint, to_json
from vlm4vla.reports.comparisons import episodes_to_separate, power_of
from vlm4vla.reports.published import chain_variance, separable, separated
from vlm4vla.reports.scores import across_seeds, compare_seeds, score
from vlm4vla.reports.study_page import tables_of, write_study_report
from vlm4vla.reports.tables import DASH
from vlm4vla.studies import published
from vlm4vla.studies.paper import STUDIES
from vlm4vla.studies.study import Column, StudyRow


def test_cells_are_the_episodes_scores(tmp_path: Path) -> None:
    scores = score(two_rows(tmp_path), tmp_path)
    good, bad = (scores.cells[row, "look A"] for row in ("good", "bad"))
    assert good.episodes == 180 and good.errors == 0 and bad.errors == 3 and bad.episodes == 177
    for cell in (good, bad):
        assert cell.estimate is not None and cell.published == 50.0
        mean = 100 * sum(cell.seeds[0].values()) / cell.episodes
        assert cell.estimate.value == pytest.approx(mean) and cell.estimate.low < mean < cell.estimate.high
    assert scores.letters == {("good", "look A"): "a", ("bad", "look A"): "b"}
    (pair,) = scores.pairs
    assert pair.differs and pair.comparison.paired and pair.needed is not None and pair.needed < 100
    assert any("3 of 180 episodes broke" in problem for _, problem in scores.problems)


def test_what_is_not_there_is_missing_and_not_zero(tmp_path: Path) -> None:
    made = two_rows(tmp_path)
    third = make_trial("tiny-kosmos-2")
    rows = (*made.rows, StudyRow(name="third", trials={"tabletop": third}), StudyRow(name="printed"))
    scores = score(replace(made, rows=rows), tmp_path)
    assert scores.missing == (third.name,)
    assert scores.cells["third", "look A"].estimate is None and ("printed", "look A") not in scores.cells
    assert ("tabletop tiny-kosmos-2 pretrained", "has not been started") in scores.problems
    assert len(scores.pairs) == 1


def test_plays_of_one_episode_are_not_taken_for_several_episodes(tmp_path: Path) -> None:
    """Ten plays that always end alike say no more than one does: the interval is that of the episodes."""
    recipe = EvaluationRecipe(look="A", tasks=("press",), episodes_per_task=20, execute=3, repeats=10)
    trial = make_trial("tiny-qwen3-vl", evaluations=(recipe,))
    folder = write_trial(tmp_path, trial, skill=None)
    where = folder / "evaluations" / fingerprint(recipe)
    where.mkdir(parents=True)
    run_folders.write_json(where / "evaluation.json", to_json(recipe))
    results = [
        run_folders.episode_result(
            f"A/press/{recipe.seed}/{n:04d}{REPEAT * (r > 0)}{r or ''}", "press", "one", n % 2 == 0
        )
        for n in range(20)
        for r in range(10)
    ]
    run_folders.write_lines(where / "episodes.jsonl", [asdict(result) for result in results])
    cell = score(small_study(("one", {"tabletop": trial})), tmp_path).cells["one", "look A"]
    assert cell.episodes == 200 and cell.estimate is not None and cell.estimate.value == 50
    half = stats.t.isf(0.025, 19) * 100 * np.std([0, 1] * 10, ddof=1) / np.sqrt(20)
    assert cell.estimate.high - 50 == pytest.approx(half) and half > 20


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damaged_records_are_named(damage: str, tmp_path: Path) -> None:
    made = two_rows(tmp_path)
    (trial,) = made.rows[0].trials.values()
    folder = tmp_path / "trials" / fingerprint(trial)
    log = next(folder.glob("evaluations/*/episodes.jsonl"))
    lines = log.read_text().splitlines()
    if damage == "cut":
        log.write_text("\n".join(lines)[:-30])
    elif damage == "changed":
        entry = json.loads(lines[4])
        lines[4] = json.dumps({**entry, "goals_completed": "one"})
        log.write_text("\n".join(lines) + "\n")
    else:
        log.unlink()
    problems = [problem for row, problem in score(made, tmp_path).problems if row == "good"]
    assert problems and any("episodes" in problem for problem in problems)


def test_several_ways_to_evaluate_are_a_selection_and_the_first_is_the_score(tmp_path: Path) -> None:
    recipes = tuple(EvaluationRecipe(look="A", episodes_per_task=20, execute=e) for e in (3, 2, 1))
    trial = make_trial("tiny-qwen3-vl", evaluations=recipes)
    folder = write_trial(tmp_path, trial, skill=None)
    for recipe, skill in zip(recipes, (0.6, 0.95, 0.3), strict=True):
        write_evaluation(folder, recipe, skill=skill)
    cell = score(small_study(("one", {"tabletop": trial})), tmp_path).cells["one", "look A"]
    assert cell.estimate is not None and cell.selection is not None
    assert cell.selection.tries == 3 and cell.selection.best == 1
    assert cell.selection.reported > cell.estimate.value + 10
    assert cell.selection.honest.value == pytest.approx(cell.selection.reported, abs=3)


def test_checkpoints_that_were_evaluated_count_as_tries(tmp_path: Path) -> None:
    trial = make_trial("tiny-qwen3-vl")
    folder = write_trial(tmp_path, trial, skill=0.6)
    for step, skill in ((1000, 0.3), (2000, 0.9)):
        write_evaluation(folder / "checkpoints" / f"step-{step:06d}", trial.evaluations[0], skill=skill)
    cell = score(small_study(("one", {"tabletop": trial})), tmp_path).cells["one", "look A"]
    assert sorted(cell.by_step) == [1000, 2000, 3000] and cell.selection is not None
    assert cell.selection.tries == 3
    assert cell.by_step[1000] < cell.by_step[3000] < cell.by_step[2000] == cell.selection.reported


def test_seeds_are_averaged_and_compared_as_pairs(tmp_path: Path) -> None:
    rows = []
    for name, backbone, skill in (("good", "tiny-qwen3-vl", 0.95), ("bad", "tiny-paligemma-2", 0.3)):
        trials = {}
        for seed in range(3):
            trial = make_trial(backbone, train=replace(run_folders.TRAIN, seed=seed))
            write_trial(tmp_path, trial, skill=skill - 0.02 * seed)
            trials[f"seed {seed}"] = trial
        rows.append((name, trials))
    scores = score(small_study(*rows, columns=(Column(name="look A", look="A"),)), tmp_path)
    good = scores.cells["good", "look A"]
    means = [100 * np.mean(list(values.values())) for values in good.seeds.values()]
    assert len(means) == 3 and good.estimate is not None
    assert good.estimate.value == pytest.approx(np.mean(means)) and good.episodes == 540
    assert scores.pairs[0].differs
    assert {difference.name for difference in scores.differences if not difference.intended} == set()


def test_cells_of_a_row_are_compared_where_their_trials_played_the_same(tmp_path: Path) -> None:
    """The question of Tables 4, 5 and 7: not that of looks, of benchmarks or of one trial's measures."""
    sizes = {"64": 0.9, "128": 0.9, "192": 0.4}
    recipes = tuple(EvaluationRecipe(look=look, episodes_per_task=20, execute=3) for look in "AD")
    trials = {}
    for size, skill in sizes.items():
        shown = tuple(replace(recipe, image_size=int(size)) for recipe in recipes)
        trial = make_trial("tiny-qwen3-vl", evaluations=shown)
        trials[size] = replace(trial, policy=replace(trial.policy, image_size=int(size)))
        write_trial(tmp_path, trials[size], skill=skill)
    other = replace(recipes[0], benchmark="tabletop-a")
    trials["seen"] = make_trial("tiny-qwen3-vl", evaluations=(other,))
    write_trial(tmp_path, trials["seen"], skill=0.9)
    columns = [Column(name=f"{name}, {look}", trial=name, look=look) for name in sizes for look in "AD"]
    columns += [
        Column(name="seen", trial="seen", look="A"),
        Column(name="one", trial="64", look="A", goals=1),
    ]
    study = small_study(("one", trials), columns=tuple(columns))
    scores = score(study, tmp_path)
    found = {(pair.column.name, pair.against.name): pair for pair in scores.within}
    assert not scores.pairs and set(found) == {
        (f"{one}, {look}", f"{two}, {look}")
        for look in "AD"
        for one, two in (("64", "128"), ("64", "192"), ("128", "192"))
    }
    assert all(pair.comparison.paired and pair.first == pair.second == "one" for pair in found.values())
    far, near = found["64, A", "192, A"], found["64, A", "128, A"]
    assert far.differs and far.comparison.difference.low > 0.2 and not near.differs
    least = min(found.values(), key=lambda pair: pair.comparison.p_value)
    assert least.adjusted_p == pytest.approx(6 * least.comparison.p_value)  # all of the row are one family
    (table,) = (t for t in tables_of(scores) if t.title.startswith("Columns"))
    assert len(table.rows) == 6 and table.rows[1][:3] == ("one", "64, A", "192, A")


@pytest.mark.parametrize(
    ("name", "pairs"), [("table-4", 3), ("table-5", 18), ("table-7", 12), ("table-2", 0), ("table-3", 0)]
)
def test_the_papers_tables_are_compared_along_their_rows(name: str, pairs: int, tmp_path: Path) -> None:
    study = STUDIES[name]("paper")
    rows = []
    for row in study.rows:
        trials = {}
        for column, trial in row.trials.items():
            played = replace(trial.evaluations[0], episodes_per_task=4)
            trials[column] = replace(trial, evaluations=(played,))
            write_trial(tmp_path, trials[column], skill=0.5)
        rows.append(replace(row, trials=trials))
    study = replace(study, rows=tuple(rows))
    assert len(score(study, tmp_path).within) == pairs


def test_intervals_over_seeds_are_students_or_the_episodes() -> None:
    spread = [{str(i): float(i < 10 + 20 * seed) for i in range(100)} for seed in range(3)]
    found = across_seeds(spread)
    assert found is not None and found.value == pytest.approx(0.3)
    half = stats.t.isf(0.025, 2) * np.std([0.1, 0.3, 0.5], ddof=1) / math.sqrt(3)
    assert found.high - found.value == pytest.approx(half)
    agreeing = [{str(i): float((i + seed) % 2) for i in range(100)} for seed in (0, 2, 4)]
    alike = across_seeds(agreeing)
    assert (
        alike is not None and alike.high - alike.low > 0.19
    )  # seeds agree exactly, a hundred episodes do not
    assert across_seeds([]) is None
    assert across_seeds(spread[:1]) is not None and across_seeds(spread[:1]).low == -math.inf  # type: ignore[union-attr]


def test_seeds_that_agree_by_chance_prove_nothing() -> None:
    first = {seed: {str(i): float(i < 3) for i in range(16)} for seed in range(3)}
    second = {seed: {str(i): float(2 <= i < 4) for i in range(16)} for seed in range(3)}
    found = compare_seeds(first, second)
    assert found is not None and found.difference.value == pytest.approx(1 / 16) and found.p_value > 0.3
    assert compare_seeds({0: first[0]}, {0: second[0]}) is None
    same = compare_seeds(first, first)
    assert same is not None and same.p_value == 1.0


def test_every_unintended_difference_is_told(tmp_path: Path) -> None:
    first = make_trial("tiny-qwen3-vl")
    second = make_trial("tiny-paligemma-2", train=replace(run_folders.TRAIN, learning_rate=3e-4))
    for trial in (first, second):
        write_trial(tmp_path, trial, skill=0.5)
    study = small_study(("a", {"tabletop": first}), ("b", {"tabletop": second}))
    found = {d.name: d for d in score(study, tmp_path).differences}
    assert found["policy.backbone"].intended
    assert not found["train.learning_rate"].intended
    assert found["train.learning_rate"].values == {"a": 1e-3, "b": 3e-4}
    assert set(found) == {"policy.backbone", "train.learning_rate"}
    whole = score(replace(study, about=("policy", "train")), tmp_path).differences
    assert [d.intended for d in whole] == [True, True]


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_row_that_was_tried_oftener_is_told(seeds: int, tmp_path: Path) -> None:
    """The paper's best of up to 40 checkpoints times 3 ways to execute, against a single one."""
    rows = []
    for name, backbone in (("one try", "tiny-qwen3-vl"), ("two tries", "tiny-paligemma-2")):
        trials = {}
        for seed in range(seeds):
            trial = make_trial(backbone, train=replace(run_folders.TRAIN, seed=seed))
            folder = write_trial(tmp_path, trial, skill=0.5)
            other = EvaluationRecipe(look="D", episodes_per_task=20, execute=3)
            write_evaluation(folder, other, skill=0.5)  # another question, no other try
            if name == "two tries":
                write_evaluation(folder, replace(trial.evaluations[0], execute=1), skill=0.7)
            trials[f"seed {seed}" if seeds > 1 else "tabletop"] = trial
        rows.append((name, trials))
    columns = (Column(name="look A", look="A", trial="" if seeds > 1 else "tabletop"),)
    made = small_study(*rows, columns=columns)
    (found,) = [d for d in score(made, tmp_path).differences if not d.intended]
    assert found.name == "run: tries for look A"
    labels = [f"{name}, seed {n}" if seeds > 1 else name for name, _ in rows for n in range(seeds)]
    assert found.values == dict(zip(labels, [1] * seeds + [2] * seeds, strict=True))
    folder = write_study_report(made, tmp_path, tmp_path / "report").parent
    for name in ("tables.md", "tables.tex", "index.html"):
        text = (folder / name).read_text()
        assert "run: tries for look A" in text and f"2: {labels[-seeds]}" in text, name
    exported = json.loads((folder / "scores.json").read_text())
    assert [cell["tries"] for cell in exported["cells"]] == [dict.fromkeys(rows[0][1], n) for n in (1, 2)]
    assert [(d["field"], d["intended"]) for d in exported["fairness"]] == [
        ("policy.backbone", True),
        *([("train.seed", True)] if seeds > 1 else []),
        ("run: tries for look A", False),
    ]


def test_the_share_of_new_parameters_is_compared(tmp_path: Path) -> None:
    rows = []
    for backbone, share in (("tiny-qwen3-vl", 0.00175), ("tiny-paligemma-2", 0.0031)):
        trial = make_trial(backbone)
        folder = write_trial(tmp_path, trial, skill=0.5) / "checkpoints" / "step-003000"
        folder.mkdir(parents=True)
        (folder / "policy.json").write_text(json.dumps({"new_parameter_share": share}))
        rows.append((backbone, {"tabletop": trial}))
    (found,) = [d for d in score(small_study(*rows), tmp_path).differences if not d.intended]
    assert found.name == "run: share of new parameters"
    assert list(found.values.values()) == ["0.175 %", "0.31 %"]


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("scale", ["paper", "tabletop"])
def test_the_papers_rows_differ_in_what_their_table_is_about(name: str, scale: str, tmp_path: Path) -> None:
    """But for the expert rows, whose heads are their own, and what a tiny VLM's image size brings with it."""
    scores = score(STUDIES[name](scale), tmp_path)  # type: ignore[arg-type]
    unintended = {difference.name for difference in scores.differences if not difference.intended}
    # Heads that draw noise play every episode several times.
    assert unintended <= {"policy.head", "evaluations"} and ("policy.head" in unintended or not unintended)
    assert ("policy.head" in unintended) == (name in ("table-1", "table-2"))


def test_what_the_papers_own_n_separates() -> None:
    table = separable(STUDIES["table-2"]("paper"))
    assert table is not None
    told = {row[0]: row for row in table.rows}
    assert told["cube"][2] == "0 of 66" and told["simpler"][1] == "96" and set(told) >= {"carrot", "libero"}
    assert float(told["carrot"][2].split()[0]) < 15  # few, at 24 trials
    assert separable(STUDIES["table-4"]("paper")) is None and separated(STUDIES["table-4"]("paper")) is None
    # The two best of LIBERO are far from each other's reach, those of the eggplant are equal.
    assert told["libero"][3:] == ("thinkact against qwen3-vl-2b", "p < 0.001", "100 %", told["libero"][6])
    assert told["eggplant"][4:] == ("p = 1.00", "0 %", DASH)
    first, second = 0.75, 0.625
    assert told["carrot"][3] == "paligemma-2-3b against pi0"
    assert told["carrot"][5:] == (
        f"{100 * power_of(first, second, 24):.0f} %",
        str(episodes_to_separate(first, second)),
    )


@pytest.mark.parametrize("name", ["table-1", "table-2"])
def test_the_pairs_that_the_papers_n_separates_are_named(name: str) -> None:
    study = STUDIES[name]("paper")
    counted, listed = separable(study), separated(study)
    assert counted is not None and listed is not None
    for number, column in enumerate(listed.columns[2:], start=2):
        cells = {(row[0], row[1]): row[number] for row in listed.rows if row[number] != DASH}
        (told,) = (row[2] for row in counted.rows if row[0] == column)
        assert told.startswith(f"{len(cells)} of ")
        for (first, second), cell in cells.items():
            printed = {row.name: row.published[column] for row in study.rows if row.name in (first, second)}
            difference, p = cell.split(" ", 1)
            assert float(difference) == pytest.approx(printed[first] - printed[second], rel=1e-3)
            assert "p < 0.001" in p or float(p.strip("(p =)")) < 0.05
    if name == "table-2":
        (openvla,) = (row for row in listed.rows if row[:2] == ("openvla-7b", "pi0"))
        n, tries = 24, 66
        p = stats.fisher_exact([[1, n - 1], [15, n - 15]]).pvalue
        assert openvla[2] == "-58.3 (p = 0.002)" and p * tries > 0.0015 and p * (tries - 8) < 0.0025


def test_the_variance_of_a_chain_follows_from_the_rates() -> None:
    lengths = np.random.default_rng(0).integers(0, 6, size=100_000)
    rates = {f"task-{k}": float((lengths >= k).mean()) for k in range(1, 6)}
    assert chain_variance(rates) == pytest.approx(lengths.var(), rel=1e-9)
    assert chain_variance(published.TABLE_1["kosmos-2"]) == pytest.approx(3.85, abs=0.3)
