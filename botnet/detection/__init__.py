"""Instance segmentation and detection: Mask R-CNN and Faster R-CNN on any timm backbone."""

from typing import TYPE_CHECKING

from botnet.lazy import lazy

if TYPE_CHECKING:
    from botnet.detection.checkpoint import load_detector
    from botnet.detection.datamodule import CocoDataModule
    from botnet.detection.module import DetectionModule
    from botnet.detection.rcnn import RCNN, faster_rcnn, mask_rcnn

__all__ = ["RCNN", "CocoDataModule", "DetectionModule", "faster_rcnn", "load_detector", "mask_rcnn"]

# Inference does not import Lightning.
__getattr__, __dir__ = lazy(
    __name__,
    {
        "RCNN": "botnet.detection.rcnn",
        "CocoDataModule": "botnet.detection.datamodule",
        "DetectionModule": "botnet.detection.module",
        "faster_rcnn": "botnet.detection.rcnn",
        "load_detector": "botnet.detection.checkpoint",
        "mask_rcnn": "botnet.detection.rcnn",
    },
)
