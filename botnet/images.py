"""Image files: finding and decoding them, and the pixels that a normalised tensor shows.

The module loads without PyTorch.
"""

import functools
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE

from botnet.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

# What counts as an image in a folder. Pillow also registers formats that it can only write (PDF) or only
# recognise (MPEG, HDF5), and EPS, which is a program.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

Size = tuple[int, int]  # height, width in pixels
Extent = tuple[float, float, float, float]  # left, top, right, bottom in pixels


# ---- finding


@functools.cache
def image_extensions() -> tuple[str, ...]:
    """Extensions of image files, such as ``.jpg``; all in lower case."""
    return tuple(ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS)


def image_files(sources: Sequence[Path], recursive: bool = False) -> dict[str, Path]:
    """The images among files and folders, by their path below the source without suffix.

    Args:
        sources: image files, and folders of images.
        recursive: take the images in subfolders, too, links followed.

    Raises:
        DataError: a source does not exist, a folder has no images, symbolic links form a circle, or two files
            have the same name.
    """
    files: dict[str, Path] = {}
    for source in sources:
        if source.is_dir():
            found = files_below(source, image_extensions(), recursive)
            if not found:
                deeper = "" if recursive else ", without its subfolders (--recursive takes them, too)"
                raise DataError(f"{source} holds no image{deeper}; name a folder with images, or the images")
        elif source.is_file():
            found = [source]
        else:
            raise DataError(f"{source}: no such image or folder")
        root = source if source.is_dir() else source.parent
        for path in found:
            name = path.relative_to(root).with_suffix("").as_posix()
            if (other := files.setdefault(name, path)) != path:
                raise DataError(
                    f"{path} and {other} would be drawn into the same file; predict them in separate runs"
                )
    return files


def files_below(folder: Path, endings: Collection[str], recursive: bool = True) -> list[Path]:
    """Files in a folder and perhaps its subfolders, links followed, in the order of their paths.

    Hidden files and folders (``.ipynb_checkpoints``) are left out.

    Args:
        folder: the folder.
        endings: extensions in lower case, such as ``.jpg``.
        recursive: search the subfolders, too.

    Raises:
        DataError: the folder cannot be read, symbolic links form a circle, or a link leads nowhere.
    """
    found: list[Path] = []
    _visit(folder, endings, recursive, (), found)
    return found


def _visit(
    folder: Path,
    endings: Collection[str],
    recursive: bool,
    above: tuple[tuple[int, int], ...],
    found: list[Path],
) -> None:
    try:
        status = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); give a folder") from error
    own = status.st_dev, status.st_ino
    if own in above:
        raise DataError(f"{folder} is a symbolic link to a folder that holds it; remove the link")
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if os.path.isdir(path):
            if recursive:
                _visit(path, endings, recursive, (*above, own), found)
        elif path.suffix.lower() in endings:
            if not os.path.isfile(path):
                raise DataError(f"{path} is a symbolic link to nothing; remove or correct it")
            found.append(path)


def check_some_left(broken: Sequence[DataError], images: int) -> None:
    """Check that a prediction has not left out every image.

    Args:
        broken: the errors of the images that were left out.
        images: the number of images.

    Raises:
        DataError: all were left out; with the first error.
    """
    if len(broken) == images:
        others = f"; none of the {images} images can be predicted" if images > 1 else ""
        raise DataError(f"{broken[0]}{others}")


# ---- decoding


def load_image(path: Path, size: Size | None = None) -> Image.Image:
    """Decode an image of any mode to RGB, oriented as its annotations are.

    An EXIF orientation says how to turn the stored image upright. Some tools annotate the image as stored,
    others as shown. If only the stored image has the given size, the orientation is ignored; otherwise, and
    to a TIFF always, it is applied. Transparency is dropped. 12- and 16-bit grey is reduced to 8 bits.

    Args:
        path: the file.
        size: (height, width) that the image must have, if known.

    Raises:
        DataError: the file is missing, broken or not an image, has 32-bit grey, or is of another size.
    """
    image, _ = decode_image(path, size, None)
    return image


def decode_image(path: Path, size: Size | None, wanted: Size | None) -> tuple[Image.Image, Extent]:
    """Decode an image as :func:`load_image` does; a large JPEG at 1/2, 1/4 or 1/8 of its size.

    Args:
        path: the file.
        size: (height, width) that the image must have, if known.
        wanted: least (height, width) to decode a JPEG at; None: its own.

    Returns:
        The image, and the edges of the original in its pixels.

    Raises:
        DataError: as in :func:`load_image`.
    """
    _check_file(path)
    try:
        with Image.open(path) as stored:
            shown, orientation = _shown_size(stored, size)
            shrunk = _draft(stored, wanted if orientation >= 5 else wanted[::-1]) if wanted else 1
            image = _upright(stored, orientation)
    except Exception as error:  # Pillow's decoders raise almost anything on a broken file
        raise DataError(f"{path}: {_decoding_fault(error)}") from error
    if size is not None and shown != size:
        raise DataError(f"{path}: {_size_fault(shown, size)}")
    # Decoded at 1/2, 1/4 or 1/8, the last row and column may stand for less than 2, 4 or 8 original ones; a
    # mirrored image begins with them.
    width, height = shown[1] / shrunk, shown[0] / shrunk
    x = image.width - width if orientation in (2, 3, 6, 7) else 0.0
    y = image.height - height if orientation in (3, 4, 7, 8) else 0.0
    return image, (x, y, x + width, y + height)


def as_image(
    image: "str | os.PathLike[str] | Image.Image | np.ndarray | Tensor", upright: bool = True
) -> Image.Image:
    """An image in memory or in a file, in RGB.

    Args:
        image: a path, a Pillow image of any mode, an array (H, W, 3) uint8 RGB, or a tensor (3, H, W), uint8
            or floating-point from 0 to 1.
        upright: turn a Pillow image as its EXIF orientation says; a file always is.

    Raises:
        DataError: the file cannot be read, or the array or tensor is of another shape, type or range.
    """
    if isinstance(image, str | os.PathLike):
        return load_image(Path(image))
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise DataError(f"an image of {image.width} x {image.height} pixels; give one that has some")
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if upright else 1
            return _upright(image, orientation)
        except Exception as error:  # as below: Pillow decodes late
            raise DataError(_decoding_fault(error)) from error
    if not isinstance(image, np.ndarray) and not hasattr(image, "detach"):  # torch may be absent
        raise DataError(
            f"{type(image).__name__} is no image; give a path, a Pillow image, an array (H, W, 3) or a "
            "tensor (3, H, W)"
        )
    wrong = DataError(
        f"an image of shape {tuple(image.shape)} and type {image.dtype}; give an array (H, W, 3) or a tensor "
        "(3, H, W) of uint8 RGB"
    )
    if image.ndim != 3 or 0 in image.shape:
        raise wrong
    if isinstance(image, np.ndarray):
        array = image
    else:
        tensor = image.detach().cpu().permute(1, 2, 0)
        array = (tensor.double() if tensor.is_floating_point() else tensor).numpy()  # NumPy has no bfloat16
        if tensor.is_floating_point():
            if not ((array >= 0) & (array <= 1)).all():
                raise DataError(
                    "a tensor with values outside of [0, 1]; give RGB from 0 to 1, not normalised"
                )
            array = np.rint(array * 255).astype(np.uint8)
    if array.shape[2] != 3 or array.dtype != np.uint8:
        raise wrong
    return Image.fromarray(np.ascontiguousarray(array))


def _check_file(path: Path) -> None:
    if os.path.isdir(path):
        raise DataError(f"{path} is a folder; give the images in it")
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such image; restore the file or remove its record")


def image_size(path: Path) -> Size:
    """(Height, width) in pixels of an image file as :func:`load_image` decodes it; only its header is read.

    Raises:
        DataError: the file is missing or is not an image.
    """
    _check_file(path)
    try:
        with Image.open(path) as stored:
            return _shown_size(stored, None)[0]
    except Exception as error:  # as above
        raise DataError(f"{path}: {_decoding_fault(error)}") from error


def decode_stored(file: BinaryIO | Path, name: str) -> Image.Image:
    """Decode an image of any mode to RGB as it is stored: any EXIF orientation is ignored, as in timm.

    Args:
        file: an open file, or its path.
        name: of the image in errors.

    Raises:
        DataError: the file is broken or not an image, has 32-bit grey, or is too large.
    """
    try:
        with Image.open(file) as stored:
            return _to_rgb(stored, stored)
    except Exception as error:  # as above
        raise DataError(f"{name}: {_decoding_fault(error)}") from error


def find_fault(path: Path, size: Size, decode: bool) -> tuple[str, str] | None:
    """What is wrong with an image file: a short name and a description; None if nothing is.

    Args:
        path: the file.
        size: (height, width) that the image must have.
        decode: decode all of it; otherwise only its header is read.
    """
    try:
        with Image.open(path) as stored:
            shown, orientation = _shown_size(stored, size)
            if decode:
                _upright(stored, orientation)
    except Exception as error:  # as above
        return "broken image", _decoding_fault(error)
    return None if shown == size else ("wrong size", _size_fault(shown, size))


def _upright(stored: Image.Image, orientation: int) -> Image.Image:
    """The decoded image in RGB with its EXIF orientation applied."""
    return _to_rgb(ImageOps.exif_transpose(stored) if orientation > 1 else stored, stored)


def _to_rgb(image: Image.Image, stored: Image.Image) -> Image.Image:
    """An image of any mode in RGB; transparency is dropped, 12- and 16-bit grey is reduced to 8 bits.

    Args:
        image: the image, perhaps turned.
        stored: the file it was opened from, which knows its bit depth.

    Raises:
        ValueError: 32-bit, signed or floating-point grey. It has no agreed range, and Pillow would clip it
            to 0..255.
    """
    # 16-bit PNG and PGM may also have mode I.
    if image.mode.startswith("I;16") or (image.mode == "I" and stored.format in ("PNG", "PPM")):
        (bits,) = getattr(stored, "tag_v2", {}).get(BITSPERSAMPLE, (16,))  # TIFF also has 12
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit, signed or float; save it as 8-bit or unsigned 16-bit")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _draft(stored: Image.Image, wanted: tuple[int, int]) -> float:
    """Have a JPEG decoded smaller, but not smaller than ``wanted`` (width, height); returns the divisor."""
    width, height = stored.size
    for divisor in (8, 4, 2):
        if -(-width // divisor) >= wanted[0] and -(-height // divisor) >= wanted[1]:
            # Pillow ignores this for other formats.
            drafted = stored.draft(None, (max(width // divisor, 1), max(height // divisor, 1)))
            return width / drafted[1][2] if drafted else 1
    return 1


def _shown_size(stored: Image.Image, size: Size | None) -> tuple[Size, int]:
    """(Height, width) of the decoded image, and the EXIF orientation to apply (1: none)."""
    own, turned = (stored.height, stored.width), (stored.width, stored.height)
    if stored.format == "TIFF":  # Pillow turns it while decoding, and states the turned size
        return own, 1
    orientation = stored.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation not in range(2, 9):
        return own, 1
    if orientation < 5:  # 5 to 8 swap height and width
        return own, orientation
    return (own, 1) if own == size != turned else (turned, orientation)


def _decoding_fault(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"too large to decode ({error}); scale it down or remove it"
    return f"cannot be decoded ({error}); restore the file or remove it"


def _size_fault(found: Size, size: Size) -> str:
    return (
        f"the image is {found[1]} x {found[0]} pixels, its record says {size[1]} x {size[0]} "
        "(width x height); correct the record or restore the file"
    )


# ---- tensors


def denormalise(image: "Tensor", mean: Sequence[float], std: Sequence[float]) -> "Tensor":
    """The pixels that a normalised image shows.

    Args:
        image: (3, H, W) as the network takes it, on any device.
        mean, std: by which it was normalised, of RGB in [0, 1].

    Returns:
        (3, H, W) uint8, on the CPU.
    """
    import torch  # only here: reading and converting data sets needs no torch

    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return ((image.float().cpu() * scale + shift) * 255).round().clamp(0, 255).to(torch.uint8)
