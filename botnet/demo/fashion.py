"""A small real data set of images in classes: Fashion-MNIST as class folders.

70,000 photographs of clothes in ten classes, 28 x 28 grey pixels, split into training and test by their
authors (Xiao et al. 2017). Unlike handwritten digits it does not saturate: shirts look like coats.
"""

import gzip
import json
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from PIL import Image
from rich.progress import track

from botnet.arguments import Count, checked
from botnet.demo.folder import make_once
from botnet.errors import DataError

FILE_PREFIX = {"train": "train", "val": "t10k"}  # of the published files
NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)


class MadeImages(TypedDict):
    """What `make_images` returns: the folder, whether this call made it, and the number of images."""

    directory: Path
    made: bool
    train: int
    val: int


@checked
def make_images(
    directory: Path, source: Path, train: Count = 60_000, val: Count = 10_000, progress: bool = True
) -> MadeImages:
    """Write Fashion-MNIST as class folders of PNGs: ``train/CLASS/`` and ``val/CLASS/``.

    Args:
        directory: made or, if empty, filled by this call.
        source: folder of the four files as their authors publish them (train-images-idx3-ubyte.gz, ...).
        train, val: numbers of images, the first of the authors' training and test files.
        progress: show a progress bar.

    Returns:
        The folder, the numbers of images, and ``made``: False where these images already exist.

    Raises:
        ConfigError: a number of images below 1.
        DataError: the directory holds something else, or the source is missing, broken or too small.
    """
    directory, counts = Path(directory), {"train": train, "val": val}
    settings = {"data": "Fashion-MNIST", **counts}

    def write(folder: Path) -> dict[str, int]:
        for split, count in counts.items():
            images, labels = _read_split(Path(source), split, count)
            _write_split(folder / split, images, labels, f"images, {split}" if progress else None)
        (folder / "settings.json").write_text(json.dumps(settings))
        return counts

    def recognise(folder: Path) -> dict[str, int] | None:
        return counts if _holds(folder, settings) else None

    _, made = make_once(directory, "images", settings, write, recognise)
    return {"directory": directory, "made": made, "train": train, "val": val}


def _holds(directory: Path, settings: dict[str, Any]) -> bool:
    """Whether a folder holds the images of these settings, all of them."""
    try:
        same = json.loads((directory / "settings.json").read_text()) == settings
    except (OSError, ValueError):
        return False
    return same and all(
        sum(1 for _ in (directory / split).glob("*/*.png")) == settings[split] for split in FILE_PREFIX
    )


def _read_split(source: Path, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images (count, 28, 28) and labels (count,) of a split."""
    images, labels = (
        read_idx(source / f"{FILE_PREFIX[split]}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")
    )
    if len(images) != len(labels) or len(images) < count or labels.max() >= len(NAMES):
        raise DataError(
            f"{source}: {len(images)} {split} images and {len(labels)} labels up to {labels.max()}; expected "
            f"{count} images of Fashion-MNIST, with as many labels"
        )
    return images[:count], labels[:count]


def _write_split(folder: Path, images: np.ndarray, labels: np.ndarray, title: str | None) -> None:
    """Write images into class folders, with a progress bar if it has a title."""
    for name in NAMES:
        (folder / name).mkdir(parents=True)
    for index in track(range(len(images)), title or "", disable=title is None):
        path = folder / NAMES[labels[index]] / f"{index:05d}.png"
        Image.fromarray(images[index]).save(path, compress_level=1)


def read_idx(path: Path) -> np.ndarray:
    """The array of a gzipped IDX file of bytes.

    Raises:
        DataError: no such file, or no IDX file of bytes.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
        shape = np.frombuffer(content, ">i4", content[3], 4)
        if content[:3] != b"\0\0\x08":  # 8: unsigned bytes
            raise ValueError("its header is another")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise DataError(f"{path}: no gzipped IDX file of bytes ({error}); download it again") from error
