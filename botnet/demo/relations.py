"""Small detection sets whose classes depend on something elsewhere in the picture.

Each picture holds two handwritten digits of MNIST, white and in their original size, on a dark photograph: an
object and its partner. Three tasks make the object's class depend on the partner, whose distance is drawn
from three bands; the fourth does not and is their control. Digits and photographs are those of `make-digits`.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
from PIL import Image
from rich.progress import track

from botnet.arguments import RELATION, RELATIONS_CANVAS, Count, Seed, checked
from botnet.demo.digits import NAMES, load_digits, load_photographs
from botnet.demo.folder import make_once, recognise_coco
from botnet.demo.scene import extent
from botnet.masks import encode_mask

# Class names of each task.
CLASSES = {
    "cue": ["with zero", "with one"],
    "direction": ["right", "below", "left", "above"],
    "match": ["single", "matched"],
    "local": NAMES,
}
BANDS = ("near", "middle", "far")
RECIPE = 1  # to be raised with every change to what the same arguments make
GLYPH = 28  # pixels: the window of a digit
BRIGHTNESS = 0.3  # of the photographs: the relation, not finding the digits, is to be the problem
SECTOR = math.radians(30)  # a direction is within this angle of its axis


class RelationCounts(TypedDict):
    """Images and objects of a split."""

    images: int
    objects: int


class MadeRelations(TypedDict):
    """What `make_relations` returns: the folder, whether this call made it, and what each split holds."""

    directory: Path
    made: bool
    train: RelationCounts
    val: RelationCounts


@checked
def make_relations(
    directory: Path,
    task: Annotated[str, RELATION],
    train: Count = 8000,
    val: Count = 1500,
    canvas: Annotated[int, RELATIONS_CANVAS] = 128,
    seed: Seed = 0,
    progress: bool = True,
) -> MadeRelations:
    """Make a COCO-format set in which a digit's class depends on another digit of the picture.

    - ``cue``: the object, a digit from 2 to 9, is "with zero" or "with one", as the other digit is;
    - ``direction``: the object, a digit from 1 to 9, lies to the right of, below, to the left of or above a
      zero, within 30 degrees of the axis;
    - ``match``: both digits are objects, zeros or ones: "matched" if they have the same value, else "single";
    - ``local``: both digits are objects of their own value: the control.

    Each annotation has ``attributes``: ``digit``, its value; ``partner_digit`` and ``partner_bbox``;
    ``distance``, between the centres of the two boxes in pixels; and its ``band``, near, middle or far (see
    `distance_bands`). Where an object lies and what it looks like say nothing about its class, except in
    ``local``. Train and val share neither a digit nor a photograph. The same arguments give the same files,
    bit for bit, under the same version of Pillow.

    Args:
        directory: made or, if empty, filled by this call: ``train/``, ``val/``, ``instances_train.json``,
            ``instances_val.json``.
        task: "cue", "direction", "match" or "local".
        train, val: numbers of images.
        canvas: side of the square images in pixels, from 96.
        seed: of every random choice, from 0.
        progress: show a progress bar.

    Returns:
        The folder, the counts of each split, and ``made``: False where the same set already exists.

    Raises:
        ConfigError: an unknown task, or a number out of its range.
        DataError: the directory holds something else.
        ImportError: a package of ``botnet[demo]`` is missing.
    """
    settings = {
        "task": task, "train": train, "val": val, "canvas": canvas, "seed": seed, "recipe": RECIPE,
    }  # fmt: skip

    def write(folder: Path) -> dict[str, RelationCounts]:
        digits = load_digits(seed, "make-relations")
        counts = {}
        for split in ("train", "val"):
            (folder / split).mkdir()
            truth = _make_split(folder / split, split, settings, digits[split], progress)
            (folder / f"instances_{split}.json").write_text(json.dumps(truth))
            counts[split] = _count(truth)
        return counts

    directory = Path(directory)

    def recognise(folder: Path) -> dict[str, RelationCounts] | None:
        return recognise_coco(folder, settings, _count)

    counts, made = make_once(directory, f"{task} relations", settings, write, recognise)
    return {"directory": directory, "made": made, "train": counts["train"], "val": counts["val"]}


def distance_bands(task: str, canvas: int) -> dict[str, tuple[float, float]]:
    """The smallest and greatest distance of each band, between the centres of the windows, in pixels.

    Bands divide what the canvas allows. In ``direction`` that is half of it: an object must have room for its
    marker on all four sides, or its place would tell its class.

    Args:
        task: "cue", "direction", "match" or "local".
        canvas: side of the images in pixels.
    """
    room = canvas - GLYPH
    if task == "direction":
        edges = np.linspace(GLYPH, room / 2, 4).tolist()
        return {band: (edges[i], edges[i + 1]) for i, band in enumerate(BANDS)}
    longest = room * math.sqrt(2) * 0.95  # hardly any pair of places is farther apart
    shares = {"near": (0.25, 0.4), "middle": (0.5, 0.65), "far": (0.75, 1.0)}
    return {band: (longest * low, longest * high) for band, (low, high) in shares.items()}


def _count(truth: dict[str, Any]) -> RelationCounts:
    return {"images": len(truth["images"]), "objects": len(truth["annotations"])}


def _make_split(
    folder: Path, split: str, settings: dict[str, Any], digits: list[np.ndarray], progress: bool
) -> dict[str, Any]:
    """Write the images of one split; returns the contents of its instances file."""
    photographs = load_photographs(split, "make-relations")
    task, canvas = settings["task"], settings["canvas"]
    bands = distance_bands(task, canvas)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in track(range(1, settings[split] + 1), f"{task}, {split}", disable=not progress):
        # A generator for each image: an image does not depend on how many come before it.
        rng = np.random.default_rng([settings["seed"], 3 + (split == "val"), image_id])
        label, values = _draw_classes(rng, task)
        band = BANDS[rng.integers(len(BANDS))]
        places = _draw_places(rng, canvas, bands[band], label if task == "direction" else None)
        pixels = _background(rng, photographs, canvas)
        masks = [
            _paste(rng, pixels, digits[value], place) for value, place in zip(values, places, strict=True)
        ]
        name = f"{image_id:06d}.jpg"
        Image.fromarray(pixels).save(folder / name, quality=90)
        images.append({"id": image_id, "file_name": name, "height": canvas, "width": canvas})
        for annotation in _annotations(task, label, values, masks, band):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id} | annotation)
    return {
        "info": {
            "description": f"MNIST digits in relation, {task}, made by botnet make-relations",
            "settings": settings,
        },
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES[task], 1)],
    }


def _draw_classes(rng: np.random.Generator, task: str) -> tuple[int, tuple[int, int]]:
    """The index of the object's class, and the values of the object and its partner."""
    label = int(rng.integers(len(CLASSES[task])))
    if task == "cue":
        return label, (int(rng.integers(2, 10)), label)
    if task == "direction":
        return label, (int(rng.integers(1, 10)), 0)
    if task == "local":
        return label, (label, int(rng.integers(10)))
    # Of two values: whether any of ten match is not learnt in a thousand steps.
    value = int(rng.integers(2))
    return label, (value, value if label else 1 - value)


def _draw_places(
    rng: np.random.Generator, canvas: int, band: tuple[float, float], direction: int | None
) -> np.ndarray:
    """The centres (x, y) of the windows of the object and its partner, (2, 2) in whole pixels.

    A place is drawn without regard to the value of a digit. Nor does the object's place depend on the
    direction: whatever its distance, it has room for the marker on every side.
    """
    half = GLYPH // 2
    while True:
        if direction is None:
            places = rng.integers(half, canvas - half + 1, (2, 2))
        else:
            reach = rng.uniform(*band)
            room = math.ceil(half + reach)
            if room > canvas - room:
                continue
            place = rng.integers(room, canvas - room + 1, 2)
            angle = direction * math.pi / 2 + rng.uniform(-SECTOR, SECTOR)  # from the marker, y downwards
            towards = np.array([math.cos(angle), math.sin(angle)])
            places = np.stack([place, np.rint(place - reach * towards).astype(int)])
        offset = np.abs(places[0] - places[1])
        if band[0] <= math.hypot(*offset) <= band[1] and offset.max() >= GLYPH:
            return places


def _background(rng: np.random.Generator, photographs: list[Image.Image], canvas: int) -> np.ndarray:
    """A random square of a random photograph, darkened, (canvas, canvas, 3) uint8."""
    photograph = photographs[rng.integers(len(photographs))]
    side = rng.uniform(0.5, 1) * min(photograph.size)
    x, y = rng.uniform(0, photograph.width - side), rng.uniform(0, photograph.height - side)
    crop = photograph.resize((canvas, canvas), Image.Resampling.BICUBIC, (x, y, x + side, y + side))
    return np.rint(BRIGHTNESS * np.asarray(crop)).astype(np.uint8)


def _paste(rng: np.random.Generator, image: np.ndarray, inks: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Paste one of some digits with its box about a place, in place; its mask (H, W) bool."""
    ink = inks[rng.integers(len(inks))]
    left, top, right, bottom = extent(ink >= 128)
    alpha = ink[top:bottom, left:right, None] / 255
    height, width = alpha.shape[:2]
    x, y = int(place[0]) - width // 2, int(place[1]) - height // 2
    window = np.s_[y : y + height, x : x + width]
    mask = np.zeros(image.shape[:2], bool)
    mask[window] = alpha[..., 0] >= 0.5
    image[window] = np.rint(image[window] + alpha * (255.0 - image[window])).astype(np.uint8)
    return mask


def _annotations(
    task: str, label: int, values: tuple[int, int], masks: list[np.ndarray], band: str
) -> Iterator[dict[str, Any]]:
    """COCO's records of the objects of a picture: of both digits where both have a class."""
    boxes = []
    for mask in masks:
        x, y, right, bottom = extent(mask)
        boxes.append([x, y, right - x, bottom - y])
    centres = [(x + width / 2, y + height / 2) for x, y, width, height in boxes]
    for own in (0, 1) if task in ("match", "local") else (0,):
        yield {
            "category_id": 1 + (values[own] if task == "local" else label),
            "bbox": boxes[own],
            "area": int(masks[own].sum()),
            "iscrowd": 0,
            "segmentation": encode_mask(masks[own]),
            "attributes": {
                "digit": values[own],
                "partner_digit": values[1 - own],
                "partner_bbox": boxes[1 - own],
                "distance": round(math.dist(*centres), 1),
                "band": band,
            },
        }
