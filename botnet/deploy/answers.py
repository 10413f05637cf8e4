"""Answers of exported networks, without PyTorch: what ``botnet.load`` returns for an ``.onnx`` file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from botnet.classification.image_classifier import ImageClassifier
from botnet.classification.images import EvalTransform
from botnet.deploy.session import OnnxModel
from botnet.detection.detector import Detector, Prepared


def load_onnx(path: str | Path) -> "OnnxDetector | OnnxClassifier":
    """An exported network, ready to answer.

    Args:
        path: of ``botnet export``.

    Raises:
        CheckpointError: the file is missing, broken, of another program or of a newer format.
    """
    model = OnnxModel(path)
    return OnnxDetector(model) if model.task == "detector" else OnnxClassifier(model)


class OnnxDetector(Detector):
    """An exported detector.

    Args:
        model: the exported network.
    """

    def __init__(self, model: OnnxModel) -> None:
        super().__init__(model.class_names, model.category_ids, model.size)
        self.model = model

    def run(self, prepared: Sequence[Prepared]) -> list[dict[str, np.ndarray]]:
        """What the network finds on each canvas."""
        images = np.zeros((len(prepared), 3, *self.size), np.uint8)
        for image, part in zip(images, prepared, strict=True):
            height, width = part.placement.valid
            image[:, :height, :width] = part.pixels.transpose(2, 0, 1)
        found = self.model.run(images, [part.placement.valid for part in prepared])
        return [_with_one_channel(detections) for detections in found]


def _with_one_channel(detections: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Masks as the network of PyTorch gives them, (n, 1, M, M)."""
    return {name: values[:, None] if name == "masks" else values for name, values in detections.items()}


class OnnxClassifier(ImageClassifier):
    """An exported classifier.

    Args:
        model: the exported network.
    """

    def __init__(self, model: OnnxModel) -> None:
        super().__init__(str(model.path), model.class_names)
        self.model = model
        crop_pct, interpolation = model.preparation["crop_pct"], model.preparation["interpolation"]
        self._crop = EvalTransform(model.size[0], crop_pct, interpolation).crop

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An RGB image as the network takes it, (3, S, S) uint8."""
        return np.asarray(self._crop(image)).transpose(2, 0, 1)

    def run(self, images: np.ndarray) -> np.ndarray:
        """The probabilities of prepared images."""
        return np.stack([found["scores"] for found in self.model.run(images)])
