"""Checking the annotations of an instances file, millions of them in seconds.

Arrays tell which annotations break no rule; only the others are looked at one by one.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Annotated, Any

import msgspec
import numpy as np
import simdjson

from botnet.detection.records import (
    MAX_AREA,
    ROUNDING,
    AnnotationRecord,
    AnnotationRules,
    Checked,
    Tables,
    used,
)

AT_ONCE = 2**10  # annotations whose polygons are decoded at once


class _Runs(msgspec.Struct, gc=False):
    size: tuple[int, int]
    counts: list[Annotated[int, msgspec.Meta(ge=0)]] | str


_runs = msgspec.json.Decoder(_Runs)


@contextmanager
def without_collection() -> Iterator[None]:
    """Without passes of the garbage collector, which would look at millions of new objects, all in use."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class Columns:
    """The numbers of n annotations as arrays; ``area`` is NaN where none is stated."""

    id: np.ndarray
    image_id: np.ndarray
    category_id: np.ndarray
    bbox: np.ndarray  # (n, 4)
    iscrowd: np.ndarray  # as it is stated, 0 for null
    area: np.ndarray

    @classmethod
    def of(cls, annotations: Sequence[AnnotationRecord]) -> "Columns":
        """The columns of some annotations."""

        def column(value: Callable[[AnnotationRecord], Any], dtype: type) -> np.ndarray:
            return np.fromiter(map(value, annotations), dtype, len(annotations))

        boxes = chain.from_iterable(map(attrgetter("bbox"), annotations))
        return cls(
            id=column(attrgetter("id"), np.int64),
            image_id=column(attrgetter("image_id"), np.int64),
            category_id=column(attrgetter("category_id"), np.int64),
            bbox=np.fromiter(boxes, np.float64, 4 * len(annotations)).reshape(-1, 4),
            iscrowd=column(lambda annotation: annotation.iscrowd or 0, np.float64),
            area=column(
                lambda annotation: np.nan if annotation.area is None else annotation.area, np.float64
            ),
        )


class Screening:
    """Which annotations of a file break no rule, and what is wrong with the others.

    Args:
        tables: the contents of the file.

    Attributes:
        columns: of the annotations that have the right types.
        typed: their places in the file's list.
        sound: for each annotation of the list, whether it can be used as it is.
        unmasked: for each, whether its segmentation is null.
        lengths: for each, the bytes of its segmentation's text; 0 where the types are wrong.
    """

    def __init__(self, tables: Tables) -> None:
        self._annotations, self.rules = tables.annotations, AnnotationRules(tables)
        records = [a for a in tables.annotations if not isinstance(a, str)]
        self.typed = np.arange(len(tables.annotations))
        if len(records) < len(tables.annotations):
            self.typed = np.array([not isinstance(a, str) for a in tables.annotations]).nonzero()[0]
        self.columns = Columns.of(records)
        self.sound, self.unmasked, self._repeated = np.zeros((3, len(tables.annotations)), bool)
        self.lengths = np.zeros(len(tables.annotations), np.int64)
        self._repeated[self.typed] = _repeated(self.columns.id)
        known, sizes = self._sizes()
        numbered = known & self._sound_numbers(sizes) & ~self._repeated[self.typed]
        sound = np.zeros(len(records), bool)
        for first in range(0, len(records), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            texts = [bytes(record.segmentation) for record in records[part]]
            starts = np.array([text[0] for text in texts])
            self.lengths[self.typed[part]] = list(map(len, texts))
            self.unmasked[self.typed[part]] = starts == ord("n")  # of null
            sound[part] = numbered[part] & (starts == ord("n"))
            for start, check in ((ord("["), _sound_polygons), (ord("{"), _sound_runs)):
                if len(places := np.flatnonzero(numbered[part] & (starts == start))):
                    sound[first + places] = check([texts[i] for i in places.tolist()], sizes[first + places])
        self.sound[self.typed] = sound

    def _sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Which annotations are of a known image and category, and the (width, height) of their images."""
        images = sorted(self.rules.images.values(), key=lambda image: image.id)
        if not images:
            return np.zeros(len(self.columns.id), bool), np.zeros((len(self.columns.id), 2), np.int64)
        ids = np.array([image.id for image in images], np.int64)
        sizes = np.array([(image.width, image.height) for image in images], np.int64)
        rows = np.searchsorted(ids, self.columns.image_id).clip(max=len(ids) - 1)
        known = ids[rows] == self.columns.image_id
        known &= np.isin(self.columns.category_id, np.array(list(self.rules.categories), np.int64))
        return known, sizes[rows]

    def _sound_numbers(self, sizes: np.ndarray) -> np.ndarray:
        columns = self.columns
        with np.errstate(over="ignore"):
            low, high = columns.bbox[:, :2], columns.bbox[:, :2] + columns.bbox[:, 2:]
        return (
            (columns.bbox[:, 2:] > 0).all(1)
            & _inside(low, high, sizes)
            & ((np.isnan(columns.area)) | ((columns.area >= 0) & (columns.area <= MAX_AREA)))
            & ((columns.iscrowd == 0) | (columns.iscrowd == 1))
        )

    def others(self) -> Iterator[tuple[int, Checked]]:
        """The place of each annotation that breaks a rule, and what the rules say."""
        for index in np.flatnonzero(~self.sound).tolist():
            yield index, self._check(index)

    def _check(self, index: int) -> Checked:
        return self.rules.check(self._annotations[index], index, bool(self._repeated[index]))

    def __iter__(self) -> Iterator[Checked]:
        """Each annotation as it can be used (None: not at all) with its problems."""
        for index, annotation in enumerate(self._annotations):
            if self.sound[index] and isinstance(annotation, AnnotationRecord):
                yield used(annotation, msgspec.json.decode(annotation.segmentation)), []
            else:
                yield self._check(index)


def _repeated(ids: np.ndarray) -> np.ndarray:
    """Which numbers occur earlier in the list."""
    repeated = np.ones(len(ids), bool)
    repeated[np.unique(ids, return_index=True)[1]] = False
    return repeated


def _sound_runs(texts: list[bytes], sizes: np.ndarray) -> np.ndarray:
    """Which segmentations are run lengths that break no rule; (width, height) are of their images."""
    return np.array(
        [_are_sound_runs(text, *size) for text, size in zip(texts, sizes.tolist(), strict=True)], bool
    )


def _are_sound_runs(text: bytes, width: int, height: int) -> bool:
    try:
        runs = _runs.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    whole = isinstance(runs.counts, str) or sum(runs.counts) == height * width
    return whole and runs.size == (height, width)


def _inside(low: np.ndarray, high: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whether extents (n, 2) lie on their images, but for what rounding explains."""
    touches = (low < sizes) & (high > 0)
    return np.all(touches & (low >= -ROUNDING) & (high <= sizes + ROUNDING), axis=1)


def _sound_polygons(texts: list[bytes], sizes: np.ndarray) -> np.ndarray:
    """Which segmentations are polygons that break no rule; (width, height) are of their images."""
    text = b"[" + b",".join(texts) + b"]"
    try:
        parsed: Any = simdjson.Parser().parse(text)
        # All numbers one after another. Anything but lists and numbers is an error.
        numbers = np.frombuffer(parsed.as_buffer(of_type="d"), np.float64)
        counts = np.array([len(polygons) for polygons in parsed], np.int64)
        lengths = np.array([len(polygon) for polygons in parsed for polygon in polygons], np.int64)
    except (TypeError, ValueError, RuntimeError):  # at least one is broken: all are looked at singly
        return np.zeros(len(texts), bool)
    if text.count(b"[") != 1 + len(counts) + len(lengths):  # a list where a number belongs
        return np.zeros(len(texts), bool)
    owner = np.repeat(np.arange(len(texts)), counts)
    sound, shaped = counts > 0, (lengths >= 6) & (lengths % 2 == 0)
    sound[owner[~shaped]] = False
    if not shaped.any():
        return sound
    points = numbers[np.repeat(shaped, lengths)].reshape(-1, 2)
    lengths, owner = lengths[shaped] // 2, owner[shaped]
    starts = np.cumsum(lengths) - lengths
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    sound[owner[~_inside(low, high, sizes[owner])]] = False
    return sound
