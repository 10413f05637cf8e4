"""Images as classifiers take them, without PyTorch."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from botnet.images import decode_stored

# Ratio of length to width above which an image is a strip. Its short side enlarged to the network's size
# would take gigabytes, and neither a centre crop nor a random crop sees more than its middle.
STRIP = 16


def read_image(file: BinaryIO | Path, name: str) -> Image.Image:
    """Decode an image of any mode to RGB as it is stored; of a strip, only the middle is kept.

    A strip is an image whose sides have a ratio above 16.

    Args:
        file: an open file, or its path.
        name: of the image in errors.

    Raises:
        DataError: as in :func:`botnet.images.decode_stored`.
    """
    image = decode_stored(file, name)
    longest = STRIP * min(image.size)
    if max(image.size) > longest:
        width, height = (min(side, longest) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return image


@dataclass(frozen=True)
class EvalTransform:
    """timm's evaluation transform on Pillow and NumPy, bit for bit: resize, centre crop and normalise.

    Args:
        image_size: side in pixels of the result.
        crop_pct: the short side is resized to ``image_size / crop_pct``; above 0, up to 1.
        interpolation: of the resize, in timm's words.
        mean, std: for the normalisation, of RGB in [0, 1]; by default there is none.
    """

    image_size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float] = (0, 0, 0)
    std: tuple[float, float, float] = (1, 1, 1)

    def crop(self, image: Image.Image) -> Image.Image:
        """What the network sees of an RGB image."""
        short = math.floor(self.image_size / self.crop_pct)
        # torchvision truncates the long side to whole pixels.
        width, height = (int(short * side / min(image.size)) for side in image.size)
        image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        left, top = (round((side - self.image_size) / 2) for side in image.size)
        return image.crop((left, top, left + self.image_size, top + self.image_size))

    def __call__(self, image: Image.Image) -> np.ndarray:
        """An RGB image as the network takes it, (3, image_size, image_size) float32."""
        pixels = np.asarray(self.crop(image))
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        prepared = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
        prepared /= 255
        prepared -= mean
        prepared /= std
        return prepared
