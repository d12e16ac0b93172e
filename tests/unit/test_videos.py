"""Which videos the page shows, and what it makes of them."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from run_folders import make_trial, write_json, write_trial, write_video

from vlm4vla.core.recipes import EvaluationRecipe
from vlm4vla.reports.records import EvaluationRecord, TrialRecord, collect
from vlm4vla.reports.videos import choose, rollouts

SMALL = (EvaluationRecipe(look="A", episodes_per_task=1, execute=3),)


def recorded(out: Path, outcomes: dict[str, dict[str, bool]]) -> list[tuple[TrialRecord, EvaluationRecord]]:
    """Trials by backbone, with a video of each named episode."""
    for backbone, episodes in outcomes.items():
        folder = write_trial(out, make_trial(backbone, evaluations=SMALL), skill=0.5)
        videos = next(folder.glob("evaluations/*")) / "videos"
        for episode, success in episodes.items():
            write_video(videos / f"{episode}.mp4", success=success, seed=1, size=48, frames=4)
        entry = {"task": "lift", "instruction": "pick up the red block"}
        write_json(
            videos / "videos.json",
            [{**entry, "episode": e, "success": s, "file": f"{e}.mp4"} for e, s in episodes.items()],
        )
    return [(record, evaluation) for record in collect(out) for evaluation in record.evaluations]


def content(uri: str, kind: str) -> bytes:
    assert uri.startswith(f"data:{kind};base64,")
    return base64.b64decode(uri.partition(",")[2])


def test_a_clip_is_the_file_and_a_picture_of_its_end(tmp_path: Path) -> None:
    entries = recorded(tmp_path, {"a": {"0": True}})
    ((clip,),) = choose(entries, episodes=3, characters=10**7)
    assert content(clip.source, "video/mp4") == clip.video.path.read_bytes()
    poster = np.asarray(Image.open(io.BytesIO(content(clip.poster, "image/jpeg"))), dtype=np.int64)
    with av.open(str(clip.video.path)) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(np.int64) for frame in container.decode(video=0)]
    distances = [np.abs(frame - poster).mean() for frame in frames]
    assert int(np.argmin(distances)) == len(frames) - 1


def test_differing_outcomes_come_first_then_what_is_new(tmp_path: Path) -> None:
    entries = recorded(
        tmp_path,
        {
            "a": {"0": False, "1": True, "2": True},
            "b": {"0": False, "1": False, "2": True},
        },
    )
    shown = choose(entries, episodes=3, characters=10**7)
    assert [[(c.video.episode, c.video.success) for c in clips] for clips in shown] == [
        [("1", True), ("1", False)],
        [("0", False), ("0", False)],
        [("2", True), ("2", True)],
    ]
    assert choose(entries, episodes=1, characters=10**7) == shown[:1]


def test_the_budget_holds(tmp_path: Path) -> None:
    entries = recorded(tmp_path, {"a": {str(n): True for n in range(4)}})
    sizes = [clip.size for clips in choose(entries, episodes=4, characters=10**7) for clip in clips]
    assert len(sizes) == 4
    budget = sizes[0] + sizes[1]
    shown = choose(entries, episodes=4, characters=budget)
    assert sum(clip.size for clips in shown for clip in clips) <= budget
    assert len(shown) == 2
    assert choose(entries, episodes=4, characters=10) == []


def test_four_at_most_are_side_by_side_and_both_outcomes_among_them(tmp_path: Path) -> None:
    entries = recorded(tmp_path, {name: {"0": name == "f", "1": True} for name in "abcdef"})
    first, second = choose(entries, episodes=2, characters=10**7)
    assert [c.video.success for c in first] == [False, False, False, True], "where they differ comes first"
    assert len(second) == 4 and {"d", "e"} <= {c.record.backbone for c in second}, "then who was not seen"
    sizes = sorted(clip.size for clip in first)
    (pair,) = choose(entries, episodes=1, characters=sizes[-1] + sizes[-2])
    assert [c.video.success for c in pair] == [False, True]
    assert choose(entries, episodes=1, characters=sizes[0]) == [], "one alone is not side by side"


def test_of_a_studys_row_the_first_trial_is_shown(tmp_path: Path) -> None:
    recorded(tmp_path, {"a": {"0": True}, "b": {"0": True}, "c": {"0": False}})
    records = collect(tmp_path)
    rows = {r.fingerprint: "the last row" if r.backbone == "a" else "the first row" for r in records[::-1]}
    shown = str(rollouts(records, rows))
    assert re.findall(r"the (?:first|last) row, pick up the red block: \w+", shown) == [
        "the first row, pick up the red block: success",
        "the last row, pick up the red block: success",
    ]


@pytest.mark.parametrize("damage", ["cut", "text", "codec"])
def test_a_video_that_cannot_play_says_why(tmp_path: Path, damage: str) -> None:
    entries = recorded(tmp_path, {"a": {"0": True}})
    path = entries[0][1].videos[0].path
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "text":
        path.write_text("no video")
    else:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            for packet in [*stream.encode(av.VideoFrame(32, 32, "yuv420p")), *stream.encode()]:
                container.mux(packet)
    ((clip,),) = choose(entries, episodes=1, characters=10**7)
    assert clip.source == ""
    assert clip.problem.startswith("0.mp4 cannot be shown: ")
    if damage == "codec":
        assert "browsers do not play mpeg4" in clip.problem
