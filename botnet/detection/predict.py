"""``botnet predict``: objects of any image, drawn and written as COCO results."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from rich.progress import track
from torchvision.transforms.v2.functional import pil_to_tensor

from botnet.detection.coco import CocoInstances, decode_mask, encode_mask, load_image
from botnet.detection.module import load_detector
from botnet.detection.pictures import draw, side_by_side
from botnet.detection.results import coco_results, to_original, write_results
from botnet.detection.transforms import EvalTransform
from botnet.errors import DataError


def predict(
    checkpoint: Path,
    sources: Sequence[Path],
    output: Path,
    *,
    score: float = 0.5,
    truth: Path | None = None,
    device: str = "auto",
) -> list[dict]:
    """Detect objects in images; draw each image and write COCO results files.

    Args:
        checkpoint: of ``botnet fit``; it knows its detector, its classes and its canvas.
        sources: images, and folders whose images are taken (not those of their subfolders).
        output: folder to make; one picture an image, and ``results_bbox.json`` and ``results_segm.json``
            with every detection, also those too weak to be drawn.
        score: least score that is drawn.
        truth: instances file; images it knows by name get its ids and are drawn beside its truth.
        device: "auto" takes an accelerator if there is one.

    Returns:
        The records of the files. An image that ``truth`` does not know has the number of its file
        name as its id where names are numbers, as COCO's are; else its place in the list from 1 on. Each
        record also holds ``file_name``.

    Raises:
        DataError: nothing to read, an unreadable image or checkpoint, or an output folder in use.
    """
    paths = _image_paths(sources)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output} exists and is not an empty folder; name another one by --output")
    detector, about = load_detector(checkpoint)
    instances = CocoInstances(truth) if truth else None
    ids = _image_ids(paths, instances)
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = accelerator.type if accelerator else "cpu"
    detector = detector.to(device)
    transform = EvalTransform(about["canvas"])

    output.mkdir(parents=True, exist_ok=True)
    records = []
    for path, (image_id, known) in track(list(zip(paths, ids, strict=True)), "predicting"):
        image = pil_to_tensor(load_image(path))
        canvas, target = transform(image)
        with torch.inference_mode():
            (detection,) = detector(canvas[None].to(device), valid=[target["valid"]])
        size = (image.shape[-2], image.shape[-1])
        result = to_original(detection, target["scale"], size)
        for record in coco_results(result, image_id, about["category_ids"]):
            records.append({**record, "file_name": path.name})
        picture = draw(image, result, about["class_names"], score)
        if known and instances:
            picture = _beside_truth(image, picture, instances, image_id, score)
        picture.save(output / f"{path.stem}.png")
    files = write_results(output, records)
    print(f"{len(paths)} images, {len(records)} detections; pictures in {output}")
    for task, path in files.items():
        print(f"COCO results, {task}: {path}")
    return records


def _image_paths(sources: Sequence[Path]) -> list[Path]:
    known = set(Image.registered_extensions())
    paths: list[Path] = []
    for source in sources:
        if source.is_dir():
            found = sorted(path for path in source.iterdir() if path.suffix.lower() in known)
            if not found:
                raise DataError(f"{source} holds no image; name a folder with images, or the images")
            paths += found
        elif source.is_file():
            paths.append(source)
        else:
            raise DataError(f"{source}: no such image or folder")
    stems: dict[str, Path] = {}
    for path in paths:
        if (other := stems.setdefault(path.stem, path)) != path:
            raise DataError(f"{path} and {other} would be drawn into the same file; predict them apart")
    return list(stems.values())


def _image_ids(paths: list[Path], instances: CocoInstances | None) -> list[tuple[int, bool]]:
    """Each image's id, and whether the truth knows it."""
    by_name = {Path(image["file_name"]).name: image["id"] for image in instances.images} if instances else {}
    numbered = all(path.stem.isdecimal() for path in paths)
    return [
        (by_name[path.name], True) if path.name in by_name else (int(path.stem) if numbered else place, False)
        for place, path in enumerate(paths, start=1)
    ]


def _beside_truth(
    image: torch.Tensor, picture: Image.Image, instances: CocoInstances, image_id: int, score: float
) -> Image.Image:
    height, width = image.shape[-2:]
    annotations = instances.annotations_of(image_id)
    x, y, w, h = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).view(-1, 4).unbind(1)
    labels = [instances.category_ids.index(a["category_id"]) + 1 for a in annotations]
    boxes = torch.stack([x, y, x + w, y + h], dim=1)
    shown = {"boxes": boxes, "labels": labels}
    if all("segmentation" in a for a in annotations):
        shown["masks"] = [encode_mask(decode_mask(a["segmentation"], height, width)) for a in annotations]
    left = draw(image, shown, instances.class_names, score)
    return side_by_side(left, picture, ("truth", f"prediction, score of at least {score}"))
