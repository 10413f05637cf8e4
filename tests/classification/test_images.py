"""The evaluation transform without torch, against timm's, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform

from botnet.classification.datasets import eval_transform
from botnet.classification.images import EvalTransform, read_image

NORMS = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
INTERPOLATIONS = ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]


def assert_same(image, size, options):
    expected = create_transform(size, **options)(image)
    found = EvalTransform(size, **options)(image)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)
    assert torch.equal(eval_transform(image_size=size, **options)(image), expected)


@settings(deadline=None)
@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.integers(1, 80),
    st.floats(0.4, 1),
    st.sampled_from(INTERPOLATIONS),
)
def test_images_are_prepared_as_by_timm(width, height, size, crop_pct, interpolation):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    options = {"crop_pct": crop_pct, "interpolation": interpolation, **NORMS}
    assert_same(Image.fromarray(pixels), size, options)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_photographs_are_prepared_as_by_timm(coco_by, interpolation):
    for path in sorted((coco_by / "images").iterdir())[:8]:
        options = {
            "crop_pct": 0.875,
            "interpolation": interpolation,
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.3, 0.1),
        }
        assert_same(read_image(path, str(path)), 224, options)
