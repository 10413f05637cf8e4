"""YOLO's layout: a ``data.yaml``, and for each image a text file with a line for each object.

A line is ``class x y width height`` (the centre and size of a box) or ``class x1 y1 x2 y2 x3 y3 ...`` (a
polygon), in parts of the image's width and height.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any

import yaml

from botnet.errors import DataError, first_few
from botnet.images import files_below, image_extensions, image_size
from botnet.layouts.files import SPLITS, place, read_text, relative_name
from botnet.layouts.outlines import one_polygon
from botnet.layouts.samples import Losses, Object, Sample, extent

TOLERANCE = 1e-4  # of a coordinate beyond 0 to 1, by rounding
# Pixels are rounded to this many decimals: it undoes the rounding of the parts that are written.
PIXEL_DECIMALS, PART_DECIMALS = 4, 10


class YoloSet:
    """A data set described by a ``data.yaml``.

    Args:
        file: the ``data.yaml``.

    Attributes:
        names: of the classes.

    Raises:
        DataError: the file is not a description of a data set. Its splits are read when they are asked for.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._data = read_yaml(file)
        self.names = self._names()
        self._images: dict[str, list[Path]] = {}
        self._folders: dict[str, Path] = {}
        self._shape: tuple[str, str] | None = None  # box or polygon, and where it was seen first

    def _names(self) -> list[str]:
        # As text: else a class "no" is False and "010" is 8.
        names = yaml.load(read_text(self.file), yaml.BaseLoader).get("names")
        number = self._data.get("nc")
        if isinstance(names, dict) and set(names) == set(map(str, range(len(names)))):
            names = [names[str(index)] for index in range(len(names))]
        if not (isinstance(names, list) and names and all(name and isinstance(name, str) for name in names)):
            given = short(self._data.get("names"))
            raise DataError(f"{self.file}: names is {given}, not a list of names or a table of them from 0")
        if number not in (None, len(names)):
            raise DataError(f"{self.file}: nc is {number}, but there are {len(names)} names; correct one")
        if "kpt_shape" in self._data:
            raise DataError(
                f"{self.file}: has kpt_shape: labels of keypoints, not of boxes or polygons; remove them"
            )
        return names

    @property
    def splits(self) -> list[str]:
        """Those that the file names."""
        return [split for split, keys in SPLITS.items() if any(self._data.get(key) for key in keys)]

    def images(self, split: str) -> list[Path]:
        """The images of one split, listed once.

        Raises:
            DataError: a folder or list does not exist, or there are no images.
        """
        if split in self._images:
            return self._images[split]
        keys = [key for key in SPLITS[split] if self._data.get(key)]
        if len(keys) > 1:
            raise DataError(f"{self.file}: has {' and '.join(keys)}, which mean the same; remove one")
        entries = self._data[keys[0]]
        sources = [
            self._source(split, entry) for entry in (entries if isinstance(entries, list) else [entries])
        ]
        listed = [(source, self._listed(source)) for source in sources]
        images = [image for _, files in listed for image in files]
        if not images:
            raise DataError(f"{self.file}: {split}: no images in {first_few([str(s) for s in sources])}")
        if not any(label_file(image).is_file() for image in images):
            raise DataError(
                f"{self.file}: {split}: none of the {len(images)} images has labels, not even "
                f"{label_file(images[0])}"
            )
        homes = [
            home
            for source, files in listed
            for home in ([source] if source.is_dir() else [file.parent for file in files])
        ]
        self._images[split] = images
        self._folders[split] = Path(os.path.commonpath([os.path.abspath(home) for home in homes]))
        return images

    def _source(self, split: str, entry: Any) -> Path:
        home = self.file.parent / str(self._data.get("path") or "")
        home = home if home.is_dir() else self.file.parent  # a path on the machine that exported it
        # Roboflow writes ../train/images for a folder beside the file.
        tried = [home / str(entry), home / str(entry).removeprefix("../")]
        for path in tried:
            if path.exists():
                return path
        raise DataError(f"{self.file}: {split}: {tried[-1]}: no such folder or list; correct the entry")

    @staticmethod
    def _listed(source: Path) -> list[Path]:
        if source.suffix.lower() != ".txt":
            return files_below(source, image_extensions())
        listed = [source.parent / line.strip() for line in read_text(source).splitlines() if line.strip()]
        for number, path in enumerate(listed, 1):
            if not path.is_file():
                raise DataError(f"{source}: line {number}: {path}: no such image; correct the list")
        return listed

    def folder(self, split: str) -> Path:
        """The folder that holds all images of one split."""
        self.images(split)
        return self._folders[split]

    def samples(self, split: str, losses: Losses) -> Iterator[Sample]:
        """The images of one split with their objects.

        Args:
            split: which.
            losses: images without a label file are counted in it.

        Raises:
            DataError: a label or an image that cannot be used; with file and line.
        """
        folder = self.folder(split)
        for image in self.images(split):
            height, width = image_size(image)
            labels = label_file(image)
            objects = self._objects(labels, height, width)
            losses["images without a label file, kept without objects"] += not labels.is_file()
            yield Sample(image, relative_name(image, folder), height, width, objects)

    def _objects(self, file: Path, height: int, width: int) -> list[Object]:
        if not file.is_file():  # an image without objects
            return []
        objects = []
        for number, line in enumerate(read_text(file).splitlines(), 1):
            if line.strip():
                where = f"{file}, line {number}"
                label, parts = self._parse(line, where)
                objects.append(_object(label, parts, height, width))
        return objects

    def _parse(self, line: str, where: str) -> tuple[int, list[float]]:
        try:
            label, *parts = (float(field) for field in line.split())
        except ValueError as error:
            raise DataError(f"{where}: {short(line)} is not a class and its coordinates") from error
        if len(parts) != 4 and (len(parts) < 6 or len(parts) % 2):
            raise DataError(
                f"{where}: {len(parts)} coordinates; a box has 4, a polygon the x and y of 3 points or more"
            )
        if label not in range(len(self.names)):
            raise DataError(
                f"{where}: class {label:g}; {self.file} names {len(self.names)} classes, 0 to "
                f"{len(self.names) - 1}"
            )
        for value in parts:
            if not -TOLERANCE <= value <= 1 + TOLERANCE:
                raise DataError(
                    f"{where}: the coordinate {value:g} lies outside 0 to 1; coordinates are parts of the "
                    "image's width and height"
                )
        shape = "box" if len(parts) == 4 else "polygon"
        self._shape = self._shape or (shape, where)
        if shape != self._shape[0]:
            raise DataError(
                f"{where}: a {shape}, but {self._shape[1]} has a {self._shape[0]}; a data set has either "
                "boxes or polygons: make them the same"
            )
        return int(label), parts


def read_yaml(file: Path) -> dict[str, Any]:
    """The table in a YAML file.

    Raises:
        DataError: it is not one.
    """
    try:
        data = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise DataError(f"{file}: is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        raise DataError(f"{file}: holds {short(data)}, not the table of a data set (train, val, names)")
    return data


def label_file(image: Path) -> Path:
    """The labels of an image: ``.../images/a/b.jpg`` has ``.../labels/a/b.txt``; or beside it."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _object(label: int, parts: list[float], height: int, width: int) -> Object:
    if len(parts) == 4:
        x, y, w, h = parts
        box = ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
        left, top, wide, high = (round(value, PIXEL_DECIMALS) for value in box)
        return Object(label, (left, top, wide, high))
    size = (width, height)
    polygon = [round(value * size[index % 2], PIXEL_DECIMALS) for index, value in enumerate(parts)]
    return Object(label, extent([polygon]), [polygon])


# ---- writing


def write_yolo(
    folder: Path, names: list[str], splits: Mapping[str, Iterable[Sample]], polygons: bool, losses: Losses
) -> dict[str, dict[str, int]]:
    """Write a data set in YOLO's layout.

    Args:
        folder: to be filled: ``data.yaml``, ``images/<split>``, ``labels/<split>``.
        names: of the classes.
        splits: the images of each.
        polygons: write polygons, not boxes.
        losses: what is not held is added to it.

    Returns:
        For each split its numbers of ``images``, ``objects``, and images that were ``linked``.

    Raises:
        DataError: two images of a split would have the same labels.
    """
    counts = {}
    for split, samples in splits.items():
        count = counts[split] = {"images": 0, "objects": 0, "linked": 0}
        seen: dict[Path, str] = {}
        for sample in samples:
            image = folder / "images" / split / sample.name
            labels = label_file(image)
            if labels in seen:
                raise DataError(
                    f"{sample.name} and {seen[labels]} of {split} would share their labels; rename one"
                )
            seen[labels] = sample.name
            lines = list(_lines(sample, polygons, losses))
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.write_text("".join(line + "\n" for line in lines))
            count["linked"] += place(sample.file, image)
            count["images"] += 1
            count["objects"] += len(lines)
    table = {split: f"images/{split}" for split in splits} | {"names": dict(enumerate(names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(table, sort_keys=False, allow_unicode=True), "utf-8")
    return counts


def _lines(sample: Sample, polygons: bool, losses: Losses) -> Iterator[str]:
    for item in sample.objects:
        if item.crowd:
            losses["crowd regions, left out"] += 1
            continue
        parts = _polygon(item, sample, losses) if polygons else _centred(item, sample, losses)
        if parts:
            yield " ".join([str(item.label), *(_decimal(part) for part in parts)])


def _centred(item: Object, sample: Sample, losses: Losses) -> list[float]:
    x, y, w, h = item.box
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + w, float(sample.width)), min(y + h, float(sample.height))
    losses["boxes trimmed to the image"] += (left, top, right, bottom) != (x, y, x + w, y + h)
    size = (sample.width, sample.height)
    values = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
    return [value / size[index % 2] for index, value in enumerate(values)]


def _polygon(item: Object, sample: Sample, losses: Losses) -> list[float]:
    x, y, w, h = item.box
    if item.segmentation is None:
        losses["boxes without a mask, written as rectangles"] += 1
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    else:
        polygon = one_polygon(item.segmentation, sample.height, sample.width, losses)
        if not polygon:
            losses["empty masks, left out"] += 1
            return []
        around = extent([polygon])
        edges = zip((x, y, x + w, y + h), _corners(around), strict=True)
        losses["boxes more than a pixel off their mask, which replaces them"] += any(
            abs(a - b) > 1 for a, b in edges
        )
    size = (sample.width, sample.height)
    limited = [min(max(value, 0.0), float(size[index % 2])) for index, value in enumerate(polygon)]
    losses["polygons trimmed to the image"] += limited != polygon
    return [value / size[index % 2] for index, value in enumerate(limited)]


def _corners(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x, y, w, h = box
    return x, y, x + w, y + h


def _decimal(part: float) -> str:
    return f"{part:.{PART_DECIMALS}f}".rstrip("0").rstrip(".")
