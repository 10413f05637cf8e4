"""Masks on the image: against torch's own sampling, pixel for pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from botnet.detection.roi_heads import mask_targets
from botnet.pasting import paste_masks
from tests.support.detector import small_detector
from tests.support.pasting import coco_like, paste_mask

fused = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch's CPU code without fused multiply-add"
)


def assert_same(probabilities, boxes, height, width):
    masks = paste_masks(probabilities, boxes, height, width)
    assert masks.shape == (len(boxes), height, width)
    for grid, box, mask in zip(probabilities, boxes, masks, strict=True):
        np.testing.assert_array_equal(mask, paste_mask(torch.tensor(grid), torch.tensor(box), height, width))


@st.composite
def grids(draw):
    """Grids of every kind: smooth, noise, exact halves, values a few units of rounding from one half."""
    count, cells = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 7, 14, 28]))
    shape = (count, cells, cells)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["blob", "noise", "near", "few", "free"]))
    if kind == "blob":
        y, x = np.mgrid[:cells, :cells][:, None] / cells - random.random((2, count, 1, 1))
        grid = 1 / (1 + np.exp(20 * (np.hypot(x, y) - 0.3)))
    elif kind == "noise":
        grid = random.random(shape)
    elif kind == "near":
        grid = 0.5 + random.integers(-3, 4, shape) * 2.0 ** -draw(st.integers(15, 25))
    elif kind == "few":
        grid = random.choice([0, 0.25, 0.5, 0.75, 1], shape)
    else:
        grid = draw(
            arrays(np.float32, shape, elements=st.floats(0, 1, width=32), fill=st.just(np.float32(0.5)))
        )
    return grid.astype(np.float32)


@st.composite
def boxes_for(draw, count, height, width):
    """Boxes inside, across and outside the image, large, small, without area, on whole and half pixels."""
    scale = draw(st.sampled_from([2**-6, 1, 50, 1000, 1e6]))
    number = st.one_of(
        st.floats(-scale, scale, width=32),
        st.integers(-20, 120).map(float),
        st.integers(-20, 120).map(lambda i: i / 2),
    )
    boxes = np.array(draw(st.lists(st.tuples(*[number] * 4), min_size=count, max_size=count)), np.float32)
    if draw(st.booleans()):
        boxes += np.float32([width / 3, height / 3] * 2)
    if draw(st.booleans()):
        boxes = np.concatenate(
            [np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], 1
        )
    return boxes


@fused
@settings(deadline=None)
@given(st.data(), grids(), st.integers(1, 90), st.integers(1, 90))
def test_masks_are_those_of_torch_bit_for_bit(data, probabilities, height, width):
    assert_same(probabilities, data.draw(boxes_for(len(probabilities), height, width)), height, width)


@fused
def test_masks_on_a_large_image_are_those_of_torch():
    assert_same(*coco_like(12, 1080, 1920), 1080, 1920)


@fused
def test_masks_of_a_network_are_those_of_torch():
    detector = small_detector().eval()
    with torch.no_grad():
        found = detector(torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1)))
    for image in found:
        assert len(image["boxes"]) > 5
        assert_same(image["masks"][:, 0].numpy(), 7.3 * image["boxes"].numpy(), 640, 700)


def test_masks_are_the_bilinear_values_of_at_least_one_half():
    probabilities, boxes = coco_like(20, 120, 160)
    for grid, (x1, y1, x2, y2), mask in zip(
        probabilities, boxes.astype(float), paste_masks(probabilities, boxes, 120, 160), strict=True
    ):
        expected = np.zeros((120, 160), bool)
        doubtful = np.zeros_like(expected)
        for row in range(max(round(y1), 0), min(round(y2), 120)):
            for column in range(max(round(x1), 0), min(round(x2), 160)):
                y = np.clip((row + 0.5 - y1) / (y2 - y1) * 28 - 0.5, 0, 27)
                x = np.clip((column + 0.5 - x1) / (x2 - x1) * 28 - 0.5, 0, 27)
                i, j = min(int(y), 26), min(int(x), 26)
                corners = grid[i : i + 2, j : j + 2].astype(float)
                value = np.array([i + 1 - y, y - i]) @ corners @ np.array([j + 1 - x, x - j])
                expected[row, column] = value >= 0.5
                doubtful[row, column] = abs(value - 0.5) < 5e-5  # coordinates in float32
        np.testing.assert_array_equal(mask[~doubtful], expected[~doubtful])
        assert doubtful.sum() < 10


@pytest.mark.parametrize(
    "box", [[4, 4, 4, 4], [30, 2, 40, 8], [-9, -9, -1, -1], [6, 2, 3, 8], [2.5, 1, 2.5, 9], [np.nan, 1, 4, 9]]
)
def test_a_mask_without_pixels_is_one_pixel_outside(box):
    masks = paste_masks(np.ones((1, 28, 28), np.float32), np.float32([box]), 10, 20)
    assert not masks[0].any()
    x1, y1, x2, y2 = masks.bbox_xyxy[0]
    assert 0 <= x1 == x2 < 20
    assert 0 <= y1 == y2 < 10


def test_a_box_beyond_the_image_is_cut():
    masks = paste_masks(np.ones((1, 28, 28), np.float32), np.float32([[-5, -5, 3, 2]]), 10, 10)
    assert masks.area == 3 * 2
    assert masks.bbox_xyxy.tolist() == [[0, 0, 2, 1]]


def test_no_masks():
    assert paste_masks(np.empty((0, 28, 28), np.float32), np.empty((0, 4), np.float32), 5, 4).shape == (
        0,
        5,
        4,
    )


def test_pasting_undoes_the_mask_targets():
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij")
    disc = (y - 30) ** 2 + (x - 41) ** 2 < 22**2
    generator = torch.Generator().manual_seed(4)
    drifts = []
    for _ in range(50):
        box = torch.tensor([18.0, 7.0, 64.0, 54.0]) + 2 * torch.rand(4, generator=generator) - 1
        grid = mask_targets(disc[None].to(torch.uint8), box[None], torch.tensor([0]), 28)[0]
        pasted = torch.from_numpy(paste_masks(grid[None], box[None], 60, 80)[0])
        assert (pasted & disc).sum() / (pasted | disc).sum() > 0.93
        drifts.append([values[pasted].mean() - values[disc].mean() for values in (x, y)])
    # No drift in any direction: half a pixel of it would be a tenth of a small object.
    assert torch.tensor(drifts).mean(0).abs().max() < 0.05
