"""Videos of rollouts: small H.264 files that every browser plays."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vlm4vla.benchmarks.records import safe_name
from vlm4vla.core.errors import RunError
from vlm4vla.core.types import EpisodeResult, EpisodeSpec

FRAMES_PER_SECOND = 10
_SMALLEST_SIDE = 192
"""Pixels; smaller videos play as stamps, and browsers blur what they enlarge."""


def video_path(folder: Path, episode: str) -> Path:
    """Where an episode's video lies: its id, or a safe form of it that no other id has."""
    return folder / "videos" / f"{safe_name(episode)}.mp4"


def write_video(path: Path, frames: UInt8[np.ndarray, "frames height width 3"]) -> None:
    """Write the frames. Raises: RunError when the file cannot be written."""
    import av  # takes a moment to load, and most evaluations record nothing

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    first = enlarge(frames[0])
    try:
        with av.open(str(partial), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"crf": "23"})
            stream.height, stream.width = first.shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1
            for image in frames:
                frame = av.VideoFrame.from_ndarray(enlarge(image), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        partial.replace(path)
    except (OSError, av.error.FFmpegError) as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"{path}: the video cannot be written: {error}") from error


def enlarge(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "larger_height larger_width 3"]:
    """A whole multiple in size, at least 192 pixels a side, and even as yuv420p demands (the edge is repeated)."""
    factor = math.ceil(_SMALLEST_SIDE / min(image.shape[:2]))
    large = image.repeat(factor, axis=0).repeat(factor, axis=1)
    odd = [side % 2 for side in large.shape[:2]]
    return np.pad(large, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge") if any(odd) else large


def write_index(folder: Path, episodes: Iterable[EpisodeSpec], results: Iterable[EpisodeResult]) -> None:
    """Write videos/videos.json: a row for each of the episodes that has both a result and a video."""
    by_id = {result.episode: result for result in results if result.error is None}
    rows = [
        {
            "episode": episode.id,
            "task": by_id[episode.id].task,
            "instruction": ", then ".join(goal.instruction for goal in episode.goals),
            "success": by_id[episode.id].success,
            "file": video_path(folder, episode.id).name,
        }
        for episode in episodes
        if episode.id in by_id and video_path(folder, episode.id).exists()
    ]
    if rows:
        index = folder / "videos" / "videos.json"
        partial = index.with_suffix(".part")
        partial.write_text(json.dumps(rows, indent=1) + "\n")
        partial.replace(index)
