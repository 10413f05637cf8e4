"""Output folders."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from botnet.errors import ConfigError


def is_unused(path: Path) -> bool:
    """Whether a folder does not exist yet, or is empty."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def check_unused(output: Path) -> None:
    """Refuse an output folder that is in use.

    Raises:
        ConfigError: it is not empty, or it is a file.
    """
    if not is_unused(output):
        raise ConfigError(f"{output} exists and is not an empty folder; name another one by --output")


def make_folder(path: Path) -> None:
    """Make a folder and its parents; an existing one stays as it is.

    Raises:
        ConfigError: a file is in the way, or the parent folder cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot make this folder ({error.strerror}); name another one") from error


@contextmanager
def new_folder(directory: Path) -> Iterator[Path]:
    """Fill a folder completely or, after an error, not at all.

    Args:
        directory: does not exist, or is empty; may be a link to such a folder.

    Yields:
        A temporary folder. At the end, its contents are moved into ``directory``.

    Raises:
        ConfigError: a file is in the way, or the folder cannot be written.
    """
    directory = directory.resolve()
    # A folder that exists is filled, not replaced: it may be the working directory or a mount point.
    exists = directory.is_dir()
    home = directory if exists else directory.parent
    make_folder(home)
    try:
        temporary = tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=home)
    except OSError as error:
        raise ConfigError(
            f"{home}: cannot write into this folder ({error.strerror}); name another one"
        ) from error
    with temporary as scratch:
        filled = Path(scratch) / "filled"
        filled.mkdir()
        yield filled
        if not exists:
            os.rename(filled, directory)
            return
        for path in filled.iterdir():
            os.rename(path, directory / path.name)
