"""Reading labelled images from class folders, tars, WebDataset shards and Hugging Face data sets."""

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from botnet.arguments import Reader, checked
from botnet.classification.listing import Labelled
from botnet.classification.shards import ShardReader
from botnet.errors import ConfigError, DataError, first_few
from botnet.images import image_extensions


class ImageReader(Protocol):
    """Labelled images: a reader of timm, or :class:`ShardReader`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        """An open file and its label."""

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """Name of a sample's file."""


class FolderReader(ReaderImageFolder):
    """timm's reader of class folders, which also counts the files that are not images.

    Args:
        root: the folder.
        endings: of image files.
    """

    left_out = 0

    def __init__(self, root: str, endings: Sequence[str]) -> None:
        super().__init__(root, input_key=";".join(endings))
        self.samples: Sequence[tuple[str, int]] = Labelled(root, self.samples)


@checked
def open_reader(source: Path, reader: Reader = "folder") -> ImageReader:
    """Open the images of one split.

    Args:
        source: a folder of class folders; a ``.tar`` of them or a folder with one tar per class; a folder of
            WebDataset shards; or, for Hugging Face data sets, the name of the split.
        reader: ``folder``, ``tar``, ``wds``, or ``hfds/NAME``.

    Raises:
        ConfigError: no such reader, or it needs a package that is not installed.
        DataError: the source is missing, broken, or has fewer than two classes.
    """
    kind, _, name = reader.partition("/")
    if kind == "hfds" and name:
        opened: ImageReader = _open_hugging_face(name, str(source))
    else:
        if not source.exists():
            raise DataError(f"{source}: no such file or folder; give the path of the images ({reader})")
        if kind == "folder":
            opened = _open_folder(source)
        elif kind == "tar":
            opened = _open_tar(source)
        else:
            opened = ShardReader(source)
    names = class_names(opened)
    if len(names) < 2:
        raise DataError(
            f"{source}: a classifier needs two classes or more, found {len(names)} ({first_few(names)})"
        )
    return opened


def _open_folder(root: Path) -> FolderReader:
    if not root.is_dir():
        raise DataError(f"{root}: not a folder; give a folder of class folders, or another --data.reader")
    empty, others = [], 0
    classes: dict[str, str] = {}
    for folder, subfolders, files in os.walk(root, followlinks=True):
        images = sum(file.lower().endswith(image_extensions()) for file in files)
        others += len(files) - images
        if images and Path(folder) == root:
            raise DataError(
                f"{root}: {images} images are outside the class folders; move each into its class"
            )
        if images:
            _note_class(root, classes, Path(folder).name, os.path.relpath(folder, root))
        if not images and not subfolders and Path(folder) != root:
            empty.append(folder)
    if empty:
        raise DataError(
            f"{empty[0]}: a class folder without images"
            + (f", and {len(empty) - 1} more" if len(empty) > 1 else "")
            + "; add images (.jpg, .png, ...) or remove it"
        )
    try:
        reader = FolderReader(str(root), image_extensions())
    except RuntimeError as error:
        raise DataError(
            f"{root}: no images in class folders; give a folder that has one for each class"
        ) from error
    reader.left_out = others
    return reader


def _open_tar(root: Path) -> ReaderImageInTar:
    try:
        # An open tar would be kept over a fork: the workers would share its position, and read one another's.
        reader = ReaderImageInTar(str(root), cache_tarfiles=False, cache_tarinfo=False)
    except Exception as error:  # tarfile and timm raise many on a broken or other file
        raise DataError(f"{root}: not a tar of class folders or a folder of tars ({error})") from error
    names = class_names(reader)
    classes: dict[str, str] = {}
    for (member, tar, inner), label in zip(reader.samples, reader.targets, strict=True):
        if names[label] in ("", "."):
            raise DataError(
                f"{root}: {member.name} is in no class folder; put each image into the folder of its class"
            )
        folder = posixpath.join(tar or "", inner.name if inner else "", posixpath.dirname(member.path))
        _note_class(root, classes, names[label], posixpath.normpath(folder))
    return reader


def _note_class(root: Path, classes: dict[str, str], name: str, folder: str) -> None:
    """Add a class to those found so far. timm would silently merge two folders of the same name."""
    if classes.setdefault(name, folder) != folder:
        both = " and ".join(sorted((classes[name], folder)))
        raise DataError(
            f"{root}: {both} are both class {name!r}, since a class has the name of its last folder; "
            "rename one of them, or put the images of a class into one folder"
        )


def _open_hugging_face(name: str, split: str) -> ImageReader:
    try:
        from timm.data.readers.reader_hfds import ReaderHfds
    except ImportError as error:
        raise ConfigError("hfds/NAME needs a package that is not installed: pip install datasets") from error
    try:
        return ReaderHfds(name, split=split)
    except (
        Exception
    ) as error:  # no such name, split or field, no connection: whatever the hub's client raises
        raise DataError(f"hfds/{name}, split {split}: cannot be opened ({error})") from error


def class_names(reader: ImageReader) -> list[str]:
    """Names of labels 0, 1, ... of a reader."""
    opened: Any = reader
    # timm's tar reader has another name for it.
    index = opened.class_to_idx if hasattr(opened, "class_to_idx") else opened.class_name_to_idx
    return [str(name) for name in sorted(index, key=index.__getitem__)]
