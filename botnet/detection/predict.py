"""``botnet predict``: objects of any image, drawn and written as COCO results."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import track
from torchvision.transforms.v2.functional import pil_to_tensor

from botnet.detection.check import image_problems
from botnet.detection.checkpoint import load_detector
from botnet.detection.coco import CocoInstances, read_images
from botnet.detection.placement import load_placed
from botnet.detection.postprocess import to_original
from botnet.detection.rcnn import RCNN
from botnet.detection.results import coco_results, write_results
from botnet.detection.transforms import EvalTransform, denormalise, to_canvas
from botnet.devices import pick_device
from botnet.errors import DataError
from botnet.folders import check_unused
from botnet.images import check_some_left, image_paths, load_image
from botnet.visualize.attention import attention_picture, probe_attention
from botnet.visualize.detections import draw, side_by_side


def predict(
    checkpoint: Path,
    sources: Sequence[Path],
    output: Path,
    *,
    score: float = 0.5,
    truth: Path | None = None,
    attention: bool = False,
    pixel: tuple[int, int] | None = None,
    device: str = "auto",
) -> tuple[list[dict], list[DataError]]:
    """Detect objects in images; draw each image and write COCO results files.

    An image that cannot be read, or that lacks ``pixel``, is left out.

    Args:
        checkpoint: of ``botnet fit``; it knows its detector, its classes and its canvas.
        sources: images, and folders whose images are taken (not those of their subfolders).
        output: folder to make; one picture an image, and ``results_bbox.json`` and ``results_segm.json``
            with every detection, also those too weak to be drawn.
        score: least score that is drawn.
        truth: instances file; the images that it knows are drawn beside its truth. It knows an image whose
            path ends in a file name of its records, folders included. Their EXIF notes are obeyed or not, as
            the sizes of the records ask.
        attention: whether to draw, in ``output/attention``, what one place of each image attends to.
        pixel: (x, y) of that place in each image's own pixels; default the centre of the image.
        device: "auto" takes an accelerator if there is one.

    Returns:
        The records of the files. Each image has an id of its own: that of ``truth`` if it is known there.
        The others have the numbers of their file names, as COCO's are, if all of these are numbers, differ
        and are no ids of ``truth``; else they are counted in their order, starting at 1 or at one above the
        highest id of ``truth``. Each record also holds ``file_name``. Then, what is wrong with the images
        that were left out.

    Raises:
        DataError: an image that does not exist, none that can be predicted, an unreadable checkpoint, an
            output folder in use, or no attention to draw. Nothing is written then.
    """
    paths = image_paths(sources)
    check_unused(output)
    detector, about = load_detector(checkpoint)
    instances = CocoInstances(truth) if truth else None
    ids = _image_ids(paths, instances)
    if instances and (unknown := sum(not known for _, known in ids)):
        print(f"{truth} does not know {unknown} of the {len(paths)} images")
    detector = detector.to(pick_device(device))

    if attention:
        with probe_attention(detector):
            pass  # an error at once if there is none to draw
    records: list[dict] = []
    broken: list[DataError] = []
    for path, (image_id, known) in track(list(zip(paths, ids, strict=True)), "predicting"):
        try:
            frame = instances.size_of(image_id) if known and instances else None
            image = pil_to_tensor(load_image(path, frame))
            size = (image.shape[-2], image.shape[-1])
            result = _detect(detector, about["canvas"], path, size)
            picture = draw(image, result, about["class_names"], score)
            if known and instances:
                picture = _beside_truth(image, picture, instances, image_id, score)
            pictures = {f"{path.stem}.png": picture}
            if attention:
                sheet = _attention(detector, about["canvas"], path, size, pixel)
                pictures[f"attention/{path.stem}.png"] = sheet
        except DataError as error:
            broken.append(error)
            continue
        for record in coco_results(result, image_id, about["category_ids"]):
            records.append({**record, "file_name": path.name})
        for name, picture in pictures.items():
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(output / name)
    check_some_left(broken, len(paths))
    files = write_results(output, records)
    left_out = f", {len(broken)} left out" if broken else ""
    print(f"{len(paths) - len(broken)} images{left_out}, {len(records)} detections; pictures in {output}")
    for task, path in files.items():
        print(f"COCO results, {task}: {path}")
    return records, broken


def predict_coco(
    checkpoint: Path, folders: Sequence[Path], output: Path, images_json: Path, *, device: str = "auto"
) -> list[dict]:
    """Write COCO results files for every image of a list, as COCO's server takes them; draw nothing.

    Args:
        checkpoint: of ``botnet fit``.
        folders: where the images are; file names are relative to one of them. Other files there are left.
        output: folder to make, for ``results_bbox.json`` and ``results_segm.json``.
        images_json: instances or image_info file: which images, their sizes and ids.
        device: "auto" takes an accelerator if there is one.

    Returns:
        The records of the files, boxes and masks in original pixels.

    Raises:
        DataError: an image that is not there, unreadable or of another size, a checkpoint of other
            categories, or an output folder in use.
    """
    check_unused(output)
    images, categories = read_images(images_json)
    paths = _listed_paths(images, folders, images_json)
    detector, about = load_detector(checkpoint)
    known = dict(zip(about["category_ids"], about["class_names"], strict=True))
    if not known.items() <= categories.items():
        strange = next(f"{key} ({name})" for key, name in known.items() if categories.get(key) != name)
        raise DataError(
            f"{checkpoint} finds category {strange}, which {images_json} does not have; "
            "give the image list of the data it was trained for"
        )
    problems: list[str] = []
    for image, path in track(list(zip(images, paths, strict=True)), "checking"):
        problems += [problem.message for problem in image_problems(path, image, decode=True)]
    if problems:
        raise DataError(
            f"{len(problems)} of the {len(images)} images of {images_json} cannot be used, and results must "
            f"cover every image; the first: {problems[0]}"
        )
    detector = detector.to(pick_device(device))
    records = []
    for image, path in track(list(zip(images, paths, strict=True)), "predicting"):
        result = _detect(detector, about["canvas"], path, (image["height"], image["width"]))
        records += coco_results(result, image["id"], about["category_ids"])
    output.mkdir(parents=True, exist_ok=True)
    files = write_results(output, records)
    print(f"{len(images)} images, {len(records)} detections")
    for task, file in files.items():
        print(f"COCO results, {task}: {file}")
    return records


def _detect(detector: RCNN, canvas: int, path: Path, size: tuple[int, int]) -> dict[str, Any]:
    """What the detector finds in one image, in its original pixels."""
    placement = EvalTransform(canvas).place(size)
    image = to_canvas(load_placed(path, placement), canvas)
    device = next(detector.parameters()).device
    with torch.inference_mode():
        (detection,) = detector(image[None].to(device), valid=[placement.valid])
    return to_original(detection, placement.scale, size)


def _attention(
    detector: RCNN, canvas: int, path: Path, size: tuple[int, int], pixel: tuple[int, int] | None
) -> Image.Image:
    """What one place of an image attends to in the backbone, on the canvas that the detector sees."""
    height, width = size
    x, y = pixel or (width // 2, height // 2)
    if not (0 <= x < width and 0 <= y < height):
        raise DataError(f"{path} has {width} x {height} pixels, none at {x} {y}; choose another --pixel")
    placement = EvalTransform(canvas).place(size)
    image = to_canvas(load_placed(path, placement), canvas)
    device = next(detector.parameters()).device
    with probe_attention(detector) as watched, torch.inference_mode():
        detector.backbone(image[None].to(device))
    parts = ((where + 0.5) * scale / canvas for where, scale in zip((y, x), placement.scale, strict=True))
    return attention_picture(denormalise(image), *watched.weights(*parts))


def _listed_paths(images: list[dict[str, Any]], folders: Sequence[Path], listed_in: Path) -> list[Path]:
    """The file of each listed image."""
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; for COCO results name the folders of the images")
    found: list[Path] = []
    missing: list[str] = []
    for image in images:
        places = [folder / image["file_name"] for folder in folders]
        files = [place for place in places if place.is_file()]
        found += files[:1]
        missing += [] if files else [image["file_name"]]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(images)} images of {listed_in} are in none of the folders, the "
            f"first of them {missing[0]}; results must cover every image: add the files or their folder"
        )
    return found


def _image_ids(paths: Sequence[Path], instances: CocoInstances | None) -> list[tuple[int, bool]]:
    """Each image's id, no two alike, and whether the truth knows it; :func:`predict` has the rule."""
    listed: dict[tuple[str, ...], list[int]] = {}
    for image in instances.images if instances else []:
        listed.setdefault(Path(image["file_name"]).parts, []).append(image["id"])
    known = [_listed_id(path, listed) for path in paths]
    taken = {image_id for ids in listed.values() for image_id in ids}
    unknown = [path for path, image_id in zip(paths, known, strict=True) if image_id is None]
    numbers = [int(path.stem) for path in unknown if path.stem.isdecimal()]
    if len(set(numbers) - taken) < len(unknown):
        numbers = list(range(max(taken, default=0) + 1, max(taken, default=0) + 1 + len(unknown)))
    further = iter(numbers)
    return [(next(further), False) if image_id is None else (image_id, True) for image_id in known]


def _listed_id(path: Path, listed: dict[tuple[str, ...], list[int]]) -> int | None:
    """The id of the longest listed file name that a path ends in; None if there is none."""
    parts = Path(os.path.abspath(path)).parts
    for start in range(len(parts)):
        ids = listed.get(parts[start:], [])
        if len(ids) > 1:
            raise DataError(
                f"{path}: the truth has two images of this file name, {ids[0]} and {ids[1]}; remove one"
            )
        if ids:
            return ids[0]
    return None


def _beside_truth(
    image: torch.Tensor, picture: Image.Image, instances: CocoInstances, image_id: int, score: float
) -> Image.Image:
    annotations = instances.annotations_of(image_id)
    x, y, w, h = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).view(-1, 4).unbind(1)
    labels = [instances.category_ids.index(a["category_id"]) + 1 for a in annotations]
    boxes = torch.stack([x, y, x + w, y + h], dim=1)
    masks = [instances.mask_of(annotation) for annotation in annotations]
    shown = {"boxes": boxes, "labels": labels, "masks": masks}
    left = draw(image, shown, instances.class_names, score)
    return side_by_side(left, picture, ("truth", f"prediction, score of at least {score}"))
