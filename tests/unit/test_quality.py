import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import formats_calvin as calvin
import numpy as np
import pytest

from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import DataError
from vlm4vla.core.types import Demonstration
from vlm4vla.demonstrations.calvin import CalvinSource
from vlm4vla.demonstrations.packed import write_packed
from vlm4vla.demonstrations.quality import KINDS, Report, examine
from vlm4vla.demonstrations.recordings import Recording

CONTROLLER = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="controller")
METRES = replace(CONTROLLER, unit="metres_radians")


def recording(index: int, **changes: Any) -> Recording:
    rng = np.random.default_rng(index)
    made = Recording(
        id=f"e{index}",
        instruction="push the block",
        images=[rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(6)],
        actions=np.append(rng.uniform(-1, 1, (6, 6)), rng.choice([-1.0, 1.0], (6, 1)), axis=1),
        facts={"file": f"{index}.npz"},
    )
    return replace(made, **changes)


@dataclass
class Made:
    """A reader of recordings in memory; a callable stands for what happens when it is asked for."""

    recordings: Sequence[Recording | Callable[[], Recording]]
    missing: Mapping[str, int] = field(default_factory=dict)
    name: str = "made"
    fingerprint: str = "f"

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> Recording:
        found = self.recordings[index]
        return found if isinstance(found, Recording) else found()


def test_whole_files_have_no_faults(tmp_path: Path) -> None:
    source = CalvinSource(calvin.write_calvin(tmp_path / "training"))
    calls: list[tuple[int, int]] = []
    report = examine(source, decode="all", progress=lambda done, of: calls.append((done, of)))
    assert report == Report(name="calvin/training", episodes=2, steps=24, frames=24, counts={}, examples=())
    assert calls == [(1, 2), (2, 2)]
    assert list(report.lines()) == [
        "calvin/training: 2 episodes, 24 steps, 24 frames looked at: errors 0, warnings 0"
    ]
    assert [examine(source, decode=how).frames for how in ("none", "sample")] == [0, 6]


def test_damaged_files_are_found_where_they_are(tmp_path: Path) -> None:
    spans = [(100, 110, "push", "a"), (110, 120, "pull", "b"), (120, 130, " ", "c"), (125, 140, "lift", "d")]
    nan = calvin.frame(112)["rel_actions"]
    nan[3] = np.nan
    changes = {
        112: {"rel_actions": nan},
        129: {"rgb_static": np.zeros((200, 200, 4), np.uint8)},
        115: {"rgb_static": np.zeros((200, 200, 3), np.uint8)},
    }
    folder = calvin.write_calvin(tmp_path / "training", spans, changes=changes)
    (folder / "episode_0000135.npz").unlink()
    (folder / "episode_0000104.npz").write_bytes(b"PK")
    report = examine(CalvinSource(folder), decode="sample", bound=0.5)
    assert report.counts == {
        "unreadable": 1,
        "undecodable": 1,
        "not finite": 1,
        "beyond bound": 2,
        "no instruction": 1,
        "black": 1,
        "missing": 2,
    }
    assert (report.total("error"), report.total("warning")) == (3, 6)
    by_kind = {finding.kind: finding for finding in report.examples}
    assert "episode_0000104.npz" in by_kind["unreadable"].what
    assert by_kind["not finite"].where == "calvin/training, episode 0000110-0000120"
    assert by_kind["not finite"].what == "the action of 1 steps is not finite, first of step 2"
    assert "episode_0000129.npz: rgb_static is uint8 (200, 200, 4)" in by_kind["undecodable"].what
    assert by_kind["black"].what == "1 of 3 frames looked at are black, the first is frame 5"
    text = "\n".join(report.lines())
    assert "error: not finite (1): leave the episode out" in text
    assert all(finding.where in text and finding.remedy in text for finding in report.examples)


def damaged() -> Recording:
    raise DataError("made.h5: cut short")


def black(count: int = 6) -> list[np.ndarray]:
    return [np.full((8, 8, 3), 5, np.uint8)] * count


@pytest.mark.parametrize(
    ("odd", "kind", "where", "what"),
    [
        (damaged, "unreadable", "made, episode 1", "made.h5: cut short"),
        (
            recording(1, actions=np.zeros((6, 8))),
            "width",
            "1.npz, episode e1",
            "8 numbers a step instead of 7",
        ),
        (recording(1, images=black(2)), "frames", "1.npz, episode e1", "2 frames and 6 actions"),
        (recording(0), "duplicate id", "0.npz, episode e0", "another episode before it has this id"),
        (recording(1, instruction=" \n"), "no instruction", "1.npz, episode e1", "the instruction is empty"),
        (recording(1, actions=np.full((6, 7), np.inf)), "not finite", "1.npz, episode e1", "of 6 steps"),
        (
            recording(1, state=np.full((6, 3), np.nan)),
            "not finite",
            "1.npz, episode e1",
            "the state of 6 steps",
        ),
        (
            recording(1, actions=np.full((6, 7), 3.2)),
            "beyond bound",
            "1.npz, episode e1",
            "x reaches 3.2, beyond 1",
        ),
        (recording(1, images=black()), "black", "1.npz, episode e1", "3 of 3 frames looked at are black"),
        (
            recording(1, images=[np.full((8, 8, 3), 90, np.uint8)] * 6),
            "frozen camera",
            "1.npz, episode e1",
            "all 3 frames looked at are equal",
        ),
        (
            recording(1, images=[np.full((9, 8, 3), 90 + i, np.uint8) for i in range(6)]),
            "image size",
            "1.npz, episode e1",
            "frames of 9 x 8 pixels; the first was 8 x 8",
        ),
    ],
)
def test_each_fault_is_named(odd: Any, kind: str, where: str, what: str) -> None:
    report = examine(Made([recording(0), odd]), bound=1.0)
    finding = next(finding for finding in report.examples if finding.kind == kind)
    assert finding.where == where
    assert what in finding.what
    assert (finding.severity, finding.remedy) == KINDS[kind]


def test_short_and_empty_episodes() -> None:
    empty = recording(1, images=[], actions=np.empty((0, 7)))
    single = recording(2, images=black(1), actions=np.ones((1, 7)))
    report = examine(Made([empty, single]), decode="all")
    assert report.counts == {"short": 2, "black": 1}
    assert examine(Made([])).counts == {"no episodes": 1}


def test_what_never_changes_is_told_once_for_the_whole() -> None:
    def still(index: int) -> Recording:
        made = recording(index)
        actions = np.array(made.actions)
        actions[:, [2, 6]] = 0.25, 1.0
        return replace(made, actions=actions)

    report = examine(Made([still(0), still(1)]), decode="none")
    assert [(finding.kind, finding.what) for finding in report.examples] == [
        ("constant dimension", "z is 0.25 in every step"),
        ("gripper still", "gripper is 1 in every step"),
    ]
    moving = examine(Made([still(0), recording(1)]), decode="none")
    assert moving.counts == {}


def test_the_convention_of_demonstrations_tells_how_large_is_too_large(tmp_path: Path) -> None:
    def demonstration(index: int) -> Demonstration:
        made = recording(index)
        actions = made.actions.astype(np.float32)
        actions[2, 5] = 2.5
        return Demonstration(
            id=made.id, instruction="push", task="push", images=made.images, actions=actions, facts=made.facts
        )

    def report(spec: ActionSpec, bound: float | None = None) -> Report:
        folder = tmp_path / f"{spec.unit}"
        made = map(demonstration, range(3))
        return examine(write_packed(made, folder, name="p", action_spec=spec, fingerprint="f"), bound=bound)

    assert report(METRES).counts == {}
    assert report(CONTROLLER).counts == {"beyond bound": 3}
    assert report(METRES, 2.0).examples[0].what == "rotation 3 reaches 2.5, beyond 2"


def test_a_stretch_of_bad_frames_is_one_finding() -> None:
    good = recording(0).images
    report = examine(Made([recording(0, images=[*good[:2], *black(3), good[5]])]), decode="all")
    assert [finding.what for finding in report.examples] == [
        "3 of 6 frames looked at are black, the first is frame 2"
    ]


def test_memory_does_not_grow_with_the_faults() -> None:
    class Many(Made):
        def __len__(self) -> int:
            return 3000

        def __getitem__(self, index: int) -> Recording:
            return recording(index, instruction="")

    tracemalloc.start()
    report = examine(Many([]), examples=2)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.counts == {"no instruction": 3000}
    assert len(report.examples) == 2
    assert list(report.lines())[-1] == "    ... and 2,998 more"
    assert used < 3_000_000
