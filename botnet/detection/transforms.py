"""Placing and normalising images for training and evaluation (paper, Section 4.2).

The module loads without PyTorch; only training's random placements need it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from botnet.arguments import Degrees, Factor, Part, Side, Span, checked
from botnet.detection.placement import Placement, load_placed

if TYPE_CHECKING:
    import torch

    from botnet.detection.augment import Augmentation

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)


class TrainTransform:
    """Scale jitter, random crop or zero pad to the canvas, horizontal flip; perhaps colour and rotation.

    The image keeps its aspect ratio; its longer side becomes s * canvas, s ~ U(jitter). A larger image is
    cropped at a random place, a smaller one is padded at the bottom and right (tensorflow/tpu
    models/official/detection).

    Args:
        canvas: side of the square in pixels; 1024 or 1280 in the paper.
        jitter: minimum and maximum of s; [0.8, 1.25], [0.5, 2.0] or [0.1, 2.0] in the paper (Table 3).
        flip: probability of the flip.
        color_jitter: brightness, contrast and saturation change by factors of up to so much below or above 1;
            0 in the paper.
        rotation: greatest angle in degrees by which an image is turned on the canvas; 0 in the paper.

    Raises:
        ConfigError: a number out of its range.
    """

    @checked
    def __init__(
        self,
        canvas: Side,
        jitter: Span = (0.1, 2.0),
        flip: Part = 0.5,
        color_jitter: Factor = 0.0,
        rotation: Degrees = 0.0,
    ) -> None:
        self.canvas, self.jitter, self.flip = canvas, jitter, flip
        self.color_jitter, self.rotation = color_jitter, rotation

    def augmentation(self, rng: "torch.Generator") -> "Augmentation":
        """A random change of colours and angle, for an image that was placed."""
        from botnet.detection.augment import Augmentation

        return Augmentation.draw(self.color_jitter, self.rotation, rng)

    def place(self, size: tuple[int, int], rng: "torch.Generator") -> Placement:
        """A random placement of an image of ``size`` (height, width) in pixels."""
        import torch

        draw = torch.rand(4, generator=rng).tolist()
        jitter = self.jitter[0] + draw[0] * (self.jitter[1] - self.jitter[0])
        resized = _resized(size, jitter * self.canvas / max(size))
        valid = min(resized[0], self.canvas), min(resized[1], self.canvas)
        top, left = (int(draw[1 + axis] * (resized[axis] - valid[axis] + 1)) for axis in (0, 1))
        return Placement(size, resized, top, left, valid, draw[3] < self.flip)


class EvalTransform:
    """Resize into the canvas, keeping the aspect ratio, and pad at the bottom and right: one scale, no flip.

    Args:
        canvas: side of the square in pixels, that of training; or height and width.

    Raises:
        ConfigError: no side has so many pixels.
    """

    @checked
    def __init__(self, canvas: Side | tuple[Side, Side]) -> None:
        self.size = canvas if isinstance(canvas, Sequence) else (canvas, canvas)
        self.canvas = max(self.size)

    def place(self, size: tuple[int, int]) -> Placement:
        """The placement of an image of ``size`` (height, width) in pixels."""
        resized = _resized(size, min(self.size[0] / size[0], self.size[1] / size[1]))
        return Placement(size, resized, 0, 0, resized)


def _resized(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width of a scaled image; at least 1."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def to_canvas(pixels: np.ndarray, canvas: int) -> np.ndarray:
    """Pixels (h, w, 3) uint8 as the network takes them: normalised, then padded with zeros.

    Normalised by ImageNet's mean and standard deviation before padding, as in tensorflow/tpu.

    Returns:
        (3, canvas, canvas) float32, channels last in memory.
    """
    height, width = pixels.shape[:2]
    image = np.empty((canvas, canvas, 3), np.float32)
    image[height:], image[:height, width:] = 0, 0
    # Rows of r g b r g b ... at once are many times as fast as pixels of three.
    factor = np.tile(1 / (255 * np.array(IMAGENET_STD, np.float32)), width)
    shift = np.tile(np.array(IMAGENET_MEAN, np.float32) / np.array(IMAGENET_STD, np.float32), width)
    rows = image.reshape(canvas, 3 * canvas)[:height, : 3 * width]
    np.multiply(pixels.reshape(height, 3 * width), factor, out=rows)
    np.subtract(rows, shift, out=rows)
    return image.transpose(2, 0, 1)


def load_on_canvas(path: Path, placement: Placement, canvas: int) -> np.ndarray:
    """An image file as the network takes it: decoded, placed, normalised and padded.

    Args:
        path, placement: as in :func:`botnet.detection.placement.load_placed`.
        canvas: side in pixels.

    Returns:
        (3, canvas, canvas) float32, channels last in memory.

    Raises:
        DataError: as in :func:`botnet.images.load_image`.
    """
    return to_canvas(load_placed(path, placement), canvas)
