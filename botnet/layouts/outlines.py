"""Masks as a single polygon, exact to the pixel: bridges without width join parts and holes."""

from collections import defaultdict

import numpy as np

from botnet.layouts.samples import Losses
from botnet.masks import Polygons, Segmentation, compress_mask, decode_mask

Corner = tuple[int, int]  # y, x


def one_polygon(segmentation: Segmentation, height: int, width: int, losses: Losses) -> list[float]:
    """The polygon that COCO's code rasterises to the same pixels as a segmentation.

    Several polygons are joined. Where they overlap, and for run lengths, it is the outline of the pixels.

    Args:
        segmentation: COCO's polygons or run lengths.
        height, width: of the image in pixels.
        losses: objects that are outlined pixel by pixel, and masks in several polygons, are counted in it.

    Returns:
        x, y, x, y, ... in pixels; empty for an empty mask.
    """
    if isinstance(segmentation, list) and len(segmentation) == 1:
        return segmentation[0]
    if isinstance(segmentation, list):
        joined = join(segmentation)
        if compress_mask([joined], height, width) == compress_mask(segmentation, height, width):
            losses["masks of several polygons, joined: the same pixels"] += 1
            return joined
    losses["run lengths or overlapping polygons, outlined: the same pixels"] += 1
    return join(outlines(decode_mask(segmentation, height, width)))


def join(polygons: Polygons) -> list[float]:
    """One polygon that visits all of them from the first point of the first, and returns there each time."""
    if len(polygons) < 2:
        return polygons[0] if polygons else []
    first = polygons[0]
    joined = [*first, *first[:2]]
    for polygon in polygons[1:]:
        joined += [*polygon, *polygon[:2], *first[:2]]
    return joined


def outlines(mask: np.ndarray) -> Polygons:
    """The outlines of a mask along the edges of its pixels, holes included.

    Pixels are inside where an odd number of outlines surround them.

    Args:
        mask: (H, W), zero outside.
    """
    padded = np.pad(mask.astype(bool), 1)
    # A corner has an odd number of inside pixels around it. Where two pixels touch diagonally, the outlines
    # cross and go straight on, which is no corner.
    odd = padded[:-1, :-1] ^ padded[:-1, 1:] ^ padded[1:, :-1] ^ padded[1:, 1:]
    corners: list[Corner] = [(y, x) for y, x in np.argwhere(odd).tolist()]
    along_row, along_column = _partners(corners, 0), _partners(corners, 1)
    left, polygons = dict.fromkeys(corners), []
    while left:
        corner = next(iter(left))
        polygon: list[float] = []
        while corner in left:
            for partners in (along_row, along_column):
                del left[corner]
                polygon += [float(corner[1]), float(corner[0])]
                corner = partners[corner]
        polygons.append(polygon)
    return polygons


def _partners(corners: list[Corner], axis: int) -> dict[Corner, Corner]:
    """The other end of the edge along a row (axis 0) or a column (axis 1) that each corner is an end of."""
    lines: dict[int, list[Corner]] = defaultdict(list)
    for corner in corners:
        lines[corner[axis]].append(corner)
    partners: dict[Corner, Corner] = {}
    for line in lines.values():
        line.sort()
        for one, other in zip(line[::2], line[1::2], strict=True):
            partners[one], partners[other] = other, one
    return partners
