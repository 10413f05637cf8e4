"""COCO instances files: read, check, serve as training and evaluation samples."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
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
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import pil_to_tensor

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
        self._annotations: dict[int, list[dict]] = {image["id"]: [] for image in self.images}
        for annotation, problems in _annotations(data):
            for problem in problems:
                if problem.severity == "error":
                    raise _refusal(self.path, problem)
                self.dropped[problem.kind] += 1
            if annotation:
                self._annotations[annotation["image_id"]].append(annotation)

    def annotations_of(self, image_id: int) -> list[dict[str, Any]]:
        """The COCO annotations of one image, in the file's order, without what was dropped."""
        return self._annotations[image_id]


def _read(path: Path) -> dict[str, Any]:
    """The file as a dict that has the three lists of an instances file."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give the path of an instances file"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: is no JSON ({error}); give a COCO instances file") from error
    for key in ("images", "annotations", "categories"):
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


# ---- masks


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run-length encoding of a mask.

    Args:
        mask: (H, W), zero outside the object.

    Returns:
        ``{"size": [H, W], "counts": str}``, ready for JSON.
    """
    rle = rle_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


def decode_mask(segmentation: list | dict[str, Any], height: int, width: int) -> np.ndarray:
    """The pixels of a COCO segmentation, as COCO's own code rasterises them.

    Args:
        segmentation: polygons (a list of flat lists x, y, x, y, ... in pixels), or run lengths, compressed
            (``counts`` a string) or not (a list).
        height, width: of the image in pixels.

    Returns:
        (H, W) uint8, 1 inside.

    Raises:
        ValueError: run lengths that do not describe height x width pixels.
    """
    if isinstance(segmentation, list):
        if not segmentation:
            return np.zeros((height, width), np.uint8)
        rle = rle_api.merge(rle_api.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = rle_api.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    mask = rle_api.decode(rle)
    if mask.shape != (height, width):
        raise ValueError(f"the mask is of size {mask.shape}, its image of {(height, width)}")
    return mask


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
    if not path.is_file():
        raise DataError(f"{path}: no such image; restore the file or remove its record")
    try:
        with Image.open(path) as stored:
            _, obeyed = _shown_size(stored, size)
            image = ImageOps.exif_transpose(stored) if obeyed else stored
            if image.mode.startswith("I;16"):  # Pillow would cut it off at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise almost anything on a broken file
        raise DataError(f"{path}: {_broken_message(error)}") from error
    if size is not None and (image.height, image.width) != size:
        raise DataError(f"{path}: {_size_message((image.height, image.width), size)}")
    return image


def _shown_size(stored: Image.Image, size: tuple[int, int] | None) -> tuple[tuple[int, int], bool]:
    """(Height, width) that a picture is to have, and whether its EXIF orientation is obeyed."""
    own, turned = (stored.height, stored.width), (stored.width, stored.height)
    if stored.getexif().get(ExifTags.Base.Orientation, 1) < 5:  # 5 to 8 swap height and width
        return own, True
    return (own, False) if own == size != turned else (turned, True)


def _broken_message(error: Exception) -> str:
    return f"cannot be decoded ({error}); restore the file or remove its record"


def _size_message(found: tuple[int, int], size: tuple[int, int]) -> str:
    return (
        f"the image is {found[1]} x {found[0]} pixels, its record says {size[1]} x {size[0]} "
        "(width x height); correct the record or restore the file"
    )


class CocoDataset(Dataset):
    """Images of an instances file with their objects.

    A sample is ``(image, target)``: the image (3, H, W) uint8 RGB; in the target

    - ``boxes`` (N, 4) float32 xyxy in pixels, ``labels`` (N,) int64 from 1, ``masks`` (N, H, W) uint8,
      ``iscrowd`` (N,) bool, ``area`` (N,) float32 in square pixels (the file's; without it the mask's or
      the box's);
    - ``image_id`` int, ``size`` (height, width) of the original image.

    In training, crowd regions are left out and at most 100 objects are kept, as in tensorflow/tpu; images
    without objects stay in, with tensors of length zero.

    Args:
        instances: the instances file, or its path.
        images: folder that the file names are relative to.
        transform: of (image, target), for instance :class:`botnet.detection.transforms.TrainTransform`.
        train: samples for training rather than for scoring.
        masks: read masks; False for boxes only.

    Raises:
        DataError: at once if an image file or a mask is missing; on access if a file or a mask is broken.
    """

    def __init__(
        self,
        instances: CocoInstances | Path,
        images: Path,
        transform: Callable[[Any, Any], tuple[Any, Any]] | None = None,
        train: bool = False,
        masks: bool = True,
    ) -> None:
        self.instances = instances if isinstance(instances, CocoInstances) else CocoInstances(instances)
        self.folder = Path(images)
        self.transform, self.train, self.masks = transform, train, masks
        self._label = {category: i + 1 for i, category in enumerate(self.instances.category_ids)}
        for problem in _folder_problems(self.instances.images, self.folder):
            raise DataError(f"{problem.record}: {problem.message}")
        for image in self.instances.images if masks else ():
            for annotation in self.instances.annotations_of(image["id"]):
                if annotation.get("segmentation") is None:
                    raise _refusal(self.instances.path, _no_mask(annotation, image))

    def __len__(self) -> int:
        return len(self.instances.images)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, dict[str, Any]]:
        index = key[1] if isinstance(key, tuple) else key
        record = self.instances.images[index]
        size = record["height"], record["width"]
        picture = load_image(self.folder / record["file_name"], size)
        image: Tensor = tv_tensors.Image(pil_to_tensor(picture))
        target = self._target(record, size)
        if self.transform is not None:
            image, target = self.transform(image, target)
        if self.train:
            for key in ("boxes", "labels", "masks", "iscrowd", "area"):
                if key in target:
                    target[key] = tv_tensors.wrap(target[key][:MAX_OBJECTS], like=target[key])
        return image, target

    def _target(self, record: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
        annotations = [
            annotation
            for annotation in self.instances.annotations_of(record["id"])
            if not (self.train and annotation.get("iscrowd"))
            and not (self.masks and not annotation["segmentation"])  # all of its polygons were dropped
        ]
        boxes = torch.tensor([annotation["bbox"] for annotation in annotations], dtype=torch.float32)
        boxes = box_convert(boxes.reshape(-1, 4), "xywh", "xyxy")
        sides = [annotation["bbox"][2] * annotation["bbox"][3] for annotation in annotations]
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor([self._label[a["category_id"]] for a in annotations], dtype=torch.int64),
            "iscrowd": torch.tensor([bool(a.get("iscrowd")) for a in annotations], dtype=torch.bool),
            "image_id": record["id"],
            "size": size,
        }
        if self.masks:
            masks = np.zeros((len(annotations), *size), np.uint8)
            for row, annotation in enumerate(annotations):
                masks[row] = self._mask(annotation, record)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
            sides = masks.sum((1, 2)).tolist()
        areas = [a.get("area", side) for a, side in zip(annotations, sides, strict=True)]
        target["area"] = torch.tensor(areas, dtype=torch.float32)
        return target

    def _mask(self, annotation: dict[str, Any], record: dict[str, Any]) -> np.ndarray:
        try:
            return decode_mask(annotation["segmentation"], record["height"], record["width"])
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
    """Images of one canvas size as a batch (B, 3, S, S), and the list of their targets."""
    images, targets = zip(*batch, strict=True)
    return torch.stack(images), list(targets)


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
            problems += _image_problems(file, image, decode)
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


def _image_problems(file: Path, image: dict[str, Any], decode: bool) -> list[Problem]:
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
