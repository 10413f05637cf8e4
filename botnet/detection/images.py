"""Pictures of any kind as the pixels that annotations mean."""

import os
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from botnet.detection.transforms import Placement
from botnet.errors import DataError
from botnet.images import to_rgb


def load_image(path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """A picture of any mode in RGB, the way up that its annotations mean.

    A camera may store a turned picture with an EXIF note that says how to turn it back; some tools annotate
    it as stored, others as shown. Where a size is given and only the stored picture has it, the note is
    ignored; otherwise it is obeyed. Transparency is dropped; 12 and 16-bit grey is brought to 8 bits.

    Args:
        path: the file.
        size: (height, width) that the picture must have, if known.

    Returns:
        The picture, decoded.

    Raises:
        DataError: no such file, no picture, a broken one, grey of 32 bits, or one of another size.
    """
    picture, _ = _decode(path, size, None)
    return picture


def load_placed(path: Path, placement: Placement) -> np.ndarray:
    """What the canvas shows of a picture, (h, w, 3) uint8.

    A JPEG that is to shrink is decoded at a half, a quarter or an eighth of its size, never at less than it
    is to have on the canvas.

    Args:
        path: the file, read as in :func:`load_image`.
        placement: of the picture; its size must be the file's.

    Raises:
        DataError: as in :func:`load_image`.
    """
    picture, extent = _decode(path, placement.size, placement.resized)
    return placement.pixels(picture, extent)


def find_fault(path: Path, size: tuple[int, int], decode: bool) -> tuple[str, str] | None:
    """What is wrong with a file, as a short name and in words; None if nothing.

    Args:
        path: the file.
        size: (height, width) that the picture must have.
        decode: decode all of it; otherwise only its header is read.
    """
    try:
        with Image.open(path) as stored:
            shown, orientation = _shown_size(stored, size)
            if decode:
                _upright(stored, orientation)
    except Exception as error:  # Pillow's decoders raise almost anything on a broken file
        return "broken image", _broken_message(error)
    return None if shown == size else ("wrong size", _size_message(shown, size))


def _decode(
    path: Path, size: tuple[int, int] | None, wanted: tuple[int, int] | None
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """A picture, perhaps smaller than ``size`` but not than ``wanted``, and where in it the original lies."""
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such image; restore the file or remove its record")
    try:
        with Image.open(path) as stored:
            shown, orientation = _shown_size(stored, size)
            shrunk = _shrink(stored, wanted if orientation >= 5 else wanted[::-1]) if wanted else 1
            image = _upright(stored, orientation)
    except Exception as error:  # as above
        raise DataError(f"{path}: {_broken_message(error)}") from error
    if size is not None and shown != size:
        raise DataError(f"{path}: {_size_message(shown, size)}")
    # Decoded at 1/2, 1/4 or 1/8, the last row and column may stand for less than 2, 4 or 8 original ones; a
    # mirrored picture begins with them.
    width, height = shown[1] / shrunk, shown[0] / shrunk
    x = image.width - width if orientation in (2, 3, 6, 7) else 0.0
    y = image.height - height if orientation in (3, 4, 7, 8) else 0.0
    return image, (x, y, x + width, y + height)


def _upright(stored: Image.Image, orientation: int) -> Image.Image:
    """The decoded picture in RGB, turned as its orientation says."""
    return to_rgb(ImageOps.exif_transpose(stored) if orientation > 1 else stored, stored)


def _shrink(stored: Image.Image, wanted: tuple[int, int]) -> float:
    """Have a JPEG decoded smaller, but not smaller than ``wanted`` (width, height); returns the divisor."""
    width, height = stored.size
    for divisor in (8, 4, 2):
        if -(-width // divisor) >= wanted[0] and -(-height // divisor) >= wanted[1]:
            # Of other formats Pillow drafts nothing.
            drafted = stored.draft(None, (max(width // divisor, 1), max(height // divisor, 1)))
            return width / drafted[1][2] if drafted else 1
    return 1


def _shown_size(stored: Image.Image, size: tuple[int, int] | None) -> tuple[tuple[int, int], int]:
    """(Height, width) that a picture is to have, and the EXIF orientation that is to be obeyed (1: none)."""
    own, turned = (stored.height, stored.width), (stored.width, stored.height)
    orientation = stored.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation not in range(2, 9):
        return own, 1
    if orientation < 5:  # 5 to 8 swap height and width
        return own, orientation
    return (own, 1) if own == size != turned else (turned, orientation)


def _broken_message(error: Exception) -> str:
    return f"cannot be decoded ({error}); restore the file or remove its record"


def _size_message(found: tuple[int, int], size: tuple[int, int]) -> str:
    return (
        f"the image is {found[1]} x {found[0]} pixels, its record says {size[1]} x {size[0]} "
        "(width x height); correct the record or restore the file"
    )
