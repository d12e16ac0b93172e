"""Questions made from ground truth: every answer is computed again here, from the simulator's state and its camera."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from jaxtyping import Float
from numpy import ndarray
from PIL import Image

from vlm4vla.benchmarks.tabletop.render import RayRenderer, camera_xml
from vlm4vla.benchmarks.tabletop.scene import BUTTON_CENTRE, Scene, SceneState
from vlm4vla.benchmarks.tabletop.tasks import PHRASINGS, Assignment, fulfilled
from vlm4vla.cli import main
from vlm4vla.core.errors import DataError, RecipeError
from vlm4vla.tuning import spatial
from vlm4vla.tuning.examples import IMAGE_MARK, ConversationSource, Exchange, check
from vlm4vla.tuning.spatial import Pixels, Thing
from vlm4vla.tuning.spatial_scene import Table
from vlm4vla.tuning.spatial_tabletop import KINDS, TabletopSpatial
from vlm4vla.tuning.tasks import open_task

SIZE = 96
SCENES = 40


class Camera:
    """MuJoCo's own idea of the camera."""

    def __init__(self) -> None:
        model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{camera_xml()}</worldbody></mujoco>")
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        self.place, self.axes = data.cam_xpos[0].copy(), data.cam_xmat[0].reshape(3, 3).copy()
        self.half = float(np.tan(np.radians(model.cam_fovy[0]) / 2))

    def seen(self, point: Float[ndarray, "3"]) -> Float[ndarray, "2"]:
        x, y, z = self.axes.T @ (point - self.place)
        return np.array([x / -z / self.half + 1, 1 - y / -z / self.half]) / 2

    def hit(self, scene: Scene, x: float, y: float) -> str:
        """The geom at a place of the picture."""
        ray = self.axes @ np.array([(2 * x - 1) * self.half, (1 - 2 * y) * self.half, -1.0])
        found = np.zeros(1, dtype=np.int32)
        groups = np.array([1, 1, 1, 1, 0, 0], dtype=np.uint8)
        mujoco.mj_ray(scene.model, scene.data, self.place, ray, groups, True, -1, found)
        return str(scene.model.geom(int(found[0])).name) if found[0] >= 0 else ""


class Watched(RayRenderer):
    """Remembers the state that a picture shows."""

    def __init__(self, scene: Scene, size: int) -> None:
        super().__init__(scene, size)
        self.scene, self.shown = scene, np.zeros((size, size, 3), dtype=np.uint8)

    def image(self) -> Pixels:
        self.state = self.scene.state()
        self.shown = super().image()
        return self.shown


CAMERA = Camera()


def asked(kind: str, count: int = SCENES) -> list[tuple[Table, SceneState, Pixels, Pixels, Exchange]]:
    """Questions with the scene as it was left, the state that the picture shows, that picture, and the drawn one."""
    found = []
    for number in range(count):
        rng, made = np.random.default_rng([number, 7]), None
        while made is None:
            scene = Scene()
            renderer = Watched(scene, SIZE)
            table = Table(scene, renderer)
            table.begin(rng)
            made = KINDS[kind](table, rng)
        found.append((table, renderer.state, renderer.shown, *made))
    return found


def centre(name: str, state: SceneState) -> Float[ndarray, "3"]:
    if name.endswith("block"):
        return state.blocks[name.split()[0]]
    places = {
        "plate": np.array([*state.plate, 0.003]),
        "drawer handle": state.handle,
        "pink button": np.array([*BUTTON_CENTRE, 0.032 - state.button]),
    }
    return places[name]


def geoms(name: str) -> str:
    """How names of a thing's geoms begin."""
    known = {"drawer handle": "handle", "pink button": "button_cap", "cabinet": "cabinet|drawer|handle"}
    known |= {"gripper": "palm|wrist|finger", "plate": "plate"}
    return known.get(name) or name.split()[0]


def points(exchange: Exchange) -> list[tuple[float, float]]:
    found = [(float(x), float(y)) for x, y in re.findall(r"\(([\d.]+), ([\d.]+)\)", exchange.answer)]
    assert 2 <= len(found) <= 4
    return found


def test_points_lie_on_what_is_asked_for() -> None:
    kinds: Counter[str] = Counter()
    for table, _, plain, drawn, exchange in asked("robopoint"):
        places = points(exchange)
        hits = {CAMERA.hit(table.scene, x, y) for x, y in places}
        region = exchange.truth["region"]
        assert all(region[int(y * SIZE), int(x * SIZE)] for x, y in places)
        named = re.search(r"on the (.*)\.$", exchange.question)
        if named:
            # A place is rounded to two digits, and may fall on another geom within the same pixel.
            on = [bool(re.match(geoms(named[1]), CAMERA.hit(table.scene, x, y))) for x, y in places]
            assert np.mean(on) >= 0.5, (named[1], hits)
            kinds["named"] += 1
            continue
        changed = np.argwhere((plain != drawn).any(axis=-1))
        top, left = changed.min(axis=0) / SIZE
        bottom, right = (changed.max(axis=0) + 1) / SIZE
        across, down = np.mean(places, axis=0) - [(left + right) / 2, (top + bottom) / 2]
        word = exchange.question.split("situated ")[1].split(" the bordered")[0]
        along = {"beneath": down, "above": -down, "to the left of": -across, "to the right of": across}[word]
        assert along > 0 and along > 0.6 * max(abs(across), abs(down)), (word, across, down)
        kinds[word] += 1
    assert kinds["named"] > 10 and sum(kinds.values()) - kinds["named"] > 10 and len(kinds) > 2


def test_numbers_are_the_simulators() -> None:
    kinds: Counter[str] = Counter()
    for table, state, _, _, exchange in asked("vica", 2 * SCENES):
        question, value = exchange.question, exchange.truth["value"]
        assert float(exchange.answer) == value and exchange.measure == "number"
        if pair := re.search(r"centers of the (.*) and the (.*), in meters", question):
            true = np.linalg.norm(centre(pair[1], state) - centre(pair[2], state))
            assert value == pytest.approx(true, abs=0.0051)
        elif question.startswith("How many blocks"):
            assert value == len(state.blocks)
        elif wide := re.match(r"How wide is the (.*), in", question):
            half = table.scene.model.geom(geoms(wide[1])).size[0]
            assert value == pytest.approx(200 * half, abs=0.051)
        elif question.startswith("How high"):
            assert value == pytest.approx(100 * state.gripper[2], abs=0.051)
        else:
            assert question.startswith("How far is the drawer open")
            assert value == pytest.approx(100 * max(state.drawer, 0), abs=0.051)
        kinds[" ".join(question.split()[:2])] += 1
    assert len(kinds) == 5 and min(kinds.values()) > 3


def test_comparisons_hold_and_are_clear() -> None:
    kinds: Counter[str] = Counter()
    for table, state, _, _, exchange in asked("bridgevqa", 2 * SCENES):
        found = re.match(r"(?:Who|Which) is (.*), the (.*) or the (.*)\?", exchange.question)
        assert found
        word, *names = found.groups()
        chosen = re.match(r"(.*) is (.*)\.", exchange.answer)
        assert chosen and chosen[2] == word.removeprefix("positioned ")
        other = next(name for name in names if name.capitalize() != chosen[1])
        name = next(name for name in names if name.capitalize() == chosen[1])
        if "wide" in word or "narrow" in word:
            a, b = (table.scene.model.geom(geoms(n)).size[0] for n in (name, other))
            assert a > 1.1 * b if word == "wider" else b > 1.1 * a
        elif "camera" in word:
            a, b = (np.linalg.norm(centre(n, state) - CAMERA.place) for n in (name, other))
            assert a > 1.1 * b if word.startswith("further") else b > 1.1 * a
        else:
            places = [
                CAMERA.seen(centre(n, state)) if n not in ("cabinet", "gripper") else middle(table, n)
                for n in (name, other)
            ]
            axis, sign = {"left": (0, -1), "right": (0, 1), "higher": (1, -1), "lower": (1, 1)}[
                re.search("left|right|higher|lower", word)[0]  # type: ignore[index]
            ]
            assert sign * (places[0][axis] - places[1][axis]) > 0
        kinds[word] += 1
    assert len(kinds) == 8


def middle(table: Table, name: str) -> Float[ndarray, "2"]:
    """Of all that is seen of a thing."""
    renderer = table.renderer
    names = np.array([renderer.geom_name(i) for i in range(-1, table.scene.model.ngeom)])
    region = np.vectorize(lambda n: bool(re.match(geoms(name), n)))(names)[renderer.segmentation() + 1]
    rows, columns = np.nonzero(region)
    return np.array([columns.min() + columns.max() + 1, rows.min() + rows.max() + 1]) / 2 / SIZE


def goal_of(instruction: str) -> Assignment:
    for task, phrasings in PHRASINGS.items():
        for phrasing in phrasings:
            pattern = phrasing.format("(red|green|blue|yellow)", "(red|green|blue|yellow)")
            if found := re.fullmatch(pattern, instruction):
                return Assignment(task=task, blocks=found.groups())
    raise AssertionError(instruction)


def choice(exchange: Exchange) -> str:
    listed = dict(re.findall(r"([A-E])\. (.*?)\.", exchange.question.split("Choices: ")[1]))
    assert exchange.truth["choices"] == tuple("ABCDE"[: len(listed)])
    return str(listed[exchange.answer])


def looks_done(goal: Assignment, state: SceneState) -> bool:
    """From what a picture shows: without knowing how it began."""
    height = state.blocks[goal.blocks[0]][2] if goal.blocks else 0.0
    if goal.task == "lift":
        return height > 0.07
    if goal.task == "place":
        over = np.linalg.norm(state.blocks[goal.blocks[0]][:2] - state.plate) < 0.055
        return bool(over and abs(height - 0.028) < 0.012)
    if goal.task == "stack":
        under = state.blocks[goal.blocks[1]]
        return bool(np.abs(state.blocks[goal.blocks[0]] - under - [0, 0, 0.044]).max() < 0.025)
    return (state.drawer > 0.05) == (goal.task == "open") and not 0.01 < state.drawer < 0.05


def test_choices_follow_from_the_scene() -> None:
    kinds: Counter[str] = Counter()
    for table, state, plain, drawn, exchange in asked("robo2vlm", 2 * SCENES):
        goal = goal_of(re.search(r"task is to (.*?)\. (?:Which|Has)", exchange.question)[1])  # type: ignore[index]
        said = choice(exchange)
        kinds[said] += 1
        if said in ("Yes", "No"):
            assert looks_done(goal, state) == (said == "Yes"), (goal, state)
            assert np.array_equal(plain, drawn)
            continue
        begin = CAMERA.seen(state.gripper)
        moved = CAMERA.seen(table.scene.state().gripper) - begin
        angles = {}
        for color, rgb in {
            "Yellow": (255, 255, 0),
            "Blue": (0, 0, 255),
            "Purple": (128, 0, 128),
            "Green": (0, 128, 0),
        }.items():
            rows, columns = np.nonzero((drawn == rgb).all(axis=-1) & (plain != drawn).any(axis=-1))
            along = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) / SIZE - begin
            cosine = along @ moved / np.linalg.norm(along) / np.linalg.norm(moved)
            angles[color] = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        nearest = min(angles, key=lambda color: angles[color])
        if said == "None of the above":
            assert angles[nearest] > 50
        else:
            assert nearest == said and angles[nearest] < 25, angles
    assert set(kinds) == {"Yes", "No", "Yellow", "Blue", "Purple", "Green", "None of the above"}


def test_paths_end_where_the_goal_is_done() -> None:
    kinds: Counter[str] = Counter()
    for table, state, _, _, exchange in asked("robobrain2"):
        kinds[exchange.measure] += 1
        question = exchange.question.removeprefix(f"{IMAGE_MARK}\n")
        if exchange.measure == "trajectory":
            path = np.array(json.loads(exchange.answer))
            assert 4 <= len(path) <= 8 and np.abs(path - exchange.truth["path"]).max() < 0.0006
            assert np.allclose(path[0], CAMERA.seen(state.gripper), atol=0.001)
            end = table.scene.state()
            assert np.allclose(path[-1], CAMERA.seen(end.gripper), atol=0.001)
            assert fulfilled(goal_of(question), state, end)
        elif exchange.measure == "exact":
            goal = goal_of(re.search(r"task is to (.*?)\. What", question)[1])  # type: ignore[index]
            block = state.blocks[goal.blocks[0]]
            if exchange.answer.startswith("Pick up"):
                assert block[2] < 0.03 and np.linalg.norm(block - state.gripper) > 0.05
            else:
                assert (
                    exchange.answer.startswith(f"Put the {goal.blocks[0]} block on the") and block[2] > 0.03
                )
                assert np.linalg.norm(block - state.gripper) < 0.03
    assert set(kinds) == {"trajectory", "points", "exact"}


def test_general_answers_are_what_is_there() -> None:
    kinds: Counter[str] = Counter()
    for _, state, picture, _, exchange in asked("general", 2 * SCENES):
        kinds[exchange.answer] += 1
        if color := re.match(r"Is there a (\w+) block", exchange.question):
            assert (color[1] in state.blocks) == (exchange.answer == "Yes")
        elif "drawer" in exchange.question:
            assert state.drawer > 0.045 if exchange.answer == "Open" else state.drawer < 0.01
        elif exchange.answer == "Nothing":
            assert min(np.linalg.norm(b - state.gripper) for b in state.blocks.values()) > 0.06
        else:
            block = state.blocks[exchange.answer.split()[1]]
            assert block[2] > 0.03 and np.linalg.norm(block - state.gripper) < 0.03
        assert picture.shape == (SIZE, SIZE, 3)
    assert {"Yes", "No", "Open", "Closed", "Nothing"} < set(kinds)


@pytest.mark.parametrize("kind", [*KINDS, "pretraining"])
def test_questions_are_a_function_of_their_number(kind: str) -> None:
    source = open_task(f"tabletop-{kind}", None, scenes="40", image_size="64")
    assert isinstance(source, ConversationSource) and len(source) == 40
    here = [content(source, i) for i in range(6)]
    assert [content(source, i) for i in (5, 3)] == [here[5], here[3]]
    again = pickle.loads(pickle.dumps(source))  # noqa: S301  our own bytes
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(content, [(again, i) for i in range(6)]) == here
    assert not any(check(source[i]) for i in range(6))
    assert (
        open_task(f"tabletop-{kind}", None, seed="1").fingerprint != open_task(f"tabletop-{kind}").fingerprint
    )
    with pytest.raises(IndexError):
        source[40]


def content(source: ConversationSource, index: int) -> tuple[bytes, str, str]:
    conversation = source[index]
    (exchange,) = conversation.exchanges
    return conversation.images[0].tobytes(), exchange.question, exchange.answer  # type: ignore[union-attr]


def test_no_picture_is_both_trained_and_tested_on() -> None:
    for name in ("tabletop-bridgevqa", "tabletop-vqa-mix", "tabletop-pretraining"):
        train, test = (open_task(name, None, split=split, image_size="32") for split in ("train", "test"))
        pictures = [{content(source, i)[0] for i in range(60)} for source in (train, test)]
        assert not pictures[0] & pictures[1] and len(pictures[0]) == len(pictures[1]) == 60
        assert train.fingerprint != test.fingerprint


def test_the_mixture_keeps_the_papers_proportions() -> None:
    source = open_task("tabletop-vqa-mix", None, image_size="32")
    tasks = Counter(source[i].task for i in range(98))
    assert abs(tasks["tabletop-general"] - 36) <= 1  # 360 to 620 thousand


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean 'robopoint'"):
        TabletopSpatial(kind="robopont")
    with pytest.raises(RecipeError, match="split"):
        open_task("tabletop-vica", None, split="validation")
    with pytest.raises(RecipeError, match="name no folder"):
        open_task("tabletop-vica", Path("here"))
    with pytest.raises(RecipeError, match="at least one scene"):
        open_task("tabletop-vica", None, scenes="0")


def test_paths_in_pixels_are_those_of_the_paper() -> None:
    numbers = [
        open_task("tabletop-robobrain2", None, normalized=value, image_size="64")
        for value in ("true", "false")
    ]
    paths = [i for i in range(10) if numbers[0][i].exchanges[0].measure == "trajectory"]
    assert paths
    for index in paths:
        shares, pixels = (json.loads(source[index].exchanges[0].answer) for source in numbers)
        assert np.allclose(np.array(shares) * 64, pixels, atol=0.04)
        assert numbers[1][index].exchanges[0].measure == "text"


CUP = Thing("red cup", (0.1, 0.1, 0.3, 0.3), depth=1.0, position=np.zeros(3), width=0.08)
MUG = Thing("mug", (0.5, 0.11, 0.7, 0.31), depth=1.05, position=np.array([0.3, 0.4, 0.0]), width=0.085)


def many(ask: spatial.Ask, *things: Thing) -> list[Exchange]:
    found = (ask(things, np.random.default_rng(seed)) for seed in range(40))
    return [exchange for exchange in found if exchange is not None]


def test_the_papers_wording() -> None:
    sides = many(spatial.which_side, CUP, MUG)
    assert {e.answer for e in sides} == {"Red cup is more to the left.", "Mug is more to the right."}
    assert any(e.question == "Who is positioned more to the left, the red cup or the mug?" for e in sides)
    (value,) = {e.answer for e in many(spatial.distance, CUP, MUG)}
    assert value == "0.50"
    assert many(spatial.count, CUP, replace(CUP, name="cup"))[0].answer == "2"


@pytest.mark.parametrize(
    ("ask", "things"),
    [
        (spatial.depth_order, (CUP, MUG)),  # 1.00 and 1.05 metres
        (spatial.width_order, (CUP, MUG)),
        (spatial.which_side, (CUP, replace(MUG, box=CUP.box))),
        (spatial.which_side, (CUP, replace(MUG, whole=False))),
        (spatial.which_side, (CUP, replace(MUG, name="red cup"))),
        (spatial.distance, (CUP, replace(MUG, name="red cup"))),
        (spatial.distance, (CUP, replace(MUG, position=CUP.position))),
        (spatial.distance, (CUP, replace(MUG, position=None))),
        (spatial.depth_order, (CUP, replace(MUG, depth=None))),
        (spatial.width, (replace(CUP, width=None),)),
        (spatial.point, (CUP, replace(CUP, depth=2.0))),
        (spatial.count, ()),
    ],
)
def test_what_is_unknown_or_disputable_is_not_asked(ask: spatial.Ask, things: tuple[Thing, ...]) -> None:
    assert many(ask, *things) == []


def test_one_item_beside_the_border_or_none() -> None:
    blank = np.zeros((50, 50, 3), dtype=np.uint8)

    def ask(*things: Thing) -> set[str]:
        found = (spatial.bordered(things, blank, np.random.default_rng(seed)) for seed in range(40))
        return {made[1].question.split("situated ")[1] for made in found if made is not None}

    third = replace(MUG, name="pot", box=(0.5, 0.35, 0.7, 0.55))
    assert ask(CUP, MUG) == {"to the right of the bordered item.", "to the left of the bordered item."}
    assert "to the right of the bordered item." not in ask(CUP, replace(third, box=(0.6, 0.3, 0.8, 0.5)), MUG)
    assert ask(CUP, replace(MUG, box=(0.0, 0.1, 0.9, 0.9))) == set()


def boxes(folder: Path, things: list[dict[str, Any]], **row: Any) -> Path:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (200, 100), (90, 120, 40)).save(folder / "a.png")
    depth = np.full((100, 200), 2000, dtype=np.uint16)
    depth[20:40, 20:60] = 1000
    depth[20:30, 20:60] = 0  # unknown there
    Image.fromarray(depth).save(folder / "a-depth.png")
    (folder / "boxes.json").write_text(json.dumps([{"image": "a.png", "things": things, **row}] * 3))
    return folder


NEAR = {"name": "red cup", "box": [20, 20, 60, 40]}
FAR = {"name": "blue cup", "box": [120, 50, 160, 90]}


def test_boxes_and_depths_give_questions(tmp_path: Path) -> None:
    folder = boxes(tmp_path, [NEAR, FAR], depth="a-depth.png", focal=100)
    source = open_task("boxes", folder, questions="30")
    assert not check(source[0]) and len(source) == 3
    near, far = np.array([(40 - 100) / 100, (30 - 50) / 100, 1]), np.array([0.4, 0.2, 1]) * 2
    said = {e.question.removeprefix(f"{IMAGE_MARK}\n"): e for i in range(3) for e in source[i].exchanges}
    expected: dict[str, str] = {
        "How wide is the red cup, in centimeters?": "40.0",
        "How wide is the blue cup, in centimeters?": "80.0",
        "How many cups are in the picture?": "2",
        "Which is wider, the red cup or the blue cup?": "Blue cup is wider.",
        "Which is closer to the camera, the blue cup or the red cup?": "Red cup is closer to the camera.",
        "Who is positioned lower in the picture, the red cup or the blue cup?": "Blue cup is lower in the picture.",
        "What is the direct distance between the centers of the red cup and the blue cup, in meters?": (
            f"{np.linalg.norm(near - far):.2f}"
        ),
    }
    assert {question: said[question].answer for question in expected} == expected
    for exchange in said.values():
        for x, y in points(exchange) if exchange.measure == "points" else ():
            left, top, right, bottom = (NEAR if "red" in exchange.question else FAR)["box"]
            assert left <= 200 * x <= right and top <= 100 * y <= bottom
    again = pickle.loads(pickle.dumps(source))  # noqa: S301  our own bytes
    assert [e.answer for e in again[2].exchanges] == [e.answer for e in source[2].exchanges]
    assert [e.question for e in source[0].exchanges] != [e.question for e in source[1].exchanges]


def test_boxes_alone_give_what_boxes_tell(tmp_path: Path) -> None:
    source = open_task("boxes", boxes(tmp_path, [NEAR, FAR]), questions="30")
    text = " ".join(e.question for i in range(3) for e in source[i].exchanges)
    assert "camera" not in text and "wide" not in text and "distance" not in text and "Who" in text
    assert source.fingerprint != open_task("boxes", tmp_path, seed="1").fingerprint


@pytest.mark.parametrize(
    ("things", "row", "said"),
    [
        ([{"name": "cup", "box": [20, 20, 260, 40]}], {}, "is not within 200 x 100 pixels"),
        ([{"name": "cup"}], {}, "no field 'box'"),
        ([NEAR], {"depth": "none.png"}, "is missing below"),
        ([NEAR], {"depth": "a.png"}, "is no 16-bit PNG"),
        ([], {}, "allow no question"),
    ],
)
def test_faulty_boxes_are_told_with_their_row(
    tmp_path: Path, things: list[dict[str, Any]], row: dict[str, Any], said: str
) -> None:
    source = open_task("boxes", boxes(tmp_path, things, **row))
    with pytest.raises(DataError, match=rf"boxes\.json, row 1.*{said}"):
        source[1]
    with pytest.raises(RecipeError, match="folder"):
        open_task("boxes")


def test_a_sheet_shows_questions_and_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    main(
        [
            "data",
            "questions",
            "tabletop-robobrain2",
            "--out",
            str(out),
            "--shown",
            "5",
            "--option",
            "image_size=64",
        ]
    )
    assert "10,000 conversations" in capsys.readouterr().out
    with Image.open(out) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[1] == 4 * 268 + 12 and (pixels == (255, 0, 255)).all(axis=-1).any()
    main(["data", "questions", "boxes", str(boxes(tmp_path, [NEAR, FAR])), "--out", str(out), "--json"])
    assert json.loads(capsys.readouterr().out)["conversations"] == 3
    main(["data", "questions"])
    assert "tabletop-vqa-mix" in capsys.readouterr().out
