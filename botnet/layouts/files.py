"""Files of a data set: reading and placing them."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from botnet.errors import DataError

# The names that a split may have in a layout.
SPLITS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        DataError: it cannot be read, or is in another encoding.
    """
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: is not UTF-8; save the file in that encoding") from error


def read_head(path: Path, size: int = -1) -> bytes:
    """The first bytes of a file; all by default.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def by_split(home: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The annotation files of each split, which has a folder of its name; ``all`` where none has one.

    Args:
        home: the folder of those folders, or of the annotation files.
        files: all annotation files in it and its subfolders.

    Raises:
        DataError: a split has two folders, or a file lies in the folder of none.
    """
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(home / file.relative_to(home).parts[0], []).append(file)
    splits: dict[str, Path] = {}
    for split, names in SPLITS.items():
        found = [home / name for name in names if home / name in folders]
        if len(found) > 1:
            raise DataError(f"{home} has two folders for {split}: {found[0]} and {found[1]}; join them")
        if found:
            splits[split] = found[0]
    if not splits:
        return {"all": list(files)}
    outside = [file for folder in folders.keys() - splits.values() for file in folders[folder]]
    if outside:
        raise DataError(
            f"{min(outside)}: one of {len(outside)} annotation files outside of the folders of the splits, "
            f"{', '.join(map(str, splits.values()))}; move them into one, or away"
        )
    return {split: folders[folder] for split, folder in splits.items()}


def note_owner(owners: dict[Path, Path], image: Path, annotation: Path) -> None:
    """Note which annotation file an image has.

    Raises:
        DataError: it has another one already.
    """
    if (other := owners.setdefault(image, annotation)) != annotation:
        raise DataError(f"{annotation}: its image, {image}, is that of {other}, too; join the two files")


def relative_name(file: Path, folder: Path) -> str:
    """The path of an image relative to a folder, as an instances file holds it; of one elsewhere, its name.

    Raises:
        DataError: the name is not UTF-8.
    """
    own, home = (Path(os.path.abspath(path)) for path in (file, folder))  # without ".."
    name = own.relative_to(home).as_posix() if own.is_relative_to(home) else own.name
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{str(file)!a}: the file's name is not UTF-8; rename it") from error
    return name


def place(source: Path, target: Path) -> bool:
    """Give a file a second name (a hard link), or copy it where the file system cannot; whether linked.

    Raises:
        DataError: there is a file of that name.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(os.path.realpath(source), target)
    except FileExistsError as error:  # writing to it would write to the image that it is a link to
        raise DataError(f"{source}: {target.name} is the name of another image, too; rename one") from error
    except OSError:
        shutil.copyfile(source, target)
        return False
    return True
