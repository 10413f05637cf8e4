"""The rules that records of a COCO instances file must follow."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

from botnet.errors import DataError

OVERSHOOT = 1.0  # pixels beyond the image that rounding explains
FAR = 10  # times the image's longer side beyond it: a coordinate there would cost gigabytes to rasterise
MOST_PIXELS = 2**31 - 1  # of an image: run lengths are 32-bit numbers
MOST_AREA = 1e10  # square pixels: COCO's evaluation leaves out what is larger


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set.

    Args:
        kind: short name, the same for all problems of its kind.
        record: which image, annotation or file.
        message: what is wrong, and the remedy.
        severity: ``error``: the data set is refused; ``warning``: the part concerned is left out.
    """

    kind: str
    record: str
    message: str
    severity: str


def refusal(path: Path, problem: Problem) -> DataError:
    """The error that refuses a file for a problem."""
    return DataError(f"{path}: {problem.record}: {problem.message}")


def _error(kind: str, record: str, message: str) -> Problem:
    return Problem(kind, record, message, "error")


def _warning(kind: str, record: str, message: str) -> Problem:
    return Problem(kind, record, message, "warning")


def _table_problems(data: dict[str, Any]) -> Iterator[Problem]:
    """Problems of the categories and of the image records."""
    for key, needed in (("categories", _CATEGORY_FIELDS), ("images", _IMAGE_FIELDS)):
        name = {"categories": "category", "images": "image"}[key]
        if not data[key]:
            yield _error(f"no {key}", key, f"the list is empty; every data set needs at least one {name}")
        seen = set()
        for index, record in enumerate(data[key]):
            wrong = _wrong_fields(record, needed)
            if wrong:
                yield _error("malformed record", f"{key}[{index}]", f"{wrong}; write the record anew")
            elif record["id"] in seen:
                yield _error(
                    "duplicate id", f"{name} {record['id']}", "the id occurs twice; give each its own"
                )
            else:
                seen.add(record["id"])
                if key == "images" and not _has_pixels(record):
                    height, width = record["height"], record["width"]
                    yield _error(
                        "huge image" if min(height, width) > 0 else "empty image",
                        image_name(record),
                        f"its size, {short(height)} x {short(width)}, must be positive and of at most "
                        f"{MOST_PIXELS} pixels; correct it",
                    )


_CATEGORY_FIELDS: dict[str, type] = {"id": int, "name": str}
_IMAGE_FIELDS: dict[str, type] = {"id": int, "file_name": str, "height": int, "width": int}
_ANNOTATION_FIELDS: dict[str, type] = {"id": int, "image_id": int, "category_id": int, "bbox": list}


def _wrong_fields(record: Any, needed: dict[str, type]) -> str:
    """What a record lacks, in words; empty if nothing."""
    if not isinstance(record, dict):
        return f"is {short(record)}, not an object"
    for key, kind in needed.items():
        value = record.get(key)
        if type(value) is not kind:  # True is an int to isinstance
            return f'"{key}" is {short(value)}, not of type {kind.__name__}'
        # JSON can hold lone surrogates, but no file name and no terminal can.
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            return f'"{key}" is {short(value)}, which is not valid Unicode'
    return ""


def _has_pixels(image: dict[str, Any]) -> bool:
    height, width = image["height"], image["width"]
    return height > 0 and width > 0 and height * width <= MOST_PIXELS


def _sound_images(data: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The image records without fault, by id."""
    return {
        image["id"]: image
        for image in data["images"]
        if not _wrong_fields(image, _IMAGE_FIELDS) and _has_pixels(image)
    }


def _wrong_numbers(annotation: dict[str, Any]) -> str:
    """What is wrong with the numbers of an annotation, in words; empty if nothing."""
    bbox, area, crowd = annotation["bbox"], annotation.get("area"), annotation.get("iscrowd")
    if not (len(bbox) == 4 and _are_numbers(bbox)):
        return f'"bbox" is {short(bbox)}, not four finite numbers'
    if area is not None and not (_are_numbers([area]) and 0 <= area <= MOST_AREA):
        return f'"area" is {short(area)}, not a number from 0 to {MOST_AREA:.0e}'
    if crowd not in (None, 0, 1):
        return f'"iscrowd" is {short(crowd)}, neither 0 nor 1'
    return ""


def image_name(image: dict[str, Any]) -> str:
    """What messages call an image."""
    return f"image {image['id']} ({image['file_name']})"


def _annotations(data: dict[str, Any]) -> Iterator[tuple[dict[str, Any] | None, list[Problem]]]:
    """Each annotation as it is to be used (None: not at all) with its problems.

    Image records that are malformed are passed over: their annotations count as annotations of no image.
    """
    images = _sound_images(data)
    categories = {c["id"] for c in data["categories"] if not _wrong_fields(c, _CATEGORY_FIELDS)}
    seen = set()
    for index, annotation in enumerate(data["annotations"]):
        wrong = _wrong_fields(annotation, _ANNOTATION_FIELDS) or _wrong_numbers(annotation)
        if wrong:
            record = f"annotations[{index}]"
            yield None, [_error("malformed record", record, f"{wrong}; write the record anew")]
            continue
        record = f"annotation {annotation['id']}"
        image = images.get(annotation["image_id"])
        if annotation["id"] in seen:
            yield None, [_error("duplicate id", record, "the id occurs twice; give each annotation its own")]
        elif image is None:
            message = f"belongs to image {annotation['image_id']}, which is not in the file; add its record"
            yield None, [_error("unknown image", record, message)]
        elif annotation["category_id"] not in categories:
            message = (
                f"is of category {annotation['category_id']}, which is not in the file; add the category"
            )
            yield None, [_error("unknown category", f"{record} of {image_name(image)}", message)]
        else:
            yield _usable(annotation, image, f"{record} of {image_name(image)}")
        seen.add(annotation["id"])


def _are_numbers(values: list) -> bool:
    # A sum is not finite where any term is not: far cheaper than asking each.
    try:
        return all(type(value) in (int, float) for value in values) and math.isfinite(sum(values))
    except OverflowError:  # an integer beyond all floating-point numbers
        return False


def _usable(
    annotation: dict[str, Any], image: dict[str, Any], record: str
) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The part of an annotation that can be used, and what is wrong with the rest."""
    height, width = image["height"], image["width"]
    x, y, w, h = annotation["bbox"]
    if not (w > 0 and h > 0):
        return None, [
            _warning("empty box", record, f"its box is {w} x {h} pixels; it is left out: draw it anew")
        ]
    if not (x < width and y < height and x + w > 0 and y + h > 0):
        message = (
            f"its box [{x}, {y}, {w}, {h}] lies outside the {width} x {height} image; it is left out: move it"
        )
        return None, [_warning("outside image", record, message)]

    problems = []
    if _far((x, y, x + w, y + h), width, height):
        message = (
            f"its box [{x}, {y}, {w}, {h}] reaches far beyond the {width} x {height} image; write it anew"
        )
        return None, [_error("malformed record", record, message)]
    if _beyond((x, y, x + w, y + h), width, height):
        message = f"its box [{x}, {y}, {w}, {h}] reaches beyond the {width} x {height} image; trim it"
        problems.append(_warning("beyond image", record, message))
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        problem = _rle_problem(segmentation, image, record)
        return annotation, [*problems, problem] if problem else problems
    if segmentation in (None, [], [[]]):  # the ways in which exporters of boxes say that there is no mask
        return {**annotation, "segmentation": None}, problems
    if not isinstance(segmentation, list):
        message = (
            f"its segmentation is {short(segmentation)}, neither polygons nor run lengths; write it anew"
        )
        return None, [_error("malformed record", record, message)]

    polygons = []
    for polygon in segmentation:
        if not (isinstance(polygon, list) and _are_numbers(polygon)):
            message = f"a polygon is {short(polygon)}, not a list of finite numbers; write it anew"
            return None, [_error("malformed record", record, message)]
        if len(polygon) < 6 or len(polygon) % 2:
            message = (
                f"a polygon has {len(polygon)} coordinates, not the x and y of 3 points or more; "
                "it is left out: draw it anew"
            )
            problems.append(_warning("degenerate polygon", record, message))
            continue
        xs, ys = polygon[::2], polygon[1::2]
        extent = min(xs), min(ys), max(xs), max(ys)
        if not (extent[0] < width and extent[1] < height and extent[2] > 0 and extent[3] > 0):
            message = f"a polygon lies outside the {width} x {height} image; it is left out: move it"
            problems.append(_warning("outside image", record, message))
            continue
        if _far(extent, width, height):
            message = f"a polygon reaches far beyond the {width} x {height} image; write it anew"
            return None, [_error("malformed record", record, message)]
        if _beyond(extent, width, height):
            message = f"a polygon reaches beyond the {width} x {height} image; trim it"
            problems.append(_warning("beyond image", record, message))
        polygons.append(polygon)
    return {**annotation, "segmentation": polygons}, problems


Extent = tuple[float, float, float, float]  # left, top, right, bottom


def _beyond(extent: Extent, width: int, height: int, by: float = OVERSHOOT) -> bool:
    left, top, right, bottom = extent
    return min(left, top) < -by or right > width + by or bottom > height + by


def _far(extent: Extent, width: int, height: int) -> bool:
    return _beyond(extent, width, height, FAR * max(width, height))


def _rle_problem(rle: dict[str, Any], image: dict[str, Any], record: str) -> Problem | None:
    counts, size, found = rle.get("counts"), [image["height"], image["width"]], rle.get("size")
    if not isinstance(counts, list | str):
        return _error("broken mask", record, 'its run lengths lack "counts"; write the mask anew')
    if found != size or not all(type(side) is int for side in found):
        message = (
            f"its mask is of size {short(found)}, its image of {size} (height, width); write the mask anew"
        )
        return _error("broken mask", record, message)
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts):
            message = f"its run lengths are {short(counts)}, not whole numbers from 0; write the mask anew"
            return _error("broken mask", record, message)
        if sum(counts) != math.prod(size):
            message = (
                f"its run lengths do not add up to the image's {math.prod(size)} pixels; write the mask anew"
            )
            return _error("broken mask", record, message)
    return None


def _no_mask(annotation: dict[str, Any], image: dict[str, Any]) -> Problem:
    return _error(
        "no mask",
        f"annotation {annotation['id']} of {image_name(image)}",
        "it has no segmentation; add one, or train Faster R-CNN without masks",
    )


def broken_mask(annotation: dict[str, Any], image: dict[str, Any], error: Exception) -> Problem:
    """A mask that cannot be decoded."""
    record = f"annotation {annotation['id']} of {image_name(image)}"
    return _error("broken mask", record, f"its mask cannot be decoded ({error}); write it anew")
