"""Masks of objects in COCO's encodings: polygons, and run lengths, compressed or not."""

from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle_api
from faster_coco_eval.mask_api_new_cpp import toUncompressedRLE

Rle = dict[str, Any]  # {"size": [height, width], "counts": compressed run lengths, a string}


def encode_mask(mask: np.ndarray) -> Rle:
    """COCO's compressed run-length encoding of a mask.

    Args:
        mask: (H, W), zero outside the object.

    Returns:
        ``{"size": [H, W], "counts": str}``, ready for JSON.
    """
    return _as_text(rle_api.encode(np.asfortranarray(mask, dtype=np.uint8)))


def compress_mask(segmentation: list | Rle, height: int, width: int) -> Rle:
    """The compressed run lengths of any COCO segmentation, without a detour over its pixels.

    Args:
        segmentation: polygons (a list of flat lists x, y, x, y, ... in pixels), or run lengths, compressed
            (``counts`` a string) or not (a list).
        height, width: of the image in pixels.

    Raises:
        ValueError: run lengths that do not describe height x width pixels.
    """
    rle = _compress(segmentation, height, width)
    _runs(rle, height, width)
    return rle


def decode_mask(segmentation: list | Rle, height: int, width: int) -> np.ndarray:
    """The pixels of a COCO segmentation, as COCO's own code rasterises them.

    Args:
        segmentation, height, width: as in :func:`compress_mask`.

    Returns:
        (H, W) uint8, 1 inside.

    Raises:
        ValueError: run lengths that do not describe height x width pixels.
    """
    runs = _runs(_compress(segmentation, height, width), height, width)
    inside = np.zeros(len(runs), np.uint8)
    inside[1::2] = 1
    # Several times as fast as the decoders of faster-coco-eval and pycocotools.
    return inside.repeat(runs).reshape(width, height).T


def _compress(segmentation: list | Rle, height: int, width: int) -> Rle:
    """As :func:`compress_mask`, unchecked."""
    if isinstance(segmentation, list):
        if not segmentation:
            segmentation = {"size": [height, width], "counts": [height * width]}
            return _as_text(rle_api.frPyObjects(segmentation, height, width))
        return _as_text(rle_api.merge(rle_api.frPyObjects(segmentation, height, width)))
    if isinstance(segmentation["counts"], list):
        return _as_text(rle_api.frPyObjects(segmentation, height, width))
    return segmentation


def _runs(rle: Rle, height: int, width: int) -> list[int]:
    """Lengths of the runs down the columns, one after the other, outside and inside in turn."""
    try:
        runs = toUncompressedRLE([rle])[0]["counts"]
    except RuntimeError as error:  # how faster-coco-eval says that compressed run lengths break off
        raise ValueError(error) from error
    if rle["size"] != [height, width] or sum(runs) != height * width:
        raise ValueError(f"{sum(runs)} pixels of a mask of {rle['size']}, its image is of {[height, width]}")
    return runs


def _as_text(rle: dict[str, Any]) -> Rle:
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }
