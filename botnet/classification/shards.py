"""Reading WebDataset shards on a disk with random access."""

import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from timm.data.readers.reader import Reader

from botnet.classification.listing import Names
from botnet.errors import DataError
from botnet.images import image_extensions

Members = tuple[list[tarfile.TarInfo], list[tarfile.TarInfo]]  # images and label files of one key


class ShardReader(Reader):
    """WebDataset shards on a disk with random access: ``KEY.jpg`` beside ``KEY.cls``, the label as a number.

    timm and webdataset read shards as a stream, which has no order in which an interrupted run could resume.

    Args:
        root: a ``.tar``, or a folder of them; ``classes.txt`` beside them names the labels, one per line.

    Raises:
        DataError: a broken shard, a sample without image or label, or a label without a name.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        folder = root if root.is_dir() else root.parent
        self.shards = sorted(root.glob("*.tar")) if root.is_dir() else [root]
        found = [_shard_table(shard) for shard in self.shards]
        self._names = Names(name for names, _ in found for name in names)
        counts = [len(names) for names, _ in found]
        self._shard = np.repeat(np.arange(len(found), dtype=np.int32), counts)
        tables = np.concatenate([np.empty((0, 3), np.int64), *(table for _, table in found)])
        self._offset, self._size, self._label = np.ascontiguousarray(tables.T)
        named = folder / "classes.txt"
        if named.is_file():
            try:
                names = named.read_text(encoding="utf-8").rstrip().splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{named}: cannot be read ({error}); save it in UTF-8") from error
        else:
            names = [str(label) for label in range(1 + int(self._label.max(initial=-1)))]
        self.class_to_idx = {name.strip(): label for label, name in enumerate(names)}
        if len(self.class_to_idx) < len(names):
            raise DataError(f"{named}: has a name twice; each class needs its own")
        for index in np.flatnonzero((self._label < 0) | (self._label >= len(names)))[:1].tolist():
            raise DataError(
                f"{self.shards[self._shard[index]]}: {self._names[index]} has label {self._label[index]}, "
                f"outside 0 to {len(names) - 1} ({named})"
            )

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        with self.shards[self._shard[index]].open("rb") as shard:
            shard.seek(int(self._offset[index]))
            return BytesIO(shard.read(int(self._size[index]))), int(self._label[index])

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f"{self.shards[self._shard[index]]}: {self._names[index]}"


def _shard_table(shard: Path) -> tuple[Names, np.ndarray]:
    """The names of the images in a shard, and (n, 3) offset, size and label of each."""
    names, rows = [], []
    for name, *row in _shard_samples(shard):
        names.append(name)
        rows.append(row)
    try:
        return Names(names), np.array(rows, np.int64).reshape(-1, 3)
    except OverflowError as error:
        raise DataError(f"{shard}: a label of more than 64 bits; labels count from 0") from error


def _shard_samples(shard: Path) -> Iterator[tuple[str, int, int, int]]:
    """Name, offset, size and label of each image in a shard."""
    samples, numbers = _shard_members(shard)
    for key, (images, labels) in samples.items():
        for what, found in (("image", images), ("label, .cls", labels)):
            if not found:
                raise DataError(f"{shard}: {key} lacks its {what}; add it")
            if len(found) > 1:
                raise DataError(
                    f"{shard}: {found[0].name} and {found[1].name} have the same key, {key}; "
                    "keep one of them, or give each sample its own key"
                )
            if not found[0].isfile():
                raise DataError(f"{shard}: {found[0].name} is a link; store the file itself")
        yield images[0].name, images[0].offset_data, images[0].size, numbers[key]


def _shard_members(
    shard: Path,
) -> tuple[dict[str, Members], dict[str, int]]:
    """The images and label files of each key in a shard, and the labels by key."""
    samples: dict[str, Members] = {}
    numbers: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as members:
            for member in members:
                folder, _, base = member.name.rpartition("/")
                key, _, extension = base.partition(".")
                key = f"{folder}/{key}"
                is_image = f".{extension.lower()}" in image_extensions()
                if member.isdir() or not (is_image or extension == "cls"):
                    continue
                samples.setdefault(key, ([], []))[0 if is_image else 1].append(member)
                content = None if is_image or not member.isfile() else members.extractfile(member)
                if content is not None:
                    numbers[key] = int(content.read())
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(
            f"{shard}: not a shard of images with .cls labels ({error}); give uncompressed WebDataset shards"
        ) from error
    return samples, numbers
