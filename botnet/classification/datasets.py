"""Labelled images, prepared for a network."""

from collections.abc import Callable
from typing import Any

from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from botnet.classification.readers import read_image
from botnet.errors import DataError
from botnet.training.seeding import Key, generator, run_seed, seeded


class ImageSet(Dataset):
    """Images with their labels, prepared for a network.

    A training sample is asked for by (epoch, index) and is the same wherever and however often it is made;
    an evaluation sample by its index.

    Args:
        reader: from :func:`open_reader`.
        transform: of the picture; timm's make a tensor (3, S, S).
        train: samples for training rather than for evaluation.
    """

    def __init__(self, reader: Any, transform: Callable[[Image.Image], Any], train: bool = False) -> None:
        self.reader, self.transform, self.train = reader, transform, train

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, index: int) -> str:
        """What a sample is called: mostly its file."""
        return str(self.reader.filename(index, absolute=True) or f"image {index}")

    def picture(self, index: int) -> tuple[Image.Image, int]:
        """A picture as it is stored, in RGB, and its label.

        Raises:
            DataError: it cannot be read.
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
            image, label = self.picture(key)  # type: ignore[arg-type]
            return self.transform(image), label
        epoch, index = key  # type: ignore[misc]
        image, label = self.picture(index)
        with seeded(generator(run_seed(), epoch, index)):
            return self.transform(image), label


def eval_transform(
    image_size: int,
    crop_pct: float,
    interpolation: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Callable[[Image.Image], Any]:
    """timm's evaluation: the short side to ``image_size / crop_pct``, centre crop, normalised (3, S, S)."""
    return create_transform(
        image_size, crop_pct=crop_pct, interpolation=interpolation, mean=tuple(mean), std=tuple(std)
    )
