"""Which layout a folder has, and where its splits are."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botnet.errors import DataError
from botnet.images import files_below
from botnet.layouts.cache import cached_instances
from botnet.layouts.files import SPLITS, read_head
from botnet.layouts.labelme import LabelmeSet, labelme_files
from botnet.layouts.samples import Annotated
from botnet.layouts.voc import LISTS, VocSet
from botnet.layouts.yolo import YoloSet

COCO, ROBOFLOW, PLAIN, YOLO, VOC, LABELME = (
    "COCO's own",
    "Roboflow's COCO export",
    "a plain COCO",
    "YOLO's",
    "Pascal VOC's",
    "labelme's",
)
TRAINABLE = (COCO, ROBOFLOW, PLAIN, YOLO)
LOOKED_FOR = {
    COCO: "annotations/instances_train2017.json with train2017/",
    ROBOFLOW: "train/_annotations.coco.json",
    PLAIN: "train.json or instances_train.json with train/ or images/",
    YOLO: "data.yaml",
    VOC: "Annotations/*.xml, or *.xml beside the images",
    LABELME: "*.json of labelme",
}


@dataclass(frozen=True)
class CocoFiles:
    """A split in COCO's format: the instances file, and the folder of its images."""

    instances: Path
    images: Path


@dataclass(frozen=True)
class Layout:
    """A folder whose layout is known.

    Args:
        kind: which; one of the keys of ``LOOKED_FOR``.
        root: the folder.
        coco: the splits of a layout in COCO's format, by name; empty for the others.
        yolo: the ``data.yaml``.
    """

    kind: str
    root: Path
    coco: dict[str, CocoFiles]
    yolo: Path | None = None

    def annotated(self) -> Annotated:
        """The data set, of a layout that is not in COCO's format."""
        if self.yolo is not None:
            return YoloSet(self.yolo)
        return VocSet(self.root) if self.kind == VOC else LabelmeSet(self.root)


def find_layout(root: Path, kinds: Sequence[str] = tuple(LOOKED_FOR)) -> Layout:
    """The layout of a folder.

    Args:
        root: the folder; or a ``data.yaml`` of YOLO.
        kinds: those that may be found; others are named in the error.

    Raises:
        DataError: none is found, or several, or a part is missing.
    """
    root = Path(root)
    if root.suffix in (".yaml", ".yml") and root.is_file():
        return Layout(YOLO, root.parent, {}, root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder of a data set")
    found = [layout for kind in kinds if (layout := _LOOKS[kind](root))]
    if len(found) > 1:
        raise DataError(
            f"{root} has {len(found)} layouts at once: "
            + " and ".join(f"{layout.kind} ({LOOKED_FOR[layout.kind]})" for layout in found)
            + "; move one of them away, or name the instances files and folders one by one"
        )
    if found:
        return found[0]
    looked = "; ".join(f"{kind}: {LOOKED_FOR[kind]}" for kind in kinds)
    others = [kind for kind in LOOKED_FOR if kind not in kinds and _LOOKS[kind](root)]
    hint = (
        f". It has {others[0]} layout: botnet convert {root} OUT makes a COCO data set of it"
        if others
        else ""
    )
    raise DataError(f"{root} has none of the known layouts ({looked}){hint}")


def find_split(layout: Layout, split: str) -> CocoFiles:
    """One split in COCO's format; YOLO's labels are converted into a file of the user's cache.

    Args:
        layout: of the kinds ``TRAINABLE``.
        split: ``train``, ``val`` or ``test``.

    Raises:
        DataError: there is no such split, and no other is used in its place; or YOLO's labels are broken.
    """
    yolo = YoloSet(layout.yolo) if layout.yolo else None
    has = list(layout.coco) if yolo is None else yolo.splits
    if split not in has:
        names = " or ".join(SPLITS[split])
        raise DataError(
            f"{layout.root}: {layout.kind} layout without the split {names}; it has {', '.join(has)}, which "
            "is not used in its place; botnet split makes train and val of one instances file"
        )
    if yolo is None:
        return layout.coco[split]
    return CocoFiles(cached_instances(yolo, split), yolo.folder(split))


def configured_split(data: Mapping[str, Any], split: str) -> CocoFiles | None:
    """A split of the ``data`` of a run's configuration; None where it names neither the files nor a root.

    Args:
        data: settings of :class:`botnet.detection.CocoDataModule`.
        split: ``train`` or ``val``.

    Raises:
        DataError: the root does not have it.
    """
    data = data.get("init_args", data)
    instances, images, root = (data.get(key) for key in (f"{split}_instances", f"{split}_images", "root"))
    if instances and images:
        return CocoFiles(Path(instances), Path(images))
    return find_split(find_layout(Path(root), TRAINABLE), split) if root else None


def _coco(root: Path) -> Layout | None:
    files: dict[str, CocoFiles] = {}
    for path in sorted((root / "annotations").glob("instances_*.json")):
        match = re.fullmatch(r"instances_((train|val|test)\w*)", path.stem)
        if match is None:
            continue
        folder, split = match.groups()
        if split in files:
            raise DataError(
                f"{root} has two instances files for {split}: {files[split].instances} and {path}; move one "
                "away, or name the files and folders one by one"
            )
        files[split] = CocoFiles(path, _image_folder(root, path, folder))
    return Layout(COCO, root, files) if files else None


def _roboflow(root: Path) -> Layout | None:
    files = {}
    for split, names in SPLITS.items():
        paths = [root / name / "_annotations.coco.json" for name in names]
        path = _only([path for path in paths if path.is_file()], root, split)
        if path is not None:
            files[split] = CocoFiles(path, path.parent)
    return Layout(ROBOFLOW, root, files) if files else None


def _plain(root: Path) -> Layout | None:
    files = {}
    for split, names in SPLITS.items():
        paths = [root / f"{start}{name}.json" for name in names for start in ("", "instances_")]
        path = _only([path for path in paths if path.is_file()], root, split)
        if path is not None:
            files[split] = CocoFiles(path, _image_folder(root, path, path.stem.removeprefix("instances_")))
    whole = root / "instances.json"
    if not files and whole.is_file():
        files["all"] = CocoFiles(whole, _image_folder(root, whole, "images"))
    return Layout(PLAIN, root, files) if files else None


def _only(paths: list[Path], root: Path, split: str) -> Path | None:
    """The file of a split, if there is one."""
    if len(paths) > 1:
        raise DataError(f"{root} has two files for {split}: {paths[0]} and {paths[1]}; move one away")
    return paths[0] if paths else None


def _image_folder(root: Path, instances: Path, name: str) -> Path:
    folders = [root / name, root / "images" / name, root / "images"]
    for folder in folders:
        if folder.is_dir():
            return folder
    tried = ", ".join(dict.fromkeys(map(str, folders)))
    raise DataError(f"{instances}: no folder of its images; looked for {tried}")


def _yolo(root: Path) -> Layout | None:
    files = [path for path in sorted(root.glob("*.y*ml")) if _describes_yolo(path)]
    if len(files) > 1:
        raise DataError(f"{root} has two descriptions of YOLO data: {files[0]} and {files[1]}; move one away")
    return Layout(YOLO, root, {}, files[0]) if files else None


def _describes_yolo(path: Path) -> bool:
    """Whether a YAML file is called data.yaml, or has the keys of one."""
    # Other YAML files may be in any encoding.
    return path.name == "data.yaml" or {b"names", b"train"} <= set(
        re.findall(rb"^(?:\xef\xbb\xbf)?(\w+):", read_head(path), flags=re.MULTILINE)
    )


def _voc(root: Path) -> Layout | None:
    there = (root / LISTS).is_dir() or any(map(_is_voc, files_below(root, (".xml",))))
    return Layout(VOC, root, {}) if there else None


def _is_voc(path: Path) -> bool:
    return re.search(rb"<annotation[\s>]", read_head(path, 1024)) is not None  # CVAT has <annotations>


def _labelme(root: Path) -> Layout | None:
    return Layout(LABELME, root, {}) if labelme_files(root) else None


_LOOKS: dict[str, Callable[[Path], Layout | None]] = {
    COCO: _coco,
    ROBOFLOW: _roboflow,
    PLAIN: _plain,
    YOLO: _yolo,
    VOC: _voc,
    LABELME: _labelme,
}
