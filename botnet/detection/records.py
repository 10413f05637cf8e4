"""Records of a COCO instances file: their types, and the rules that they must follow."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Annotated, Any

import msgspec

from botnet.errors import DataError
from botnet.masks import Polygons, Segmentation

ROUNDING = 1.0  # pixels beyond the image that rounding explains
# Times the longer side beyond the image: farther polygons would take gigabytes to rasterise.
MAX_OVERSHOOT = 10
MAX_PIXELS = 2**31 - 1  # of an image: run lengths are 32-bit numbers
MAX_AREA = 1e10  # square pixels: COCO's evaluation leaves out what is larger

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class ImageRecord(msgspec.Struct, frozen=True, gc=False):
    """An image of an instances file; height and width are in pixels."""

    id: Int64
    file_name: str
    height: Int64
    width: Int64


class Category(msgspec.Struct, frozen=True, gc=False):
    """A class of an instances file."""

    id: Int64
    name: str


class AnnotationRecord(msgspec.Struct, frozen=True, gc=False):
    """An object as an instances file states it: its numbers, and the JSON text of its segmentation."""

    id: Int64
    image_id: Int64
    category_id: Int64
    bbox: tuple[float, float, float, float]
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    iscrowd: bool | float | None = None
    area: float | None = None


class Annotation(msgspec.Struct, frozen=True):
    """An object as it is used; ``bbox`` is x, y, width, height in pixels.

    ``segmentation`` is None where the file has no mask, and empty where all its polygons were left out.
    ``area``, in square pixels, is None where the file states none.
    """

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    segmentation: Segmentation | None
    iscrowd: bool
    area: float | None


@dataclass(frozen=True)
class Tables:
    """The contents of an instances file; a record of the wrong type is the decoder's message about it."""

    images: Sequence[ImageRecord | str]
    categories: Sequence[Category | str]
    annotations: Sequence[AnnotationRecord | str]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set.

    Args:
        kind: short name, the same for all problems of its kind.
        record: which image, annotation or file.
        message: what is wrong, and the remedy.
        severity: ``error``: the data set is refused; ``warning``: the part concerned is left out, trimmed or
            renamed.
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
    """A problem of a part that is left out, trimmed or renamed."""
    return Problem(kind, record, message, "warning")


def table_problems(tables: Tables) -> Iterator[Problem]:
    """Problems of the categories and of the image records."""
    yield from _list_problems(tables.categories, "categories", "category")
    yield from _list_problems(tables.images, "images", "image")


def _list_problems(records: Iterable[ImageRecord | Category | str], key: str, name: str) -> Iterator[Problem]:
    if not records:
        yield error(f"no {key}", key, f"the list is empty; every data set needs at least one {name}")
    seen = set()
    for index, record in enumerate(records):
        if isinstance(record, str):
            yield malformed(key, index, record)
        elif record.id in seen:
            yield error("duplicate id", f"{name} {record.id}", "the id occurs twice; give each its own")
        else:
            seen.add(record.id)
            if isinstance(record, ImageRecord) and not _has_pixels(record):
                yield _size_problem(record)


def distinct_names(names: Sequence[str], ids: Sequence[int]) -> list[str]:
    """Names of classes, each once: one that several have is followed by the category's id."""
    times = Counter(names)
    return [f"{name} (id {key})" if times[name] > 1 else name for name, key in zip(names, ids, strict=True)]


def repeated_names(tables: Tables) -> Iterator[Problem]:
    """Categories with the name of another one, as COCO allows it."""
    names = {category.id: category.name for category in tables.categories if not isinstance(category, str)}
    distinct = distinct_names(list(names.values()), list(names))
    for (key, name), new in zip(names.items(), distinct, strict=True):
        if new != name:
            message = f"another one is {name!r}, too; metrics call it {new!r}: rename one in all splits"
            yield warning("repeated name", f"category {key}", message)


def malformed(key: str, index: int, message: str) -> Problem:
    """A record of the wrong type, with the decoder's message: its places are given from the whole file."""
    record = f"{key}[{index}]"
    return error("malformed record", record, message.replace("`$", f"`$.{record}") + "; rewrite the record")


def _size_problem(image: ImageRecord) -> Problem:
    height, width = image.height, image.width
    return error(
        "huge image" if min(height, width) > 0 else "empty image",
        image_name(image),
        f"its size, {height} x {width}, must be positive and of at most {MAX_PIXELS} pixels; correct it",
    )


def _has_pixels(image: ImageRecord) -> bool:
    return image.height > 0 and image.width > 0 and image.height * image.width <= MAX_PIXELS


def sound_images(tables: Tables) -> dict[int, ImageRecord]:
    """The valid image records, by id."""
    return {image.id: image for image in tables.images if not isinstance(image, str) and _has_pixels(image)}


def image_name(image: ImageRecord) -> str:
    """The name of an image in messages."""
    return f"image {image.id} ({image.file_name})"


Checked = tuple[Annotation | None, list[Problem]]  # an annotation as it can be used, and its problems


class AnnotationRules:
    """The rules that one annotation must follow, given the images and categories of its file.

    Malformed image records are ignored: their annotations count as annotations of an unknown image.
    """

    def __init__(self, tables: Tables) -> None:
        self.images = sound_images(tables)
        self.categories = {c.id for c in tables.categories if not isinstance(c, str)}

    def check(self, annotation: AnnotationRecord | str, index: int, repeated: bool) -> Checked:
        """The annotation as it can be used (None: not at all) with its problems.

        Args:
            annotation: the record.
            index: its place in the file's list.
            repeated: an earlier annotation has its id.
        """
        wrong = annotation if isinstance(annotation, str) else _wrong_numbers(annotation)
        if wrong or isinstance(annotation, str):
            return None, [malformed("annotations", index, wrong)]
        record = f"annotation {annotation.id}"
        image = self.images.get(annotation.image_id)
        if repeated:
            return _refused("duplicate id", record, "the id occurs twice; give each annotation its own")
        if image is None:
            message = f"belongs to image {annotation.image_id}, which is not in the file; add its record"
            return _refused("unknown image", record, message)
        record = f"{record} of {image_name(image)}"
        if annotation.category_id not in self.categories:
            message = f"is of category {annotation.category_id}, which is not in the file; add the category"
            return _refused("unknown category", record, message)
        return _checked(annotation, image, record)


def _wrong_numbers(annotation: AnnotationRecord) -> str:
    """What is wrong with the numbers of an annotation, in words; empty if nothing."""
    bbox, area = annotation.bbox, annotation.area
    if not _are_numbers(list(bbox)):
        return f'"bbox" is {list(bbox)}, not four finite numbers'
    if area is not None and not 0 <= area <= MAX_AREA:
        return f'"area" is {area}, not a number from 0 to {MAX_AREA:.0e}'
    if annotation.iscrowd not in (None, 0, 1):
        return f'"iscrowd" is {annotation.iscrowd}, neither 0 nor 1'
    return ""


def _refused(kind: str, record: str, message: str) -> Checked:
    return None, [error(kind, record, message)]


def _are_numbers(values: list[Any]) -> bool:
    # A sum is finite only if all its terms are: far cheaper than checking each.
    try:
        return all(type(value) in (int, float) for value in values) and math.isfinite(sum(values))
    except OverflowError:  # an integer beyond all floating-point numbers
        return False


def _checked(annotation: AnnotationRecord, image: ImageRecord, record: str) -> Checked:
    """The part of a well-formed annotation that can be used, and what is wrong with the rest."""
    box_problem = _box_problem(annotation.bbox, image, record)
    # A box is left out or refused as a whole, unless it only reaches beyond the image.
    if box_problem and box_problem.kind != "beyond image":
        return None, [box_problem]
    problems = [box_problem] if box_problem else []
    try:
        segmentation = msgspec.json.decode(annotation.segmentation)
    except (msgspec.MsgspecError, ValueError, RecursionError) as cause:
        return _refused("malformed record", record, f"its segmentation cannot be read ({cause}); rewrite it")
    if segmentation in (None, [], [[]]):  # the ways in which exporters of boxes write that there is no mask
        return used(annotation, None), problems
    if isinstance(segmentation, dict):
        problem = _rle_problem(segmentation, image, record)
        return used(annotation, segmentation), [*problems, problem] if problem else problems
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
    return used(annotation, polygons), problems


def used(annotation: AnnotationRecord, segmentation: Any) -> Annotation:
    """An annotation as it is used, with the segmentation that can be."""
    return Annotation(
        id=annotation.id,
        image_id=annotation.image_id,
        category_id=annotation.category_id,
        bbox=annotation.bbox,
        segmentation=segmentation,
        iscrowd=bool(annotation.iscrowd),
        area=annotation.area,
    )


def _box_problem(bbox: tuple[float, float, float, float], image: ImageRecord, record: str) -> Problem | None:
    x, y, w, h = bbox
    if not (w > 0 and h > 0):
        return warning("empty box", record, f"its box is {w:g} x {h:g} pixels; it is left out: redraw it")
    extent = (x, y, x + w, y + h)
    return _extent_problem(extent, f"its box [{x}, {y}, {w}, {h}]", image.width, image.height, record)


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
    return _extent_problem(extent, "a polygon", image.width, image.height, record)


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
    counts, size, found = rle.get("counts"), [image.height, image.width], rle.get("size")
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


def no_mask(annotation: Annotation | AnnotationRecord, image: ImageRecord) -> Problem:
    """An annotation without a mask, where masks are needed."""
    return error(
        "no mask",
        f"annotation {annotation.id} of {image_name(image)}",
        "it has no segmentation; add one, or train Faster R-CNN by --data.masks false",
    )


def broken_mask(annotation: Annotation, image: ImageRecord, cause: Exception) -> Problem:
    """A mask that cannot be decoded."""
    record = f"annotation {annotation.id} of {image_name(image)}"
    return error("broken mask", record, f"its mask cannot be decoded ({cause}); rewrite it")
