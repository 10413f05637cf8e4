"""COCO instances files: read, check, serve as training and evaluation samples."""

import json
import math
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as rle_api
from PIL import ExifTags, Image, ImageOps
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import box_convert

from botnet.data import Key, generator
from botnet.detection.masks import Rle, compress_mask, decode_mask
from botnet.detection.transforms import (
    EvalTransform,
    Placement,
    Scene,
    Thing,
    TrainTransform,
    copy_paste,
    to_canvas,
)
from botnet.errors import DataError

MAX_OBJECTS = 100  # of an image in training (tensorflow/tpu models/official/detection)
OVERSHOOT = 1.0  # pixels beyond the image that rounding explains


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


def _refusal(path: Path, problem: Problem) -> DataError:
    return DataError(f"{path}: {problem.record}: {problem.message}")


def _error(kind: str, record: str, message: str) -> Problem:
    return Problem(kind, record, message, "error")


def _warning(kind: str, record: str, message: str) -> Problem:
    return Problem(kind, record, message, "warning")


# ---- the instances file


class CocoInstances:
    """A parsed and validated COCO instances file, without pixels.

    Labels count from 1 in the order of the category ids, which may have gaps. What is broken beyond use is
    refused; what COCO itself contains (empty boxes, degenerate polygons) and what lies outside its image is
    left out, and counted in ``dropped``; so is what reaches beyond its image, and is trimmed with it.

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
        DataError: the first problem that forbids the use of the file. :func:`check_data` lists all.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        data = _read(self.path)
        for problem in _table_problems(data):
            raise _refusal(self.path, problem)
        categories = sorted(data["categories"], key=lambda category: category["id"])
        self.class_names: list[str] = [category["name"] for category in categories]
        self.category_ids: list[int] = [category["id"] for category in categories]
        self.images: list[dict[str, Any]] = [
            {key: image[key] for key in ("id", "file_name", "height", "width")} for image in data["images"]
        ]
        self.dropped: Counter[str] = Counter()
        self.maskless: Problem | None = None
        annotations: dict[int, list[dict]] = {image["id"]: [] for image in self.images}
        for annotation, problems in _annotations(data):
            for problem in problems:
                if problem.severity == "error":
                    raise _refusal(self.path, problem)
                self.dropped[problem.kind] += 1
            if annotation:
                annotations[annotation["image_id"]].append(annotation)
                if annotation.get("segmentation") is None and not self.maskless:
                    image = next(image for image in self.images if image["id"] == annotation["image_id"])
                    self.maskless = _no_mask(annotation, image)
        # As millions of objects they would be copied into every worker, page by page, as soon as their
        # reference counts are touched; as bytes they are shared.
        packed = [pickle.dumps(of_image) for of_image in annotations.values()]
        self._row = {image_id: row for row, image_id in enumerate(annotations)}
        self._ends = np.cumsum([0, *map(len, packed)])
        self._packed = np.frombuffer(b"".join(packed), np.uint8)

    def annotations_of(self, image_id: int) -> list[dict[str, Any]]:
        """The COCO annotations of one image, in the file's order, without what was dropped."""
        row = self._row[image_id]
        return pickle.loads(self._packed[self._ends[row] : self._ends[row + 1]].data)


def read_images(path: Path) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Image records, and category names by id, of an instances file or of one without annotations.

    COCO's lists of its test images (``image_info_test-dev2017.json``) are of the latter kind.

    Raises:
        DataError: no such file, or one with a broken record.
    """
    data = _read(path, ("images", "categories"))
    for problem in _table_problems(data):
        raise _refusal(path, problem)
    return data["images"], {category["id"]: category["name"] for category in data["categories"]}


def _read(path: Path, keys: Sequence[str] = ("images", "annotations", "categories")) -> dict[str, Any]:
    """The file as a dict that has the lists of an instances file."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give the path of an instances file"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: is no JSON ({error}); give a COCO instances file") from error
    for key in keys:
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise DataError(f'{path}: has no list "{key}"; give a COCO instances file')
    return data


def _table_problems(data: dict[str, Any]) -> Iterator[Problem]:
    """Problems of the categories and of the image records."""
    for key, needed in (("categories", {"id": int, "name": str}), ("images", _IMAGE_FIELDS)):
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
                if key == "images" and not (record["height"] > 0 and record["width"] > 0):
                    yield _error(
                        "empty image",
                        _name(record),
                        f"its size, {record['height']} x {record['width']}, must be positive; correct it",
                    )


_IMAGE_FIELDS: dict[str, type] = {"id": int, "file_name": str, "height": int, "width": int}
_ANNOTATION_FIELDS: dict[str, type] = {"id": int, "image_id": int, "category_id": int, "bbox": list}


def _wrong_fields(record: Any, needed: dict[str, type]) -> str:
    """What a record lacks, in words; empty if nothing."""
    if not isinstance(record, dict):
        return f"is {record!r:.40}, not an object"
    for key, kind in needed.items():
        if not isinstance(record.get(key), kind):
            return f'"{key}" is {record.get(key)!r:.40}, not of type {kind.__name__}'
    return ""


def _name(image: dict[str, Any]) -> str:
    return f"image {image['id']} ({image['file_name']})"


def _annotations(data: dict[str, Any]) -> Iterator[tuple[dict[str, Any] | None, list[Problem]]]:
    """Each annotation as it is to be used (None: not at all) with its problems.

    Image records that are malformed are passed over: their annotations count as annotations of no image.
    """
    images = {image["id"]: image for image in data["images"] if not _wrong_fields(image, _IMAGE_FIELDS)}
    categories = {category.get("id") for category in data["categories"] if isinstance(category, dict)}
    seen = set()
    for index, annotation in enumerate(data["annotations"]):
        wrong = _wrong_fields(annotation, _ANNOTATION_FIELDS)
        if not wrong and not (len(annotation["bbox"]) == 4 and _are_numbers(annotation["bbox"])):
            wrong = f'"bbox" is {annotation["bbox"]!r:.60}, not four finite numbers'
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
            yield None, [_error("unknown category", f"{record} of {_name(image)}", message)]
        else:
            yield _usable(annotation, image, f"{record} of {_name(image)}")
        seen.add(annotation["id"])


def _are_numbers(values: list) -> bool:
    # A sum is not finite where any term is not: far cheaper than asking each.
    return all(type(value) in (int, float) for value in values) and math.isfinite(sum(values))


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
    if _beyond((x, y, x + w, y + h), width, height):
        message = f"its box [{x}, {y}, {w}, {h}] reaches beyond the {width} x {height} image; trim it"
        problems.append(_warning("beyond image", record, message))
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        problem = _rle_problem(segmentation, image, record)
        return annotation, [*problems, problem] if problem else problems
    if segmentation is None:
        return annotation, problems
    if not isinstance(segmentation, list):
        message = f"its segmentation is {segmentation!r:.40}, neither polygons nor run lengths; write it anew"
        return None, [_error("malformed record", record, message)]

    polygons = []
    if not segmentation:
        problems.append(_warning("degenerate polygon", record, "it has no polygon; draw it anew"))
    for polygon in segmentation:
        if not (isinstance(polygon, list) and _are_numbers(polygon)):
            message = f"a polygon is {polygon!r:.40}, not a list of finite numbers; write it anew"
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
        if _beyond(extent, width, height):
            message = f"a polygon reaches beyond the {width} x {height} image; trim it"
            problems.append(_warning("beyond image", record, message))
        polygons.append(polygon)
    return {**annotation, "segmentation": polygons}, problems


def _beyond(extent: tuple[float, float, float, float], width: int, height: int) -> bool:
    left, top, right, bottom = extent
    return min(left, top) < -OVERSHOOT or right > width + OVERSHOOT or bottom > height + OVERSHOOT


def _rle_problem(rle: dict[str, Any], image: dict[str, Any], record: str) -> Problem | None:
    counts, size = rle.get("counts"), [image["height"], image["width"]]
    if not isinstance(counts, list | str):
        return _error("broken mask", record, 'its run lengths lack "counts"; write the mask anew')
    if rle.get("size") != size:
        message = (
            f"its mask is of size {rle.get('size')}, its image of {size} (height, width); write the mask anew"
        )
        return _error("broken mask", record, message)
    if isinstance(counts, list) and not (_are_numbers(counts) and sum(counts) == math.prod(size)):
        message = (
            f"its run lengths do not add up to the image's {math.prod(size)} pixels; write the mask anew"
        )
        return _error("broken mask", record, message)
    return None


# ---- pixels


def load_image(path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """A picture of any mode in RGB, the way up that its annotations mean.

    A camera may store a turned picture with an EXIF note that says how to turn it back; some tools annotate
    it as stored, others as shown. Where a size is given and only the stored picture has it, the note is
    ignored; otherwise it is obeyed. Transparency is dropped; 16-bit grey is brought to 8 bits.

    Args:
        path: the file.
        size: (height, width) that the picture must have, if known.

    Returns:
        The picture, decoded.

    Raises:
        DataError: no such file, no picture, a broken one, or one of another size.
    """
    picture, _ = _decode(path, size, None)
    return picture


def load_placed(path: Path, placement: Placement) -> np.ndarray:
    """What the canvas shows of a picture, (h, w, 3) uint8.

    A JPEG that is to shrink is decoded at a half, a quarter or an eighth of its size, never at less than it
    is to have on the canvas.

    Args:
        path: the file, read as in :func:`load_image`.
        placement: of the picture; its size must be the file's.

    Raises:
        DataError: as in :func:`load_image`.
    """
    picture, extent = _decode(path, placement.size, placement.resized)
    return placement.pixels(picture, extent)


def _decode(
    path: Path, size: tuple[int, int] | None, wanted: tuple[int, int] | None
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """A picture, perhaps smaller than ``size`` but not than ``wanted``, and where in it the original lies."""
    if not path.is_file():
        raise DataError(f"{path}: no such image; restore the file or remove its record")
    try:
        with Image.open(path) as stored:
            shown, orientation = _shown_size(stored, size)
            shrunk = _shrink(stored, wanted if orientation >= 5 else wanted[::-1]) if wanted else 1
            image = ImageOps.exif_transpose(stored) if orientation > 1 else stored
            if image.mode.startswith("I;16"):  # Pillow would cut it off at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image.load()
            if image.mode != "RGB":
                image = image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise almost anything on a broken file
        raise DataError(f"{path}: {_broken_message(error)}") from error
    if size is not None and shown != size:
        raise DataError(f"{path}: {_size_message(shown, size)}")
    # Decoded at 1/2, 1/4 or 1/8, the last row and column may stand for less than 2, 4 or 8 original ones; a
    # mirrored picture begins with them.
    width, height = shown[1] / shrunk, shown[0] / shrunk
    x = image.width - width if orientation in (2, 3, 6, 7) else 0.0
    y = image.height - height if orientation in (3, 4, 7, 8) else 0.0
    return image, (x, y, x + width, y + height)


def _shrink(stored: Image.Image, wanted: tuple[int, int]) -> float:
    """Have a JPEG decoded smaller, but not smaller than ``wanted`` (width, height); returns the divisor."""
    width, height = stored.size
    for divisor in (8, 4, 2):
        if -(-width // divisor) >= wanted[0] and -(-height // divisor) >= wanted[1]:
            # Of other formats Pillow drafts nothing.
            drafted = stored.draft(None, (max(width // divisor, 1), max(height // divisor, 1)))
            return width / drafted[1][2] if drafted else 1
    return 1


def _shown_size(stored: Image.Image, size: tuple[int, int] | None) -> tuple[tuple[int, int], int]:
    """(Height, width) that a picture is to have, and the EXIF orientation that is to be obeyed (1: none)."""
    own, turned = (stored.height, stored.width), (stored.width, stored.height)
    orientation = stored.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation not in range(2, 9):
        return own, 1
    if orientation < 5:  # 5 to 8 swap height and width
        return own, orientation
    return (own, 1) if own == size != turned else (turned, orientation)


def _broken_message(error: Exception) -> str:
    return f"cannot be decoded ({error}); restore the file or remove its record"


def _size_message(found: tuple[int, int], size: tuple[int, int]) -> str:
    return (
        f"the image is {found[1]} x {found[0]} pixels, its record says {size[1]} x {size[0]} "
        "(width x height); correct the record or restore the file"
    )


# ---- samples


class CocoDataset(Dataset):
    """What the samples of training and of evaluation share: an instances file and its folder of images.

    Args:
        instances: the instances file, or its path.
        images: folder that the file names are relative to.
        masks: read masks; False for boxes only.

    Raises:
        DataError: at once if an image file or a mask is missing; on access if a file or a mask is broken.
    """

    def __init__(self, instances: CocoInstances | Path, images: Path, masks: bool = True) -> None:
        self.instances = instances if isinstance(instances, CocoInstances) else CocoInstances(instances)
        self.folder, self.masks = Path(images), masks
        self._label = {category: i + 1 for i, category in enumerate(self.instances.category_ids)}
        for problem in _folder_problems(self.instances.images, self.folder):
            raise DataError(f"{problem.record}: {problem.message}")
        if masks and self.instances.maskless:
            raise _refusal(self.instances.path, self.instances.maskless)

    def __len__(self) -> int:
        return len(self.instances.images)

    def name(self, index: int) -> str:
        """What messages call a sample."""
        return _name(self.instances.images[index])

    def _image(self, record: dict[str, Any], placement: Placement, canvas: int) -> Tensor:
        return to_canvas(load_placed(self.folder / record["file_name"], placement), canvas)

    def _annotations(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        annotations = self.instances.annotations_of(record["id"])
        # An annotation whose polygons were all dropped has a box, but no mask.
        return [a for a in annotations if a["segmentation"]] if self.masks else annotations


class TrainDataset(CocoDataset):
    """Images on the canvas with what it shows of their objects, asked for by (epoch, index).

    A sample is ``(image, target)``: the image (3, canvas, canvas) float32, normalised; in the target

    - ``boxes`` (N, 4) float32 xyxy and ``area`` (N,) float32 in canvas pixels, of the masks where there are
      any; ``labels`` (N,) int64 from 1; ``masks`` (N, canvas, canvas) uint8;
    - ``image_id`` int, ``size`` (height, width) of the original image;
    - ``valid`` (height, width): the part of the canvas that is not padding; ``scale`` (y, x): canvas pixels
      per original pixel.

    Crowd regions and objects that the crop leaves nothing of are left out, and at most 100 objects are kept,
    as in tensorflow/tpu; images without objects stay in, with tensors of length zero. All that is random is
    drawn from the seed, the epoch and the index.

    Args:
        instances, images, masks: as in :class:`CocoDataset`.
        transform: scale, crop and flip.
        seed: of the run.
        copy_paste: probability that objects of a second image are pasted in
            (:func:`botnet.detection.transforms.copy_paste`); 0 in the paper.
    """

    def __init__(
        self,
        instances: CocoInstances | Path,
        images: Path,
        transform: TrainTransform,
        masks: bool = True,
        seed: int = 0,
        copy_paste: float = 0.0,
    ) -> None:
        super().__init__(instances, images, masks)
        if not 0 <= copy_paste <= 1 or (copy_paste and not masks):
            raise DataError(
                f"copy_paste {copy_paste} with masks {masks}: it is a probability, and things are pasted by "
                "their masks; set one of them otherwise"
            )
        self.transform, self.seed, self.copy_paste = transform, seed, copy_paste

    def __getitem__(self, key: Key) -> tuple[Tensor, dict[str, Any]]:
        epoch, index = key
        chance = generator(self.seed, epoch, index)
        scene, placement = self._scene(index, chance)
        if self.copy_paste and torch.rand((), generator=chance) < self.copy_paste:
            other = int(torch.randint(len(self), (), generator=chance))
            scene = copy_paste(scene, self._scene(other, chance)[0], chance)
        record = self.instances.images[index]
        about = {
            "image_id": record["id"],
            "size": placement.size,
            "valid": scene.valid,
            "scale": placement.scale,
        }
        return scene.image, self._target(scene.things[:MAX_OBJECTS]) | about

    def _scene(self, index: int, chance: torch.Generator) -> tuple[Scene, Placement]:
        record = self.instances.images[index]
        placement = self.transform.place((record["height"], record["width"]), chance)
        image = self._image(record, placement, self.transform.canvas)
        things = []
        for annotation in self._annotations(record):
            if not annotation.get("iscrowd") and (thing := self._thing(annotation, record, placement)):
                things.append(thing)
        return Scene(image, placement.valid, things), placement

    def _thing(
        self, annotation: dict[str, Any], record: dict[str, Any], placement: Placement
    ) -> Thing | None:
        label = self._label[annotation["category_id"]]
        if not self.masks:
            return placement.boxed(label, annotation["bbox"])
        try:
            return placement.masked(label, annotation["segmentation"])
        except ValueError as error:
            raise _refusal(self.instances.path, _broken_mask(annotation, record, error)) from error

    def _target(self, things: list[Thing]) -> dict[str, Any]:
        target = {
            "boxes": torch.tensor([thing.box for thing in things]).reshape(-1, 4),
            "labels": torch.tensor([thing.label for thing in things], dtype=torch.int64),
            "area": torch.tensor([thing.area for thing in things]),
        }
        if self.masks:
            # Zeros that nobody writes to take no memory.
            masks = np.zeros((len(things), self.transform.canvas, self.transform.canvas), np.uint8)
            for mask, thing in zip(masks, things, strict=True):
                mask[thing.window] = thing.mask
            target["masks"] = torch.from_numpy(masks)
        return target


class EvalDataset(CocoDataset):
    """Images fitted into the canvas, with their truth in original pixels, where it is scored.

    A sample is ``(image, target)``: the image (3, canvas, canvas) float32, normalised; in the target

    - ``boxes`` (N, 4) float32 xyxy, ``labels`` (N,) int64 from 1, ``masks``: N compressed RLEs, ``iscrowd``
      (N,) bool, ``area`` (N,) float32 in square pixels (the file's; without it the mask's or the box's);
    - ``image_id``, ``size``, ``valid``, ``scale`` as in :class:`TrainDataset`.

    Args:
        instances, images, masks: as in :class:`CocoDataset`.
        transform: the canvas.
    """

    def __init__(
        self, instances: CocoInstances | Path, images: Path, transform: EvalTransform, masks: bool = True
    ) -> None:
        super().__init__(instances, images, masks)
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        record = self.instances.images[index]
        placement = self.transform.place((record["height"], record["width"]))
        image = self._image(record, placement, self.transform.canvas)
        about = {
            "image_id": record["id"],
            "size": placement.size,
            "valid": placement.valid,
            "scale": placement.scale,
        }
        return image, self._truth(record) | about

    def _truth(self, record: dict[str, Any]) -> dict[str, Any]:
        annotations = self._annotations(record)
        boxes = torch.tensor([annotation["bbox"] for annotation in annotations], dtype=torch.float32)
        truth: dict[str, Any] = {
            "boxes": box_convert(boxes.reshape(-1, 4), "xywh", "xyxy"),
            "labels": torch.tensor([self._label[a["category_id"]] for a in annotations], dtype=torch.int64),
            "iscrowd": torch.tensor([bool(a.get("iscrowd")) for a in annotations], dtype=torch.bool),
        }
        areas = [annotation["bbox"][2] * annotation["bbox"][3] for annotation in annotations]
        if self.masks:
            truth["masks"] = [self._mask(annotation, record) for annotation in annotations]
            areas = [float(rle_api.area(mask)) for mask in truth["masks"]]
        areas = [a.get("area", area) for a, area in zip(annotations, areas, strict=True)]
        truth["area"] = torch.tensor(areas, dtype=torch.float32)
        return truth

    def _mask(self, annotation: dict[str, Any], record: dict[str, Any]) -> Rle:
        try:
            return compress_mask(annotation["segmentation"], record["height"], record["width"])
        except ValueError as error:
            raise _refusal(self.instances.path, _broken_mask(annotation, record, error)) from error


def _no_mask(annotation: dict[str, Any], image: dict[str, Any]) -> Problem:
    return _error(
        "no mask",
        f"annotation {annotation['id']} of {_name(image)}",
        "it has no segmentation; add one, or train Faster R-CNN without masks",
    )


def _broken_mask(annotation: dict[str, Any], image: dict[str, Any], error: Exception) -> Problem:
    record = f"annotation {annotation['id']} of {_name(image)}"
    return _error("broken mask", record, f"its mask cannot be decoded ({error}); write it anew")


def collate(batch: list[tuple[Tensor, dict[str, Any]]]) -> tuple[Tensor, list[dict[str, Any]]]:
    """Images of one canvas size as a batch (B, 3, S, S), channels last, and the list of their targets."""
    images, targets = zip(*batch, strict=True)
    # Stacked as they lie in memory, in one stroke.
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2), list(targets)


# ---- all problems at once


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
    records = {image["id"]: image for image in data["images"] if not _wrong_fields(image, _IMAGE_FIELDS)}
    for annotation, found in _annotations(data):
        problems += found
        if annotation is None or any(problem.severity == "error" for problem in found):
            continue
        image = records[annotation["image_id"]]
        if annotation.get("segmentation") is None:
            problems += [_no_mask(annotation, image)] if masks else []
        elif decode:
            try:
                decode_mask(annotation["segmentation"], image["height"], image["width"])
            except ValueError as error:
                problems.append(_broken_mask(annotation, image, error))
    missing = list(_folder_problems(list(records.values()), folder))
    problems += missing
    if any(problem.kind == "no images in folder" for problem in missing):
        return problems
    for image in track(records.values(), "images", disable=not progress):
        file = folder / image["file_name"]
        if file.is_file():
            problems += image_problems(file, image, decode)
    return problems


def _folder_problems(images: list[dict[str, Any]], folder: Path) -> Iterator[Problem]:
    """Images whose files are missing; one problem alone if the folder has no image at all."""
    if not folder.is_dir():
        yield _error("no images in folder", str(folder), "no such folder; give the folder of the images")
        return
    missing = [image for image in images if not (folder / image["file_name"]).is_file()]
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
        yield _error("missing image", _name(image), f"{file}: no such file; restore it or remove its record")


def image_problems(file: Path, image: dict[str, Any], decode: bool) -> list[Problem]:
    """What is wrong with one image file: with its header or, if it is decoded, with all of it."""
    size = image["height"], image["width"]
    try:
        with Image.open(file) as stored:
            shown, _ = _shown_size(stored, size)
            if decode:
                stored.load()
    except Exception as error:  # as in load_image
        return [_error("broken image", _name(image), f"{file}: {_broken_message(error)}")]
    if shown != size:
        return [_error("wrong size", _name(image), f"{file}: {_size_message(shown, size)}")]
    return []
