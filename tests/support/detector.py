"""A small detector, and targets for it."""

import torch
from torch import Tensor

from botnet.detection import mask_rcnn
from botnet.detection.rcnn import RCNN
from tests.support.recipes import DETECTOR

MASKS = {key: DETECTOR[key] for key in ("mask_channels", "mask_convs")}
SMALL = {key: value for key, value in DETECTOR.items() if key not in {"backbone", *MASKS}} | {"canvas": 96}


def small_detector(**changes) -> RCNN:
    """A Mask R-CNN of three classes that runs in milliseconds."""
    torch.manual_seed(0)
    return mask_rcnn(**{"backbone": "botnet_tiny", "num_classes": 3, **SMALL, **MASKS, **changes})


def targets_for(images: Tensor, count: int = 2) -> list[dict[str, Tensor]]:
    """The same few rectangles as the targets of every image."""
    height, width = images.shape[-2:]
    targets = []
    for _ in images:
        boxes = torch.tensor([[8.0, 8, 40, 48], [30, 20, 80, 70]])[:count]
        masks = torch.zeros(count, height, width, dtype=torch.uint8)
        for mask, box in zip(masks, boxes.int().tolist(), strict=True):
            mask[box[1] : box[3], box[0] : box[2]] = 1
        targets.append({"boxes": boxes, "labels": torch.arange(1, count + 1), "masks": masks})
    return targets
