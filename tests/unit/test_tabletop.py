"""Tabletop: the expert, predicates, looks, pictures, chains, and that demonstrations are pure functions."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from vlm4vla.benchmarks.tabletop.benchmark import Tabletop, TabletopChain, TabletopEnvironment
from vlm4vla.benchmarks.tabletop.generate import GENERATION, generate_demonstrations
from vlm4vla.benchmarks.tabletop.render import LOOKS, project
from vlm4vla.benchmarks.tabletop.scene import (
    BLOCK_HALF,
    BUTTON_TRAVEL,
    DRAWER_TRAVEL,
    PLATE_TOP,
    Scene,
    SceneState,
    random_layout,
)
from vlm4vla.benchmarks.tabletop.tasks import PHRASINGS, TASKS, TIERS, Assignment, fulfilled, tasks_named
from vlm4vla.core.errors import RecipeError, SimulatorError
from vlm4vla.core.interfaces import LazyEnvironment
from vlm4vla.core.recipes import DemonstrationRecipe
from vlm4vla.core.types import EpisodeSpec


@pytest.fixture(scope="module")
def environment() -> TabletopEnvironment:
    return TabletopEnvironment(image_size=8)


def play(environment: TabletopEnvironment, episode: EpisodeSpec) -> int:
    """Goals that the expert completes."""
    environment.reset(episode)
    completed = 0
    for _ in range(episode.max_steps_per_goal * len(episode.goals)):
        completed = environment.advance(environment.expert())
        if completed == len(episode.goals):
            break
    return completed


@pytest.mark.parametrize("look", ["A", "D"])
def test_the_expert_reaches_every_goal(environment: TabletopEnvironment, look: str) -> None:
    for episode in Tabletop(look=look, episodes_per_task=3).episodes():
        assert play(environment, episode) == 1, episode.id


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("task", TASKS)
def test_the_expert_reaches_99_of_100(environment: TabletopEnvironment, task: str) -> None:
    episodes = Tabletop(tasks=[task], episodes_per_task=100, seed=77).episodes()
    assert sum(play(environment, episode) for episode in episodes) >= 99


def test_doing_nothing_reaches_nothing(environment: TabletopEnvironment) -> None:
    still = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
    for episode in Tabletop(episodes_per_task=1).episodes():
        environment.reset(episode)
        assert max(environment.advance(still) for _ in range(episode.max_steps_per_goal)) == 0, episode.id


def test_nine_tasks_in_three_tiers() -> None:
    assert list(TIERS) == ["fixed-target", "single-block", "two-object"]
    assert len(TASKS) == 9
    assert all(len(set(PHRASINGS[task])) >= 3 for task in TASKS)
    assert tasks_named(["two-object", "press"]) == ("press", "place", "stack")
    with pytest.raises(RecipeError, match="lift"):
        tasks_named(["lifft"])


def test_more_episodes_begin_with_the_same_ones() -> None:
    few, many = Tabletop(episodes_per_task=2).episodes(), Tabletop(episodes_per_task=4).episodes()
    assert [spec for spec in many if int(spec.id[-4:]) < 2] == list(few)
    assert len({spec.id for spec in many}) == len(many) == 36
    assert {goal.instruction for spec in Tabletop(episodes_per_task=20).episodes() for goal in spec.goals} > {
        "press the button"
    }


def test_another_benchmarks_episode_is_refused(environment: TabletopEnvironment) -> None:
    episode = Tabletop(episodes_per_task=1).episodes()[0]
    with pytest.raises(SimulatorError, match="is no Tabletop episode"):
        environment.reset(replace(episode, setup={"seed": 1}))


def state(**changed: object) -> SceneState:
    block, other = np.array([0.0, 0.0, BLOCK_HALF]), np.array([0.1, 0.0, BLOCK_HALF])
    values = {
        "gripper": np.array([0.0, -0.1, 0.1]),
        "tilt_and_yaw": np.zeros(3),
        "gap": 0.08,
        "blocks": {"red": block, "blue": other},
        "held": None,
        "plate": np.array([-0.1, -0.1]),
        "drawer": 0.0,
        "button": 0.0,
    }
    return SceneState(**(values | changed))  # type: ignore[arg-type]


def moved(*place: float) -> dict[str, object]:
    return {"blocks": {"red": np.array(place), "blue": np.array([0.1, 0.0, BLOCK_HALF])}}


ON_TABLE, ON_PLATE, ON_BLOCK = BLOCK_HALF, BLOCK_HALF + PLATE_TOP, 3 * BLOCK_HALF
OPENED = DRAWER_TRAVEL * 0.9


@pytest.mark.parametrize(
    ("task", "start", "yes", "no"),
    [
        ("press", {}, {"button": BUTTON_TRAVEL * 0.9}, {"button": BUTTON_TRAVEL * 0.2}),
        ("open", {}, {"drawer": OPENED}, {"drawer": DRAWER_TRAVEL * 0.5}),
        ("close", {"drawer": OPENED}, {"drawer": 0.0}, {"drawer": DRAWER_TRAVEL * 0.5}),
        ("reach", {}, {"gripper": np.array([0, 0.01, 0.04])}, {"gripper": np.array([0, 0.01, 0.09])}),
        ("lift", {}, {**moved(0, 0, 0.1), "held": "red"}, moved(0, 0, 0.1)),
        ("push_left", {}, moved(-0.06, 0, ON_TABLE), moved(0.06, 0, ON_TABLE)),
        ("push_right", {}, moved(0.06, 0, ON_TABLE), moved(0.06, 0, 0.1)),
        ("place", {}, moved(-0.1, -0.09, ON_PLATE), {**moved(-0.1, -0.09, ON_PLATE), "held": "red"}),
        ("stack", {}, moved(0.1, 0.005, ON_BLOCK), moved(0.1, 0.04, ON_BLOCK)),
    ],
)
def test_predicates(
    task: str, start: dict[str, object], yes: dict[str, object], no: dict[str, object]
) -> None:
    assignment = Assignment(task=task, blocks=() if task in TIERS["fixed-target"] else ("red", "blue"))
    begin = state(**start)
    assert fulfilled(assignment, begin, state(**yes))
    assert not fulfilled(assignment, begin, state(**no))
    assert not fulfilled(assignment, begin, begin)


def test_pictures_are_the_same_everywhere() -> None:
    """The default renderer's promise. Another MuJoCo may change it: then every score changes with it."""
    environment = TabletopEnvironment(image_size=32)
    digest = hashlib.sha256()
    for episode in Tabletop(look="A", episodes_per_task=1, image_size=32).episodes():
        digest.update(environment.reset(episode).image.tobytes())
        for _ in range(4):
            digest.update(environment.step(environment.expert()).observation.image.tobytes())
    assert digest.hexdigest()[:16] == GOLDEN_PICTURES


GOLDEN_PICTURES = "e9b3c44257dc9571"


def test_nobody_renders_between_predictions(environment: TabletopEnvironment) -> None:
    assert isinstance(environment, LazyEnvironment)


def test_looks_change_colours_and_nothing_else() -> None:
    environment = TabletopEnvironment(image_size=48)
    pictures, things = {}, {}
    for look in LOOKS:
        episode = Tabletop(look=look, tasks=["stack"], episodes_per_task=1, image_size=48).episodes()[0]
        pictures[look] = environment.reset(episode).image.astype(int)
        things[look] = environment.renderer.segmentation()
    table = things["A"] == next(
        geom for geom in np.unique(things["A"]) if environment.renderer.geom_name(int(geom)) == "table"
    )
    for look in "BCD":
        assert np.array_equal(things[look], things["A"])
        assert np.abs(pictures[look] - pictures["A"])[table].mean() > 10
    colors = {name: LOOKS[name].table for name in LOOKS}
    assert len(set(colors.values())) == 4


def test_segmentation_stands_where_ground_truth_projects() -> None:
    environment = TabletopEnvironment(image_size=96)
    scene = environment.scene
    for episode in Tabletop(tasks=["lift"], episodes_per_task=4, image_size=96).episodes():
        environment.reset(episode)
        shown = environment.renderer.segmentation()
        for color, position in scene.state().blocks.items():
            geom = scene.model.geom(color).id
            rows, columns = np.nonzero(shown == geom)
            if len(rows) > 40:
                centre = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) / 96
                assert np.abs(centre - project(position)).max() < 0.035


def test_the_disc_lies_on_what_is_below_the_gripper(environment: TabletopEnvironment) -> None:
    """On the table, on a block, and below a block that is held."""
    scene = environment.scene
    disc = scene.model.body("disc").mocapid[0]
    for episode in Tabletop(look="A", tasks=["lift"], episodes_per_task=3).episodes():
        environment.reset(episode)
        heights, held = [], []
        for _ in range(40):
            heights.append(float(scene.data.mocap_pos[disc][2]))
            held.append(scene.state().held is not None)
            if environment.advance(environment.expert()):
                break
        assert any(abs(height - 2 * BLOCK_HALF) < 0.003 for height in heights)
        assert all(height < 0.01 for height, grasped in zip(heights, held, strict=True) if grasped)


def test_blocks_rest_and_stay_apart() -> None:
    scene, rng = Scene(), np.random.default_rng(0)
    for _ in range(20):
        scene.reset(random_layout(rng))
        before = scene.state()
        for _ in range(5):
            scene.step(np.array([0, 0, 1, 0, 0, 0, 1], np.float32))
        after = scene.state()
        assert len(before.blocks) == 3
        for color, place in before.blocks.items():
            assert abs(place[2] - BLOCK_HALF) < 0.002
            assert np.abs(after.blocks[color] - place).max() < 0.002


def test_chains_are_five_goals_that_the_expert_reaches(environment: TabletopEnvironment) -> None:
    for episode in TabletopChain(episodes=3).episodes():
        assert len(episode.goals) == 5
        assert play(environment, episode) == 5, episode.id


def test_demonstrations_depend_on_the_recipe_alone() -> None:
    recipe = DemonstrationRecipe(episodes=30, image_size=16)
    alone = list(generate_demonstrations(recipe))
    for other in (list(generate_demonstrations(recipe, processes=2)), list(generate_demonstrations(recipe))):
        assert [demo.id for demo in other] == [demo.id for demo in alone]
        for first, second in zip(alone, other, strict=True):
            assert first.instruction == second.instruction
            assert np.array_equal(first.actions, second.actions)
            assert np.array_equal(np.stack(first.images), np.stack(second.images))
    assert Counter(demo.task for demo in alone).most_common()[-1][1] >= 3
    assert {demo.facts["look"] for demo in alone} == {"A", "B", "C"}
    for demo in alone:
        assert demo.actions.dtype == np.float32
        assert demo.actions.shape == (len(demo.images), 7)
        assert np.abs(demo.actions).max() <= 1
    changed = next(generate_demonstrations(replace(recipe, seed=1)))
    assert not np.array_equal(changed.images[0], alone[0].images[0])


def test_demonstrations_are_those_of_their_generation() -> None:
    """Whoever changes what is demonstrated or drawn also counts GENERATION up, and this digest changes with it."""
    digest = hashlib.sha256(str(GENERATION).encode())
    for demonstration in generate_demonstrations(DemonstrationRecipe(episodes=9, image_size=16, seed=3)):
        digest.update(demonstration.instruction.encode() + demonstration.actions.tobytes())
        for image in demonstration.images:
            digest.update(image.tobytes())
    assert digest.hexdigest()[:16] == GOLDEN_DEMONSTRATIONS


GOLDEN_DEMONSTRATIONS = "bab5f8af070adbf5"
