"""COCO instances files."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import msgspec
import numpy as np

from botnet.detection.pack import Pack, Parts, packed
from botnet.detection.records import (
    Annotation,
    AnnotationRecord,
    Category,
    ImageRecord,
    Problem,
    Tables,
    broken_mask,
    no_mask,
    refusal,
    table_problems,
)
from botnet.detection.screening import Columns, Screening, without_collection
from botnet.errors import DataError
from botnet.masks import Rle, compact_masks, compress_mask

if TYPE_CHECKING:
    from supervision import Detections

T = TypeVar("T")


class Images(Sequence[ImageRecord]):
    """The image records of a packed file, each made when it is asked for."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack

    def __len__(self) -> int:
        return len(self._pack.arrays["image_id"])

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        arrays = self._pack.arrays
        first, last = arrays["name_ends"][index : index + 2]
        height, width = arrays["size"][index].tolist()
        name = arrays["names"][first:last].tobytes().decode()
        return ImageRecord(int(arrays["image_id"][index]), name, height, width)


class CocoInstances:
    """A parsed and validated COCO instances file, without pixels.

    Labels count from 1 in the order of the category ids, which may have gaps. Broken records are refused.
    What COCO itself contains (empty boxes, degenerate polygons) and what lies outside its image is left out;
    what reaches beyond its image is trimmed to it. ``dropped`` counts both.

    The records are packed once and mapped into memory by all processes of the machine
    (:func:`botnet.detection.pack.packed`).

    Args:
        path: the file.
        cache: keep the packed records of a large file in the user's cache folder.

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

    def __init__(self, path: Path, cache: bool = True) -> None:
        self.path = Path(path)
        contents = read_file(self.path)
        self._pack = packed(contents, lambda: _build(self.path, contents), cache)
        about = self._pack.about
        self.class_names: list[str] = about["class_names"]
        self.category_ids: list[int] = about["category_ids"]
        self.images = Images(self._pack)
        self.dropped: Counter[str] = Counter(about["dropped"])
        self.maskless: Problem | None = Problem(**about["maskless"]) if about["maskless"] else None

    def _row(self, image_id: int) -> int:
        arrays = self._pack.arrays
        place = int(np.searchsorted(arrays["sorted_id"], image_id))
        if place == len(self.images) or arrays["sorted_id"][place] != image_id:
            raise KeyError(image_id)
        return int(arrays["row"][place])

    def annotations_of(self, image_id: int) -> list[Annotation]:
        """The annotations of one image, in the file's order, without what was dropped.

        ``segmentation`` is None where the file has no mask, and empty where all polygons were dropped.
        """
        arrays, row = self._pack.arrays, self._row(image_id)
        first, last = arrays["annotation_ends"][row : row + 2].tolist()
        ends, texts = arrays["mask_ends"][first : last + 1].tolist(), arrays["masks"]
        annotations = []
        for index in range(first, last):
            area = float(arrays["area"][index])
            text = texts[ends[index - first] : ends[index - first + 1]]
            x, y, width, height = arrays["bbox"][index].tolist()
            annotation = Annotation(
                id=int(arrays["annotation_id"][index]),
                image_id=image_id,
                category_id=int(arrays["category_id"][index]),
                bbox=(x, y, width, height),
                segmentation=msgspec.json.decode(text.data),
                iscrowd=bool(arrays["iscrowd"][index]),
                area=None if math.isnan(area) else area,
            )
            annotations.append(annotation)
        return annotations

    def size_of(self, image_id: int) -> tuple[int, int]:
        """(Height, width) in pixels that the record of an image states, which its annotations refer to."""
        height, width = self._pack.arrays["size"][self._row(image_id)].tolist()
        return height, width

    def detections_of(self, image_id: int) -> "Detections":
        """The objects of one image in the form of detections without confidence, to be drawn.

        Raises:
            DataError: run lengths that cannot be decoded.
        """
        from supervision import Detections  # takes half a second to import

        annotations = self.annotations_of(image_id)
        boxes = np.array([annotation.bbox for annotation in annotations], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = np.array([self.category_ids.index(a.category_id) for a in annotations], int)
        return Detections(
            xyxy=boxes,
            mask=compact_masks([self.mask_of(a) for a in annotations], *self.size_of(image_id)),
            class_id=classes,
            data={"class_name": np.array(self.class_names)[classes]},
        )

    def mask_of(self, annotation: Annotation) -> Rle:
        """The mask of an annotation as compressed run lengths, empty where it has none.

        Raises:
            DataError: run lengths that cannot be decoded.
        """
        try:
            return compress_mask(annotation.segmentation or [], *self.size_of(annotation.image_id))
        except ValueError as error:
            image = self.images[self._row(annotation.image_id)]
            raise refusal(self.path, broken_mask(annotation, image, error)) from error


# ---- reading


class _File(msgspec.Struct, gc=False):
    images: list[ImageRecord]
    annotations: list[AnnotationRecord]
    categories: list[Category]


class _Listing(msgspec.Struct, gc=False):
    images: list[ImageRecord]
    categories: list[Category]


def read_images(path: Path) -> tuple[list[ImageRecord], dict[int, str]]:
    """Image records, and category names by id, of an instances file or of one without annotations.

    COCO's lists of its test images (``image_info_test-dev2017.json``) are of the latter kind.

    Raises:
        DataError: no such file, or one with a broken record.
    """
    tables = decode(path, read_file(path), _Listing)
    for problem in table_problems(tables):
        raise refusal(path, problem)
    images = [image for image in tables.images if isinstance(image, ImageRecord)]
    return images, {c.id: c.name for c in tables.categories if isinstance(c, Category)}


def read_file(path: Path) -> bytes:
    """The bytes of an instances file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give the path of an instances file"
        ) from error


def decode(path: Path, contents: bytes, kind: type[_File] | type[_Listing] = _File) -> Tables:
    """The records of an instances file, of the right types but otherwise unchecked.

    Args:
        path: the file, for errors.
        contents: its bytes.
        kind: the lists that it must have.

    Raises:
        DataError: the file is not JSON or lacks a list.
    """
    try:
        file = msgspec.json.decode(contents, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _decode_singly(path, contents, kind)
    return Tables(file.images, file.categories, getattr(file, "annotations", []))


def _decode_singly(path: Path, contents: bytes, kind: type[msgspec.Struct]) -> Tables:
    """The records of a file that is broken somewhere, and the decoder's messages in place of broken ones.

    Python's own decoder also takes what msgspec refuses as a whole: NaN, lone surrogates, UTF-16. NaN and
    infinities become what no record may hold, neither as a number nor as a name.
    """
    try:
        data = json.loads(contents, parse_constant=lambda constant: [constant])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error}); give a COCO instances file") from error
    for key in kind.__struct_fields__:
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise DataError(f'{path}: has no list "{key}"; give a COCO instances file')
    return Tables(
        [_record(record, ImageRecord) for record in data["images"]],
        [_record(record, Category) for record in data["categories"]],
        [_record(record, AnnotationRecord) for record in data.get("annotations", [])],
    )


def _record(record: Any, kind: type[T]) -> T | str:
    try:
        return msgspec.json.decode(json.dumps(record), type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return str(error)


# ---- packing


@without_collection()
def _build(path: Path, contents: bytes) -> tuple[Parts, dict[str, Any]]:
    """The packed records of an instances file, and what is known of the whole."""
    tables = decode(path, contents)
    for problem in table_problems(tables):
        raise refusal(path, problem)
    screening = Screening(tables)
    texts: list[Any] = [getattr(a, "segmentation", None) for a in tables.annotations]
    usable, unmasked, dropped = screening.sound.copy(), screening.unmasked, Counter[str]()
    for index, (annotation, problems) in screening.others():
        for problem in problems:
            if problem.severity == "error":
                raise refusal(path, problem)
            dropped[problem.kind] += 1
        if annotation:
            usable[index], unmasked[index] = True, annotation.segmentation is None
            texts[index] = msgspec.json.encode(annotation.segmentation)
            screening.lengths[index] = len(texts[index])
    # Here all records have the right types, since the others are errors.
    categories = sorted((c for c in tables.categories if isinstance(c, Category)), key=lambda c: c.id)
    maskless = None
    for index in np.flatnonzero(usable & unmasked)[:1].tolist():
        first = tables.annotations[index]
        assert isinstance(first, AnnotationRecord)
        maskless = asdict(no_mask(first, screening.rules.images[first.image_id]))
    about = {
        "class_names": [category.name for category in categories],
        "category_ids": [category.id for category in categories],
        "dropped": dropped,
        "maskless": maskless,
    }
    images = [image for image in tables.images if isinstance(image, ImageRecord)]
    annotations = _annotation_arrays(images, screening.columns, usable, texts, screening.lengths)
    return _image_arrays(images) | annotations, about


def _image_arrays(images: list[ImageRecord]) -> dict[str, Any]:
    names = [image.file_name.encode() for image in images]
    ids = np.array([image.id for image in images], np.int64)
    order = np.argsort(ids)
    return {
        "image_id": ids,
        "sorted_id": ids[order],
        "row": order,
        "size": np.array([(image.height, image.width) for image in images], np.int64),
        "names": names,
        "name_ends": _ends(map(len, names)),
    }


def _annotation_arrays(
    images: list[ImageRecord], columns: Columns, usable: np.ndarray, texts: list[Any], lengths: np.ndarray
) -> dict[str, Any]:
    """The usable annotations, image after image."""
    ids = np.array([image.id for image in images], np.int64)
    by_id = np.argsort(ids)
    kept = np.flatnonzero(usable)
    rows = by_id[np.searchsorted(ids, columns.image_id[kept], sorter=by_id)]
    order = kept[np.argsort(rows, kind="stable")]
    return {
        "annotation_ends": _ends(np.bincount(rows, minlength=len(images))),
        "annotation_id": columns.id[order],
        "category_id": columns.category_id[order],
        "bbox": columns.bbox[order],
        "iscrowd": columns.iscrowd[order] != 0,
        "area": columns.area[order],
        "masks": [texts[i] for i in order.tolist()],
        "mask_ends": _ends(lengths[order]),
    }


def _ends(lengths: Iterable[int]) -> np.ndarray:
    """Where each of some neighbours starts, and the last one ends."""
    return np.cumsum([0, *lengths])
