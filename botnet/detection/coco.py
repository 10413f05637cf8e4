"""COCO instances files."""

import json
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from botnet.detection.records import (
    Annotation,
    ImageRecord,
    Problem,
    broken_mask,
    checked_annotations,
    no_mask,
    refusal,
    table_problems,
)
from botnet.errors import DataError
from botnet.masks import Rle, compress_mask


class CocoInstances:
    """A parsed and validated COCO instances file, without pixels.

    Labels count from 1 in the order of the category ids, which may have gaps. Broken records are refused.
    What COCO itself contains (empty boxes, degenerate polygons) and what lies outside its image is left out;
    what reaches beyond its image is trimmed to it. ``dropped`` counts both.

    Args:
        path: the file.

    Attributes:
        path: the file.
        class_names: of labels 1, 2, ...
        category_ids: original ids: ``category_ids[label - 1]``.
        images: records with ``id``, ``file_name``, ``height``, ``width`` (pixels), in the file's order.
        dropped: how many annotations, or polygons of them, were left out or trimmed, by kind of problem.
        maskless: the first annotation without a segmentation, if there is one.

    Raises:
        DataError: the first problem for which the file is refused. :func:`check_data` lists all.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        data = read_instances(self.path)
        for problem in table_problems(data):
            raise refusal(self.path, problem)
        categories = sorted(data["categories"], key=lambda category: category["id"])
        self.class_names: list[str] = [category["name"] for category in categories]
        self.category_ids: list[int] = [category["id"] for category in categories]
        self.images = [
            ImageRecord(
                id=image["id"],
                file_name=image["file_name"],
                height=image["height"],
                width=image["width"],
            )
            for image in data["images"]
        ]
        self.dropped: Counter[str] = Counter()
        self.maskless: Problem | None = None
        annotations: dict[int, list[Annotation]] = {image["id"]: [] for image in self.images}
        for annotation, problems in checked_annotations(data):
            for problem in problems:
                if problem.severity == "error":
                    raise refusal(self.path, problem)
                self.dropped[problem.kind] += 1
            if annotation:
                annotations[annotation["image_id"]].append(annotation)
                if annotation["segmentation"] is None and not self.maskless:
                    image = next(image for image in self.images if image["id"] == annotation["image_id"])
                    self.maskless = no_mask(annotation, image)
        # Millions of Python objects would be copied into every worker, page by page, as their reference
        # counts change; bytes stay shared.
        packed = [pickle.dumps(of_image) for of_image in annotations.values()]
        self._row = {image_id: row for row, image_id in enumerate(annotations)}
        self._ends = np.cumsum([0, *map(len, packed)])
        self._packed = np.frombuffer(b"".join(packed), np.uint8)

    def annotations_of(self, image_id: int) -> list[Annotation]:
        """The COCO annotations of one image, in the file's order, without what was dropped.

        ``segmentation`` is None where the file has no mask, and empty where all polygons were dropped.
        """
        row = self._row[image_id]
        return pickle.loads(self._packed[self._ends[row] : self._ends[row + 1]].data)

    def size_of(self, image_id: int) -> tuple[int, int]:
        """(Height, width) in pixels that the record of an image states, which its annotations refer to."""
        image = self.images[self._row[image_id]]
        return image["height"], image["width"]

    def mask_of(self, annotation: Annotation) -> Rle:
        """The mask of an annotation as compressed run lengths, empty where it has none.

        Raises:
            DataError: run lengths that cannot be decoded.
        """
        image = self.images[self._row[annotation["image_id"]]]
        try:
            return compress_mask(annotation["segmentation"] or [], image["height"], image["width"])
        except ValueError as error:
            raise refusal(self.path, broken_mask(annotation, image, error)) from error


def read_images(path: Path) -> tuple[list[ImageRecord], dict[int, str]]:
    """Image records, and category names by id, of an instances file or of one without annotations.

    COCO's lists of its test images (``image_info_test-dev2017.json``) are of the latter kind.

    Raises:
        DataError: no such file, or one with a broken record.
    """
    data = read_instances(path, ("images", "categories"))
    for problem in table_problems(data):
        raise refusal(path, problem)
    return data["images"], {category["id"]: category["name"] for category in data["categories"]}


def read_instances(
    path: Path, keys: Sequence[str] = ("images", "annotations", "categories")
) -> dict[str, Any]:
    """The contents of an instances file, unchecked but for its lists.

    Args:
        path: the file.
        keys: lists that it must have.

    Raises:
        DataError: the file cannot be read, is not JSON or lacks a list.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give the path of an instances file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error}); give a COCO instances file") from error
    for key in keys:
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise DataError(f'{path}: has no list "{key}"; give a COCO instances file')
    return data
