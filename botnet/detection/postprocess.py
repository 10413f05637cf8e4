"""From the canvas back to the original pixels."""

import torch
from torch import Tensor

from botnet.detection.placement import original_boxes
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
    boxes = original_boxes(detection["boxes"].float().cpu().numpy(), scale, size)
    result: Result = {
        "boxes": torch.from_numpy(boxes),
        "scores": detection["scores"].float().cpu(),
        "labels": detection["labels"].cpu(),
    }
    if "masks" in detection:
        probabilities = detection["masks"][:, 0].float().cpu()
        result["masks"] = to_coco(paste_masks(probabilities.numpy(), boxes, *size))
    return result
