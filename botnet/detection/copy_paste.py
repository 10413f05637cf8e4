"""Simple Copy-Paste (Ghiasi et al., CVPR 2021)."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from botnet.detection.placement import CanvasObject, canvas_object


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
    things: list[CanvasObject]


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
        seen = canvas_object(thing.label, thing.mask & ~covered[rows, columns], rows.start, columns.start)
        left += [seen] if seen else []
    image = below.image.clone()
    onto, source = (pixels.permute(1, 2, 0).numpy() for pixels in (image, above.image))
    onto[covered] = source[covered]
    valid = max(below.valid[0], above.valid[0]), max(below.valid[1], above.valid[1])
    return replace(below, image=image, valid=valid, things=left + pasted)
