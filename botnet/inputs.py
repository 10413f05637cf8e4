"""What commands are given: images, folders to fill, devices."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from botnet.errors import DataError

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


def check_unused(output: Path) -> None:
    """Refuse a folder to fill that has something in it.

    Raises:
        DataError: it has, or it is a file.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output} exists and is not an empty folder; name another one by --output")


def make_folder(path: Path) -> None:
    """Make a folder and those above it; one that exists is left as it is.

    Raises:
        DataError: a file is in the way, or the folder above cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot make this folder ({error.strerror}); name another one") from error


@contextmanager
def new_folder(directory: Path) -> Iterator[Path]:
    """A scratch folder whose contents are those of ``directory`` in the end; after an error nothing is left.

    Args:
        directory: does not exist, or is empty; may be a link to such a folder.

    Raises:
        DataError: a file is in the way, or the folder cannot be written.
    """
    directory = directory.resolve()
    # A folder that exists is filled, not replaced: it may be the working directory or a mount point.
    exists = directory.is_dir()
    home = directory if exists else directory.parent
    make_folder(home)
    try:
        temporary = tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=home)
    except OSError as error:
        raise DataError(
            f"{home}: cannot write into this folder ({error.strerror}); name another one"
        ) from error
    with temporary as scratch:
        whole = Path(scratch) / "whole"
        whole.mkdir()
        yield whole
        if not exists:
            os.rename(whole, directory)
            return
        for path in whole.iterdir():
            os.rename(path, directory / path.name)


def pick_device(name: str) -> torch.device:
    """The named device, or for "auto" the best there is.

    Raises:
        DataError: no device has that name, or it cannot be used here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # fails without a driver, or for a device that holds no data
        return device
    except (RuntimeError, AssertionError, ImportError) as error:  # the latter two from a build without it
        raise DataError(f"--device {name}: {str(error).splitlines()[0]}") from error
