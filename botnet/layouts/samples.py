"""What every layout is read into: images with their objects."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from botnet.masks import Segmentation

Losses = Counter[
    str
]  # what a conversion could not hold, in words, with how many objects or files it concerns


@dataclass(frozen=True)
class Object:
    """An object of an image.

    Args:
        label: its class, from 0.
        box: x, y, width and height in pixels.
        segmentation: COCO's polygons or run lengths; None where there is only a box.
        crowd: a region with many objects of the class.
    """

    label: int
    box: tuple[float, float, float, float]
    segmentation: Segmentation | None = None
    crowd: bool = False


@dataclass(frozen=True)
class Sample:
    """An image with its objects.

    Args:
        file: the image file.
        name: its path in the new data set, relative to the folder of images.
        height, width: in pixels.
        objects: in the order of the source.
    """

    file: Path
    name: str
    height: int
    width: int
    objects: list[Object] = field(default_factory=list)


class Annotated(Protocol):
    """A data set in some layout, read one image at a time.

    Attributes:
        names: of the classes 0, 1, ...
        splits: names of its parts: ``train``, ``val``, ``test``; ``all`` where it is not split.
    """

    names: list[str]

    @property
    def splits(self) -> list[str]:
        """Names of its parts."""

    def samples(self, split: str, losses: Losses) -> Iterator[Sample]:
        """The images of one part; what cannot be held is added to ``losses``."""


def extent(polygons: list[list[float]]) -> tuple[float, float, float, float]:
    """The box around polygons: x, y, width and height, rounded to 1/10,000 of a pixel."""
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    left, top = min(xs), min(ys)
    return left, top, round(max(xs) - left, 4), round(max(ys) - top, 4)
