"""Matching image files with the image records of COCO files."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from botnet.detection.records import ImageRecord
from botnet.errors import DataError


def image_ids(paths: Sequence[Path], records: Sequence[ImageRecord]) -> list[tuple[int, bool]]:
    """A unique id for each image file.

    A file has a record if its path ends in the record's file name, folders included; the longest name wins.
    Its id is that of the record. The others get the numbers of their file names, as in COCO, if these are all
    numbers, distinct and not ids of ``records``. Otherwise they are numbered in their order, from 1 or from
    one above the highest id of ``records``.

    Args:
        paths: the files.
        records: with ``id`` and ``file_name``.

    Returns:
        For each file its id, and whether it has a record.

    Raises:
        DataError: two records have the file name of one image.
    """
    listed: dict[tuple[str, ...], list[int]] = {}
    for record in records:
        listed.setdefault(Path(record.file_name).parts, []).append(record.id)
    known = [_recorded_id(path, listed) for path in paths]
    taken = {image_id for ids in listed.values() for image_id in ids}
    unknown = [path for path, image_id in zip(paths, known, strict=True) if image_id is None]
    numbers = [int(path.stem) for path in unknown if path.stem.isdecimal()]
    if len(set(numbers) - taken) < len(unknown):
        first = max(taken, default=0) + 1
        numbers = list(range(first, first + len(unknown)))
    further = iter(numbers)
    return [(next(further), False) if image_id is None else (image_id, True) for image_id in known]


def _recorded_id(path: Path, listed: Mapping[tuple[str, ...], list[int]]) -> int | None:
    """The id of the longest recorded file name that a path ends in; None if there is none."""
    parts = Path(os.path.abspath(path)).parts
    for start in range(len(parts)):
        ids = listed.get(parts[start:], [])
        if len(ids) > 1:
            raise DataError(
                f"{path}: the truth has two images of this file name, {ids[0]} and {ids[1]}; remove one"
            )
        if ids:
            return ids[0]
    return None


def recorded_paths(records: Sequence[ImageRecord], folders: Sequence[Path], source: Path) -> list[Path]:
    """The file of each image record.

    Args:
        records: with ``file_name``, relative to one of the folders.
        folders: searched in their order.
        source: file of the records, for errors.

    Raises:
        DataError: a folder does not exist, or a record has no file.
    """
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder; for COCO results name the folders of the images")
    found: list[Path] = []
    missing: list[str] = []
    for record in records:
        files = [path for folder in folders if (path := folder / record.file_name).is_file()]
        found += files[:1]
        missing += [] if files else [record.file_name]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(records)} images of {source} are in none of the folders, the first "
            f"of them {missing[0]}; results must cover every image: add the files or their folder"
        )
    return found
