import io
from collections.abc import Sequence

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from vlm4vla.core.errors import DataError
from vlm4vla.demonstrations.frames import ChosenFrames, EncodedFrames, choose, codec_of, decode, encoded_size


def picture(index: int = 0) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(image: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(image, quality=95)


def frames_of(blobs: Sequence[bytes], codec: str) -> EncodedFrames:
    """With two bytes of something else before each."""
    stops = np.cumsum([len(blob) + 2 for blob in blobs])
    starts = stops - [len(blob) for blob in blobs]
    data = b"".join(b"xx" + blob for blob in blobs)
    return EncodedFrames(data, starts, stops, codec=codec, size=(16, 24), where="file.bin, episode 3")


def test_chosen_frames_stay_encoded_and_pixels_are_those_of_their_steps() -> None:
    images = [picture(i) for i in range(4)]
    frames = frames_of([png(image) for image in images], "png")
    chosen = choose(frames, np.array([3, 1]))
    assert isinstance(chosen, EncodedFrames) and len(chosen) == 2
    np.testing.assert_array_equal(chosen[0], images[3])
    np.testing.assert_array_equal(chosen[-1], images[1])
    turned = ChosenFrames(frames, np.array([2, 0]), lambda image: image[::-1, ::-1])
    np.testing.assert_array_equal(turned[0], images[2][::-1, ::-1])
    with pytest.raises(IndexError, match="frame 2 of 2"):
        turned[2]


def test_headers_tell_codec_and_size() -> None:
    image = picture()
    for blob, codec in ((png(image), "png"), (jpeg(image), "jpeg")):
        assert (codec_of(blob), encoded_size(blob)) == (codec, (16, 24))
    with pytest.raises(ValueError, match="neither JPEG nor PNG"):
        codec_of(b"GIF89a..")


@pytest.mark.parametrize("codec", ["jpeg", "png"])
def test_every_damage_is_an_error_that_names_file_and_frame(codec: str) -> None:
    whole = jpeg(picture()) if codec == "jpeg" else png(picture())
    for damaged in (whole[: len(whole) // 2], whole[:-40], b"", b"\0" * 100):
        frames = frames_of([whole, damaged], codec)
        assert frames[0].shape == (16, 24, 3)
        with pytest.raises(DataError, match=r"file\.bin, episode 3, frame 1: cannot be decoded"):
            frames[1]


def test_another_size_than_declared_is_an_error() -> None:
    with pytest.raises(ValueError, match="16 x 24 pixels instead of 8 x 8"):
        decode(jpeg(picture()), "jpeg", (8, 8))
