"""From the canvas back to the original pixels."""

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from botnet.detection.results import Result
from botnet.masks import to_coco
from botnet.pasting import paste_masks


def to_original(detection: dict[str, Tensor], scale: tuple[float, float], size: tuple[int, int]) -> Result:
    """A detection on the canvas, mapped back to the pixels of the original image.

    Args:
        detection: of one image, as :class:`botnet.detection.rcnn.RCNN` gives it.
        scale: canvas pixels per original pixel, ``(y, x)``.
        size: ``(height, width)`` of the original image.

    Returns:
        On the CPU: ``boxes`` ``(n, 4)`` xyxy original pixels, ``scores``, ``labels``; for Mask R-CNN also
        ``masks``, a list of n compressed RLEs.
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
        probabilities = detection["masks"][:, 0].float().cpu()
        result["masks"] = to_coco(paste_masks(probabilities.numpy(), boxes.numpy(), *size))
    return result
