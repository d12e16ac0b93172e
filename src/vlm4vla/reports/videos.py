"""Rollout videos inside the page: which episodes to show, and the files as data: URIs with a still picture each."""

from __future__ import annotations

import base64
import io
import itertools
from collections import deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from vlm4vla.reports import figures
from vlm4vla.reports.figures import Mark, plain_words
from vlm4vla.reports.markup import Html, element, section
from vlm4vla.reports.records import EvaluationRecord, TrialRecord, Video
from vlm4vla.reports.results import labels, setting_labels, settings

PLAYABLE = frozenset({"h264", "vp8", "vp9", "av1"})
"""Codecs that browsers play."""
CHARACTERS = 1_500_000
"""What all videos together may add to the page, which is then below 2 MB."""
EPISODES_SHOWN = 6
CLIPS_SHOWN = 4
"""Of one episode, side by side."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One video ready for the page; `problem` instead when it cannot be shown."""

    record: TrialRecord
    video: Video
    source: str = ""
    """A data: URI."""
    poster: str = ""
    """A data: URI of its last frame, which shows how the episode ended."""
    problem: str = ""

    @property
    def size(self) -> int:
        """Characters it adds to the page."""
        return len(self.source) + len(self.poster)


def rollouts(records: Sequence[TrialRecord], rows: Mapping[str, str] | None = None) -> Html | None:
    """Videos, one episode per card, one clip per policy; of several trials of one of a study's `rows` the first's.

    `rows`: what each trial's row is called, by fingerprint, in their order.
    """
    names, looks = {**labels(records), **(rows or {})}, figures.marks(records)
    titles = setting_labels(settings(records))
    recorded = {
        recipe: entries for recipe, entries in settings(records).items() if any(e.videos for _, e in entries)
    }
    cards = []
    for recipe, entries in recorded.items():
        shown = choose(
            _first_of_each_row(entries, rows) if rows else entries,
            episodes=max(2, EPISODES_SHOWN // len(recorded)),
            characters=CHARACTERS // len(recorded),
        )
        for clips in shown:
            video = clips[0].video
            where = [plain_words(video.task), f" · {titles[recipe]}" if len(recorded) > 1 else None]
            head = element(
                "header",
                element("h3", video.instruction),
                element("small", *where),
            )
            figures_ = [_show(clip, names, looks) for clip in clips]
            cards.append(
                element("article", head, element("div", *figures_, class_="clips"), class_="card episode")
            )
    if not recorded:
        return None
    if not cards:
        cards.append(
            element("p", "The recorded videos are too large to be put into this page.", class_="card")
        )
    note = "The same initial state for every policy. Chosen to show each policy's successes and failures, not its rate."
    return section("rollouts", "Rollouts", note, *cards)


def choose(
    entries: Sequence[tuple[TrialRecord, EvaluationRecord]], *, episodes: int, characters: int
) -> list[list[Clip]]:
    """Episodes to show, each with clips of up to four policies that recorded it, within a budget of characters.

    Next comes always the episode that shows most that was not seen yet (a policy succeeding, a policy failing, a
    task), then one on which policies differ, then the one that most policies recorded, then the first by id. Where
    four clips are too large for what is left, fewer are shown, two at least if two policies recorded the episode.
    """
    by_episode: dict[str, list[tuple[TrialRecord, Video]]] = {}
    for record, evaluation in entries:
        for video in evaluation.videos:
            by_episode.setdefault(video.episode, []).append((record, video))
    seen: set[tuple[str, bool] | str] = set()
    chosen: list[list[Clip]] = []
    while by_episode and len(chosen) < episodes:
        beside = {episode: _beside(found, seen, CLIPS_SHOWN) for episode, found in by_episode.items()}
        shows: dict[str, set[tuple[str, bool] | str]] = {
            episode: {*((record.fingerprint, video.success) for record, video in found), found[0][1].task}
            for episode, found in beside.items()
        }
        mixed = {episode: len({video.success for _, video in found}) > 1 for episode, found in beside.items()}
        best = min(beside, key=lambda e: (-len(shows[e] - seen), not mixed[e], -len(by_episode[e]), e))
        found = by_episode.pop(best)
        for count in range(min(len(found), CLIPS_SHOWN), min(len(found), 2) - 1, -1):
            shown = _beside(found, seen, count)
            if sum(_least_size(video) for _, video in shown) > characters:
                continue  # without reading them: there may be hundreds
            clips = [_read(record, video) for record, video in shown]
            cost = sum(clip.size for clip in clips)
            if cost <= characters:
                characters -= cost
                seen |= {*((clip.record.fingerprint, clip.video.success) for clip in clips), found[0][1].task}
                chosen.append(clips)
                break
    return chosen


def _beside(
    found: Sequence[tuple[TrialRecord, Video]], seen: Set[tuple[str, bool] | str], count: int
) -> list[tuple[TrialRecord, Video]]:
    """At most `count` clips of an episode, successes and failures by turns, first what was not seen yet."""
    keys = [(record.fingerprint, video.success) for record, video in found]
    places = sorted(range(len(found)), key=lambda i: (keys[i] in seen, (keys[i][0], not keys[i][1]) in seen))
    sides = ([i for i in places if found[i][1].success is success] for success in (True, False))
    turns = [i for pair in itertools.zip_longest(*sides) for i in pair if i is not None]
    return [found[i] for i in sorted(turns[:count])]


def _first_of_each_row(
    entries: Sequence[tuple[TrialRecord, EvaluationRecord]], rows: Mapping[str, str]
) -> list[tuple[TrialRecord, EvaluationRecord]]:
    found: dict[str, tuple[TrialRecord, EvaluationRecord]] = {}
    for record, evaluation in entries:
        if evaluation.videos:
            found.setdefault(rows[record.fingerprint], (record, evaluation))
    return [found[row] for row in dict.fromkeys(rows.values()) if row in found]


def _least_size(video: Video) -> int:
    """In characters of the page; 0 for a file that is not there."""
    return video.path.stat().st_size * 4 // 3 if video.path.is_file() else 0


def _read(record: TrialRecord, video: Video) -> Clip:
    try:
        poster = _poster(video.path)
        source = _data_uri("video/mp4", video.path.read_bytes())
    except (OSError, ValueError) as error:  # PyAV's errors are of both kinds
        return Clip(record, video, problem=f"{video.path.name} cannot be shown: {error}")
    return Clip(record, video, source, poster)


def _show(clip: Clip, names: Mapping[str, str], looks: Mapping[str, Mark]) -> Html:
    key = clip.record.fingerprint
    word = "success" if clip.video.success else "failure"
    who = element("span", figures.swatch(looks[key]), names[key], class_="who")
    if clip.problem:
        return element("figure", element("p", clip.problem, class_="note"), element("figcaption", who))
    video = element(
        "video",
        src=clip.source,
        poster=clip.poster,
        controls=True,
        muted=True,
        playsinline=True,
        preload="metadata",
        aria_label=f"{names[key]}, {clip.video.instruction}: {word}",
    )
    return element(
        "figure",
        element("div", video, class_="frame"),
        element("figcaption", who, element("span", word, class_=f"outcome {word}")),
    )


def _poster(path: Path) -> str:
    import av  # here, so that a report without videos does not wait for them
    from PIL import Image

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it holds no pictures")
        codec = container.streams.video[0].codec_context.name
        if codec not in PLAYABLE:
            raise ValueError(f"browsers do not play {codec}; record it as h264")
        frames = deque(container.decode(video=0), maxlen=1)
    if not frames:
        raise ValueError("it holds no frame")
    picture = io.BytesIO()
    Image.fromarray(frames[0].to_ndarray(format="rgb24")).save(picture, "JPEG", quality=80)
    return _data_uri("image/jpeg", picture.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
