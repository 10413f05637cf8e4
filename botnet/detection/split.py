"""Splitting an instances file into training and validation, image by image."""

import hashlib
import json
import os
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from botnet.detection.coco import CocoInstances
from botnet.detection.records import distinct_names
from botnet.errors import ConfigError, DataError

Group = tuple[list[int], dict[int, int]]  # ids of images with the same content; their objects by category


@dataclass(frozen=True)
class SplitMade:
    """What a split did.

    Args:
        files: the instances file of each side, ``train`` and ``val``.
        images: their numbers of images.
        objects: for each side and category (:func:`distinct_names`) the number of objects.
        same_content: images that have the content of another one, with which they stay.
    """

    files: dict[str, Path]
    images: dict[str, int]
    objects: dict[str, dict[str, int]]
    same_content: int


def split_instances(
    instances: Path, val: float, seed: int = 0, images: Path | None = None, output: Path | None = None
) -> SplitMade:
    """Write ``train.json`` and ``val.json`` with the records of an instances file, unchanged.

    Every class is on both sides if it is in two images that can be parted, in about the proportion of the
    images. Rare classes are dealt out first. The same arguments give the same split.

    Args:
        instances: the file.
        val: the part of the images for validation, between 0 and 1.
        seed: of the order in which images are taken.
        images: their folder: files of the same content stay on one side. None: not looked at.
        output: folder of the new files; default: that of ``instances``.

    Raises:
        ConfigError: ``val`` leaves a side empty, or a file exists already.
        DataError: a broken record, or a missing image.
    """
    CocoInstances(instances)  # refuses broken records
    data = json.loads(instances.read_bytes())
    folder = instances.parent if output is None else output
    files = {side: folder / f"{side}.json" for side in ("train", "val")}
    for path in files.values():
        if path.exists():
            raise ConfigError(f"{path} exists already; name another folder by --output")
    groups = _groups(data, instances, images)
    number = round(val * len(data["images"])) if 0 < val < 1 else 0
    if not 0 < number < len(data["images"]) or len(groups) < 2:
        raise ConfigError(
            f"--val {val} of {len(data['images'])} images ({len(groups)} different) leaves a side empty; "
            "give a part between 0 and 1"
        )
    in_val = _choose(groups, number, np.random.default_rng(seed))
    chosen = {image for group, inside in zip(groups, in_val, strict=True) if inside for image in group[0]}
    _write(data, chosen, files)
    return _describe(data, groups, chosen, files)


def _groups(data: dict[str, Any], instances: Path, folder: Path | None) -> list[Group]:
    """The images in the order of their file names, those of the same content together."""
    objects: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for annotation in data["annotations"]:
        objects[annotation["image_id"]][annotation["category_id"]] += 1
    groups: dict[Any, Group] = {}
    for image in sorted(data["images"], key=lambda image: (image["file_name"], image["id"])):
        # The same file in two records is the same content, too.
        key = image["file_name"] if folder is None else _digest(folder / image["file_name"], instances)
        ids, counts = groups.setdefault(key, ([], defaultdict(int)))
        ids.append(image["id"])
        for category, count in objects[image["id"]].items():
            counts[category] += count
    return list(groups.values())


def _digest(path: Path, instances: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(
            f"{instances}: {path}: cannot be read ({error.strerror}); restore it or give the right --images"
        ) from error


def _choose(groups: list[Group], number: int, rng: np.random.Generator) -> list[bool]:
    """Which groups go to validation: about ``number`` images."""
    order = rng.permutation(len(groups)).tolist()
    total = sum(len(ids) for ids, _ in groups)
    holders: dict[int, list[int]] = defaultdict(list)  # of each class, in random order
    for index in order:
        for category in groups[index][1]:
            holders[category].append(index)
    side: dict[int, bool] = {}
    for category in sorted(holders, key=lambda category: (len(holders[category]), category)):
        members = holders[category]
        wanted = min(max(round(number / total * len(members)), 1), len(members) - 1)
        free = [index for index in members if index not in side]
        missing = wanted - sum(side.get(index, False) for index in members)
        for rank, index in enumerate(free):
            side[index] = rank < missing
    _fill(groups, order, side, number)
    _repair(groups, holders, side)
    return [side[index] for index in range(len(groups))]


def _fill(groups: list[Group], order: list[int], side: dict[int, bool], number: int) -> None:
    """Deal out the images without objects, so that the number comes as close as they allow."""
    missing = number - sum(len(groups[index][0]) for index, inside in side.items() if inside)
    for index in order:
        if index not in side:
            side[index] = len(groups[index][0]) <= missing
            missing -= len(groups[index][0]) if side[index] else 0
    for inside in (True, False):  # nothing else made sure that both sides have an image
        if inside not in side.values():
            side[min(order, key=lambda index: len(groups[index][0]))] = inside


def _repair(groups: list[Group], holders: dict[int, list[int]], side: dict[int, bool]) -> None:
    """Move images of the classes that are on one side only, as long as more classes come to both."""

    def both() -> int:
        return sum(len({side[index] for index in members}) == 2 for members in holders.values())

    best, improved = both(), True
    while improved:
        improved = False
        lonely = [m for m in holders.values() if len(m) > 1 and len({side[index] for index in m}) == 1]
        for index in {index: None for members in lonely for index in members}:
            side[index] = not side[index]
            now = both() if len(set(side.values())) == 2 else -1
            if now > best:
                best, improved = now, True
                break
            side[index] = not side[index]


def _write(data: dict[str, Any], chosen: set[int], files: dict[str, Path]) -> None:
    """Both files, or neither."""
    folder = files["train"].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".split-", dir=folder) as scratch:
            for side, path in files.items():
                part = {
                    **data,
                    "images": [r for r in data["images"] if (r["id"] in chosen) == (side == "val")],
                    "annotations": [
                        r for r in data["annotations"] if (r["image_id"] in chosen) == (side == "val")
                    ],
                }
                (Path(scratch) / path.name).write_text(json.dumps(part), "utf-8")
            for path in files.values():
                os.rename(Path(scratch) / path.name, path)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write here ({error.strerror}); give --output") from error


def _describe(
    data: dict[str, Any], groups: list[Group], chosen: set[int], files: dict[str, Path]
) -> SplitMade:
    keys = [category["id"] for category in data["categories"]]
    distinct = distinct_names([category["name"] for category in data["categories"]], keys)
    objects = {side: dict.fromkeys(distinct, 0) for side in files}
    names = dict(zip(keys, distinct, strict=True))
    for ids, counts in groups:
        for category, count in counts.items():
            objects["val" if ids[0] in chosen else "train"][names[category]] += count
    total = len(data["images"])
    images = {"train": total - len(chosen), "val": len(chosen)}
    return SplitMade(files, images, objects, total - len(groups))
