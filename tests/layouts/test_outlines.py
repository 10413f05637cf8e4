"""A mask as one polygon is the same mask."""

from collections import Counter

import numpy as np
import pytest

from botnet.layouts.outlines import join, one_polygon, outlines
from botnet.masks import compress_mask, decode_mask, encode_mask

RING = np.pad(np.pad(np.zeros((2, 2)), 2, constant_values=1), 1).astype(np.uint8)
DIAGONAL = np.eye(4, dtype=np.uint8)


def masks():
    rng = np.random.default_rng(0)
    noise = [(rng.random((9, 13)) < share).astype(np.uint8) for share in (0.2, 0.5, 0.8)]
    return [RING, DIAGONAL, 1 - DIAGONAL, np.ones((3, 5), np.uint8), np.zeros((3, 5), np.uint8), *noise]


@pytest.mark.parametrize("mask", masks())
def test_the_outlines_of_a_mask_are_the_mask(mask):
    polygon = join(outlines(mask))
    found = decode_mask([polygon] if polygon else [], *mask.shape)
    np.testing.assert_array_equal(found, mask)


def test_a_ring_has_two_outlines_along_its_pixels():
    assert sorted(map(sorted, outlines(RING))) == [[1.0] * 4 + [7.0] * 4, [3.0] * 4 + [5.0] * 4]


def test_parts_are_joined_and_keep_their_points():
    parts = [[1.0, 1, 5, 1, 5, 5], [10, 2, 14, 2, 14.5, 7.5], [20, 1, 25, 1, 22, 9]]
    losses = Counter()
    polygon = one_polygon(parts, 12, 30, losses)
    assert compress_mask([polygon], 12, 30) == compress_mask(parts, 12, 30)
    assert losses == {"masks of several polygons, joined: the same pixels": 1}
    assert [polygon[:6], polygon[8:14], polygon[18:24]] == parts


def test_parts_that_overlap_are_outlined():
    parts = [[1.0, 1, 9, 1, 9, 9, 1, 9], [5, 5, 15, 5, 15, 11, 5, 11]]
    losses = Counter()
    polygon = one_polygon(parts, 12, 30, losses)
    assert compress_mask([polygon], 12, 30) == compress_mask(parts, 12, 30)
    assert compress_mask([join(parts)], 12, 30) != compress_mask(parts, 12, 30)  # a hole where they overlap
    assert losses == {"run lengths or overlapping polygons, outlined: the same pixels": 1}


def test_run_lengths_with_a_hole_become_one_polygon():
    polygon = one_polygon(encode_mask(RING), 8, 8, Counter())
    assert compress_mask([polygon], 8, 8) == encode_mask(RING)
