"""Instances files made of YOLO's labels, kept in the user's cache."""

import hashlib
import logging
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from botnet.caching import alone, cache_folder
from botnet.errors import ConfigError
from botnet.layouts.coco import write_instances
from botnet.layouts.samples import Losses
from botnet.layouts.yolo import YoloSet, label_file

logger = logging.getLogger(__name__)

FORMAT = 2  # to be raised with every change to what the same labels make


def cached_instances(source: YoloSet, split: str) -> Path:
    """The instances file of one split of a YOLO data set.

    It is made anew when an image or a label file has changed. Where several processes start at once, one
    makes it and the others wait.

    Args:
        source: the data set.
        split: which part of it.

    Raises:
        DataError: a label or an image that cannot be used.
        ConfigError: the cache cannot be written.
    """
    path = cache_folder() / "yolo" / _key(source, split) / f"{split}.json"
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with alone(path.with_suffix(".lock")) as held:
                if held:  # what a killed process left
                    for left in path.parent.glob(f".{split}-*"):
                        shutil.rmtree(left)
                if not path.is_file():
                    _make(path, source, split)
                    return path
    except OSError as error:
        raise ConfigError(
            f"{path}: the cache cannot be written ({error.strerror}); make room, or set XDG_CACHE_HOME to "
            "another folder"
        ) from error
    logger.info("%s: %s: the instances file %s, made before", source.file, split, path)
    return path


def _make(path: Path, source: YoloSet, split: str) -> None:
    """Write the instances file beside its place, and rename it."""
    with tempfile.TemporaryDirectory(prefix=f".{split}-", dir=path.parent) as scratch:
        own = Path(scratch) / path.name
        losses: Losses = Counter()
        counts, _ = write_instances(own, source.names, source.samples(split, losses))
        os.replace(own, path)
    logger.info(
        "%s: %s: %d images and %d objects are now in the instances file %s",
        source.file,
        split,
        counts["images"],
        counts["objects"],
        path,
    )
    for kind, count in (+losses).items():
        logger.info("%s: %s: %d %s", source.file, split, count, kind)


def _key(source: YoloSet, split: str) -> str:
    """A name for the state of the files."""
    about = f"{FORMAT} {source.names} {source.folder(split)}"
    digest = hashlib.sha256(about.encode(errors="surrogateescape"))
    for image in source.images(split):
        for file in (image.resolve(), label_file(image)):
            state = file.stat() if file.is_file() else None
            stamp = (state.st_mtime_ns, state.st_size) if state else None
            digest.update(f"{file} {stamp}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:20]
