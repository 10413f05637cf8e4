"""Instance segmentation and detection: Mask R-CNN and Faster R-CNN on any timm backbone."""

from botnet.detection.checkpoint import load_detector
from botnet.detection.datamodule import CocoDataModule
from botnet.detection.module import DetectionModule
from botnet.detection.rcnn import RCNN, faster_rcnn, mask_rcnn

__all__ = ["RCNN", "CocoDataModule", "DetectionModule", "faster_rcnn", "load_detector", "mask_rcnn"]
