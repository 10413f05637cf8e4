"""Records of a COCO instances file: their types, and the rules that they must follow."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any, NotRequired, TypedDict

from botnet.errors import DataError
from botnet.masks import Polygons, Segmentation

ROUNDING = 1.0  # pixels beyond the image that rounding explains
# Times the longer side beyond the image: farther polygons would take gigabytes to rasterise.
MAX_OVERSHOOT = 10
MAX_PIXELS = 2**31 - 1  # of an image: run lengths are 32-bit numbers
MAX_AREA = 1e10  # square pixels: COCO's evaluation leaves out what is larger


class ImageRecord(TypedDict):
    """An image of an instances file; height and width are in pixels."""

    id: int
    file_name: str
    height: int
    width: int


class Category(TypedDict):
    """A class of an instances file."""

    id: int
    name: str


class Annotation(TypedDict):
    """An object of an instances file; ``bbox`` is x, y, width, height in pixels.

    ``segmentation`` is None where the file has no mask, and empty where all its polygons were left out.
    """

    id: int
    image_id: int
    category_id: int
    bbox: list[float]
    segmentation: Segmentation | None
    iscrowd: NotRequired[int | None]
    area: NotRequired[float | None]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set.

    Args:
        kind: short name, the same for all problems of its kind.
        record: which image, annotation or file.
        message: what is wrong, and the remedy.
        severity: ``error``: the data set is refused; ``warning``: the part concerned is left out or trimmed.
    """

    kind: str
    record: str
    message: str
    severity: str


def refusal(path: Path, problem: Problem) -> DataError:
    """The error that refuses a file for a problem."""
    return DataError(f"{path}: {problem.record}: {problem.message}")


def error(kind: str, record: str, message: str) -> Problem:
    """A problem for which the data set is refused."""
    return Problem(kind, record, message, "error")


def warning(kind: str, record: str, message: str) -> Problem:
    """A problem of a part that is left out or trimmed."""
    return Problem(kind, record, message, "warning")


def table_problems(data: dict[str, Any]) -> Iterator[Problem]:
    """Problems of the categories and of the image records."""
    yield from _list_problems(data["categories"], "categories", "category", _CATEGORY_FIELDS)
    yield from _list_problems(data["images"], "images", "image", _IMAGE_FIELDS)


def _list_problems(records: list[Any], key: str, name: str, fields: dict[str, type]) -> Iterator[Problem]:
    if not records:
        yield error(f"no {key}", key, f"the list is empty; every data set needs at least one {name}")
    seen = set()
    for index, record in enumerate(records):
        if wrong := _wrong_fields(record, fields):
            yield error("malformed record", f"{key}[{index}]", f"{wrong}; rewrite the record")
        elif record["id"] in seen:
            yield error("duplicate id", f"{name} {record['id']}", "the id occurs twice; give each its own")
        else:
            seen.add(record["id"])
            if key == "images" and not _has_pixels(record):
                yield _size_problem(record)


def _size_problem(image: ImageRecord) -> Problem:
    height, width = image["height"], image["width"]
    return error(
        "huge image" if min(height, width) > 0 else "empty image",
        image_name(image),
        f"its size, {short(height)} x {short(width)}, must be positive and of at most {MAX_PIXELS} pixels; "
        "correct it",
    )


_CATEGORY_FIELDS: dict[str, type] = {"id": int, "name": str}
_IMAGE_FIELDS: dict[str, type] = {"id": int, "file_name": str, "height": int, "width": int}
_ANNOTATION_FIELDS: dict[str, type] = {"id": int, "image_id": int, "category_id": int, "bbox": list}


def _wrong_fields(record: Any, needed: dict[str, type]) -> str:
    """What is wrong with the fields of a record, in words; empty if nothing."""
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


def _has_pixels(image: ImageRecord) -> bool:
    height, width = image["height"], image["width"]
    return height > 0 and width > 0 and height * width <= MAX_PIXELS


def sound_images(data: dict[str, Any]) -> dict[int, ImageRecord]:
    """The valid image records, by id."""
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
    if area is not None and not (_are_numbers([area]) and 0 <= area <= MAX_AREA):
        return f'"area" is {short(area)}, not a number from 0 to {MAX_AREA:.0e}'
    if crowd not in (None, 0, 1):
        return f'"iscrowd" is {short(crowd)}, neither 0 nor 1'
    return ""


def image_name(image: ImageRecord) -> str:
    """The name of an image in messages."""
    return f"image {image['id']} ({image['file_name']})"


Checked = tuple[Annotation | None, list[Problem]]  # an annotation as it can be used, and its problems


def checked_annotations(data: dict[str, Any]) -> Iterator[Checked]:
    """Each annotation as it can be used (None: not at all) with its problems.

    Malformed image records are ignored: their annotations count as annotations of an unknown image.
    """
    images = sound_images(data)
    categories = {c["id"] for c in data["categories"] if not _wrong_fields(c, _CATEGORY_FIELDS)}
    seen: set[int] = set()
    for index, annotation in enumerate(data["annotations"]):
        if wrong := _wrong_fields(annotation, _ANNOTATION_FIELDS) or _wrong_numbers(annotation):
            yield _refused("malformed record", f"annotations[{index}]", f"{wrong}; rewrite the record")
            continue
        record = f"annotation {annotation['id']}"
        image = images.get(annotation["image_id"])
        if annotation["id"] in seen:
            yield _refused("duplicate id", record, "the id occurs twice; give each annotation its own")
        elif image is None:
            message = f"belongs to image {annotation['image_id']}, which is not in the file; add its record"
            yield _refused("unknown image", record, message)
        elif annotation["category_id"] not in categories:
            message = (
                f"is of category {annotation['category_id']}, which is not in the file; add the category"
            )
            yield _refused("unknown category", f"{record} of {image_name(image)}", message)
        else:
            yield _checked(annotation, image, f"{record} of {image_name(image)}")
        seen.add(annotation["id"])


def _refused(kind: str, record: str, message: str) -> Checked:
    return None, [error(kind, record, message)]


def _are_numbers(values: list[Any]) -> bool:
    # A sum is finite only if all its terms are: far cheaper than checking each.
    try:
        return all(type(value) in (int, float) for value in values) and math.isfinite(sum(values))
    except OverflowError:  # an integer beyond all floating-point numbers
        return False


def _checked(annotation: dict[str, Any], image: ImageRecord, record: str) -> Checked:
    """The part of a well-formed annotation that can be used, and what is wrong with the rest."""
    box_problem = _box_problem(annotation["bbox"], image, record)
    # A box is left out or refused as a whole, unless it only reaches beyond the image.
    if box_problem and box_problem.kind != "beyond image":
        return None, [box_problem]
    problems = [box_problem] if box_problem else []
    segmentation = annotation.get("segmentation")
    if segmentation in (None, [], [[]]):  # the ways in which exporters of boxes write that there is no mask
        return _with_segmentation(annotation, None), problems
    if isinstance(segmentation, dict):
        problem = _rle_problem(segmentation, image, record)
        return _with_segmentation(annotation, segmentation), [*problems, problem] if problem else problems
    if not isinstance(segmentation, list):
        message = f"its segmentation is {short(segmentation)}, neither polygons nor run lengths; rewrite it"
        return _refused("malformed record", record, message)
    polygons: Polygons = []
    for polygon in segmentation:
        problem = _polygon_problem(polygon, image, record)
        if problem and problem.severity == "error":
            return None, [problem]
        problems += [problem] if problem else []
        if problem is None or problem.kind == "beyond image":
            polygons.append(polygon)
    return _with_segmentation(annotation, polygons), problems


def _with_segmentation(annotation: dict[str, Any], segmentation: Any) -> Annotation:
    checked: Any = {**annotation, "segmentation": segmentation}
    return checked


def _box_problem(bbox: list[float], image: ImageRecord, record: str) -> Problem | None:
    height, width = image["height"], image["width"]
    x, y, w, h = bbox
    if not (w > 0 and h > 0):
        return warning("empty box", record, f"its box is {w} x {h} pixels; it is left out: redraw it")
    return _extent_problem((x, y, x + w, y + h), f"its box [{x}, {y}, {w}, {h}]", width, height, record)


def _polygon_problem(polygon: Any, image: ImageRecord, record: str) -> Problem | None:
    if not (isinstance(polygon, list) and _are_numbers(polygon)):
        message = f"a polygon is {short(polygon)}, not a list of finite numbers; rewrite it"
        return error("malformed record", record, message)
    if len(polygon) < 6 or len(polygon) % 2:
        message = (
            f"a polygon has {len(polygon)} coordinates, not the x and y of 3 points or more; it is left out: "
            "redraw it"
        )
        return warning("degenerate polygon", record, message)
    xs, ys = polygon[::2], polygon[1::2]
    extent = min(xs), min(ys), max(xs), max(ys)
    return _extent_problem(extent, "a polygon", image["width"], image["height"], record)


Extent = tuple[float, float, float, float]  # left, top, right, bottom


def _extent_problem(extent: Extent, what: str, width: int, height: int, record: str) -> Problem | None:
    """What is wrong with where a box or a polygon lies."""
    left, top, right, bottom = extent
    if not (left < width and top < height and right > 0 and bottom > 0):
        message = f"{what} lies outside the {width} x {height} image; it is left out: move it"
        return warning("outside image", record, message)
    if _beyond(extent, width, height, MAX_OVERSHOOT * max(width, height)):
        message = f"{what} reaches far beyond the {width} x {height} image; rewrite it"
        return error("malformed record", record, message)
    if _beyond(extent, width, height, ROUNDING):
        message = f"{what} reaches beyond the {width} x {height} image; trim it"
        return warning("beyond image", record, message)
    return None


def _beyond(extent: Extent, width: int, height: int, by: float) -> bool:
    left, top, right, bottom = extent
    return min(left, top) < -by or right > width + by or bottom > height + by


def _rle_problem(rle: dict[str, Any], image: ImageRecord, record: str) -> Problem | None:
    counts, size, found = rle.get("counts"), [image["height"], image["width"]], rle.get("size")
    message = ""
    if not isinstance(counts, list | str):
        message = 'its run lengths lack "counts"'
    elif found != size or not all(type(side) is int for side in found):
        message = f"its mask is of size {short(found)}, its image of {size} (height, width)"
    elif isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts):
            message = f"its run lengths are {short(counts)}, not whole numbers from 0"
        elif sum(counts) != math.prod(size):
            message = f"its run lengths do not add up to the image's {math.prod(size)} pixels"
    return error("broken mask", record, f"{message}; rewrite the mask") if message else None


def no_mask(annotation: Annotation, image: ImageRecord) -> Problem:
    """An annotation without a mask, where masks are needed."""
    return error(
        "no mask",
        f"annotation {annotation['id']} of {image_name(image)}",
        "it has no segmentation; add one, or train Faster R-CNN without masks",
    )


def broken_mask(annotation: Annotation, image: ImageRecord, cause: Exception) -> Problem:
    """A mask that cannot be decoded."""
    record = f"annotation {annotation['id']} of {image_name(image)}"
    return error("broken mask", record, f"its mask cannot be decoded ({cause}); rewrite it")
