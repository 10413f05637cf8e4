"""Placing and normalising images for training and evaluation (paper, Section 4.2)."""

import numpy as np
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from botnet.detection.placement import Placement
from botnet.errors import DataError

IMAGENET_MEAN: tuple[float, ...] = IMAGENET_DEFAULT_MEAN  # of RGB in [0, 1]
IMAGENET_STD: tuple[float, ...] = IMAGENET_DEFAULT_STD


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
