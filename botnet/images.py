"""Finding image files and decoding them."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE

from botnet.errors import DataError


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


# What counts as an image in a folder. Pillow also has names of files that it only writes (PDF) or only
# recognises (MPEG, HDF5), and EPS, which is a program.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


def image_paths(sources: Sequence[Path]) -> list[Path]:
    """The images among files and folders, of which no two have one stem.

    Args:
        sources: images, and folders whose images are taken (not those of their subfolders).

    Raises:
        DataError: one that does not exist, a folder without images, or two files of one stem.
    """
    extensions = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}
    paths: list[Path] = []
    for source in sources:
        if source.is_dir():
            files = (path for path in source.iterdir() if not path.is_dir())
            found = sorted(path for path in files if path.suffix.lower() in extensions)
            if not found:
                raise DataError(f"{source} holds no image; name a folder with images, or the images")
            paths += found
        elif source.is_file():
            paths.append(source)
        else:
            raise DataError(f"{source}: no such image or folder")
    stems: dict[str, Path] = {}
    for path in paths:
        if (other := stems.setdefault(path.stem, path)) != path:
            raise DataError(f"{path} and {other} would be drawn into the same file; predict them apart")
    return list(stems.values())


def check_some_left(broken: Sequence[DataError], images: int) -> None:
    """Refuse a prediction that has no image left.

    Args:
        broken: what is wrong with the images that were left out.
        images: how many there were in all.

    Raises:
        DataError: all were left out; what is wrong with the first of them.
    """
    if len(broken) == images:
        others = f"; no other of the {images} images can be predicted either" if images > 1 else ""
        raise DataError(f"{broken[0]}{others}")


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
    picture, _ = decode_image(path, size, None)
    return picture


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


def decode_image(
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
