"""Files of a data set: reading and placing them."""

import os
import shutil
from pathlib import Path

from botnet.errors import DataError

# The names that a split may have in a layout.
SPLITS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        DataError: it cannot be read, or is in another encoding.
    """
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: is not UTF-8; save the file in that encoding") from error


def relative_name(file: Path, folder: Path) -> str:
    """The path of an image relative to a folder, as an instances file holds it.

    Raises:
        DataError: the name is not UTF-8.
    """
    name = file.relative_to(folder).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{str(file)!a}: the file's name is not UTF-8; rename it") from error
    return name


def place(source: Path, target: Path) -> bool:
    """Give a file a second name (a hard link), or copy it where the file system cannot; whether linked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)
        return False
    return True
