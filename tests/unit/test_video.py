from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm4vla.benchmarks.video import enlarge, video_path, write_video
from vlm4vla.core.errors import RunError


def moving_square(height: int, width: int, count: int = 12) -> np.ndarray:
    frames = np.full((count, height, width, 3), 100, np.uint8)
    for t, frame in enumerate(frames):
        frame[t : t + 8, 4:12] = (220, 30, 30)
    return frames


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 57), (224, 224), (201, 333)])
def test_what_is_written_is_what_was_seen(tmp_path: Path, height: int, width: int) -> None:
    frames = moving_square(height, width)
    path = tmp_path / "videos" / "a.mp4"
    write_video(path, frames)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 10
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(shown) == len(frames)
    for image, frame in zip(shown, frames, strict=True):
        assert image.shape == enlarge(frame).shape
        assert min(image.shape[:2]) >= 192 and image.shape[0] % 2 == image.shape[1] % 2 == 0
        assert np.abs(image.astype(int) - enlarge(frame)).mean() < 4
    assert path.stat().st_size < 30_000
    assert path.read_bytes().find(b"moov") < path.read_bytes().find(b"mdat"), (
        "it starts before it is all there"
    )
    assert [entry.name for entry in path.parent.iterdir()] == ["a.mp4"]


def test_enlarging_repeats_pixels() -> None:
    image = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    large = enlarge(image)
    assert large.shape == (192, 320, 3)
    assert np.array_equal(large[::64, ::64], image)


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1), st.text(min_size=1))
def test_no_id_escapes_and_no_two_share_a_file(first: str, second: str) -> None:
    folder = Path("/runs/x")
    paths = [video_path(folder, name) for name in (first, second)]
    for path in paths:
        assert path.parent == folder / "videos" and path.suffix == ".mp4"
        assert path.name.isascii() and len(path.name) < 120 and not path.name.startswith(".")
    assert (paths[0] == paths[1]) == (first == second)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a/b", "..", "", "a\0b", "x" * 500, "CON"]
)
def test_awkward_ids(name: str) -> None:
    path = video_path(Path("/runs/x"), name)
    assert path.resolve().parent == Path("/runs/x/videos")


def test_a_failed_write_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(RunError, match=r"a\.mp4: the video cannot be written"):
        write_video(tmp_path / "a.mp4", moving_square(64, 64))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]
