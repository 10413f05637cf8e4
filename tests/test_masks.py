"""Masks against pycocotools."""

import json

import numpy as np
import pytest
from faster_coco_eval.core import mask as rle_api
from pycocotools import mask as reference

from botnet.detection.coco import CocoInstances
from botnet.masks import compress_mask, decode_mask, encode_mask


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_masks_are_those_of_pycocotools_in_every_encoding(coco_by):
    for split in ("train", "val"):
        instances = CocoInstances(coco_by / f"instances_{split}.json")
        for image in instances.images:
            size = image["height"], image["width"]
            for annotation in instances.annotations_of(image["id"]):
                segmentation = annotation["segmentation"]
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
        np.testing.assert_array_equal(rle_api.decode(encoded), mask)


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
