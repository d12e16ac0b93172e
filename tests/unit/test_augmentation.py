"""Augmentations against independent references: shifts by hand, colours by colorsys, and what draws may depend on."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from vlm4vla.training.augmentation import DRAWS, augment, draws


def pictures(count: int = 3, side: int = 224) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (count, 3, 9, 9), generator=generator).float()
    smooth = torch.nn.functional.interpolate(small, (side, side), mode="bilinear")
    return smooth.round().to(torch.uint8).permute(0, 2, 3, 1)


def drawn_as(count: int, **values: float) -> torch.Tensor:
    """Draws that change nothing, but for those named."""
    names = ("row", "column", "brightness", "contrast", "saturation", "hue")
    return torch.tensor([[values.get(name, 0.5) for name in names]] * count)


def test_draws_depend_on_seed_epoch_and_sample_alone() -> None:
    indices = np.arange(20_000)
    epochs = np.full_like(indices, 3)
    whole = draws(7, epochs, indices)
    np.testing.assert_array_equal(draws(7, epochs[5:9], indices[5:9]), whole[5:9])
    for other in (draws(8, epochs, indices), draws(7, epochs + 1, indices), draws(7, epochs, indices + 1)):
        assert (other == whole).mean() < 0.001
    assert whole.shape == (20_000, DRAWS) and whole.min() >= 0 and whole.max() < 1
    np.testing.assert_allclose(whole.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(whole.var(0), 1 / 12, atol=0.005)
    assert np.abs(np.corrcoef(whole.T) - np.eye(DRAWS)).max() < 0.03


def test_the_draws_are_fixed_for_good() -> None:
    expected = [0.1296456, 0.165269, 0.3105963, 0.4123227, 0.2278731, 0.928108]
    np.testing.assert_allclose(draws(0, np.array([0]), np.array([0]))[0], expected, rtol=1e-5)


def test_shift_moves_by_minus_nine_to_ten_and_repeats_edges() -> None:
    """Padding by 10 and cutting at 1..20, as the released code does."""
    image = pictures(1)
    padded = np.pad(image[0].numpy(), ((10, 10), (10, 10), (0, 0)), mode="edge")
    for start in range(1, 21):
        drawn = torch.full((1, 6), (start - 0.5) / 20)
        shifted = augment(image, drawn=drawn, kind="shift", size=224)[0].numpy()
        np.testing.assert_array_equal(shifted, padded[start : start + 224, start : start + 224])


def test_draws_in_the_middle_only_crop() -> None:
    image = pictures()
    changed = augment(image, drawn=drawn_as(3), kind="crop_and_color", size=224).float()
    side = 0.9**0.5 * 223
    start = (223 - side) / 2
    places = start + np.arange(224) * side / 223
    low = np.floor(places).astype(int)
    share = (places - low)[:, None]
    source = image.numpy().astype(float)

    def along(axis_first: np.ndarray) -> np.ndarray:
        weight = share.reshape(-1, *[1] * (axis_first.ndim - 1))
        return axis_first[low] * (1 - weight) + axis_first[np.minimum(low + 1, 223)] * weight

    for before, after in zip(source, changed.numpy(), strict=True):
        expected = along(along(before).swapaxes(0, 1)).swapaxes(0, 1)
        assert np.abs(after - expected).max() <= 1


@pytest.mark.parametrize("corner", [0.0, 0.999999])
def test_crops_stay_inside(corner: float) -> None:
    image = pictures(1)
    changed = augment(image, drawn=drawn_as(1, row=corner, column=corner), kind="crop_and_color", size=224)
    at = 0 if corner == 0 else -1
    assert torch.equal(changed[0, at, at], image[0, at, at])


def test_colours_are_those_of_hsv() -> None:
    """Saturation and hue against colorsys, pixel by pixel, greys and black included."""
    rng = np.random.default_rng(0)
    colors = np.concatenate(
        [rng.integers(0, 256, (60, 3)), [[0, 0, 0], [255, 255, 255], [90, 90, 90], [255, 0, 0]]]
    )
    flat = torch.from_numpy(np.broadcast_to(colors[:, None, None], (len(colors), 8, 8, 3)).astype(np.uint8))
    for saturation, hue in ((0.0, 0.5), (0.999999, 0.5), (0.5, 0.0), (0.5, 0.999999), (0.2, 0.9)):
        drawn = drawn_as(len(colors), saturation=saturation, hue=hue)
        changed = augment(flat, drawn=drawn, kind="crop_and_color", size=8)[:, 4, 4].numpy()
        for color, ours in zip(colors, changed, strict=True):
            h, s, v = colorsys.rgb_to_hsv(*(color / 255))
            s = min(1, s * (0.8 + 0.4 * saturation))
            expected = colorsys.hsv_to_rgb((h + 0.1 * hue - 0.05) % 1, s, v)
            assert np.abs(ours - np.array(expected) * 255).max() <= 1, (color, ours)


def test_brightness_adds_and_contrast_spreads_around_the_mean_of_a_channel() -> None:
    image = pictures(1, 32)
    plain = augment(image, drawn=drawn_as(1), kind="crop_and_color", size=32).float() / 255
    brighter = (
        augment(image, drawn=drawn_as(1, brightness=0.75), kind="crop_and_color", size=32).float() / 255
    )
    torch.testing.assert_close(brighter, (plain + 0.1).clamp(0, 1), atol=1.1 / 255, rtol=0)
    spread = (
        augment(image, drawn=drawn_as(1, contrast=0.999999), kind="crop_and_color", size=32).float() / 255
    )
    mean = plain.mean((1, 2), keepdim=True)
    torch.testing.assert_close(spread, ((plain - mean) * 1.2 + mean).clamp(0, 1), atol=1.5 / 255, rtol=0)


def test_rows_do_not_depend_on_their_neighbours_and_none_changes_nothing() -> None:
    images, drawn = pictures(20, 40), torch.from_numpy(draws(0, np.zeros(20, int), np.arange(20)))
    for kind in ("shift", "crop_and_color"):
        together = augment(images, drawn=drawn, kind=kind, size=32)
        assert together.shape == (20, 32, 32, 3)
        assert torch.equal(augment(images[7:9], drawn=drawn[7:9], kind=kind, size=32), together[7:9])
    assert augment(images, drawn=drawn, kind="none", size=32) is images
