"""From the canvas back to the original pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from botnet.detection.results import Result
from botnet.masks import encode_mask


def paste_mask(probabilities: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """One box's mask grid pasted onto the image: sampled bilinearly at the centres of the pixels in the box.

    Args:
        probabilities: ``(M, M)``, the box cut into M x M cells.
        box: ``(4,)`` xyxy in pixels.
        height, width: of the image.

    Returns:
        ``(height, width)`` bool: probability of at least one half.
    """
    pasted = torch.zeros(height, width, dtype=torch.bool)
    x1, y1, x2, y2 = box.tolist()
    # Pixel i is inside where its centre i + 0.5 is.
    left, right = max(round(x1), 0), min(round(x2), width)
    top, bottom = max(round(y1), 0), min(round(y2), height)
    if right <= left or bottom <= top:
        return pasted
    x = (torch.arange(left, right) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(top, bottom) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    inside = F.grid_sample(
        probabilities[None, None].float().cpu(), grid[None], align_corners=False, padding_mode="border"
    )
    pasted[top:bottom, left:right] = inside[0, 0] >= 0.5
    return pasted


def to_original(detection: dict[str, Tensor], scale: tuple[float, float], size: tuple[int, int]) -> Result:
    """A detection on the canvas, mapped back to the pixels of the original image.

    Args:
        detection: of one image, as :class:`botnet.detection.rcnn.RCNN` gives it.
        scale: canvas pixels per original pixel, ``(y, x)``.
        size: ``(height, width)`` of the original image.

    Returns:
        On the CPU: ``boxes`` ``(n, 4)`` xyxy original pixels, ``scores``, ``labels``; for Mask R-CNN also
        ``masks``, a list of n compressed RLEs. Masks are pasted and encoded one by one: a hundred of them on
        a large image would take too much memory.
    """
    scale_y, scale_x = scale
    boxes = detection["boxes"].float().cpu() / torch.tensor([scale_x, scale_y, scale_x, scale_y])
    boxes = clip_boxes_to_image(boxes, size)
    result: Result = {
        "boxes": boxes,
        "scores": detection["scores"].float().cpu(),
        "labels": detection["labels"].cpu(),
    }
    if "masks" in detection:
        result["masks"] = [
            encode_mask(paste_mask(mask[0], box, *size).numpy())
            for mask, box in zip(detection["masks"].cpu(), boxes, strict=True)
        ]
    return result
