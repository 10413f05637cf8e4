"""Classes of images of any kind and size, from a trained classifier. The module loads without PyTorch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from PIL import Image

from botnet.classification.images import read_image
from botnet.images import as_image
from botnet.predictor import ImageLike, answer_all

if TYPE_CHECKING:
    from supervision import Classifications

    from botnet.classification.classifier import Classifier


class ImageClassifier(ABC):
    """A trained classifier, as :func:`botnet.load` returns it. It may be used from several threads.

    Args:
        name: of the model, for messages.
        class_names: of class ids 0, 1, ...
    """

    task = "classifier"

    def __init__(self, name: str, class_names: Sequence[str]) -> None:
        self.name, self.class_names = name, list(class_names)

    # A string is an image, though also an iterable of strings.
    @overload
    def predict(self, images: ImageLike) -> "Classifications": ...  # type: ignore[overload-overlap]

    @overload
    def predict(
        self, images: Iterable[ImageLike], *, batch_size: int = ..., stream: bool = ...
    ) -> "list[Classifications] | Iterator[Classifications]": ...

    def predict(
        self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 1, stream: bool = False
    ) -> "Classifications | list[Classifications] | Iterator[Classifications]":
        """Classify one image or several.

        Args:
            images: a path, a Pillow image, an array (H, W, 3) uint8 RGB, or a tensor (3, H, W), uint8 or from
                0 to 1; or several of them, of any sizes. Of files, an EXIF orientation is ignored, as timm
                does in training and evaluation.
            batch_size: images at once. Default 1.
            stream: return an iterator, which takes images as it is read. Default False.

        Returns:
            ``supervision.Classifications`` for each image: ``class_id`` of all classes, the likeliest first,
            and ``confidence``, the softmax. The names are ``class_names[class_id]``.

        Raises:
            DataError: an image cannot be read, or is of another shape, type or range.
            ConfigError: a batch below 1.
        """
        return answer_all(images, self._answers, batch_size, stream, upright=False)

    def _answers(self, images: Sequence[Image.Image | str | PathLike[str]]) -> "list[Classifications]":
        from supervision import Classifications

        scores = self.run(np.stack([self.prepare(as_read(image)) for image in images]))
        orders = np.argsort(-scores, axis=1, kind="stable")
        return [
            Classifications(class_id=order, confidence=row[order])
            for order, row in zip(orders, scores, strict=True)
        ]

    @abstractmethod
    def prepare(self, image: Image.Image) -> np.ndarray:
        """An RGB image as the network takes it, (3, S, S) float32."""

    @abstractmethod
    def run(self, images: np.ndarray) -> np.ndarray:
        """The probabilities (B, classes) float32 of prepared images (B, 3, S, S)."""


def as_read(image: Image.Image | str | PathLike[str]) -> Image.Image:
    """An image in RGB, not turned by its EXIF orientation."""
    if isinstance(image, Image.Image):
        return as_image(image, upright=False)
    return read_image(Path(image), str(image))


class TorchClassifier(ImageClassifier):
    """A classifier that PyTorch runs.

    Args:
        classifier: of :func:`botnet.classification.classifier.open_classifier`.
    """

    def __init__(self, classifier: "Classifier") -> None:
        super().__init__(classifier.name, classifier.class_names)
        self.network, self.device = classifier.model, classifier.device
        self.preparation, self._transform = classifier.preparation, classifier.transform

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An RGB image as the network takes it."""
        return np.asarray(self._transform(image))

    def run(self, images: np.ndarray) -> np.ndarray:
        """The probabilities of prepared images."""
        import torch

        with torch.inference_mode():
            logits = self.network(torch.from_numpy(images).to(self.device))
        return logits.float().softmax(-1).cpu().numpy()
