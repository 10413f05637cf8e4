"""Small data sets in the layouts that people have, written by hand for tests to break."""

import json
from pathlib import Path

from PIL import Image

SIZE = (40, 20)  # width, height


def write_image(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (shade, 99, 9)).save(path)
    return path


def write_yolo_set(root: Path, lines: str = "0 0.5 0.5 0.25 0.5\n", yaml: str | None = None) -> Path:
    """One image of two classes in train and in val; returns the data.yaml."""
    for shade, split in enumerate(("train", "val")):
        write_image(root / "images" / split / f"{split}.png", shade)
        labels = root / "labels" / split / f"{split}.txt"
        labels.parent.mkdir(parents=True)
        labels.write_text(lines)
    description = yaml or "train: images/train\nval: images/val\nnames: [cat, dog]\n"
    (root / "data.yaml").write_text(description)
    return root / "data.yaml"


def voc_object(name: str = "cat", box: tuple[float, ...] = (3, 5, 12, 10), further: str = "") -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    corners = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox>{further}</object>"


def write_voc(file: Path, *objects: str, image: Path | None = None, size: bool = True) -> Path:
    """The XML file of an image that lies beside it, or elsewhere."""
    image = image or write_image(file.with_suffix(".png"))
    stated = "<size><width>40</width><height>20</height><depth>3</depth></size>" if size else ""
    file.parent.mkdir(parents=True, exist_ok=True)
    named = f"<filename>{image.name}</filename>"
    file.write_text(f"<annotation>{named}{stated}{''.join(objects)}</annotation>")
    return file


def shape(kind: str, points: list[list[float]], label: str = "cat", **further) -> dict:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None} | further


def write_labelme(file: Path, *shapes: dict, **changes) -> Path:
    """The JSON file of an image beside it."""
    image = write_image(file.with_suffix(".png"))
    data = {"version": "5.5", "flags": {}, "shapes": list(shapes), "imagePath": image.name}
    file.write_text(json.dumps(data | {"imageHeight": 20, "imageWidth": 40, "imageData": None} | changes))
    return file


def instances(names: tuple[str, ...] = ("cat", "dog"), file: str = "a.png") -> dict:
    """An instances file of one image with one object."""
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 8], "iscrowd": 0, "area": 80}
    return {
        "images": [{"id": 1, "file_name": file, "height": 20, "width": 40}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
        "annotations": [box | {"segmentation": [[2, 3, 12, 3, 12, 11, 2, 11]]}],
    }


def write_coco(path: Path, folder: Path, **changes) -> Path:
    """An instances file and its image."""
    data = instances(**changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    write_image(folder / data["images"][0]["file_name"])
    return path
