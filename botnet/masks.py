"""Masks of objects in COCO's encodings: polygons, and run lengths, compressed or not."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from hotcoco import mask as mask_api

if TYPE_CHECKING:
    from supervision.detection.compact_mask import CompactMask


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


def run_lengths(toggles: np.ndarray, areas: np.ndarray) -> list[np.ndarray]:
    """The run lengths of masks from the positions where they begin and end.

    Args:
        toggles: in any order, on a line where mask i has ``areas[i]`` pixels, then one position that counts
            for nothing. A position that occurs twice cancels itself.
        areas: pixels of each mask.

    Returns:
        Per mask its int32 runs outside and inside in turn, the first one outside and perhaps of length 0.
    """
    ends = np.cumsum(areas + 1) - 1
    toggles = np.sort(toggles, kind="stable")  # quick where parts are in order already
    groups = np.flatnonzero(np.diff(toggles, prepend=-1))
    times = np.diff(groups, append=len(toggles))
    toggles = toggles[groups[times % 2 == 1]]
    marks = np.stack([ends - areas, ends], axis=1).ravel()
    at = np.searchsorted(toggles, marks)
    lengths = np.diff(np.insert(toggles, at, marks)).astype(np.int32)
    at += np.arange(len(at))
    return [lengths[start:end] for start, end in at.reshape(-1, 2).tolist()]


def ranges(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Many ranges start, start + 1, ..., one after the other: the range of each number, and the numbers."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return owner, np.arange(len(owner)) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)


def to_rles(masks: "CompactMask") -> list[Rle]:
    """supervision's masks in COCO's compressed run lengths, without decoding their pixels."""
    height, width = masks.image_shape
    mask, column, rows = _column_runs(masks._rles, masks._crop_shapes[:, 0])
    x, y = masks.offsets[mask].astype(np.int64).T
    area = height * width
    toggles = mask * (area + 1) + (x + column) * height + y + rows
    runs = run_lengths(toggles.T.ravel(), np.full(len(masks), area))
    counts = [{"size": [height, width], "counts": run.tolist()} for run in runs]
    return [_as_text(rle) for rle in mask_api.frPyObjects(counts, height, width)]


def compact_masks(segmentations: Sequence[Segmentation], height: int, width: int) -> "CompactMask":
    """COCO's masks of one image as supervision's, each cut to its pixels, without decoding them.

    Args:
        segmentations, height, width: as in :func:`compress_mask`.

    Raises:
        ValueError: run lengths that do not describe height x width pixels.
    """
    from supervision.detection.compact_mask import CompactMask

    rles = [compress_mask(segmentation, height, width) for segmentation in segmentations]
    boxes = np.array([mask_box(rle) for rle in rles], np.int64).reshape(-1, 4)
    offsets, sizes = boxes[:, :2], np.maximum(boxes[:, 2:], 1)  # one pixel for a mask without any
    areas = sizes.prod(axis=1)
    runs = [_counts(str(rle["counts"])) for rle in rles]
    mask, column, rows = _column_runs(runs, np.full(len(rles), height))
    x, y = offsets[mask].T
    toggles = (np.cumsum(areas + 1) - areas - 1)[mask] + (column - x) * sizes[mask, 1] + rows - y
    shapes, origins = sizes[:, ::-1].astype(np.int32), offsets.astype(np.int32)
    return CompactMask(run_lengths(toggles.T.ravel(), areas), shapes, origins, (height, width))


def _counts(text: str) -> np.ndarray:
    """The run lengths in COCO's string: five bits a character, as differences to the last run but one."""
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes < 32)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    _, places = ranges(np.zeros_like(starts), lengths)
    counts = np.add.reduceat((codes & 31) << 5 * places, starts)
    counts -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)
    for odd_or_even in (counts[1::2], counts[2::2]):
        np.cumsum(odd_or_even, out=odd_or_even)
    return counts


def _column_runs(runs: list[np.ndarray], heights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The runs inside of masks, cut at the ends of columns.

    Args:
        runs: run lengths of each mask.
        heights: of each mask, in pixels.

    Returns:
        Of each piece its mask and column, and ``(2, pieces)`` its first row and the row after its last.
    """
    lengths = [len(run) // 2 for run in runs]
    mask = np.repeat(np.arange(len(runs)), lengths)
    ends = [np.cumsum(run[: 2 * n], dtype=np.int64) for run, n in zip(runs, lengths, strict=True)]
    begin, end = np.concatenate([np.empty(0, np.int64), *ends]).reshape(-1, 2).T
    height = heights[mask].astype(np.int64)
    first = begin // height
    pieces = (end - 1) // height - first + 1
    piece, column = ranges(first, pieces)
    rows = np.stack([begin[piece], end[piece]]) - column * height[piece]
    return mask[piece], column, np.clip(rows, 0, height[piece])


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
