"""Converting data sets: YOLO, Pascal VOC and labelme to COCO, and COCO to YOLO."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from botnet.detection.coco import CocoInstances
from botnet.errors import ConfigError, DataError
from botnet.folders import check_unused, new_folder
from botnet.layouts.coco import write_instances
from botnet.layouts.files import place
from botnet.layouts.find import CocoFiles, Layout, find_layout
from botnet.layouts.samples import Losses, Object, Sample
from botnet.layouts.yolo import write_yolo


@dataclass(frozen=True)
class Converted:
    """What a conversion did.

    Args:
        kind: the layout of the source.
        splits: for each split its numbers of ``images``, ``objects``, and images that were ``linked``.
        losses: what was lost or changed, with how many objects it concerns.
    """

    kind: str
    splits: dict[str, dict[str, int]]
    losses: Losses


def convert(source: Path, out: Path, to: str = "coco") -> Converted:
    """Convert a data set into a new folder, completely or not at all.

    A COCO data set is ``<split>.json`` with the images in ``<split>/``; a source that is not split becomes
    ``instances.json`` with ``images/``. A YOLO data set is a ``data.yaml`` with ``images/<split>/`` and
    ``labels/<split>/``. The images are hard links to those of the source, which take no space; on another
    file system they are copies.

    Args:
        source: folder of a data set in a known layout, or a ``data.yaml`` of YOLO.
        out: new folder.
        to: ``coco`` or ``yolo``.

    Raises:
        DataError: the source has no known layout, or is broken.
        ConfigError: it is in the wanted format already, or the folder is in use.
    """
    layout = find_layout(source)
    if bool(layout.coco) == (to == "coco"):
        other = "yolo" if layout.coco else "coco"
        reason = "is in COCO's format already" if layout.coco else f"has {layout.kind} layout, not COCO's"
        raise ConfigError(f"{source} {reason}; --to {to} is for others: give --to {other}")
    check_unused(out)
    losses: Losses = Counter()
    with new_folder(out) as folder:
        splits = (_to_coco if to == "coco" else _to_yolo)(layout, folder, losses)
    return Converted(layout.kind, splits, +losses)


def _to_coco(layout: Layout, folder: Path, losses: Losses) -> dict[str, dict[str, int]]:
    data = layout.annotated()
    counts = {}
    for split in data.splits:
        instances, images = ("instances", "images") if split == "all" else (split, split)
        samples = data.samples(split, losses)
        counts[split], files = write_instances(folder / f"{instances}.json", data.names, samples)
        if not files:
            raise DataError(f"{layout.root}: the split {split} has no images; fill or remove it")
        placed = {image.name: image.file for image in files}
        counts[split]["linked"] = sum(place(file, folder / images / name) for name, file in placed.items())
    return counts


def _to_yolo(layout: Layout, folder: Path, losses: Losses) -> dict[str, dict[str, int]]:
    names: list[str] = []
    polygons = False
    for files in layout.coco.values():  # each is read again when it is written: one at a time is in memory
        found, masks = _classes(files)
        if found != (names := names or found):
            raise DataError(
                f"{files.instances}: its categories, {found}, are not those of the first split, {names}; "
                "write the same list into all"
            )
        polygons = polygons or masks
    splits = {
        "train" if split == "all" else split: _samples(files, losses) for split, files in layout.coco.items()
    }
    return write_yolo(folder, names, splits, polygons, losses)


def _classes(files: CocoFiles) -> tuple[list[str], bool]:
    """The class names of an instances file, and whether any object has a mask."""
    instances = CocoInstances(files.instances)
    return instances.class_names, any(
        annotation.segmentation is not None
        for image in instances.images
        for annotation in instances.annotations_of(image.id)
    )


def _samples(files: CocoFiles, losses: Losses) -> Iterator[Sample]:
    """The images of an instances file, as checked as for training."""
    instances = CocoInstances(files.instances)
    for kind, count in instances.dropped.items():
        losses[f"left out or trimmed, as in training: {kind}"] += count
    label = {category: index for index, category in enumerate(instances.category_ids)}
    for image in instances.images:
        name = PurePosixPath(image.file_name)
        file = files.images / name
        if name.is_absolute() or ".." in name.parts:
            raise DataError(f"{files.instances}: {name}: the file name leaves its folder; move the image")
        if not file.is_file():
            raise DataError(f"{files.instances}: {file}: no such image; restore it or remove its record")
        objects = []
        for annotation in instances.annotations_of(image.id):
            segmentation = annotation.segmentation
            if segmentation == []:
                losses["objects without a usable polygon, left out"] += 1
                continue
            x, y, w, h = annotation.bbox
            crowd = bool(annotation.iscrowd)
            objects.append(Object(label[annotation.category_id], (x, y, w, h), segmentation, crowd))
        yield Sample(file, str(name), image.height, image.width, objects)
