"""torchcodec and PyAV give the same pixels; where the first does not find a frame, the second does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from vlm4vla.core.errors import DataError
from vlm4vla.demonstrations import video_frames
from vlm4vla.demonstrations.video_frames import VideoFrames


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    video_frames._quick_decoder.cache_clear()
    yield
    video_frames._quick_decoder.cache_clear()


def film(path: Path, codec: str, width: int, height: int) -> VideoFrames:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    picture = picture.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for step in range(40):
            image = np.ascontiguousarray(np.roll(picture, step, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return VideoFrames(path, start=0.2, fps=30, count=34, where="film")


@pytest.mark.skipif(
    video_frames.torchcodec() is None, reason="torchcodec and an FFmpeg of the system are needed"
)
@pytest.mark.parametrize(
    ("codec", "width", "height"), [("libx264", 224, 224), ("libx264", 98, 50), ("libsvtav1", 96, 64)]
)
def test_torchcodec_gives_pyavs_pixels(codec: str, width: int, height: int, tmp_path: Path) -> None:
    frames = film(tmp_path / "film.mp4", codec, width, height)
    for index in np.random.default_rng(1).permutation(len(frames)).tolist():
        time = frames.start + index / frames.fps
        quick = video_frames._read_quickly(frames.path, time, 0.5 / frames.fps)
        assert quick is not None
        np.testing.assert_array_equal(quick, video_frames._read(frames.path, time, 0.5 / frames.fps))


class Wrong:
    """A decoder that is always a frame late, or breaks."""

    def __init__(self, path: str, **options: Any) -> None:
        if path.endswith("closed.mp4"):
            raise ValueError("no such stream")

    def get_frame_played_at(self, seconds: float) -> Any:
        if seconds > 1:
            raise RuntimeError("broken")
        return SimpleNamespace(pts_seconds=seconds + 0.1, data=None)


@pytest.mark.parametrize("name", ["open.mp4", "closed.mp4"])
def test_where_torchcodec_fails_pyav_decodes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = film(tmp_path / name, "libx264", 64, 48)
    expected = {index: video_frames._read(frames.path, 0.2 + index / 30, 1 / 60) for index in (30, 2)}
    monkeypatch.setattr(video_frames, "torchcodec", lambda: Wrong)
    for index, image in expected.items():
        np.testing.assert_array_equal(frames[index], image)
    with pytest.raises(DataError, match="no frame at"):
        VideoFrames(frames.path, start=1.0, fps=30, count=99, where="film")[60]
