"""Answers about one image, several, or a stream of them, in batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from os import PathLike
from typing import TYPE_CHECKING, TypeVar, Union

import numpy as np
from PIL import Image

from botnet.errors import ConfigError, DataError
from botnet.images import as_image

if TYPE_CHECKING:
    from torch import Tensor

Answer = TypeVar("Answer")
ImageLike = Union[str, PathLike[str], Image.Image, np.ndarray, "Tensor"]  # of botnet.images.as_image
Answering = Callable[[Sequence[Image.Image | str | PathLike[str]]], list[Answer]]


def answer_all(
    images: ImageLike | Iterable[ImageLike],
    answers: "Answering[Answer]",
    batch_size: int,
    stream: bool,
    upright: bool = True,
) -> Answer | list[Answer] | Iterator[Answer]:
    """The answer to one image, a list of them for several, or an iterator that takes images as it is read.

    Args:
        images: one or several.
        answers: to a batch of paths and Pillow images.
        batch_size: images at once.
        stream: whether an iterator is returned for several images.
        upright: turn Pillow images as their EXIF orientation says.

    Raises:
        DataError: an image cannot be read; one of several that has no path is named by its number.
        ConfigError: a batch below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size}: give 1 or more images")
    # Of iterables, only tensors know .cpu().
    single = isinstance(images, str | bytes | PathLike | Image.Image | np.ndarray) or hasattr(images, "cpu")
    if single or not hasattr(images, "__iter__"):
        (answer,) = answers([_read(images, upright)])  # type: ignore[arg-type]
        return answer
    found = _in_batches(images, answers, batch_size, upright)  # type: ignore[arg-type]
    return found if stream else list(found)


def _in_batches(
    images: Iterable[ImageLike], answers: "Answering[Answer]", batch_size: int, upright: bool
) -> Iterator[Answer]:
    readable = (_read(image, upright, f"image {number}: ") for number, image in enumerate(images))
    while batch := list(islice(readable, batch_size)):
        yield from answers(batch)


def _read(image: ImageLike, upright: bool, name: str = "") -> Image.Image | str | PathLike[str]:
    """A path as it is, an image in memory in RGB."""
    if isinstance(image, str | PathLike):
        return image
    try:
        return as_image(image, upright)
    except DataError as error:
        raise DataError(f"{name}{error}") from error
