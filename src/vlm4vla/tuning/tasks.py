"""What a VLM can be tuned on, by name: whose files it reads or what it makes, and where that layout is told.

Every auxiliary task of the paper (4.2, A.6) is here, its authors' files and a small one made of Tabletop scenes.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm4vla.core.errors import RecipeError, unknown_name
from vlm4vla.tuning.examples import ConversationSource
from vlm4vla.tuning.readers import LAYOUTS, Files, Mixed, RowSource

_READER = "vlm4vla.tuning.readers:RowSource"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Facts of a task that cannot be read from its files."""

    about: str
    source: str
    """Who tells the layout, or whose example it follows."""
    verified: bool
    """Whether that was seen where it is told; False: taken from others' descriptions, or parts of it are a guess."""
    layout: str = ""
    """Of `readers.LAYOUTS`; empty: nothing is read."""
    files: tuple[Files, ...] = ()
    reader: str = _READER
    """`module:callable`; empty: there is nothing to open."""
    parts: Mapping[str, int] = field(default_factory=dict)
    """Of a mixture: tasks and their weights. Each has its folder, of its name, below the mixture's."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the reader."""
    hub: str = ""
    """Hub id of the data set with these files."""
    weights: str = ""
    """Hub id of a VLM that its authors tuned on it already: a backbone like any other."""


_REFSPATIAL = (
    ("2D/choice_qa.json", "2D/image"),
    ("2D/reasoning_template_qa.json", "2D/image"),
    ("3D/choice_qa.json", "3D/image"),
    ("3D/reasoning_template_qa.json", "3D/image"),
    ("3D/vacant_qa.json", "3D/image"),
    ("3D/multi_view_qa.json", "3D/image_multi_view"),
    ("3D/visual_choice_qa.json", "3D/image_visual_choice"),
    ("Simulator/metadata.json", "Simulator/image"),
)
_EMBODIED = 620_000
_GENERAL = 360_000
"""Pairs in VQA-Mix (Paper A.6). How the embodied ones share their part is not told: evenly, here."""


def _tabletop(kind: str, about: str) -> dict[str, Task]:
    made = Task(
        about=about,
        source="Paper A.6, the example of that name",
        verified=True,
        reader="vlm4vla.tuning.spatial_tabletop:TabletopSpatial",
        options={"kind": kind},
    )
    return {f"tabletop-{kind}": made}


TASKS: dict[str, Task] = {
    "robopoint": Task(
        about="pointing, 1.432 million conversations; coordinates in 0..1",
        source="github.com/wentaoyuan/RoboPoint, README, Prepare data",
        verified=True,
        layout="llava",
        files=(Files("robopoint_1432k.json", "images"),),
        hub="wentao-yuan/robopoint-data",
    ),
    "vica-332k": Task(
        about="spatial questions about videos of rooms, 322,003 pairs",
        source="huggingface.co/datasets/nkkbr/ViCA-322K; github.com/nkkbr/ViCA trains on it with LLaVA-NeXT's loader",
        verified=False,
        layout="llava",
        files=(Files("**/*.json"),),
        hub="nkkbr/ViCA-322K",
    ),
    "bridgevqa": Task(
        about="distance, size and depth of two things, made with VQASynth; the paper's own files are not public",
        source="huggingface.co/datasets/remyxai/vqasynth_spacellava, card: what VQASynth writes",
        verified=True,
        layout="messages",
        files=(Files("**/*.parquet"),),
        hub="remyxai/vqasynth_spacellava",
    ),
    "robo2vlm": Task(
        about="multiple choice about robot trajectories, 678,034 training questions",
        source="huggingface.co/datasets/keplerccc/Robo2VLM-1, card; the text of `choices`: its users' code",
        verified=True,
        layout="multiple-choice",
        files=(Files("**/train-*.parquet"),),
        hub="keplerccc/Robo2VLM-1",
    ),
    "robo2vlm-test": Task(
        about="Robo2VLM's own test split, 6,676 questions",
        source="as robo2vlm",
        verified=True,
        layout="multiple-choice",
        files=(Files("**/test-*.parquet"),),
        hub="keplerccc/Robo2VLM-1",
    ),
    "robobrain2": Task(
        about="pointing, planning and trajectories: the paper takes the weights as released",
        source="Paper 4.2 (Robobrain2)",
        verified=True,
        reader="",
        weights="BAAI/RoboBrain2.0-7B",
    ),
    "sharerobot-trajectory": Task(
        about="an instruction -> the gripper's path in the picture, 6,870 pictures",
        source="github.com/Shi-jiayu/ShareRobot, README, Trajectory, and its viewer for `id`",
        verified=True,
        layout="trajectory",
        files=(Files("trajectory/trajectory.json", "trajectory/images"),),
    ),
    "sharerobot-affordance": Task(
        about="an instruction -> the box to touch, 6,522 pictures",
        source="github.com/Shi-jiayu/ShareRobot, README, Affordance; the file's name is a guess",
        verified=False,
        layout="affordance",
        files=(Files("affordance/*.json", "affordance/images"),),
    ),
    "sharerobot-planning": Task(
        about="what was done, what comes next, whether it succeeded: 1,027,990 pairs",
        source="github.com/Shi-jiayu/ShareRobot, README, Planning; its paths are placeholders there",
        verified=False,
        layout="llava",
        files=(Files("planning/jsons/*.json", "planning/images"),),
    ),
    "spacer": Task(
        about="spatial questions about videos, and general ones: SpaceR-151k",
        source="github.com/OuyangKun10/SpaceR names Video-R1's loader; fields as there",
        verified=False,
        layout="problem",
        files=(Files("**/*.jsonl"), Files("**/*.json")),
        hub="RUBBISHLIKE/SpaceR-151k",
    ),
    "embspatial": Task(
        about="relations between things in rooms: EmbSpatial-SFT, pictures within the JSON",
        source="huggingface.co/datasets/Phineas476/EmbSpatial-Bench, files; fields from its users' code",
        verified=False,
        layout="options",
        files=(Files("embspatial_sft.json"),),
        hub="Phineas476/EmbSpatial-Bench",
    ),
    "refspatial": Task(
        about="referring to places and choosing among things, 2D, 3D and simulated",
        source="github.com/Zhoues/RoboRefer, README, Training: LLaVA's layout, files and folders",
        verified=True,
        layout="llava",
        files=tuple(Files(*pair) for pair in _REFSPATIAL),
        hub="JingkunAn/RefSpatial",
    ),
    "general-vqa": Task(
        about="any general conversations in LLaVA's layout; which ones the paper took is not told",
        source="github.com/haotian-liu/LLaVA, docs",
        verified=True,
        layout="llava",
        files=(Files("*.json", "images"), Files("*.jsonl", "images")),
    ),
    "vqa-mix": Task(
        about="620,000 embodied pairs to 360,000 general ones (Paper A.6)",
        source="Paper A.6",
        verified=False,
        reader="",
        parts={
            **dict.fromkeys(("vica-332k", "spacer", "embspatial", "refspatial"), _EMBODIED // 4),
            "general-vqa": _GENERAL,
        },
    ),
    "omni-generation": Task(
        about="a diffusion model behind the VLM that draws depth and masks; neither code, data nor weights are "
        "public; in small: tabletop-omni-generation",
        source="Paper 4.2, A.6",
        verified=True,
        reader="",
    ),
    **_tabletop("robopoint", "points on a thing that is named, or beside one with a red border"),
    **_tabletop("vica", "distances, widths, heights, openings and counts, as numbers"),
    **_tabletop("bridgevqa", "which of two things is further left, nearer or wider"),
    **_tabletop("robo2vlm", "where the gripper moves next among coloured arrows; whether a task is done"),
    **_tabletop(
        "robobrain2", "the gripper's path for an instruction; points on things; the next of two steps"
    ),
    **_tabletop("general", "what is there and what it looks like, nothing of where"),
    "tabletop-pretraining": Task(
        about="what the tiny backbones were pretrained on, about other scenes: places and ways in tokens, names",
        source="src/vlm4vla/tuning/questions.py",
        verified=True,
        reader="vlm4vla.tuning.pretraining_scenes:PretrainingQuestions",
    ),
    "tabletop-vqa-mix": Task(
        about="tabletop-vica, -bridgevqa and -robopoint to tabletop-general in the paper's proportions",
        source="Paper A.6",
        verified=True,
        reader="",
        parts={
            **dict.fromkeys(("tabletop-vica", "tabletop-bridgevqa", "tabletop-robopoint"), _EMBODIED // 3),
            "tabletop-general": _GENERAL,
        },
    ),
    "tabletop-drawings": Task(
        about="the picture again, its depth, its things each in a color: drawn by a diffusion branch",
        source="Paper 4.2 and A.6, Omni-Generation",
        verified=True,
        reader="vlm4vla.tuning.generation_tabletop:TabletopDrawings",
    ),
    "tabletop-omni-generation": Task(
        about="tabletop-drawings and tabletop-vqa-mix, one to one",
        source="Paper 4.2 and A.6, Omni-Generation; the shares are not told",
        verified=False,
        reader="",
        parts={"tabletop-drawings": 1, "tabletop-vqa-mix": 1},
    ),
    "actions": Task(
        about="instruction and picture -> the action chunk in FAST tokens, from demonstrations (packed folder)",
        source="Paper 4.4; its wording is not told",
        verified=False,
        reader="vlm4vla.tuning.actions:ActionQuestions",
    ),
    "boxes": Task(
        about="your own pictures: spatial questions made from boxes and depths in a small JSON file",
        source="the head of src/vlm4vla/tuning/spatial_boxes.py",
        verified=True,
        reader="vlm4vla.tuning.spatial_boxes:BoxQuestions",
    ),
    "drawings": Task(
        about="your own pictures, and what is to be drawn of them: pictures, depths, classes in colors",
        source="the head of src/vlm4vla/tuning/generation_folder.py",
        verified=True,
        reader="vlm4vla.tuning.generation_folder:FolderDrawings",
    ),
    "llava": Task(
        about="your own conversations: LLaVA's JSON, pictures below the folder",
        source="github.com/haotian-liu/LLaVA, docs",
        verified=True,
        layout="llava",
        files=(Files("*.json"), Files("*.jsonl")),
    ),
    "messages": Task(
        about="your own conversations: parquet with `images` and `messages`",
        source="as bridgevqa",
        verified=True,
        layout="messages",
        files=(Files("**/*.parquet"), Files("*.jsonl")),
    ),
}


def task(name: str) -> Task:
    """Raises: RecipeError with the nearest names."""
    if name not in TASKS:
        raise unknown_name("tuning task", name, TASKS)
    return TASKS[name]


def open_task(name: str, folder: Path | None = None, **options: Any) -> ConversationSource:
    """The conversations of a task; values of options may be text, as a command line has them.

    Raises: RecipeError for unknown names and options, and for tasks of which nothing can be opened; DataError for files
    that are not what they should be.
    """
    facts = task(name)
    if facts.parts:
        return _mixture(name, facts, folder, options)
    if not facts.reader:
        hint = f"; name {facts.weights} as the backbone and tune nothing" if facts.weights else ""
        raise RecipeError(f"{name}: {facts.about}{hint}")
    module, _, constructor = facts.reader.partition(":")
    make = getattr(importlib.import_module(module), constructor)
    if facts.reader != _READER:
        source: ConversationSource = make(folder, **_typed(name, make, {**facts.options, **options}))
        return source
    if folder is None:
        raise RecipeError(f"{name}: is read from files; name their folder")
    reader, rest = _divided(name, facts, options)
    return RowSource(
        folder, layout=facts.layout, files=facts.files, name=name, options={**facts.options, **rest}, **reader
    )


def _mixture(name: str, facts: Task, folder: Path | None, options: Mapping[str, Any]) -> ConversationSource:
    sources = [open_task(part, folder / part if folder else None, **options) for part in facts.parts]
    return Mixed(name, sources, list(facts.parts.values()))


def _divided(name: str, facts: Task, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the reader and those of the layout."""
    reader = {key: value for key, value in options.items() if key == "frames"}
    rest = {key: value for key, value in options.items() if key not in reader}
    return _typed(name, RowSource, reader), _typed(name, LAYOUTS[facts.layout], rest)


def _typed(name: str, make: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with text turned into what the callable takes, judged by its defaults."""
    known = {
        key: parameter.default
        for key, parameter in inspect.signature(make).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    found = {}
    for key, value in options.items():
        if key not in known:
            raise unknown_name(f"option of {name}", key, known)
        kind = type(known[key])
        if isinstance(value, str) and kind is not str:
            try:
                value = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
            except (KeyError, ValueError) as error:
                raise RecipeError(f"{name}: option {key}={value}: {kind.__name__} is expected") from error
        found[key] = value
    return found
