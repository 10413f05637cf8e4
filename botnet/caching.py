"""The user's cache folder, and a lock for what is made there once for all processes of a machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from botnet.errors import ConfigError

LONGEST_WAIT = 600  # seconds for another process to make a file


def cache_folder() -> Path:
    """The folder ``botnet`` in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``).

    Raises:
        ConfigError: neither that variable nor a home folder is known.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "botnet"
    except RuntimeError as error:
        raise ConfigError(
            "this user has no home folder; set XDG_CACHE_HOME to a folder for caches"
        ) from error


@contextmanager
def alone(lock: Path) -> Iterator[bool]:
    """Let one process of the machine at a time make something: the others wait, and find it made.

    The lock of a killed process is free again.

    Args:
        lock: its file; the folder is made.

    Yields:
        Whether the lock is held: what lies half-written is then nobody's. It is not where folder or file
        system have no locks, or after ten minutes of waiting: whoever makes a file must do so under another
        name and rename it.
    """
    file = FileLock(lock, timeout=LONGEST_WAIT)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file.acquire()
    except (OSError, NotImplementedError):
        yield False
        return
    try:
        yield True
    finally:
        file.release()
