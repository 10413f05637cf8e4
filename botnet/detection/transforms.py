"""From a picture of any size to the square canvas, boxes and masks with it (paper, Section 4.2)."""

from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

IMAGENET_MEAN: tuple[float, ...] = IMAGENET_DEFAULT_MEAN  # of RGB in [0, 1]
IMAGENET_STD: tuple[float, ...] = IMAGENET_DEFAULT_STD


class TrainTransform:
    """Scale jitter, random crop or zero pad to the canvas, horizontal flip.

    The picture keeps its aspect; its longer side becomes s * canvas, s ~ U(jitter). What is larger than the
    canvas is cropped at a random place, what is smaller is padded at the bottom and right (tensorflow/tpu
    models/official/detection). Randomness is torch's.

    Called with an image (3, H, W) uint8 and a target of :class:`botnet.detection.coco.CocoDataset`, it
    returns the image (3, canvas, canvas) float32, normalised with the mean and deviation of ImageNet and
    then padded, so that padding is 0 as in tensorflow/tpu; and a new target. In it, masks, boxes and
    areas are on the canvas; where there are masks, boxes and areas are taken from them. Objects of which
    nothing is left are gone. New entries are those of :class:`EvalTransform`.

    Args:
        canvas: side of the square in pixels; 1024 or 1280 in the paper.
        jitter: least and greatest s; [0.8, 1.25], [0.5, 2.0] or [0.1, 2.0] in the paper (Table 3).
        flip: probability of the flip.
    """

    def __init__(self, canvas: int, jitter: tuple[float, float] = (0.1, 2.0), flip: float = 0.5) -> None:
        if canvas < 1 or not 0 < jitter[0] <= jitter[1] or not 0 <= flip <= 1:
            raise ValueError(f"no transform has canvas {canvas}, jitter {jitter} and flip {flip}")
        self.canvas, self.jitter, self.flip = canvas, jitter, flip

    def __call__(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        draw = torch.rand(4).tolist()
        jitter = self.jitter[0] + draw[0] * (self.jitter[1] - self.jitter[0])
        height, width = _resized(image, jitter * self.canvas)
        crop_height, crop_width = min(height, self.canvas), min(width, self.canvas)
        top = int(draw[1] * (height - crop_height + 1))
        left = int(draw[2] * (width - crop_width + 1))
        flipped = draw[3] < self.flip

        def place(item: Tensor, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> Tensor:
            item = F.resize(item, [height, width], interpolation, antialias=True)
            item = F.crop(item, top, left, crop_height, crop_width)
            return F.horizontal_flip(item) if flipped else item

        new = target | {"valid": (crop_height, crop_width), "scale": _scale(image, height, width)}
        boxes = place(target["boxes"])
        if "masks" in target:
            # As a Mask it would be resized by "nearest", which is off by up to half a pixel of the larger
            # grid; "nearest exact" samples at the pixels' centres, where the image is sampled.
            masks = place(target["masks"].as_subclass(Tensor), InterpolationMode.NEAREST_EXACT)
            areas = masks.sum((1, 2))
            kept = areas > 0
            masks, new["area"] = masks[kept], areas[kept].float()
            new["masks"] = tv_tensors.Mask(_pad(masks, self.canvas))
            # masks_to_boxes ends at the centre of the last pixel, a box at its outer edge.
            edges = masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0])
        else:
            edges = boxes.as_subclass(Tensor)
            sides = edges[:, 2:] - edges[:, :2]
            kept = (sides > 0).all(1)
            edges, new["area"] = edges[kept], sides[kept].prod(1)
        canvas_size = (self.canvas, self.canvas)
        new["boxes"] = tv_tensors.BoundingBoxes(edges, format="XYXY", canvas_size=canvas_size)
        new["labels"], new["iscrowd"] = target["labels"][kept], target["iscrowd"][kept]
        return _pad(_normalise(place(image)), self.canvas), new


class EvalTransform:
    """Resize into the canvas, aspect kept, and pad at the bottom and right: one scale, no flip.

    Called with an image (3, H, W) uint8 and a target or None, it returns the image (3, canvas, canvas)
    float32, normalised and then padded; and the target, whose truth stays in the original pixels, where
    it is scored, with

    - ``valid`` (height, width): the part of the canvas that is not padding;
    - ``scale`` (y, x): canvas pixels per original pixel;
    - ``size`` (height, width) of the original image.

    Args:
        canvas: side of the square in pixels: that of the training.
    """

    def __init__(self, canvas: int) -> None:
        self.canvas = canvas

    def __call__(self, image: Tensor, target: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        height, width = _resized(image, self.canvas)
        resized = F.resize(image, [height, width], antialias=True)
        about = {
            "valid": (height, width),
            "scale": _scale(image, height, width),
            "size": (image.shape[-2], image.shape[-1]),
        }
        return _pad(_normalise(resized), self.canvas), (target or {}) | about


def denormalise(image: Tensor) -> Tensor:
    """The picture that a normalised image (3, H, W) shows, uint8."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    pixels = image.float().cpu() * std[:, None, None] + mean[:, None, None]
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)


def _normalise(image: Tensor) -> Tensor:
    floats = F.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True)
    return F.normalize(floats, list(IMAGENET_MEAN), list(IMAGENET_STD))


def _pad(pixels: Tensor, canvas: int) -> Tensor:
    """Zeros at the bottom and right of (..., H, W) up to the canvas."""
    height, width = pixels.shape[-2:]
    return torch.nn.functional.pad(pixels, (0, canvas - width, 0, canvas - height))


def _resized(image: Tensor, longer: float) -> tuple[int, int]:
    """Height and width of the image once its longer side is ``longer`` pixels; never less than 1."""
    height, width = image.shape[-2:]
    scale = longer / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _scale(image: Tensor, height: int, width: int) -> tuple[float, float]:
    return height / image.shape[-2], width / image.shape[-1]
