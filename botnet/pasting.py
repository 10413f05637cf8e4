"""Masks from the grid of their box to the pixels of the image, as run lengths, without PyTorch."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from botnet.masks import ranges, run_lengths

if TYPE_CHECKING:
    from supervision.detection.compact_mask import CompactMask

# The value of a pixel is computed here in another order than by torch. The two differ by the rounding of at
# most ten float32 operations on values up to 1, 6e-7. Pixels so near one half are computed again as by torch.
DOUBTFUL = np.float32(1e-6)
CHUNK = 2048  # columns at once; their values stay in the processor's cache


class _Samples(NamedTuple):
    """The pixels of all crops along one axis, crop after crop."""

    crop: np.ndarray  # which crop each belongs to
    place: np.ndarray  # its number within the crop
    cell: np.ndarray  # its centre on the mask's grid, in cells, float32
    first: np.ndarray  # per crop: where its pixels begin


def paste_masks(probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int) -> "CompactMask":
    """Paste masks into their boxes on the image, sampled bilinearly at the centres of the pixels in the box.

    A mask's work grows with the width of its box and the length of its contour. The pixels are those of
    ``grid_sample(..., padding_mode="border", align_corners=False) >= 0.5`` of torch in float32, bit for bit
    where torch's CPU code uses fused multiply-add (AVX2, AVX512).

    Args:
        probabilities: ``(n, M, M)`` from 0 to 1, each box cut into M x M cells.
        boxes: ``(n, 4)`` xyxy in pixels.
        height, width: of the image.

    Returns:
        The pixels with a probability of at least one half. The crop of a mask is its box with corners rounded
        to pixels and cut to the image, or the image's first pixel, outside the mask, if nothing is left.
    """
    from supervision.detection.compact_mask import CompactMask

    probabilities, boxes = np.asarray(probabilities, np.float32), np.asarray(boxes, np.float32)
    corners = np.clip(np.rint(boxes), 0, [width, height, width, height])
    empty = ~(corners[:, 2:] > corners[:, :2]).all(axis=1)  # NaN included
    corners[empty] = 0
    offsets, ends = np.split(corners.astype(np.int64), 2, axis=1)
    sizes = ends - offsets
    x, y = (_samples(boxes[:, i::2], offsets[:, i], sizes[:, i], probabilities.shape[1]) for i in (0, 1))
    shapes = np.where(empty[:, None], 1, sizes)[:, ::-1]
    areas = shapes.prod(axis=1)
    begins = np.cumsum(areas + 1) - areas - 1
    # By columns, for interpolation along x. The last row is there twice: below it the value is constant.
    grids = np.pad(probabilities.transpose(0, 2, 1), ((0, 0), (0, 0), (0, 1)), mode="edge")
    parts = [slice(start, start + CHUNK) for start in range(0, len(x.crop), CHUNK)]
    toggles = [
        _toggles(grids, _Samples(x.crop[part], x.place[part], x.cell[part], x.first), y, begins, sizes[:, 1])
        for part in parts
    ]
    rles = run_lengths(np.concatenate([np.empty(0, np.int64), *toggles]), areas)
    return CompactMask(rles, shapes.astype(np.int32), offsets.astype(np.int32), (height, width))


def _samples(ends: np.ndarray, origins: np.ndarray, sizes: np.ndarray, cells: int) -> _Samples:
    """Where the pixels origin, origin + 1, ... of each crop lie on its grid, rounded as by torch."""
    crop, pixel = ranges(origins, sizes)
    low, high = ends.astype(np.float64).T
    length = (high - low).astype(np.float32)
    centre = pixel.astype(np.float32) + np.float32(0.5)
    normalised = (centre - ends[crop, 0]) / length[crop] * np.float32(2) - np.float32(1)
    # A fused multiply-add rounds once.
    cell = ((normalised + np.float32(1)).astype(np.float64) * (cells / 2) - 0.5).astype(np.float32)
    return _Samples(
        crop,
        pixel - origins[crop],
        np.clip(cell, np.float32(0), np.float32(cells - 1)),
        np.cumsum(sizes) - sizes,
    )


def _toggles(
    grids: np.ndarray, x: _Samples, y: _Samples, begins: np.ndarray, heights: np.ndarray
) -> np.ndarray:
    """Where columns of pixels enter and leave their masks: positions on the line of all crops.

    Down a column the value is linear between two rows of the grid, so it crosses one half at most once there.
    """
    rows = grids.shape[2]
    values = _columns(grids, x).ravel()
    inside = values >= 0.5
    doubtful = (values >= 0.5 - DOUBTFUL) & (values <= 0.5 + DOUBTFUL)
    crosses = inside[1:] != inside[:-1]
    marked = crosses | doubtful[1:] | doubtful[:-1]
    marked[rows - 1 :: rows] = False  # from the end of a column to the next one
    segments = np.flatnonzero(marked)
    column, above = np.divmod(segments, rows)
    upper, lower = (values[segments + i].astype(np.float64) for i in (0, 1))
    slope = np.where(lower == upper, 1e-30, lower - upper)
    ends = [np.clip((0.5 + doubt - upper) / slope, 0, 1) for doubt in (-DOUBTFUL, DOUBTFUL)]
    # One line of the rows of all crops, far enough apart to search among all of them at once.
    line = y.cell + y.crop * (rows + 1.0)
    origin = x.crop[column] * (rows + 1.0) + above
    near, far = origin + np.minimum(*ends), origin + np.maximum(*ends)
    row = np.searchsorted(line, near)
    base = begins[x.crop] + x.place * heights[x.crop]
    top = base[column] - y.first[x.crop[column]]
    toggles = [
        base[inside[::rows]],
        (base + heights[x.crop])[inside[rows - 1 :: rows]],
        (top + row)[crosses[segments]],
    ]

    # The pixels between near and far: those where torch's rounding decides otherwise are toggled alone.
    doubt = np.flatnonzero(line[np.minimum(row, len(line) - 1)] <= far)
    row, far, following = row[doubt], far[doubt], origin[doubt] + 1
    end = np.minimum(np.searchsorted(line, far, side="right"), np.searchsorted(line, following))
    owner, row = ranges(row, end - row)
    segment = doubt[owner]
    value = _probability(grids, x.crop[column[segment]], x.cell[column[segment]], y.cell[row])
    wrong = (value >= 0.5) != inside[segments[segment] + 1]
    pixels = (top[segment] + row)[wrong]
    return np.concatenate([*toggles, pixels, pixels + 1])


def _columns(grids: np.ndarray, x: _Samples) -> np.ndarray:
    """The grids' values at the columns of pixels, ``(columns, M + 1)``."""
    cells = grids.shape[1]
    left = x.cell.astype(np.int64)
    flat = grids.reshape(-1, cells + 1)
    values = np.take(flat, x.crop * cells + left, axis=0)
    right = np.take(flat, x.crop * cells + np.minimum(left + 1, cells - 1), axis=0)
    right -= values
    right *= (x.cell - left.astype(np.float32))[:, None]
    values += right
    return values


def _probability(grids: np.ndarray, crop: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The bilinear value of single pixels in torch's order of operations, with fused multiply-add."""
    left, top = x.astype(np.int64), y.astype(np.int64)
    right = np.minimum(left + 1, grids.shape[1] - 1)
    west, north = x - left.astype(np.float32), y - top.astype(np.float32)
    east, south = np.float32(1) - west, np.float32(1) - north
    value = grids[crop, left, top] * (south * east)
    for corner, weight in (
        (grids[crop, right, top], south * west),
        (grids[crop, left, top + 1], north * east),
        (grids[crop, right, top + 1], north * west),
    ):
        value = (corner.astype(np.float64) * weight + value).astype(np.float32)
    return value
