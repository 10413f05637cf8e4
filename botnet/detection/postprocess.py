"""From the canvas back to the original pixels."""

from collections.abc import Sequence

import numpy as np
from supervision import Detections
from torch import Tensor

from botnet.detection.placement import original_boxes
from botnet.pasting import paste_masks


def to_original(
    detection: dict[str, Tensor],
    scale: tuple[float, float],
    size: tuple[int, int],
    class_names: Sequence[str],
) -> Detections:
    """A detection on the canvas, mapped back to the pixels of the original image.

    Args:
        detection: of one image, as :class:`botnet.detection.rcnn.RCNN` gives it.
        scale: canvas pixels per original pixel, ``(y, x)``.
        size: ``(height, width)`` of the original image.
        class_names: of labels 1, 2, ...

    Returns:
        ``xyxy`` (n, 4) float32 in original pixels, ``confidence`` (n,) float32, ``class_id`` (n,) from 0,
        ``data["class_name"]``; for Mask R-CNN also ``mask``, a ``CompactMask``.
    """
    boxes = original_boxes(detection["boxes"].float().cpu().numpy(), scale, size)
    class_id = detection["labels"].cpu().numpy() - 1
    masks = None
    if "masks" in detection:
        masks = paste_masks(detection["masks"][:, 0].float().cpu().numpy(), boxes, *size)
    return Detections(
        xyxy=boxes,
        mask=masks,
        confidence=detection["scores"].float().cpu().numpy(),
        class_id=class_id,
        data={"class_name": np.array(class_names)[class_id]},
    )
