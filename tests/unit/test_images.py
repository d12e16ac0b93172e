"""The image path against Hugging Face's own processors: their Pillow versions, and elsewhere those with torchvision."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vlm4vla.backbones.families import FAMILIES
from vlm4vla.backbones.images import ImagePath, PatchLayout, nearest_allowed_size, resize

GREY = 1 / 255


def frames(height: int, width: int, count: int = 2) -> torch.Tensor:
    """Smooth pictures with edges."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 7, 7, 3), dtype=np.uint8)
    large = [
        np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        for image in small
    ]
    pictures = np.stack(large)
    pictures[:, height // 3 : height // 2, width // 4 :] = (250, 20, 30)
    return torch.from_numpy(pictures)


@pytest.mark.parametrize("size", [40, 96, 224])
def test_resizing_is_pillows_bicubic(size: int) -> None:
    images = frames(90, 120)
    for image, ours in zip(images, resize(images, size), strict=True):
        expected = np.asarray(Image.fromarray(image.numpy()).resize((size, size), Image.Resampling.BICUBIC))
        difference = np.abs(ours.numpy().astype(int) - expected)
        assert difference.max() <= 1 and (difference == 0).mean() > 0.99


@pytest.mark.parametrize(
    ("family", "processor"),
    [("paligemma-1", SiglipImageProcessorPil), ("kosmos-2", CLIPImageProcessorPil)],
)
def test_fixed_sizes(family: str, processor: type) -> None:
    facts = FAMILIES[family]
    theirs = processor(
        size={"height": 64, "width": 64},
        do_center_crop=False,
        resample=3,
        image_mean=list(facts.image_mean),
        image_std=list(facts.image_std),
    )
    images = frames(120, 120)
    path = ImagePath(standard=120, size=64, mean=facts.image_mean, std=facts.image_std)
    expected = theirs([image.numpy() for image in images], return_tensors="pt")["pixel_values"]
    assert path(images).shape == expected.shape == (2, 3, 64, 64)
    assert (path(images) - expected).abs().max() <= 1.01 * GREY / min(facts.image_std)


def test_qwen_patches() -> None:
    facts = FAMILIES["qwen3-vl"]
    theirs = Qwen2VLImageProcessorPil(
        patch_size=8,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 256, "longest_edge": 64 * 64},
        image_mean=list(facts.image_mean),
        image_std=list(facts.image_std),
    )
    images = frames(120, 120)
    path = ImagePath(
        standard=120,
        size=nearest_allowed_size(120, multiple=16, least_pixels=256, most_pixels=64 * 64),
        mean=facts.image_mean,
        std=facts.image_std,
        patches=PatchLayout(patch=8, merge=2, temporal=2),
    )
    expected = theirs([image.numpy() for image in images], return_tensors="pt")
    assert expected["image_grid_thw"].tolist() == [[1, 8, 8]] * 2
    assert (path(images) - expected["pixel_values"]).abs().max() <= 1.01 * GREY / min(facts.image_std)


@pytest.mark.slow
@pytest.mark.skipif(
    "VLM4VLA_TORCHVISION_PYTHON" not in os.environ, reason="see tests/oracles/torchvision_processors.py"
)
def test_the_bits_are_torchvisions(tmp_path: Path) -> None:
    """Noise, whose edges overshoot, at every size that the families bring 224 pixels to."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    paths, processors = [], []
    for family, kind, side in (
        ("paligemma-1", "SiglipImageProcessor", 224),
        ("paligemma-2", "SiglipImageProcessor", 448),
        ("kosmos-2", "CLIPImageProcessor", 224),
        ("kosmos-2", "CLIPImageProcessor", 96),
    ):
        facts = FAMILIES[family]
        colors = {"image_mean": list(facts.image_mean), "image_std": list(facts.image_std)}
        paths.append(ImagePath(standard=224, size=side, mean=facts.image_mean, std=facts.image_std))
        size = {"size": {"height": side, "width": side}, "do_center_crop": False, "resample": 3}
        processors.append({"class": kind, **size, **colors})
    for family, patch in (("qwen2.5-vl", 14), ("qwen3-vl", 16)):
        facts = FAMILIES[family]
        colors = {"image_mean": list(facts.image_mean), "image_std": list(facts.image_std)}
        for least in (56 * 56, 28 * 28 * 256):
            bounds = {"shortest_edge": least, "longest_edge": 28 * 28 * 1280}
            paths.append(
                ImagePath(
                    standard=224,
                    size=nearest_allowed_size(
                        224, multiple=2 * patch, least_pixels=least, most_pixels=bounds["longest_edge"]
                    ),
                    mean=facts.image_mean,
                    std=facts.image_std,
                    patches=PatchLayout(patch=patch, merge=2, temporal=2),
                )
            )
            layout = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2, "size": bounds}
            processors.append({"class": "Qwen2VLImageProcessor", **layout, **colors})
    (tmp_path / "processors.json").write_text(json.dumps(processors))
    script = Path(__file__).parents[1] / "oracles" / "torchvision_processors.py"
    subprocess.run([os.environ["VLM4VLA_TORCHVISION_PYTHON"], script, tmp_path], check=True)
    for number, path in enumerate(paths):
        assert np.array_equal(np.load(tmp_path / f"{number}.npy"), path(torch.from_numpy(pictures)).numpy())


def test_colours_stay_true() -> None:
    """Red is red: no overflow, no exchanged channels, on float and uint8 paths alike."""
    red = torch.zeros(1, 30, 30, 3, dtype=torch.uint8)
    red[..., 0] = 255
    pixels = ImagePath(standard=60, size=20, mean=(0.0,) * 3, std=(1.0,) * 3)(red)
    assert pixels[0, :, 5, 5].tolist() == [1.0, 0.0, 0.0]


def test_sizes_that_fit_are_untouched() -> None:
    images = frames(64, 64)
    assert resize(images, 64) is images
