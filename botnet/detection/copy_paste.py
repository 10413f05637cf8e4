"""Simple Copy-Paste (Ghiasi et al., CVPR 2021)."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from botnet.detection.placement import CanvasObject, canvas_object


@dataclass(frozen=True)
class Scene:
    """An image on the canvas with its objects.

    Args:
        image: (3, canvas, canvas) float32, normalised.
        valid: (height, width) of the part that is not padding.
        objects: in the order of the instances file.
    """

    image: Tensor
    valid: tuple[int, int]
    objects: list[CanvasObject]


def copy_paste(destination: Scene, source: Scene, rng: torch.Generator) -> Scene:
    """Paste objects of one scene onto another, without blending.

    Each object of ``source`` is taken with probability 1/2. The pixels that they cover are removed from the
    objects of ``destination``; objects that are fully covered are dropped. The valid part covers both.

    Args:
        destination: its objects have masks.
        source: on a canvas of the same size; its objects have masks.
        rng: source of randomness.
    """
    taken = (torch.rand(len(source.objects), generator=rng) < 0.5).tolist()
    pasted = [instance for instance, take in zip(source.objects, taken, strict=True) if take]
    if not pasted:
        return destination
    covered = np.zeros(destination.image.shape[1:], bool)
    for instance in pasted:
        covered[instance.window] |= instance.mask > 0
    left = []
    for instance in destination.objects:
        rows, columns = instance.window
        visible = canvas_object(
            instance.label, instance.mask & ~covered[rows, columns], rows.start, columns.start
        )
        left += [visible] if visible else []
    image = destination.image.clone()
    onto, pixels = (tensor.permute(1, 2, 0).numpy() for tensor in (image, source.image))
    onto[covered] = pixels[covered]
    valid = max(destination.valid[0], source.valid[0]), max(destination.valid[1], source.valid[1])
    return replace(destination, image=image, valid=valid, objects=left + pasted)
