"""From a picture of any size to the square canvas, boxes and masks with it (paper, Section 4.2).

Where everything goes is decided first, from the picture's size alone (:class:`Placement`). Then only what the
canvas shows is made: the picture is cut while it is resized, polygons are rasterised on the canvas, and run
lengths are read inside the box of their object.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from faster_coco_eval.core import mask as rle_api
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from botnet.detection.masks import Rle, compress_mask, decode_mask
from botnet.errors import DataError

IMAGENET_MEAN: tuple[float, ...] = IMAGENET_DEFAULT_MEAN  # of RGB in [0, 1]
IMAGENET_STD: tuple[float, ...] = IMAGENET_DEFAULT_STD
THIN = 0.01  # canvas pixels: the width of a thinner box may be 0 in float32, which makes its loss infinite
NO_MASK = np.zeros((0, 0), np.uint8)


@dataclass(frozen=True)
class Thing:
    """What the canvas shows of one object.

    Args:
        label: from 1.
        box: left, top, right and bottom edge in canvas pixels. With a mask it is the mask's, and whole.
        area: of the mask, or of the box, in square pixels.
        mask: (bottom - top, right - left) uint8, 1 inside; empty for an object known by its box alone.
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


def thing_of(label: int, mask: np.ndarray, top: int, left: int) -> Thing | None:
    """A thing from a mask (h, w) whose corner is at ``(top, left)``; None if the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    y, x, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
    mask = mask[y:bottom, x:right]
    box = (float(left + x), float(top + y), float(left + right), float(top + bottom))
    return Thing(label, box, float(np.count_nonzero(mask)), mask)


@dataclass(frozen=True)
class Placement:
    """Where a picture lies on the canvas: resized, cut to a window, perhaps mirrored; in the top left corner.

    Args:
        size: (height, width) of the picture in its own pixels.
        resized: (height, width) of the whole picture in canvas pixels.
        top, left: corner of the window in the resized picture.
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

    def pixels(self, picture: Image.Image, extent: Sequence[float] | None = None) -> np.ndarray:
        """The window onto a picture, (height, width, 3) uint8: resized bilinearly, with antialiasing.

        Args:
            picture: RGB; it may be smaller than ``size``.
            extent: left, top, right and bottom edge of the original picture in pixels of this one; all of it
                by default.
        """
        x0, y0, x1, y1 = extent or (0, 0, picture.width, picture.height)
        step_y, step_x = (y1 - y0) / self.resized[0], (x1 - x0) / self.resized[1]
        height, width = self.valid
        # Pillow's filter sees beyond the box, up to the picture's edge: the cut leaves no trace. The limits
        # are for rounding only.
        box = (
            max(x0 + self.left * step_x, 0),
            max(y0 + self.top * step_y, 0),
            min(x0 + (self.left + width) * step_x, picture.width),
            min(y0 + (self.top + height) * step_y, picture.height),
        )
        window = picture.resize((width, height), Image.Resampling.BILINEAR, box)
        return np.asarray(window.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flipped else window)

    def boxed(self, label: int, bbox: Sequence[float]) -> Thing | None:
        """What the window shows of an object known by its box; None if that is nothing.

        Args:
            label: from 1.
            bbox: COCO's: x, y, width and height in original pixels.
        """
        (height, width), (scale_y, scale_x) = self.valid, self.scale
        x, y, w, h = bbox
        left, right = (min(max(edge * scale_x - self.left, 0), width) for edge in (x, x + w))
        top, bottom = (min(max(edge * scale_y - self.top, 0), height) for edge in (y, y + h))
        if min(right - left, bottom - top) < THIN:
            return None
        if self.flipped:
            left, right = width - right, width - left
        return Thing(label, (left, top, right, bottom), (right - left) * (bottom - top), NO_MASK)

    def masked(self, label: int, segmentation: list | Rle) -> Thing | None:
        """What the window shows of an object known by its mask; None if that is nothing.

        Args:
            label: from 1.
            segmentation: COCO's: polygons or run lengths in original pixels.

        Raises:
            ValueError: run lengths that do not describe the picture.
        """
        found = self._polygons(segmentation) if isinstance(segmentation, list) else self._runs(segmentation)
        if found is None:
            return None
        mask, top, left = found
        if self.flipped:
            mask, left = mask[:, ::-1], self.valid[1] - left - mask.shape[1]
        return thing_of(label, mask, top, left)

    def _polygons(self, polygons: list[list[float]]) -> tuple[np.ndarray, int, int] | None:
        """The polygons rasterised on the canvas: mask, top, left, as if nothing were mirrored."""
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
        # COCO's rasteriser cuts off what lies beyond its image.
        inside = [(polygon - (left, top)).ravel().tolist() for polygon in placed]
        return decode_mask(inside, bottom - top, right - left), top, left

    def _runs(self, segmentation: Rle) -> tuple[np.ndarray, int, int] | None:
        """Run lengths sampled at the centres of the canvas' pixels: mask, top, left, nothing mirrored."""
        rle = compress_mask(segmentation, *self.size)
        x, y, w, h = rle_api.toBbox(rle)
        rows = _sources(self.top, self.valid[0], self.size[0], self.resized[0])
        columns = _sources(self.left, self.valid[1], self.size[1], self.resized[1])
        top, bottom = np.searchsorted(rows, (y, y + h)).tolist()
        left, right = np.searchsorted(columns, (x, x + w)).tolist()
        if right <= left or bottom <= top:
            return None
        mask = decode_mask(rle, *self.size)
        return mask[rows[top:bottom, None], columns[left:right]], top, left


def _sources(start: int, count: int, size: int, resized: int) -> np.ndarray:
    """Along one axis, the original pixel under the centre of each of ``count`` canvas pixels."""
    return (2 * np.arange(start, start + count) + 1) * size // (2 * resized)


class TrainTransform:
    """Scale jitter, random crop or zero pad to the canvas, horizontal flip.

    The picture keeps its aspect; its longer side becomes s * canvas, s ~ U(jitter). What is larger than the
    canvas is cropped at a random place, what is smaller is padded at the bottom and right (tensorflow/tpu
    models/official/detection).

    Args:
        canvas: side of the square in pixels; 1024 or 1280 in the paper.
        jitter: least and greatest s; [0.8, 1.25], [0.5, 2.0] or [0.1, 2.0] in the paper (Table 3).
        flip: probability of the flip.
    """

    def __init__(self, canvas: int, jitter: tuple[float, float] = (0.1, 2.0), flip: float = 0.5) -> None:
        if canvas < 1 or not 0 < jitter[0] <= jitter[1] or not 0 <= flip <= 1:
            raise DataError(
                f"no transform has canvas {canvas}, jitter {jitter} and flip {flip}; give a canvas "
                "of a pixel or more, 0 < least <= greatest jitter, and a probability"
            )
        self.canvas, self.jitter, self.flip = canvas, jitter, flip

    def place(self, size: tuple[int, int], chance: torch.Generator) -> Placement:
        """A random placement of a picture of ``size`` (height, width) in pixels."""
        draw = torch.rand(4, generator=chance).tolist()
        jitter = self.jitter[0] + draw[0] * (self.jitter[1] - self.jitter[0])
        resized = _resized(size, jitter * self.canvas)
        valid = min(resized[0], self.canvas), min(resized[1], self.canvas)
        top, left = (int(draw[1 + axis] * (resized[axis] - valid[axis] + 1)) for axis in (0, 1))
        return Placement(size, resized, top, left, valid, draw[3] < self.flip)


class EvalTransform:
    """Resize into the canvas, aspect kept, and pad at the bottom and right: one scale, no flip.

    Args:
        canvas: side of the square in pixels: that of the training.
    """

    def __init__(self, canvas: int) -> None:
        self.canvas = canvas

    def place(self, size: tuple[int, int]) -> Placement:
        """The placement of a picture of ``size`` (height, width) in pixels."""
        resized = _resized(size, self.canvas)
        return Placement(size, resized, 0, 0, resized)


def _resized(size: tuple[int, int], longer: float) -> tuple[int, int]:
    """Height and width of a picture once its longer side is ``longer`` pixels; never less than 1."""
    scale = longer / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def to_canvas(pixels: np.ndarray, canvas: int) -> Tensor:
    """Pixels (h, w, 3) uint8 as the network takes them: normalised, then padded with zeros.

    Padding after the normalisation, with the mean of ImageNet and its deviation, is that of tensorflow/tpu.

    Returns:
        (3, canvas, canvas) float32, laid out with the channels last.
    """
    height, width = pixels.shape[:2]
    image = np.empty((canvas, canvas, 3), np.float32)
    image[height:], image[:height, width:] = 0, 0
    # Whole rows at a time, r g b r g b ..., are many times as fast as pixels of three.
    factor = np.tile(1 / (255 * np.array(IMAGENET_STD, np.float32)), width)
    shift = np.tile(np.array(IMAGENET_MEAN, np.float32) / np.array(IMAGENET_STD, np.float32), width)
    rows = image.reshape(canvas, 3 * canvas)[:height, : 3 * width]
    np.multiply(pixels.reshape(height, 3 * width), factor, out=rows)
    np.subtract(rows, shift, out=rows)
    return torch.from_numpy(image).permute(2, 0, 1)


def denormalise(image: Tensor) -> Tensor:
    """The picture that a normalised image (3, H, W) shows, uint8."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    pixels = image.float().cpu() * std[:, None, None] + mean[:, None, None]
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Scene:
    """A picture on the canvas with its things.

    Args:
        image: (3, canvas, canvas) float32, normalised.
        valid: (height, width) of the part that is not padding.
        things: in the order of the instances file.
    """

    image: Tensor
    valid: tuple[int, int]
    things: list[Thing]


def copy_paste(below: Scene, above: Scene, chance: torch.Generator) -> Scene:
    """Simple Copy-Paste (Ghiasi et al., CVPR 2021): things of one scene pasted onto another, unblended.

    Each thing of ``above`` is taken with probability 1/2. What they cover is cut from the things of
    ``below``; of which nothing is left is gone. The part that is not padding covers both.

    Args:
        below: the scene that receives; its things have masks.
        above: the scene that gives, on a canvas of the same size.
        chance: where the choice is drawn from.
    """
    taken = (torch.rand(len(above.things), generator=chance) < 0.5).tolist()
    pasted = [thing for thing, take in zip(above.things, taken, strict=True) if take]
    if not pasted:
        return below
    covered = np.zeros(below.image.shape[1:], bool)
    for thing in pasted:
        covered[thing.window] |= thing.mask > 0
    left = []
    for thing in below.things:
        rows, columns = thing.window
        seen = thing_of(thing.label, thing.mask & ~covered[rows, columns], rows.start, columns.start)
        left += [seen] if seen else []
    image = below.image.clone()
    onto, source = (pixels.permute(1, 2, 0).numpy() for pixels in (image, above.image))
    onto[covered] = source[covered]
    valid = max(below.valid[0], above.valid[0]), max(below.valid[1], above.valid[1])
    return replace(below, image=image, valid=valid, things=left + pasted)
