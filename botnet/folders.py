"""Output folders."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from botnet.errors import DataError


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
