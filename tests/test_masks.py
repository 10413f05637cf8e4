"""Masks against pycocotools."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as reference
from supervision.detection.compact_mask import CompactMask

from botnet.detection.coco import CocoInstances
from botnet.masks import compact_masks, compress_mask, decode_mask, encode_mask, mask_area, mask_box, to_rles


def test_masks_are_those_of_pycocotools_in_every_encoding(coco_by):
    for split in ("train", "val"):
        instances = CocoInstances(coco_by / f"instances_{split}.json")
        for image in instances.images:
            size = image.height, image.width
            for annotation in instances.annotations_of(image.id):
                segmentation = annotation.segmentation
                encoded = reference.frPyObjects(segmentation, *size)
                whole = reference.merge(encoded) if isinstance(encoded, list) else encoded
                expected = reference.decode(whole)
                as_text = {"size": list(size), "counts": whole["counts"].decode()}
                np.testing.assert_array_equal(decode_mask(segmentation, *size), expected)
                np.testing.assert_array_equal(decode_mask(as_text, *size), expected)
                assert encode_mask(expected) == as_text
                assert compress_mask(segmentation, *size) == compress_mask(as_text, *size) == as_text


@pytest.mark.parametrize("mask", [np.zeros((5, 3)), np.ones((5, 3)), np.eye(4), np.ones((1, 1))])
def test_encoding_returns(mask):
    for kind in (np.uint8, bool):
        encoded = json.loads(json.dumps(encode_mask(mask.astype(kind))))
        np.testing.assert_array_equal(decode_mask(encoded, *mask.shape), mask)
        np.testing.assert_array_equal(reference.decode(encoded), mask)


def test_the_polygons_of_an_object_are_one_mask():
    mask = decode_mask([[0, 0, 4, 0, 4, 4, 0, 4], [6, 2, 10, 2, 10, 6, 6, 6]], 8, 12)
    expected = np.zeros((8, 12))
    expected[:4, :4] = expected[2:6, 6:10] = 1
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    "counts", [encode_mask(np.ones((4, 5)))["counts"], [0, 20], [0, 21], "garbage!!~~", ""]
)
def test_run_lengths_of_another_size_are_refused(counts):
    for read in (decode_mask, compress_mask):
        with pytest.raises(ValueError, match=r"."):
            read({"size": [4, 5], "counts": counts}, 5, 4)


@pytest.mark.parametrize(
    "counts",
    [
        [0, 21],
        [0, 19],
        [-1, 21],
        [0, 2**33],
        [2**70],
        "garbage!!~~",
        "",
        "0c0o",  # the last number goes on
        "o" * 100,
        "0",
        "\ud800",
        "é",
    ],
)
def test_broken_run_lengths_are_refused(counts):
    for read in (decode_mask, compress_mask):
        with pytest.raises(ValueError, match=r"."):
            read({"size": [5, 4], "counts": counts}, 5, 4)


@given(st.data())
def test_masks_are_those_of_pycocotools_at_random(data):
    height, width = data.draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    coordinates = st.floats(-60, 60) | st.integers(-5, 35)
    points = st.lists(coordinates, min_size=6, max_size=16).filter(lambda polygon: len(polygon) % 2 == 0)
    polygons = data.draw(st.lists(points, min_size=1, max_size=3))
    expected = reference.merge(reference.frPyObjects(polygons, height, width))
    mask = reference.decode(expected)
    rle = compress_mask(polygons, height, width)
    assert rle == {"size": [height, width], "counts": expected["counts"].decode()} == encode_mask(mask)
    np.testing.assert_array_equal(decode_mask(polygons, height, width), mask)
    assert mask_area(rle) == reference.area(expected)
    assert list(mask_box(rle)) == reference.toBbox(expected).tolist()

    ends = sorted(data.draw(st.lists(st.integers(0, height * width), max_size=12)))
    counts = np.diff([0, *ends, height * width]).tolist()  # some are zero
    expected = reference.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    rle = compress_mask({"size": [height, width], "counts": counts}, height, width)
    assert rle == {"size": [height, width], "counts": expected["counts"].decode()}
    np.testing.assert_array_equal(decode_mask(rle, height, width), reference.decode(expected))
    assert mask_area(rle) == reference.area(expected)


@given(st.text(max_size=12) | st.text("0123456789:;<=>?@PQRSo", max_size=12))
def test_any_text_is_a_mask_or_a_value_error(counts):
    try:
        mask = decode_mask({"size": [3, 4], "counts": counts}, 3, 4)
    except ValueError:
        return
    assert mask.shape == (3, 4)
    assert mask.sum() == mask_area({"size": [3, 4], "counts": counts})


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 5), st.integers(0, 2**32), st.floats(0, 1))
def test_masks_to_supervision_and_back(height, width, count, seed, share):
    random = np.random.default_rng(seed)
    pixels = random.random((count, height, width)) < share
    rles = [encode_mask(mask) for mask in pixels]
    masks = compact_masks(rles, height, width)
    np.testing.assert_array_equal(masks.to_dense(), pixels)
    np.testing.assert_array_equal(masks.area, pixels.sum(axis=(1, 2)))
    for (x1, y1, x2, y2), mask in zip(masks.bbox_xyxy.tolist(), pixels, strict=True):
        assert mask[y1 : y2 + 1, x1 : x2 + 1].sum() == mask.sum()
        assert not mask.any() or (y2 - y1, x2 - x1) == tuple(np.ptp(np.nonzero(mask), axis=1))
    assert to_rles(masks) == rles
    # Crops of any size, and run lengths as supervision makes them.
    boxes = np.sort(random.integers(-3, 15, (count, 2, 2)), axis=1).reshape(count, 4)
    crops = CompactMask.from_dense(pixels, boxes, (height, width))
    assert to_rles(crops) == [encode_mask(mask) for mask in crops.to_dense()]


def test_large_run_lengths_to_supervision_and_back(coco_by):
    for image, annotations in zip(*from_file(coco_by), strict=True):
        size = image.height, image.width
        rles = [compress_mask(annotation.segmentation, *size) for annotation in annotations]
        masks = compact_masks([annotation.segmentation for annotation in annotations], *size)
        assert to_rles(masks) == rles
        for mask, rle in zip(masks, rles, strict=True):
            np.testing.assert_array_equal(mask, decode_mask(rle, *size))


def from_file(folder):
    instances = CocoInstances(folder / "instances_val.json")
    return instances.images, [instances.annotations_of(image.id) for image in instances.images]


def test_a_mask_without_pixels_is_one_pixel_outside():
    masks = compact_masks([encode_mask(np.zeros((4, 5))), []], 4, 5)
    assert masks.bbox_xyxy.tolist() == [[0, 0, 0, 0]] * 2
    assert masks.area.tolist() == [0, 0]
    assert compact_masks([], 4, 5).shape == (0, 4, 5)
    assert to_rles(compact_masks([], 4, 5)) == []


def test_zero_run_lengths_of_another_writer():
    masks = CompactMask([np.int32([2, 0, 3, 4, 0, 3])], np.int32([[4, 3]]), np.int32([[1, 2]]), (7, 6))
    assert to_rles(masks) == [encode_mask(masks[0])]


def test_run_lengths_that_do_not_fit_are_no_mask():
    with pytest.raises(ValueError, match="size"):
        compact_masks([encode_mask(np.ones((4, 5)))], 5, 4)
