"""Labelled images, transformed for a network."""

from collections.abc import Callable
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import Compose

from botnet.classification.images import EvalTransform, read_image
from botnet.classification.readers import ImageReader
from botnet.errors import DataError
from botnet.training.seeding import Key, generator, run_seed, seeded


class ImageSet(Dataset[tuple[Tensor, int]]):
    """Labelled images, transformed for a network.

    A training sample has the key (epoch, index) and depends on nothing else but the run's seed. An evaluation
    sample has an index as its key.

    Args:
        reader: from :func:`open_reader`.
        transform: of an RGB image; timm's return a tensor (3, S, S).
        train: samples for training rather than for evaluation.
    """

    def __init__(
        self, reader: ImageReader, transform: Callable[[Image.Image], Any], train: bool = False
    ) -> None:
        self.reader, self.transform, self.train = reader, transform, train

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, index: int) -> str:
        """Name of a sample in messages: usually its file."""
        return str(self.reader.filename(index, absolute=True) or f"image {index}")

    def load(self, index: int) -> tuple[Image.Image, int]:
        """A sample before its transform: the image in RGB, and its label.

        Raises:
            DataError: the image cannot be read.
        """
        try:
            file, label = self.reader[index]
        except OSError as error:
            raise DataError(
                f"{self.name(index)}: cannot be read ({error}); restore it or remove it"
            ) from error
        with file:
            return read_image(file, self.name(index)), int(label)

    def __getitem__(self, key: Key | int) -> tuple[Tensor, int]:
        if not self.train:
            image, label = self.load(cast(int, key))
            return self.transform(image), label
        epoch, index = cast(Key, key)
        image, label = self.load(index)
        with seeded(generator(run_seed(), epoch, index)):
            return self.transform(image), label


def eval_transform(
    image_size: int,
    crop_pct: float,
    interpolation: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Callable[[Image.Image], Any]:
    """timm's evaluation transform: resize, centre crop and normalise.

    Args:
        image_size, crop_pct, interpolation, mean, std: as in
            :class:`botnet.classification.images.EvalTransform`, which does it without torch.

    Returns:
        A function from an image to a tensor (3, image_size, image_size).
    """
    return Compose([EvalTransform(image_size, crop_pct, interpolation, mean, std), torch.from_numpy])
