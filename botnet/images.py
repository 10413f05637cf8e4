"""Decoded images in RGB, for detectors and classifiers alike."""

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE


def to_rgb(image: Image.Image, stored: Image.Image) -> Image.Image:
    """An image of any mode in RGB; transparency is dropped, deep grey is brought to 8 bits.

    Args:
        image: the image, perhaps turned.
        stored: the file it was opened from, which knows how many bits a pixel has.

    Raises:
        ValueError: 32-bit, signed or floating-point grey. No range is agreed on for these, and Pillow would
            cut them off at 0 and 255.
    """
    # PNG and PGM of 16 bits may have mode I, too.
    if image.mode.startswith("I;16") or (image.mode == "I" and stored.format in ("PNG", "PPM")):
        (bits,) = getattr(stored, "tag_v2", {}).get(BITSPERSAMPLE, (16,))  # TIFF also has 12
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit, signed or float; save it with 8 bits, or 16 without a sign")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")
