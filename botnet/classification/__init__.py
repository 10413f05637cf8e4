"""Image classification: ImageNet and custom classes (paper, Section 4.7)."""

from typing import TYPE_CHECKING

from botnet.lazy import lazy

if TYPE_CHECKING:
    from botnet.classification.checkpoint import create_classifier, load_classifier
    from botnet.classification.datamodule import ImageDataModule
    from botnet.classification.module import ClassificationModule

__all__ = ["ClassificationModule", "ImageDataModule", "create_classifier", "load_classifier"]

# Inference does not import Lightning.
__getattr__, __dir__ = lazy(
    __name__,
    {
        "ClassificationModule": "botnet.classification.module",
        "ImageDataModule": "botnet.classification.datamodule",
        "create_classifier": "botnet.classification.checkpoint",
        "load_classifier": "botnet.classification.checkpoint",
    },
)
