"""Pascal VOC's layout: an XML file with the boxes of each image."""

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from botnet.errors import DataError
from botnet.images import files_below, image_extensions
from botnet.layouts.files import SPLITS, by_split, note_owner, read_text, relative_name
from botnet.layouts.samples import Losses, Object, Sample

LISTS = Path("ImageSets", "Main")


class VocSet:
    """A folder with ``Annotations/`` and ``JPEGImages/``, or with the XML files beside the images.

    The splits are the lists in ``ImageSets/Main``, where ``trainval`` is ``train`` if that is missing, or the
    folders ``train``, ``valid`` and ``test``.

    Args:
        root: the folder.

    Attributes:
        names: of the classes that occur, in alphabetical order.

    Raises:
        DataError: an annotation or a list that cannot be used.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files, self._unlisted = _files(root)
        found = {
            _text(item, "name", f"{file}: object {number}")
            for files in self._files.values()
            for file in files
            for number, item in enumerate(_read(file).iter("object"), 1)
        }
        if not found:
            raise DataError(f"{root}: no annotation has an object")
        self.names = sorted(found)

    @property
    def splits(self) -> list[str]:
        """Those that there are."""
        return list(self._files)

    def samples(self, split: str, losses: Losses) -> Iterator[Sample]:
        """The images of one split with their boxes.

        The coordinates are VOC's own: pixels from 1, the last one included.

        Args:
            split: which.
            losses: flags that COCO does not have are counted in it.

        Raises:
            DataError: an annotation that cannot be used, or a missing image; with the file and the object. Or
                two annotations have the same image.
        """
        losses["annotations that no list names, left out"] = self._unlisted
        owners: dict[Path, Path] = {}
        label = {name: index for index, name in enumerate(self.names)}
        for file in self._files[split]:
            tree = _read(file)
            width, height = (_number(tree, f"size/{side}", str(file)) for side in ("width", "height"))
            if not (width >= 1 and height >= 1 and width.is_integer() and height.is_integer()):
                raise DataError(f"{file}: its size is {width:g} x {height:g} pixels; correct <size>")
            image = self._image(file, tree.findtext("filename"))
            note_owner(owners, image.resolve(), file)
            objects = []
            for number, item in enumerate(tree.iter("object"), 1):
                name = _text(item, "name", f"{file}: object {number}")
                box = _box(item, f"{file}: object {number} ({name})")
                objects.append(Object(label[name], box))
                losses["boxes of a single pixel, kept"] += box[2:] == (1, 1)
                for flag in ("difficult", "truncated"):
                    losses[f'flags "{flag}"'] += (item.findtext(flag) or "0").strip() == "1"
            yield Sample(image, relative_name(image, self._folder(image)), int(height), int(width), objects)

    def _image(self, file: Path, name: str | None) -> Path:
        """The image of an annotation: by the name in it, or else by that of the file."""
        for folder in (self.root / "JPEGImages", file.parent):
            # Some tools write the path on another machine.
            if name and (image := folder / name.replace("\\", "/").rpartition("/")[2]).is_file():
                return image
            for ending in image_extensions():
                if (image := folder / f"{file.stem}{ending}").is_file():
                    return image
        raise DataError(f"{file}: its image {name} is neither in JPEGImages/ nor beside it; restore it")

    def _folder(self, image: Path) -> Path:
        images = self.root / "JPEGImages"
        return images if image.is_relative_to(images) else self.root


def _files(root: Path) -> tuple[dict[str, list[Path]], int]:
    """The annotations of each split, and the number of those that no list names."""
    home = root / "Annotations" if (root / "Annotations").is_dir() else root
    lists = {split: root / LISTS / f"{split}.txt" for split in (*SPLITS, "trainval")}
    lists = {split: path for split, path in lists.items() if path.is_file()}
    if not lists:
        return by_split(home, _annotations(home)), 0
    both = lists.pop("trainval", None)
    if both is not None and "train" not in lists:
        if "val" in lists:
            raise DataError(
                f"{both}: may hold images of {lists['val']}; add train.txt, or remove one of them"
            )
        lists["train"] = both
    files = {split: _listed(lists[split], home) for split in SPLITS if split in lists}
    return files, len(set(_annotations(home)).difference(*files.values()))


def _annotations(folder: Path) -> list[Path]:
    return files_below(folder, (".xml",))


def _listed(path: Path, home: Path) -> list[Path]:
    files: list[Path] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            whole, first = (home / f"{name}.xml" for name in (line.strip(), line.split()[0]))
            file = whole if whole.is_file() else first  # a name with spaces, or one with a flag behind it
            if not file.is_file():
                raise DataError(f"{path}, line {number}: {file}: no such annotation; correct the list")
            files.append(file)
    if not files:
        raise DataError(f"{path}: lists no image; fill or remove it")
    return files


def _read(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as XML ({error}); correct it or its encoding") from error


def _text(item: ElementTree.Element, tag: str, where: str) -> str:
    text = (item.findtext(tag) or "").strip()
    if not text:
        raise DataError(f"{where}: has no <{tag.replace('/', '><')}>; add it")
    return text


def _number(item: ElementTree.Element, tag: str, where: str) -> float:
    text = _text(item, tag, where)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: <{tag.replace('/', '><')}> is {text}, not a number; correct it")
    return value


def _box(item: ElementTree.Element, where: str) -> tuple[float, float, float, float]:
    left, top, right, bottom = (
        _number(item, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax")
    )
    if right < left or bottom < top:
        raise DataError(
            f"{where}: its box runs from ({left:g}, {top:g}) to ({right:g}, {bottom:g}); swap the corners"
        )
    return left - 1, top - 1, right - left + 1, bottom - top + 1
