"""Images in classes, as they are stored: folders, tars, shards, Hugging Face's data sets."""

import os
import posixpath
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from botnet.errors import DataError
from botnet.images import to_rgb

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
# Length to width from which an image is a strip. Its short side enlarged to the network's size would take
# gigabytes, and neither a centre crop nor a random one sees more than its middle.
STRIP = 16
READERS = "folder, tar, wds or hfds/NAME"


class ShardReader(Reader):
    """WebDataset shards on a disk, read at random: ``KEY.jpg`` beside ``KEY.cls``, the label as a number.

    timm and webdataset read shards as a stream, which has no order that a run could go on in.

    Args:
        root: a ``.tar``, or a folder of them; ``classes.txt`` beside them names the labels, one a line.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        folder = root if root.is_dir() else root.parent
        self.shards = sorted(root.glob("*.tar")) if root.is_dir() else [root]
        self.samples: list[tuple[int, str, int, int, int]] = []  # shard, name, offset, size, label
        for number, shard in enumerate(self.shards):
            self.samples += [(number, *found) for found in _shard_samples(shard)]
        named = folder / "classes.txt"
        if named.is_file():
            names = named.read_text(encoding="utf-8").rstrip().splitlines()
        else:
            names = [
                str(label) for label in range(1 + max((sample[-1] for sample in self.samples), default=-1))
            ]
        self.class_to_idx = {name.strip(): label for label, name in enumerate(names)}
        if len(self.class_to_idx) < len(names):
            raise DataError(f"{named}: a name stands on two lines; each class needs its own")
        for number, name, *_, label in self.samples:
            if label not in range(len(self.class_to_idx)):
                raise DataError(
                    f"{self.shards[number]}: {name} has label {label}, outside 0 to "
                    f"{len(self.class_to_idx) - 1} ({named})"
                )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        number, _, offset, size, label = self.samples[index]
        with self.shards[number].open("rb") as shard:
            shard.seek(offset)
            return BytesIO(shard.read(size)), label

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        number, name, *_ = self.samples[index]
        return f"{self.shards[number]}: {name}"


def _shard_samples(shard: Path) -> Iterator[tuple[str, int, int, int]]:
    samples: dict[str, tuple[list[tarfile.TarInfo], list[tarfile.TarInfo]]] = {}  # images, labels of a key
    numbers: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as members:
            for member in members:
                folder, _, base = member.name.rpartition("/")
                key, _, extension = base.partition(".")
                key = f"{folder}/{key}"
                is_image = f".{extension.lower()}" in EXTENSIONS
                if member.isdir() or not (is_image or extension == "cls"):
                    continue
                samples.setdefault(key, ([], []))[0 if is_image else 1].append(member)
                if not is_image and member.isfile():
                    numbers[key] = int(members.extractfile(member).read())  # type: ignore[union-attr]
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(
            f"{shard}: is no shard of images with .cls labels ({error}); give uncompressed WebDataset shards"
        ) from error
    for key, (images, labels) in samples.items():
        for what, found in (("image", images), ("label, .cls", labels)):
            if not found:
                raise DataError(f"{shard}: {key} lacks its {what}; add it")
            if len(found) > 1:
                raise DataError(
                    f"{shard}: {found[0].name} and {found[1].name} have one key, {key}; "
                    "keep one of them, or give each sample its own key"
                )
            if not found[0].isfile():
                raise DataError(f"{shard}: {found[0].name} is a link; store the file itself")
        yield images[0].name, images[0].offset_data, images[0].size, numbers[key]


def open_reader(source: Path, reader: str = "folder") -> Any:
    """The images of one split.

    Args:
        source: a folder of class folders; a ``.tar`` of them or a folder with a tar for each class; a folder
            of WebDataset shards; or, for Hugging Face data sets, the name of the split.
        reader: ``folder``, ``tar``, ``wds``, or ``hfds/NAME``.

    Returns:
        A reader of timm's kind: ``len``, ``reader[i]`` gives an open file and a label, ``class_to_idx``.

    Raises:
        DataError: nothing there, or nothing that can be trained on.
    """
    kind, _, name = reader.partition("/")
    if kind == "hfds" and name:
        opened: Any = _open_hugging_face(name, str(source))
    elif reader in ("folder", "tar", "wds"):
        if not source.exists():
            raise DataError(f"{source}: no such file or folder; give the path of the images ({reader})")
        if kind == "folder":
            opened = _open_folder(source)
        elif kind == "tar":
            opened = _open_tar(source)
        else:
            opened = ShardReader(source)
    else:
        raise DataError(f"no reader {reader!r}; images can be read from {READERS}")
    names = class_names(opened)
    if len(names) < 2:
        raise DataError(
            f"{source}: {len(names)} class ({', '.join(names)}) is nothing to tell apart; "
            f"a classifier needs two or more"
        )
    return opened


def _open_folder(root: Path) -> ReaderImageFolder:
    if not root.is_dir():
        raise DataError(
            f"{root}: no folder; give a folder of class folders, or another --data.init_args.reader"
        )
    empty, others = [], 0
    classes: dict[str, str] = {}
    for folder, below, files in os.walk(root, followlinks=True):
        images = 0
        for file in files:
            images += file.lower().endswith(EXTENSIONS)
        others += len(files) - images
        if images and Path(folder) == root:
            raise DataError(
                f"{root}: {images} images lie outside the class folders; move each into its class"
            )
        if images:
            _note_class(root, classes, Path(folder).name, os.path.relpath(folder, root))
        if not images and not below and Path(folder) != root:
            empty.append(folder)
    if empty:
        raise DataError(
            f"{empty[0]}: a class folder without images"
            + (f", and {len(empty) - 1} more" if len(empty) > 1 else "")
            + f"; add images ({' '.join(EXTENSIONS)}) or remove it"
        )
    try:
        reader: Any = ReaderImageFolder(str(root), input_key=";".join(EXTENSIONS))
    except RuntimeError as error:
        raise DataError(
            f"{root}: no images in class folders; give a folder that has one for each class"
        ) from error
    reader.left_out = others
    return reader


def _open_tar(root: Path) -> ReaderImageInTar:
    try:
        reader: Any = ReaderImageInTar(str(root), cache_tarinfo=False)
    except Exception as error:  # whatever tarfile and timm's search make of a file that is none
        raise DataError(f"{root}: no tar of class folders, and no folder of tars ({error})") from error
    names = class_names(reader)
    classes: dict[str, str] = {}
    for (member, tar, inner), label in zip(reader.samples, reader.targets, strict=True):
        if names[label] in ("", "."):
            raise DataError(
                f"{root}: {member.name} lies in no class folder; put each image into the folder of its class"
            )
        folder = posixpath.join(tar or "", inner.name if inner else "", posixpath.dirname(member.path))
        _note_class(root, classes, names[label], posixpath.normpath(folder))
    return reader


def _note_class(root: Path, classes: dict[str, str], name: str, folder: str) -> None:
    """Add a class to those found so far. timm would merge two folders of one name without a word."""
    if classes.setdefault(name, folder) != folder:
        both = " and ".join(sorted((classes[name], folder)))
        raise DataError(
            f"{root}: {both} are both class {name!r}, since a class is called by its last folder; "
            "rename one of them, or put the images of a class into one folder"
        )


def _open_hugging_face(name: str, split: str) -> Any:
    try:
        from timm.data.readers.reader_hfds import ReaderHfds
    except ImportError as error:
        raise DataError("Hugging Face's data sets need their package: pip install datasets") from error
    try:
        return ReaderHfds(name, split=split)
    except Exception as error:  # no such name, split or field, no connection: whatever the hub's client says
        raise DataError(f"hfds/{name}, split {split}: cannot be opened ({error})") from error


def class_names(reader: Any) -> list[str]:
    """Names of labels 0, 1, ... of a reader."""
    # timm's tar reader has its own word for it.
    index = reader.class_to_idx if hasattr(reader, "class_to_idx") else reader.class_name_to_idx
    return [str(name) for name in sorted(index, key=index.__getitem__)]


def read_image(file: BinaryIO | Path, name: str) -> Image.Image:
    """A picture of any mode in RGB, as timm decodes it: EXIF notes ignored, transparency dropped.

    12 and 16-bit grey is brought to 8 bits; of a strip, more than 16 times as long as wide, the middle is
    kept.

    Args:
        file: opened, or its path.
        name: what errors call it.

    Raises:
        DataError: no picture, a broken one, grey of 32 bits, or one so large that it looks like an attack.
    """
    try:
        with Image.open(file) as stored:
            image = to_rgb(stored, stored)
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: too large to decode ({error}); scale it down or remove it") from error
    except Exception as error:  # Pillow's decoders raise almost anything on a broken file
        raise DataError(f"{name}: cannot be decoded ({error}); restore the file or remove it") from error
    longest = STRIP * min(image.size)
    if max(image.size) > longest:
        width, height = (min(side, longest) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return image
