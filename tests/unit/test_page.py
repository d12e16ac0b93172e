"""The page: complete, self-contained, bounded, and proof against what files may say."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from run_folders import (
    chain_result,
    episode_result,
    make_trial,
    write_json,
    write_lines,
    write_study,
    write_trial,
    write_video,
)

from vlm4vla.core.errors import RunError
from vlm4vla.core.recipes import EvaluationRecipe, PolicyRecipe
from vlm4vla.reports import videos
from vlm4vla.reports.account import duration, total_seconds
from vlm4vla.reports.page import page, write_report
from vlm4vla.reports.records import collect

VOID = {"meta", "link", "img", "br"}
HOSTILE = """</title></script><script>alert(1)</script>"><img src=x onerror='alert(2)'> & "quotes" """


class Reader(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def assert_self_contained(reader: Reader, text: str) -> None:
    for _, attributes in reader.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "poster", "action", "srcset", "data"):
                assert value is not None
                assert value.startswith(("data:", "#"))
    assert reader.count("script") == reader.count("style") == 1
    assert not re.search(r"url\((?!\"data:)", text)
    assert "@import" not in text


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    write_study(out, episodes_per_task=4)
    return out


def test_the_report_and_its_files_are_written_whole(study: Path) -> None:
    path = write_report(study, title="A study")
    assert path == study / "report.html"
    assert sorted(p.name for p in study.iterdir()) == ["report.html", "results.csv", "results.json", "trials"]
    assert len(json.loads((study / "results.json").read_text())) == 1 + 5 * 13


def test_the_page_says_what_was_measured(study: Path) -> None:
    text = page(collect(study), title="A study")
    reader = Reader(text)
    assert_self_contained(reader, text)
    assert "the best of 4 trained policies, tiny-qwen3-vl, pretrained , solved" in reader.text
    assert "the random policy solved" in reader.text
    assert "These results are incomplete" in reader.text
    assert "2 of 36 episodes broke" in reader.text
    assert "trained once, with one seed" in reader.text
    assert "Pretrained against random weights" in reader.text
    assert "clip_norm" in reader.text
    assert "1f8c327d0a9b" in reader.text
    anchors = {a["id"] for _, a in reader.tags if "id" in a}
    links = [(a["href"] or "")[1:] for tag, a in reader.tags if tag == "a"]
    assert set(links) <= anchors
    assert len(links) > 5


def test_every_rate_in_the_page_is_one_of_results_json(study: Path) -> None:
    write_report(study, title="A study")
    rows = json.loads((study / "results.json").read_text())
    reader = Reader((study / "report.html").read_text())
    sorts = [a["data-sort"] for _, a in reader.tags if a.get("class") == "rate"]
    assert sorted(sorts) == sorted(f"{row['rate']:.6f}" for row in rows if row["rate"] is not None)


def test_the_same_folder_gives_the_same_page(study: Path) -> None:
    assert page(collect(study), title="t") == page(collect(study), title="t")


def test_nothing_from_a_file_becomes_markup(tmp_path: Path) -> None:
    recipe = EvaluationRecipe(benchmark=HOSTILE, look=HOSTILE, episodes_per_task=1)
    policy = PolicyRecipe(backbone=HOSTILE)
    trial = make_trial("x", name=HOSTILE, policy=policy, evaluations=(recipe,))
    folder = write_trial(tmp_path, trial, skill=0.5, state="failed", error=HOSTILE)
    random_arm = replace(trial, policy=replace(policy, weights="random"))
    write_trial(tmp_path, random_arm, skill=0.5)
    write_json(folder / "provenance.json", {HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE]}})
    where = next(folder.glob("evaluations/*"))
    result = episode_result("e", HOSTILE, HOSTILE, success=True)
    write_lines(
        where / "episodes.jsonl", [asdict(result), asdict(replace(result, episode="f", error=HOSTILE))]
    )
    write_video(where / "videos" / "v.mp4", success=True, seed=0, size=48, frames=2)
    (where / "videos" / "<b>.mp4").write_text("no video")
    video = {"episode": "e", "task": HOSTILE, "instruction": HOSTILE, "success": True, "file": "v.mp4"}
    write_json(where / "videos" / "videos.json", [video, {**video, "episode": "f", "file": "<b>.mp4"}])
    text = page(collect(tmp_path), title=HOSTILE)
    reader = Reader(text)
    assert_self_contained(reader, text)
    assert reader.count("img") == 0
    assert reader.count("b") == text.count("<b>")
    assert reader.count("title") > 1
    assert " ".join(HOSTILE.split()) in reader.text
    assert "<b>.mp4 cannot be shown" in reader.text


def test_videos_are_in_the_page_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = make_trial("tiny-qwen3-vl", evaluations=(EvaluationRecipe(look="A", episodes_per_task=1),))
    write_trial(tmp_path, trial, skill=0.5, videos=1)
    records = collect(tmp_path)
    reader = Reader(page(records, title="t"))
    clips = [a for tag, a in reader.tags if tag == "video"]
    assert len(clips) == 6
    assert all((clip["src"] or "").startswith("data:video/mp4;base64,") for clip in clips)
    assert all((clip["poster"] or "").startswith("data:image/jpeg;base64,") for clip in clips)
    monkeypatch.setattr(videos, "CHARACTERS", 100)
    assert "too large to be put into this page" in Reader(page(records, title="t")).text


def test_chains_have_their_own_table(tmp_path: Path) -> None:
    recipe = EvaluationRecipe(benchmark="tabletop-chain", look="A", episodes_per_task=6)
    folder = write_trial(tmp_path, make_trial("tiny-qwen3-vl", evaluations=(recipe,)), skill=0.9)
    write_lines(
        next(folder.glob("evaluations/*/episodes.jsonl")), [asdict(chain_result(n)) for n in range(6)]
    )
    reader = Reader(page(collect(tmp_path), title="t"))
    assert "Chains of goals" in reader.text
    assert "5 in a row" in reader.text
    assert "incomplete" not in reader.text.lower()


def test_nothing_scored_concludes_nothing(tmp_path: Path) -> None:
    folder = write_trial(tmp_path, make_trial("tiny-qwen3-vl"), skill=None, state="running", steps=100)
    (folder / "trial.json").write_text("{")
    reader = Reader(page(collect(tmp_path), title="t"))
    assert "No trained policy has been scored yet" in reader.text
    assert "unreadable trial" in reader.text


def test_an_empty_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no trials here"):
        write_report(tmp_path, title="t")
    assert list(tmp_path.iterdir()) == []


def test_time_is_told_once(study: Path) -> None:
    assert (duration(None), duration(0.0), duration(3.21), duration(432), duration(7500)) == (
        "\N{EM DASH}",
        "\N{EM DASH}",
        "3.2 s",
        "7 min 12 s",
        "2 h 05 min",
    )
    assert total_seconds(collect(study)) == pytest.approx(184.2 + 5 * 431.7 + 6 * 96.4)
