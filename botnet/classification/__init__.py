"""Image classification: ImageNet and one's own classes (paper, Section 4.7)."""

from botnet.classification.checkpoint import create_classifier, load_classifier
from botnet.classification.datamodule import ImageDataModule
from botnet.classification.module import ClassificationModule

__all__ = ["ClassificationModule", "ImageDataModule", "create_classifier", "load_classifier"]
