"""Making a data set in a folder: completely or not at all, and only once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from botnet.errors import DataError
from botnet.folders import is_unused, new_folder

Contents = TypeVar("Contents")
Counts = TypeVar("Counts")


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


def recognise_coco(
    directory: Path, settings: dict[str, Any], count: Callable[[dict[str, Any]], Counts]
) -> dict[str, Counts] | None:
    """Counts of the splits of a COCO-format set in a folder; None if it is not whole, or of other settings.

    Args:
        directory: with ``instances_train.json``, ``instances_val.json`` and the folders of their images.
        settings: that its instances files must name.
        count: of the contents of an instances file.
    """
    counts = {}
    for split in ("train", "val"):
        try:
            truth = json.loads((directory / f"instances_{split}.json").read_text())
            files = [directory / split / image["file_name"] for image in truth["images"]]
            if truth["info"]["settings"] != settings or not all(file.is_file() for file in files):
                return None
            counts[split] = count(truth)
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return counts
