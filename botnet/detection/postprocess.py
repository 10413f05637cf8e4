"""From the canvas back to the original pixels. The module loads without PyTorch."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from botnet.detection.placement import original_boxes
from botnet.pasting import paste_masks

if TYPE_CHECKING:
    from supervision import Detections
    from torch import Tensor


def as_arrays(detection: "Mapping[str, Tensor]") -> dict[str, np.ndarray]:
    """A detection as :class:`botnet.detection.rcnn.RCNN` gives it, as arrays on the CPU."""
    arrays = {name: value.float().cpu().numpy() for name, value in detection.items() if name != "labels"}
    return arrays | {"labels": detection["labels"].cpu().numpy()}


def to_original(
    detection: Mapping[str, np.ndarray],
    scale: tuple[float, float],
    size: tuple[int, int],
    class_names: Sequence[str],
    category_ids: Sequence[int],
) -> "Detections":
    """A detection on the canvas, mapped back to the pixels of the original image.

    Args:
        detection: of :func:`as_arrays`: ``boxes`` (n, 4), ``scores``, ``labels`` from 1 and perhaps ``masks``
            (n, 1, M, M).
        scale: canvas pixels per original pixel, ``(y, x)``.
        size: ``(height, width)`` of the original image.
        class_names, category_ids: of labels 1, 2, ...

    Returns:
        ``xyxy`` (n, 4) float32 in original pixels, ``confidence`` (n,) float32, ``class_id`` (n,) from 0,
        ``data["class_name"]``, ``data["category_id"]``; for Mask R-CNN also ``mask``, a ``CompactMask``.
    """
    from supervision import Detections  # takes half a second to import

    boxes = original_boxes(detection["boxes"], scale, size)
    class_id = detection["labels"] - 1
    masks = None
    if "masks" in detection:
        masks = paste_masks(detection["masks"][:, 0], boxes, *size)
    return Detections(
        xyxy=boxes,
        mask=masks,
        confidence=detection["scores"],
        class_id=class_id,
        data={
            "class_name": np.array(class_names)[class_id],
            "category_id": np.array(category_ids)[class_id],
        },
    )
