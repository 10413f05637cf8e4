"""Where an image and its objects lie on the canvas."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from botnet.images import decode_image
from botnet.masks import Rle, Segmentation, compress_mask, decode_mask, mask_box

MIN_BOX_SIDE = 0.01  # canvas pixels: a thinner box may have width 0 in float32 and an infinite loss
NO_MASK = np.zeros((0, 0), np.uint8)


@dataclass(frozen=True)
class CanvasObject:
    """What the canvas shows of one object.

    Args:
        label: from 1.
        box: left, top, right and bottom edge in canvas pixels; with a mask, the mask's box, in whole pixels.
        area: of the mask, or of the box, in square pixels.
        mask: (bottom - top, right - left) uint8, 1 inside; empty for an object that has only a box.
    """

    label: int
    box: tuple[float, float, float, float]
    area: float
    mask: np.ndarray

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the mask on the canvas."""
        left, top, right, bottom = (int(edge) for edge in self.box)
        return slice(top, bottom), slice(left, right)


def original_boxes(boxes: np.ndarray, scale: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """Boxes on the canvas in the pixels of the original image, cut to it.

    Args:
        boxes: ``(n, 4)`` float32 xyxy canvas pixels.
        scale: canvas pixels per original pixel, (y, x).
        size: (height, width) of the original image.

    Returns:
        ``(n, 4)`` float32 xyxy original pixels.
    """
    (scale_y, scale_x), (height, width) = scale, size
    original = boxes / np.array([scale_x, scale_y, scale_x, scale_y], np.float32)
    return original.clip(0, np.array([width, height, width, height], np.float32))


def canvas_object(label: int, mask: np.ndarray, top: int, left: int) -> CanvasObject | None:
    """An object from a mask (h, w) whose corner is at ``(top, left)``; None if the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    y, x, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
    mask = mask[y:bottom, x:right]
    box = (float(left + x), float(top + y), float(left + right), float(top + bottom))
    return CanvasObject(label, box, float(np.count_nonzero(mask)), mask)


@dataclass(frozen=True)
class Placement:
    """Where an image lies on the canvas: resized, cropped to a window, perhaps mirrored, at the top left.

    Args:
        size: (height, width) of the image in its own pixels.
        resized: (height, width) of the full image in canvas pixels.
        top, left: corner of the window in the resized image.
        valid: (height, width) of the window; the rest of the canvas is padding.
        flipped: mirrored left to right.
    """

    size: tuple[int, int]
    resized: tuple[int, int]
    top: int
    left: int
    valid: tuple[int, int]
    flipped: bool = False

    @property
    def scale(self) -> tuple[float, float]:
        """Canvas pixels per original pixel, (y, x)."""
        return self.resized[0] / self.size[0], self.resized[1] / self.size[1]

    def pixels(self, image: Image.Image, extent: Sequence[float] | None = None) -> np.ndarray:
        """The window onto an image, (height, width, 3) uint8: resized bilinearly, with antialiasing.

        Args:
            image: RGB; it may be smaller than ``size``.
            extent: left, top, right and bottom edge of the original image in pixels of this one; all of it
                by default.
        """
        x0, y0, x1, y1 = extent or (0, 0, image.width, image.height)
        step_y, step_x = (y1 - y0) / self.resized[0], (x1 - x0) / self.resized[1]
        height, width = self.valid
        # Pillow's filter reads beyond the box, up to the image's edge, so a crop equals that of the resized
        # image. The limits only guard against rounding.
        box = (
            max(x0 + self.left * step_x, 0),
            max(y0 + self.top * step_y, 0),
            min(x0 + (self.left + width) * step_x, image.width),
            min(y0 + (self.top + height) * step_y, image.height),
        )
        window = image.resize((width, height), Image.Resampling.BILINEAR, box)
        return np.asarray(window.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flipped else window)

    def place_box(self, label: int, bbox: Sequence[float]) -> CanvasObject | None:
        """The visible part of an object that has only a box; None if nothing is visible.

        Args:
            label: from 1.
            bbox: COCO's: x, y, width and height in original pixels.
        """
        (height, width), (scale_y, scale_x) = self.valid, self.scale
        x, y, w, h = bbox
        left, right = (min(max(edge * scale_x - self.left, 0), width) for edge in (x, x + w))
        top, bottom = (min(max(edge * scale_y - self.top, 0), height) for edge in (y, y + h))
        if min(right - left, bottom - top) < MIN_BOX_SIDE:
            return None
        if self.flipped:
            left, right = width - right, width - left
        return CanvasObject(label, (left, top, right, bottom), (right - left) * (bottom - top), NO_MASK)

    def place_mask(self, label: int, segmentation: Segmentation) -> CanvasObject | None:
        """The visible part of an object that has a mask; None if nothing is visible.

        Args:
            label: from 1.
            segmentation: COCO's: polygons or run lengths in original pixels.

        Raises:
            ValueError: run lengths that do not describe the image.
        """
        found = self._polygons(segmentation) if isinstance(segmentation, list) else self._runs(segmentation)
        if found is None:
            return None
        mask, top, left = found
        if self.flipped:
            mask, left = mask[:, ::-1], self.valid[1] - left - mask.shape[1]
        return canvas_object(label, mask, top, left)

    def _polygons(self, polygons: list[list[float]]) -> tuple[np.ndarray, int, int] | None:
        """The polygons rasterised on the canvas: mask, top, left, not mirrored."""
        scale_y, scale_x = self.scale
        placed = [
            np.array(polygon, dtype=np.float64).reshape(-1, 2) * (scale_x, scale_y) - (self.left, self.top)
            for polygon in polygons
        ]
        low, high = np.min([p.min(0) for p in placed], axis=0), np.max([p.max(0) for p in placed], axis=0)
        left, top = np.floor(low).clip(0).astype(int).tolist()
        right, bottom = np.ceil(high).clip(max=self.valid[::-1]).astype(int).tolist()
        if right <= left or bottom <= top:
            return None
        # COCO's rasteriser clips at the edges of its image.
        inside = [(polygon - (left, top)).ravel().tolist() for polygon in placed]
        return decode_mask(inside, bottom - top, right - left), top, left

    def _runs(self, segmentation: Rle) -> tuple[np.ndarray, int, int] | None:
        """Run lengths sampled at the centres of the canvas' pixels: mask, top, left, not mirrored."""
        rle = compress_mask(segmentation, *self.size)
        x, y, w, h = mask_box(rle)
        rows = _source_pixels(self.top, self.valid[0], self.size[0], self.resized[0])
        columns = _source_pixels(self.left, self.valid[1], self.size[1], self.resized[1])
        top, bottom = np.searchsorted(rows, (y, y + h)).tolist()
        left, right = np.searchsorted(columns, (x, x + w)).tolist()
        if right <= left or bottom <= top:
            return None
        mask = decode_mask(rle, *self.size)
        return mask[rows[top:bottom, None], columns[left:right]], top, left


def _source_pixels(start: int, count: int, size: int, resized: int) -> np.ndarray:
    """Along one axis, the original pixel under the centre of each of ``count`` canvas pixels."""
    return (2 * np.arange(start, start + count) + 1) * size // (2 * resized)


def load_placed(path: Path, placement: Placement) -> np.ndarray:
    """The visible part of an image on the canvas, (h, w, 3) uint8.

    A JPEG that is to be shrunk is decoded at a half, a quarter or an eighth of its size, but never
    smaller than it is on the canvas.

    Args:
        path: the file, read as in :func:`load_image`.
        placement: of the image; its size must be the file's.

    Raises:
        DataError: as in :func:`load_image`.
    """
    image, extent = decode_image(path, placement.size, placement.resized)
    return placement.pixels(image, extent)
