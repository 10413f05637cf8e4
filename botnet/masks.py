"""Masks of objects in COCO's encodings: polygons, and run lengths, compressed or not."""

from typing import Any, TypedDict

import numpy as np
from hotcoco import mask as mask_api


class Rle(TypedDict):
    """Run lengths of a mask down its columns, outside and inside in turn.

    ``size`` is [height, width]; ``counts`` are the lengths, compressed to a string or as a list.
    """

    size: list[int]
    counts: str | list[int]


Polygons = list[list[float]]  # each x, y, x, y, ... in pixels
Segmentation = Polygons | Rle


def encode_mask(mask: np.ndarray) -> Rle:
    """COCO's compressed run-length encoding of a mask.

    Args:
        mask: (H, W), zero outside the object.

    Returns:
        ``{"size": [H, W], "counts": str}``, ready for JSON.
    """
    return _as_text(mask_api.encode(np.asarray(mask, dtype=np.uint8)))


def compress_mask(segmentation: Segmentation, height: int, width: int) -> Rle:
    """The compressed run lengths of any COCO segmentation, without decoding its pixels.

    Args:
        segmentation: polygons, or run lengths, compressed or not.
        height, width: of the image in pixels.

    Raises:
        ValueError: run lengths that do not describe height x width pixels.
    """
    if not isinstance(segmentation, list):
        rle = segmentation if isinstance(segmentation["counts"], str) else _from_counts(segmentation)
        _check_run_lengths(rle, height, width)
        return rle
    if not segmentation:
        return _from_counts({"size": [height, width], "counts": [height * width]})
    return _as_text(mask_api.merge(mask_api.frPyObjects(segmentation, height, width)))


def decode_mask(segmentation: Segmentation, height: int, width: int) -> np.ndarray:
    """The pixels of a COCO segmentation, rasterised as COCO's own code does it.

    Args:
        segmentation, height, width: as in :func:`compress_mask`.

    Returns:
        (H, W) uint8, 1 inside.

    Raises:
        ValueError: run lengths that do not describe height x width pixels.
    """
    return mask_api.decode(dict(compress_mask(segmentation, height, width)))


def mask_area(rle: Rle) -> int:
    """Pixels inside a mask."""
    return mask_api.area(dict(rle))


def mask_box(rle: Rle) -> tuple[int, int, int, int]:
    """The smallest box around a mask: x, y, width and height in pixels; zeros if the mask is empty."""
    x, y, width, height = mask_api.to_bbox(dict(rle)).astype(int).tolist()
    return x, y, width, height


def _from_counts(rle: Rle) -> Rle:
    """Uncompressed run lengths, compressed."""
    try:
        return _as_text(mask_api.frPyObjects(dict(rle), *rle["size"]))
    except (TypeError, OverflowError) as error:  # negative or huge lengths
        raise ValueError(error) from error


def _check_run_lengths(rle: Rle, height: int, width: int) -> None:
    """Refuse compressed run lengths that are garbled or do not cover height x width pixels."""
    if rle["size"] != [height, width]:
        raise ValueError(f"a mask of size {rle['size']}, its image is of {[height, width]}")
    try:
        mask_area(rle)
    except TypeError as error:  # a string that is not valid Unicode
        raise ValueError(error) from error
    if str(rle["counts"])[-1:] >= "P":  # a digit after which another must come
        raise ValueError("run lengths that break off within a number")
    # hotcoco refuses run lengths that are too long for their size, but not those that are too short: complete
    # ones are too long for a size of one pixel less.
    try:
        mask_area({"size": [1, height * width - 1], "counts": rle["counts"]})
    except ValueError:
        return
    raise ValueError(f"run lengths that end before the last of {height} x {width} pixels")


def _as_text(rle: dict[str, Any]) -> Rle:
    return {"size": rle["size"], "counts": rle["counts"].decode()}
