"""Every table and figure of the paper as a study, in the paper's order. Table 9 is `vlm4vla models`.

`scale="tabletop"` is the same matrix in small: tiny backbones of the same families, the embedded benchmark's looks A
(seen in training) and D (never seen) instead of three simulators. Rows whose tiny backbones coincide are one row.
`scale="mini"` is that with the quickstart's trainings, of four easy tasks and a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from vlm4vla.backbones.registry import BACKBONES, tiny_member
from vlm4vla.core.recipes import TaskRecipe, TrainRecipe, Trial, TuneRecipe
from vlm4vla.studies import published
from vlm4vla.studies.paper_presets import bridge, calvin, libero
from vlm4vla.studies.presets import quickstart, tabletop
from vlm4vla.studies.published import SLIPS
from vlm4vla.studies.study import Column, MakeStudy, Questions, Scale, Study, StudyRow, with_checkpoints

PI0, OPENVLA = "pi0", "openvla-7b"
_PI0_BACKBONE = "paligemma-1-3b"
_PRESETS = {"calvin": calvin, "simpler": bridge, "libero": libero}
_TASKS = ("task-1", "task-2", "task-3", "task-4", "task-5", "calvin")
_SCENES = ("carrot", "eggplant", "spoon", "cube", "simpler", "libero")
_BOTH = ("calvin", "simpler")
_SMALL = "tabletop"
_MADE = {
    name: f"tabletop-{name.removesuffix('-332k')}"
    for name in (
        "robopoint",
        "vica-332k",
        "bridgevqa",
        "robo2vlm",
        "robobrain2",
        "omni-generation",
        "vqa-mix",
    )
}
"""Tabletop's task after each of the paper's."""
_READ = ("robopoint", "vica-332k", "bridgevqa", "robo2vlm", "vqa-mix")
"""Tasks whose files can be read, where their folders are named."""
_RELEASED = {"robobrain2": "BAAI/RoboBrain2.0-7B"}
"""Tasks of which the paper takes the tuned VLM as its authors released it (4.2)."""
_MADE_OPTIONS = ("image_size=64", "scenes=5000")
_ACTION_OPTIONS = ("horizon=4", "vocabulary=256")
_SMALL_TUNING = TrainRecipe(
    steps=1500, batch_size=32, learning_rate=1e-3, warmup_steps=75, schedule="cosine", log_every=25
)
_MINI_EPISODES = 50
_QUESTIONS = 300
"""Of every task, that tiny VLMs are asked."""
_SMALL_PICTURES = "tiny VLMs were pretrained on pictures of 64 pixels: larger ones are new to them"
_ONE_SEED = "one seed a row: intervals cover the choice of episodes, not what another seed would have given"


def _trial(benchmark: str, backbone: str, scale: Scale, *, after: str = "", **changes: Any) -> Trial | None:
    """A preset's trial with fields of its policy or training changed, named by what was changed.

    None where there is no tiny VLM of this family.
    """
    head = {PI0: "flow", OPENVLA: "tokens"}.get(backbone, "mlp")
    vlm = _PI0_BACKBONE if backbone == PI0 else backbone
    weights = changes.pop("weights", "pretrained")
    if scale == "paper":
        trial = _PRESETS[benchmark](vlm, weights=weights, head=head)
    else:
        tiny = tiny_member(vlm)
        if tiny is None:
            return None
        if scale == "tabletop":
            trial = tabletop(tiny, weights=weights, head=head)
        else:
            trial = quickstart((tiny,), weights=weights, head=head, episodes=_MINI_EPISODES)[0]
        if "learning_rate" in changes:  # the same factor, around what suits a tiny VLM
            changes["learning_rate"] = trial.train.learning_rate * changes["learning_rate"] / 2e-5
        if "image_size" in changes:
            changes["image_size"] = {224: 64, 512: 128, 768: 192}[changes["image_size"]]
            changes["enlarge"] = (
                False  # as many pixels as that; a tiny VLM's own preprocessing lets 64 through
            )
    told = [
        text
        for name, text in (
            ("freeze", f"{', '.join(changes.get('freeze', ()))} frozen"),
            ("learning_rate", f"rate {changes.get('learning_rate', 0):g}"),
            ("image_size", f"{changes.get('image_size')} pixels"),
            ("prompt", f"{changes.get('prompt')} prompt"),
        )
        if name in changes and changes[name] != getattr(trial.policy, name, getattr(trial.train, name, None))
    ]
    policy = {name: value for name, value in changes.items() if hasattr(trial.policy, name)}
    train = {name: value for name, value in changes.items() if hasattr(trial.train, name)}
    trial = replace(
        trial,
        name=" ".join([trial.name, *told, *([f"after {after}"] if after else [])]),
        policy=replace(trial.policy, **policy),
        train=replace(trial.train, **train),
    )
    if scale != "paper" and "image_size" in changes:
        size = changes["image_size"]
        trial = replace(
            trial,
            demonstrations=replace(trial.demonstrations, image_size=size),
            evaluations=tuple(replace(evaluation, image_size=size) for evaluation in trial.evaluations),
        )
    return trial


def _tuned(trial: Trial | None, task: str, freeze: tuple[Literal["vision"], ...] = ()) -> Trial | None:
    """A trial whose VLM is tuned before; in small with Tabletop's task of that name and its own learning rate.

    None stays None; a task that there is nothing to tune on for leaves the trial as it is.
    """
    if trial is None:
        return None
    small = trial.demonstrations.source == "tabletop"
    if task == "actions":
        asked = TaskRecipe(
            task=task, demonstrations=trial.demonstrations, options=_ACTION_OPTIONS if small else ()
        )
    elif not small and task in _RELEASED:
        return replace(trial, policy=replace(trial.policy, backbone=_RELEASED[task]))
    elif task not in (_MADE if small else _READ):
        return trial
    else:
        asked = TaskRecipe(task=_MADE[task], options=_MADE_OPTIONS) if small else TaskRecipe(task=task)
    recipe = TuneRecipe(
        backbone=trial.policy.backbone, weights=trial.policy.weights, tasks=(asked,), freeze=freeze
    )
    if small:
        recipe = replace(recipe, prompt="short", train=_SMALL_TUNING)
    return replace(trial, tuning=recipe)


def _trials(benchmarks: Sequence[str], backbone: str, scale: Scale, **changes: Any) -> dict[str, Trial]:
    names = benchmarks if scale == "paper" else (_SMALL,)
    found = {name: _trial(name, backbone, scale, **changes) for name in names}
    return {name: trial for name, trial in found.items() if trial is not None}


def _cell(column: str, trial: Trial | None) -> dict[str, Trial]:
    return {} if trial is None else {column: trial}


def _scored(name: str) -> Column:
    """A column of the paper: of CALVIN's trial, of Bridge's or of LIBERO's."""
    if name.startswith("task-"):
        return Column(name=name, trial="calvin", goals=int(name.removeprefix("task-")), share=True)
    if name in _SCENES[:4]:
        return Column(name=name, trial="simpler", task=name)
    return Column(name=name, trial=name, measure="chain" if name == "calvin" else "success")


def _chain(trial: str) -> Column:
    return Column(name=trial, trial=trial, measure="chain")


def _columns(columns: Sequence[Column], rows: Sequence[StudyRow], scale: Scale) -> tuple[Column, ...]:
    if scale == "paper":
        return tuple(columns)
    trials = list(dict.fromkeys(name for row in rows for name in row.trials))
    return tuple(
        Column(name=f"look {look}" if trial == _SMALL else f"{trial}, look {look}", trial=trial, look=look)
        for trial in trials
        for look in "AD"
    )


def _study(
    name: str,
    title: str,
    question: str,
    columns: Sequence[Column],
    rows: Sequence[StudyRow],
    scale: Scale,
    about: Sequence[str] = (),
) -> Study:
    """Rows with equal trials become one; numbers of the paper stay with the paper's scale."""
    found: dict[tuple[Trial, ...], StudyRow] = {}
    kept: list[StudyRow] = []
    for row in rows:
        key = tuple(row.trials.values())
        if scale != "paper":
            if not key or key in found:
                continue
            told = row.name.partition(", ")[0]
            row = replace(row, name=row.name.replace(told, _small_name(told)), published={})
            found[key] = row
        kept.append(row)
    notes = tuple(
        slip for slip in SLIPS if slip.startswith((f"{title}:", "Tables")) and title in _expanded(slip)
    )
    return Study(
        name=name if scale == "paper" else f"{name}-{scale}",
        title=title,
        question=question,
        columns=_columns(columns, kept, scale),
        rows=tuple(kept),
        about=("policy.backbone", *about),
        notes=notes if scale == "paper" else (_ONE_SEED,),
    )


def _small_name(name: str) -> str:
    """A row's VLM in small; anything else as it is."""
    return tiny_member(name) or name if name in BACKBONES else name


def _expanded(slip: str) -> set[str]:
    """`Tables 3, 6 and 8: ...` as the names of three tables."""
    numbers = slip.partition(":")[0].removeprefix("Tables").removeprefix("Table").replace("and", ",")
    return {f"Table {number.strip()}" for number in numbers.split(",")}


def questions(tasks: Sequence[str] = ()) -> Questions:
    """For tiny VLMs: what they were pretrained on, and these of Tabletop's tasks, about scenes of the test split."""
    options = ("split=test", f"scenes={_QUESTIONS}", "image_size=64")
    asked = (TaskRecipe(task=name, options=options) for name in ("tabletop-pretraining", *tasks))
    return Questions(tasks=tuple(asked), prompt="short", count=_QUESTIONS)


def table_1(scale: Scale = "paper") -> Study:
    """Which VLM makes the best policy on CALVIN ABC-D?"""
    rows = [
        StudyRow(name=name, trials=_trials(["calvin"], name, scale), published=cells)
        for name, cells in published.TABLE_1.items()
    ]
    return _study(
        "table-1",
        "Table 1",
        "Which VLM makes the best policy on CALVIN?",
        [*map(_scored, _TASKS)],
        rows,
        scale,
    )


def table_2(scale: Scale = "paper") -> Study:
    """And on SimplerEnv-Bridge and LIBERO-Long?"""
    rows = [
        StudyRow(
            name=name,
            trials={} if name == "thinkact" else _trials(["simpler", "libero"], name, scale),
            published=cells,
        )
        for name, cells in published.TABLE_2.items()
    ]
    question = "Which VLM makes the best policy on SimplerEnv and LIBERO?"
    return _study("table-2", "Table 2", question, [*map(_scored, _SCENES)], rows, scale)


def figure_1(scale: Scale = "paper") -> Study:
    """Is a VLM that is good at one task good at the others? The overview of what tables 1 and 2 tell of nine VLMs."""
    columns = [*map(_scored, (*_TASKS, *_SCENES))]
    question = "Is a VLM that is good at one task good at the others?"
    return _study("figure-1", "Figure 1", question, columns, _general(scale), scale)


def _general(scale: Scale) -> list[StudyRow]:
    """The VLMs of tables 1 and 2 that are no experts, on all three benchmarks."""
    return [
        StudyRow(
            name=name,
            trials=_trials(["calvin", "simpler", "libero"], name, scale),
            published={**cells, **published.TABLE_2[name]},
        )
        for name, cells in published.TABLE_1.items()
        if name not in (PI0, OPENVLA)
    ]


def figure_3(scale: Scale = "paper") -> Study:
    """Does a VLM's general ability predict how good a policy it makes? The rows are those of tables 1 and 2."""
    question = "Does a VLM's general ability predict how good a policy it makes?"
    made = _study(
        "figure-3",
        "Figure 3",
        question,
        [*map(_scored, ("calvin", "simpler", "libero"))],
        _general(scale),
        scale,
    )
    return made if scale == "paper" else replace(made, asked=questions())


def figure_4(scale: Scale = "paper") -> Study:
    """Does tuning on embodied questions before help, and how steadily? Figure 4 shows checkpoints of table 10's rows.

    The paper's trainings are table 10's. Those in small are not: table 10's keep no more than their last checkpoints.
    """
    made = with_checkpoints(table_10(scale))
    return replace(made, name=made.name.replace("table-10", "figure-4"), title="Figure 4")


def table_3(scale: Scale = "paper") -> Study:
    """What does freezing the vision encoder or the word embedding cost?"""
    rows = []
    for (name, frozen), cells in published.TABLE_3.items():
        changes: dict[str, Any] = {"freeze": (frozen,)} if frozen else {}
        rows.append(
            StudyRow(
                name=f"{name}, {frozen.replace('_', ' ')} frozen" if frozen else name,
                trials=_trials(["calvin", "simpler"], name, scale, **changes),
                published=cells,
            )
        )
    question = "What does freezing the vision encoder or the word embedding cost?"
    return _study("table-3", "Table 3", question, [*map(_scored, _BOTH)], rows, scale, ["policy.freeze"])


def table_4(scale: Scale = "paper") -> Study:
    """Is the vision gap one of pictures, or of control? Actions are injected into the VLM before, as answers."""
    rows = []
    for tuning, cells in published.TABLE_4.items():
        after = f"actions, {tuning}" if tuning else ""
        cells_of = {
            "frozen": _trial("simpler", "qwen3-vl-4b", scale, after=after, freeze=("vision",)),
            "trained": _trial("simpler", "qwen3-vl-4b", scale, after=after),
        }
        if tuning:
            frozen: tuple[Literal["vision"], ...] = ("vision",) if tuning == "vision frozen" else ()
            cells_of = {name: _tuned(trial, "actions", frozen) for name, trial in cells_of.items()}
        trials = {name: trial for name, trial in cells_of.items() if trial is not None}
        name = f"actions injected, {tuning}" if tuning else "baseline"
        rows.append(StudyRow(name=name, trials=trials, published=cells, tuned_on=after))
    question = "Does the vision encoder miss pictures or control?"
    return _study(
        "table-4",
        "Table 4",
        question,
        [Column(name=n, trial=n) for n in ("frozen", "trained")],
        rows,
        scale,
        ["tuning"],
    )


def table_5(scale: Scale = "paper") -> Study:
    """Does the learning rate change the order of the VLMs?"""
    rows = []
    for name, cells in published.TABLE_5.items():
        trials: dict[str, Trial] = {}
        for rate in cells:
            trials |= _cell(rate, _trial("calvin", name, scale, learning_rate=float(rate)))
        rows.append(StudyRow(name=name, trials=trials, published=cells))
    question = "Does the learning rate change the order of the VLMs?"
    return _study(
        "table-5",
        "Table 5",
        question,
        [_chain(rate) for rate in ("1e-05", "2e-05", "5e-05", "0.0001")],
        rows,
        scale,
    )


def table_6(scale: Scale = "paper") -> Study:
    """Does the prompt matter?"""
    rows = [
        StudyRow(
            name=f"{name}, {prompt} prompt",
            trials=_trials(["calvin", "simpler"], name, scale, prompt=prompt),
            published=cells,
        )
        for (name, prompt), cells in published.TABLE_6.items()
    ]
    return _study(
        "table-6",
        "Table 6",
        "Does the prompt matter?",
        [*map(_scored, _BOTH)],
        rows,
        scale,
        ["policy.prompt"],
    )


def table_7(scale: Scale = "paper") -> Study:
    """Do larger images make up for a frozen vision encoder?"""
    rows = []
    for (name, frozen), cells in published.TABLE_7.items():
        trials: dict[str, Trial] = {}
        frozen_parts: dict[str, Any] = {"freeze": (frozen,)} if frozen else {}
        for size in cells:
            trials |= _cell(size, _trial("calvin", name, scale, image_size=int(size), **frozen_parts))
        rows.append(
            StudyRow(name=f"{name}, {frozen} frozen" if frozen else name, trials=trials, published=cells)
        )
    question = "Do larger images make up for a frozen vision encoder?"
    made = _study(
        "table-7",
        "Table 7",
        question,
        [_chain(size) for size in ("224", "512", "768")],
        rows,
        scale,
        ["policy.freeze"],
    )
    return made if scale == "paper" else replace(made, notes=(*made.notes, _SMALL_PICTURES))


def table_8(scale: Scale = "paper") -> Study:
    """What does pretraining bring at all?"""
    rows = [
        StudyRow(
            name=name if weights == "pretrained" else f"{name}, from scratch",
            trials=_trials(["calvin", "simpler"], name, scale, weights=weights),
            published=cells,
        )
        for (name, weights), cells in published.TABLE_8.items()
    ]
    return _study(
        "table-8",
        "Table 8",
        "What does pretraining bring?",
        [*map(_scored, _BOTH)],
        rows,
        scale,
        ["policy.weights"],
    )


def table_10(scale: Scale = "paper") -> Study:
    """Does tuning on embodied questions before help?"""
    rows = [
        StudyRow(
            name=f"{name}, tuned on {task}" if task else name,
            trials={
                key: _tuned(trial, task) or trial if task else trial
                for key, trial in _trials(["calvin"], name, scale, after=task).items()
            },
            published=cells,
            tuned_on="" if scale == "paper" and task in _RELEASED else task,
        )
        for (name, task), cells in published.TABLE_10.items()
    ]
    question = "Does tuning on embodied questions before help?"
    made = _study("table-10", "Table 10", question, [*map(_scored, _TASKS)], rows, scale, ["tuning"])
    # Drawings are scored elsewhere; the words of that task are VQA-Mix.
    tasks = [task for name, task in _MADE.items() if name != "omni-generation"]
    return made if scale == "paper" else replace(made, asked=questions(tasks))


STUDIES: Mapping[str, MakeStudy] = {
    "figure-1": figure_1,
    "table-1": table_1,
    "table-2": table_2,
    "figure-3": figure_3,
    "figure-4": figure_4,
    "table-3": table_3,
    "table-4": table_4,
    "table-5": table_5,
    "table-6": table_6,
    "table-7": table_7,
    "table-8": table_8,
    "table-10": table_10,
}
"""In the paper's order."""
