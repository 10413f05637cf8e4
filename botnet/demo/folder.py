"""Making a data set in a folder: completely or not at all, and only once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from botnet.errors import DataError
from botnet.folders import is_unused, new_folder

Contents = TypeVar("Contents")


def make_once(
    directory: Path,
    what: str,
    settings: dict[str, Any],
    write: Callable[[Path], Contents],
    recognise: Callable[[Path], Contents | None],
) -> tuple[Contents, bool]:
    """Make a data set unless it exists already.

    Args:
        directory: made or, if empty, filled by this call.
        what: the data set is made of, for the error.
        settings: that determine it.
        write: fills a folder.
        recognise: what `write` would return for a folder that holds the data set; None for any other.

    Returns:
        What `write` or `recognise` returned, and whether the data set was made by this call.

    Raises:
        DataError: the directory holds something else.
    """
    if not is_unused(directory):
        contents = recognise(directory)
        if contents is None:
            raise DataError(
                f"{directory} is not empty and not the {what} of these settings ({settings}); "
                "choose another directory or remove this one"
            )
        return contents, False
    with new_folder(directory) as scratch:
        return write(scratch), True
