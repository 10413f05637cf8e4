"""Instance segmentation and detection: Mask R-CNN and Faster R-CNN on any timm backbone."""

from botnet.detection.rcnn import RCNN, faster_rcnn, mask_rcnn

__all__ = ["RCNN", "faster_rcnn", "mask_rcnn"]
