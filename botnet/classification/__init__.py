"""Image classification: ImageNet and one's own classes (paper, Section 4.7)."""

from botnet.classification.imagenet import ImageDataModule
from botnet.classification.module import ClassificationModule, create_classifier, load_classifier

__all__ = ["ClassificationModule", "ImageDataModule", "create_classifier", "load_classifier"]
