"""Colour and rotation of a training image on the canvas, together with its objects."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Mask

from botnet.detection.placement import NO_MASK, CanvasObject, canvas_object
from botnet.detection.transforms import IMAGENET_MEAN

COLOURS: tuple[Callable[..., Image.Image], ...] = (
    F.adjust_brightness,
    F.adjust_contrast,
    F.adjust_saturation,
)
AT_ONCE = 8  # masks of the canvas' size that are turned: as fast as all, in memory that is constant
FILL = [round(255 * mean) for mean in IMAGENET_MEAN]  # about the zeros that pad the canvas


@dataclass(frozen=True)
class Augmentation:
    """A change of one image, drawn at random.

    Args:
        colours: what is changed, as an index of :data:`COLOURS`, and by which factor, in this order.
        angle: degrees counter-clockwise, around the centre of the image's part of the canvas.
    """

    colours: tuple[tuple[int, float], ...] = ()
    angle: float = 0.0

    @classmethod
    def draw(cls, color_jitter: float, rotation: float, rng: torch.Generator) -> "Augmentation":
        """A random change; what cannot happen draws nothing.

        Args:
            color_jitter: factors are up to so much below or above 1, but not below 0.
            rotation: greatest angle in degrees, in either direction.
            rng: source of randomness.
        """
        angle, colours = 0.0, []
        if rotation:
            angle = rotation * (2 * torch.rand((), generator=rng).item() - 1)
        if color_jitter:
            low = max(1 - color_jitter, 0.0)
            for index in torch.randperm(len(COLOURS), generator=rng).tolist():
                part = torch.rand((), generator=rng).item()
                colours.append((index, low + part * (1 + color_jitter - low)))
        return cls(tuple(colours), angle)

    def pixels(self, pixels: np.ndarray) -> np.ndarray:
        """The image's part of the canvas, (h, w, 3) uint8, changed."""
        if not self.colours and not self.angle:
            return pixels
        image = Image.fromarray(pixels)
        for index, factor in self.colours:
            image = COLOURS[index](image, factor)
        if self.angle:
            image = F.rotate(image, self.angle, InterpolationMode.BILINEAR, fill=FILL)
        return np.asarray(image)

    def objects(self, objects: Sequence[CanvasObject], valid: tuple[int, int]) -> list[CanvasObject]:
        """The objects, changed alike; those that are no longer visible are left out.

        A box without a mask becomes the box around what is visible of all of it, in whole pixels.

        Args:
            objects: on the canvas.
            valid: (height, width) of the image's part of the canvas.
        """
        if not self.angle:
            return list(objects)
        parts = [objects[first : first + AT_ONCE] for first in range(0, len(objects), AT_ONCE)]
        return [new for part in parts for new in self._turned(part, valid)]

    def _turned(self, objects: Sequence[CanvasObject], valid: tuple[int, int]) -> list[CanvasObject]:
        masks = np.zeros((len(objects), *valid), np.uint8)
        for mask, one in zip(masks, objects, strict=True):
            if one.mask.size:
                mask[one.window] = one.mask
            else:
                mask[_covered(one)] = 1
        turned = F.rotate(Mask(torch.from_numpy(masks)), self.angle).numpy()
        found = [canvas_object(one.label, mask, 0, 0) for one, mask in zip(objects, turned, strict=True)]
        # A copy: a part of the turned masks would keep all of them in memory.
        return [
            replace(new, mask=new.mask.copy()) if one.mask.size else _without_mask(new)
            for one, new in zip(objects, found, strict=True)
            if new is not None
        ]


def _covered(one: CanvasObject) -> tuple[slice, slice]:
    """Rows and columns of all pixels that a box touches."""
    left, top, right, bottom = one.box
    return slice(math.floor(top), math.ceil(bottom)), slice(math.floor(left), math.ceil(right))


def _without_mask(one: CanvasObject) -> CanvasObject:
    left, top, right, bottom = one.box
    return replace(one, area=(right - left) * (bottom - top), mask=NO_MASK)
