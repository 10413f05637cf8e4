"""Files of a data set: finding, reading and placing them."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from botnet.errors import DataError

# The names that a split may have in a layout.
SPLITS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


def files_below(folder: Path, endings: Collection[str]) -> list[Path]:
    """Files in a folder and its subfolders, links followed, in the order of their paths.

    Args:
        folder: the folder.
        endings: extensions in lower case, such as ``.jpg``.

    Raises:
        DataError: the folder cannot be read, symbolic links form a circle, or a link leads nowhere.
    """
    found: list[Path] = []
    _visit(folder, endings, (), found)
    return found


def _visit(
    folder: Path, endings: Collection[str], above: tuple[tuple[int, int], ...], found: list[Path]
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
        if os.path.isdir(path):
            _visit(path, endings, (*above, own), found)
        elif path.suffix.lower() in endings and not entry.name.startswith("."):
            if not os.path.isfile(path):
                raise DataError(f"{path} is a symbolic link to nothing; remove or correct it")
            found.append(path)


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
