"""Every problem of a COCO-format data set at once."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import track

from botnet.detection.coco import _read
from botnet.detection.records import (
    Problem,
    _annotations,
    _error,
    _no_mask,
    _sound_images,
    _table_problems,
    broken_mask,
    image_name,
)
from botnet.errors import DataError
from botnet.images import find_fault
from botnet.masks import compress_mask


def check_data(
    instances: Path, images: Path, *, masks: bool = True, decode: bool = True, progress: bool = False
) -> list[Problem]:
    """Every problem of an instances file and its folder of images.

    Args:
        instances: the file.
        images: the folder.
        masks: ask that every annotation has a mask.
        decode: decode every image and mask; otherwise only the images' headers are read.
        progress: show a progress bar.

    Returns:
        The problems, those of the file first; empty if there are none.
    """
    path, folder = Path(instances), Path(images)
    try:
        data = _read(path)
    except DataError as error:
        return [_error("unreadable file", path.name, str(error))]
    problems = list(_table_problems(data))
    records = _sound_images(data)
    for annotation, found in _annotations(data):
        problems += found
        if annotation is None or any(problem.severity == "error" for problem in found):
            continue
        image = records[annotation["image_id"]]
        if annotation["segmentation"] is None:
            problems += [_no_mask(annotation, image)] if masks else []
        elif decode:
            try:
                compress_mask(annotation["segmentation"], image["height"], image["width"])
            except ValueError as error:
                problems.append(broken_mask(annotation, image, error))
    missing = list(folder_problems(list(records.values()), folder))
    problems += missing
    if any(problem.kind == "no images in folder" for problem in missing):
        return problems
    for image in track(records.values(), "images", disable=not progress):
        file = folder / image["file_name"]
        if os.path.isfile(file):
            problems += image_problems(file, image, decode)
    return problems


def folder_problems(images: list[dict[str, Any]], folder: Path) -> Iterator[Problem]:
    """Images whose files are missing; one problem alone if the folder has no image at all."""
    if not os.path.isdir(folder):  # unlike Path's, it takes a name that is too long
        yield _error("no images in folder", str(folder), "no such folder; give the folder of the images")
        return
    missing = [image for image in images if not os.path.isfile(folder / image["file_name"])]
    if images and len(missing) == len(images):
        yield _error(
            "no images in folder",
            str(folder),
            f"holds none of the {len(images)} images, not even {images[0]['file_name']}; "
            "give the folder that the file names are relative to",
        )
        return
    for image in missing:
        file = folder / image["file_name"]
        yield _error(
            "missing image", image_name(image), f"{file}: no such file; restore it or remove its record"
        )


def image_problems(file: Path, image: dict[str, Any], decode: bool) -> list[Problem]:
    """What is wrong with one image file: with its header or, if it is decoded, with all of it."""
    fault = find_fault(file, (image["height"], image["width"]), decode)
    return [_error(fault[0], image_name(image), f"{file}: {fault[1]}")] if fault else []
