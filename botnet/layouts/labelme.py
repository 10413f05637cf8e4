"""labelme's layout: a JSON file with the shapes of each image, anywhere in a folder."""

import base64
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
from PIL import Image

from botnet.errors import DataError
from botnet.images import files_below, image_size
from botnet.layouts.files import by_split, note_owner, read_head, read_text, relative_name
from botnet.layouts.samples import Losses, Object, Sample, extent
from botnet.masks import Segmentation, decode_mask, encode_mask, mask_box

HEAD = 2**16  # bytes: labelme writes "shapes" before the image's data
CIRCLE = 64  # corners of the polygon that stands for a circle
OUTLINES = ("polygon", "circle", "mask")


class LabelmeSet:
    """A folder of labelme's JSON files; its splits are the folders ``train``, ``val`` and ``test``.

    Args:
        root: the folder.

    Attributes:
        names: of the classes that occur, in alphabetical order.

    Raises:
        DataError: a file that cannot be used.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files = by_split(root, labelme_files(root))
        names, shapes = set(), set()
        for files in self._files.values():
            for file in files:
                for number, shape in enumerate(_read(file)["shapes"], 1):
                    names.add(_label(shape, f"{file}: shape {number}"))
                    shapes.add(shape.get("shape_type", "polygon"))
        if not names:
            raise DataError(f"{root}: no file of labelme has a shape")
        self.names: list[str] = sorted(names)
        self._outlined = not shapes.isdisjoint(OUTLINES)

    @property
    def splits(self) -> list[str]:
        """Those that there are."""
        return list(self._files)

    def samples(self, split: str, losses: Losses) -> Iterator[Sample]:
        """The images of one split with their objects; shapes of one group and label are one object.

        Rectangles are boxes, or polygons if the data set also has outlines.

        Args:
            split: which.
            losses: shapes that COCO cannot hold, or not exactly, are counted in it.

        Raises:
            DataError: a shape that cannot be used, or a missing image; with the file and the shape. Or two
                files have the same image.
        """
        owners: dict[Path, Path] = {}
        for file in self._files[split]:
            data = _read(file)
            image = file.parent / str(data.get("imagePath")).replace("\\", "/")
            note_owner(owners, image.resolve(), file)
            height, width = image_size(image)
            stated = data.get("imageHeight") or height, data.get("imageWidth") or width
            if stated != (height, width):
                raise DataError(
                    f"{file}: imageWidth x imageHeight is {stated[1]} x {stated[0]}, {image} has {width} x "
                    f"{height} pixels; restore the image"
                )
            objects = self._objects(data["shapes"], file, (height, width), losses)
            yield Sample(image, relative_name(image, self.root), height, width, objects)

    def _objects(
        self, shapes: list[dict[str, Any]], file: Path, size: tuple[int, int], losses: Losses
    ) -> list[Object]:
        groups: dict[Any, list[Segmentation]] = {}
        only_box = {}
        for number, shape in enumerate(shapes, 1):
            where = f"{file}: shape {number}"
            label, kind = _label(shape, where), shape.get("shape_type", "polygon")
            segmentation = _segmentation(shape, kind, size, f"{where} ({label})", losses)
            if segmentation is None:
                losses[f"shapes of the kind {kind}, left out"] += 1
                continue
            group = shape.get("group_id")
            key = (label, "group", group) if group is not None else (label, "shape", number)
            groups.setdefault(key, []).append(segmentation)
            only_box[key] = kind == "rectangle" and not self._outlined
            losses["rectangles, written as polygons"] += kind == "rectangle" and self._outlined
        objects = []
        for key, parts in groups.items():
            whole = _union(parts, size)
            box = extent(whole) if isinstance(whole, list) else mask_box(whole)
            objects.append(Object(self.names.index(key[0]), box, None if only_box[key] else whole))
        return objects


def labelme_files(folder: Path) -> list[Path]:
    """The JSON files of labelme in a folder and its subfolders.

    Raises:
        DataError: as in :func:`~botnet.layouts.files.files_below`.
    """
    return [file for file in files_below(folder, (".json",)) if _is_labelme(file)]


def _is_labelme(file: Path) -> bool:
    return b'"shapes"' in read_head(file, HEAD)


def _read(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise (
            error if isinstance(error, DataError) else DataError(f"{file}: is not JSON ({error})")
        ) from error
    shapes = data.get("shapes") if isinstance(data, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DataError(f'{file}: has no list "shapes"; give files of labelme')
    return data


def _label(shape: dict[str, Any], where: str) -> str:
    label = shape.get("label")
    if not (isinstance(label, str) and label):
        raise DataError(f"{where}: its label is {short(label)}, not a name; correct it")
    return label


def _segmentation(
    shape: dict[str, Any], kind: str, size: tuple[int, int], where: str, losses: Losses
) -> Segmentation | None:
    """Polygons or run lengths of a shape; None for one without an area."""
    if kind not in ("rectangle", *OUTLINES):
        return None
    points = np.array(_points(shape, where))
    if kind == "mask":
        return encode_mask(_mask(shape, points, size, where))
    if kind == "polygon":
        if len(points) < 3:
            raise DataError(f"{where}: a polygon of {len(points)} points; it needs 3 or more: redraw it")
        return [points.reshape(-1).tolist()]
    if len(points) < 2:
        raise DataError(f"{where}: a {kind} of {len(points)} points; it needs 2: redraw it")
    if kind == "circle":  # the centre and a point of the edge
        losses[f"circles, written as polygons of {CIRCLE} points"] += 1
        angles = np.arange(CIRCLE) * (2 * math.pi / CIRCLE)
        ring = points[0] + np.hypot(*(points[1] - points[0])) * np.stack([np.cos(angles), np.sin(angles)], 1)
        return [ring.round(4).reshape(-1).tolist()]
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    return [[left, top, right, top, right, bottom, left, bottom]]


def _points(shape: dict[str, Any], where: str) -> list[tuple[float, float]]:
    points = shape.get("points")
    try:
        pairs = [(float(x), float(y)) for x, y in points or []]
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: its points are {short(points)}, not pairs of x and y") from error
    if not all(math.isfinite(value) for pair in pairs for value in pair):
        raise DataError(f"{where}: its points are {short(points)}, not finite numbers")
    return pairs


def _mask(shape: dict[str, Any], points: np.ndarray, size: tuple[int, int], where: str) -> np.ndarray:
    """(H, W) uint8: the stored pixels, a PNG in base64, at their place in the image."""
    whole = np.zeros(size, np.uint8)
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as stored:
            part = np.asarray(stored.convert("L")) > 0
        left, top = points[0].astype(int).tolist()
        whole[top : top + part.shape[0], left : left + part.shape[1]] = part
    except Exception as error:  # Pillow's decoders raise almost anything on broken data
        raise DataError(f"{where}: its mask cannot be placed in the image ({error}); redraw it") from error
    return whole


def _union(parts: list[Segmentation], size: tuple[int, int]) -> Segmentation:
    if len(parts) == 1:
        return parts[0]
    polygons = [polygon for part in parts if isinstance(part, list) for polygon in part]
    if all(isinstance(part, list) for part in parts):
        return polygons
    return encode_mask(np.max([decode_mask(part, *size) for part in parts], axis=0))
