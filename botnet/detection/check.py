"""Every problem of a COCO-format data set at once."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.progress import track

from botnet.detection.coco import decode as decode_records
from botnet.detection.coco import read_file
from botnet.detection.records import (
    ImageRecord,
    Problem,
    broken_mask,
    error,
    image_name,
    no_mask,
    repeated_names,
    table_problems,
)
from botnet.detection.screening import Screening
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
        masks: whether every annotation must have a mask.
        decode: decode every image and mask; otherwise only the images' headers are read.
        progress: show a progress bar.

    Returns:
        The problems, those of the file first; empty if there are none.
    """
    path, folder = Path(instances), Path(images)
    try:
        tables = decode_records(path, read_file(path))
    except DataError as cause:
        return [error("unreadable file", path.name, str(cause))]
    problems = [*table_problems(tables), *repeated_names(tables)]
    screening = Screening(tables)
    records = screening.rules.images
    for annotation, found in screening:
        problems += found
        if annotation is None or any(problem.severity == "error" for problem in found):
            continue
        image = records[annotation.image_id]
        if annotation.segmentation is None:
            problems += [no_mask(annotation, image)] if masks else []
        elif decode:
            try:
                compress_mask(annotation.segmentation, image.height, image.width)
            except ValueError as cause:
                problems.append(broken_mask(annotation, image, cause))
    missing = list(folder_problems(list(records.values()), folder))
    problems += missing
    if any(problem.kind == "no images in folder" for problem in missing):
        return problems
    for image in track(records.values(), "images", disable=not progress):
        file = folder / image.file_name
        if os.path.isfile(file):
            problems += image_problems(file, image, decode)
    return problems


def folder_problems(images: Sequence[ImageRecord], folder: Path) -> Iterator[Problem]:
    """Images whose files are missing; a single problem if the folder has none of them."""
    if not os.path.isdir(folder):  # unlike Path's, it takes a name that is too long
        yield error("no images in folder", str(folder), "no such folder; give the folder of the images")
        return
    missing = [image for image in images if not os.path.isfile(os.path.join(folder, image.file_name))]
    if images and len(missing) == len(images):
        yield error(
            "no images in folder",
            str(folder),
            f"holds none of the {len(images)} images, not even {images[0].file_name}; "
            "give the folder that the file names are relative to",
        )
        return
    for image in missing:
        file = folder / image.file_name
        yield error(
            "missing image", image_name(image), f"{file}: no such file; restore it or remove its record"
        )


def image_problems(file: Path, image: ImageRecord, decode: bool) -> list[Problem]:
    """What is wrong with one image file: with its header or, if it is decoded, with all of it."""
    fault = find_fault(file, (image.height, image.width), decode)
    return [error(fault[0], image_name(image), f"{file}: {fault[1]}")] if fault else []
