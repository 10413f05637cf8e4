"""A small real data set of images in classes, from a package: Fashion-MNIST as Debian ships it.

70,000 photographs of clothes in ten classes, 28 x 28 grey pixels, split into training and test by their
authors (Xiao et al. 2017). Unlike handwritten digits it does not saturate: shirts look like coats.
"""

import gzip
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from botnet.errors import DataError
from botnet.folders import new_folder

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("usr/share/datasets/fashion-mnist")  # below /, or below an unpacked package
FILES = {"train": "train", "val": "t10k"}  # what the authors call the splits
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


def make_images(
    directory: Path, train: int = 60_000, val: int = 10_000, source: Path | None = None, progress: bool = True
) -> dict:
    """Write Fashion-MNIST as class folders of PNGs: ``train/CLASS/`` and ``val/CLASS/``.

    Args:
        directory: made or, if empty, filled by this call.
        train, val: images, the first of the authors' training and test files.
        source: folder of the four files as their authors publish them (train-images-idx3-ubyte.gz, ...);
            default those of Debian's package, installed or else fetched by apt-get.
        progress: show a progress bar.

    Returns:
        ``{"directory", "made", "train", "val"}``; ``made`` is False where these images stood there already.

    Raises:
        DataError: the directory holds something else, there is no source, or it has fewer images.
    """
    directory = Path(directory)
    settings = {"data": "Fashion-MNIST", "train": train, "val": val}
    if min(train, val) < 1:
        raise DataError(f"make-images needs train >= 1 and val >= 1; got {train} and {val}")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        if not _stands(directory, settings):
            raise DataError(
                f"{directory} is not empty and not the images of these settings ({settings}); "
                "choose another directory or remove this one"
            )
        return {"directory": directory, "made": False} | settings

    with new_folder(directory) as whole, tempfile.TemporaryDirectory() as scratch:
        files = Path(source) if source is not None else _from_debian(Path(scratch))
        for split, count in (("train", train), ("val", val)):
            images, labels = (
                read_idx(files / f"{FILES[split]}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")
            )
            if len(images) != len(labels) or len(images) < count or labels.max() >= len(NAMES):
                raise DataError(
                    f"{files}: {len(images)} {split} images and {len(labels)} labels up to {labels.max()}; "
                    f"{count} images of Fashion-MNIST were asked for"
                )
            for name in NAMES:
                (whole / split / name).mkdir(parents=True)
            for index in track(range(count), f"images, {split}", disable=not progress):
                path = whole / split / NAMES[labels[index]] / f"{index:05d}.png"
                Image.fromarray(images[index]).save(path, compress_level=1)
        (whole / "settings.json").write_text(json.dumps(settings))
    return {"directory": directory, "made": True} | settings


def _stands(directory: Path, settings: dict) -> bool:
    """Whether the images of these settings are there, all of them."""
    try:
        same = json.loads((directory / "settings.json").read_text()) == settings
    except (OSError, ValueError):
        return False
    return same and all(
        sum(1 for _ in (directory / split).glob("*/*.png")) == settings[split] for split in ("train", "val")
    )


def read_idx(path: Path) -> np.ndarray:
    """The bytes of a gzipped IDX file in their shape.

    Raises:
        DataError: no such file, or no IDX file of bytes.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
        shape = np.frombuffer(content, ">i4", content[3], 4)
        if content[:3] != b"\0\0\x08":  # 8: unsigned bytes
            raise ValueError("it does not begin as one")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise DataError(f"{path}: no gzipped IDX file of bytes ({error}); fetch it again") from error


def _from_debian(scratch: Path) -> Path:
    """Debian's package: where it is installed, or else unpacked below ``scratch``, without root."""
    if (Path("/") / INSTALLED).is_dir():
        return Path("/") / INSTALLED
    missing = DataError(
        f"Fashion-MNIST comes from Debian's package {PACKAGE}, which could not be fetched; install it "
        f"(apt-get update; apt-get install {PACKAGE}), or download the authors' four files and give their "
        "folder by --source"
    )
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise missing
    fetch = ["apt-get", "download", PACKAGE]
    print(f"fetching Debian's package {PACKAGE}, 31 MB", flush=True)
    fetched = subprocess.run(fetch, cwd=scratch, capture_output=True)
    if fetched.returncode and os.geteuid() == 0:  # a new container knows no package before this
        subprocess.run(["apt-get", "update"], capture_output=True)
        fetched = subprocess.run(fetch, cwd=scratch, capture_output=True)
    packages = list(scratch.glob("*.deb"))
    if fetched.returncode or not packages:
        raise missing
    subprocess.run(["dpkg-deb", "--extract", str(packages[0]), str(scratch / "package")], check=True)
    return scratch / "package" / INSTALLED
