"""The report of a detector's last evaluation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import asdict
from PIL import Image
from supervision import Detections

from botnet.detection.coco import CocoInstances
from botnet.detection.metric import COCO_NUMBERS
from botnet.detection.records import Annotation, distinct_names
from botnet.detection.results import ResultRecord
from botnet.errors import DataError
from botnet.images import load_image
from botnet.masks import compact_masks, mask_area, mask_box
from botnet.report import figures
from botnet.report.page import Part, Picture, Table
from botnet.report.scores import IOU, TASKS, Scores, score
from botnet.training.run_folder import EvaluationFolder
from botnet.visualize.detections import beside_truth, draw
from botnet.visualize.embed import embedded_picture

WORST = 12  # images


def detection_parts(
    folder: EvaluationFolder, instances: CocoInstances, images: Path
) -> tuple[list[Part], list[str]]:
    """The parts of a detector's report, and what could not be shown.

    Args:
        folder: of the evaluation, with its ``results_bbox.json``.
        instances: that it was evaluated on.
        images: folder of their images.

    Raises:
        DataError: the results cannot be read, or are of other images.
    """
    truth = _truth(instances)
    results = {
        kind: _results(folder.path / f"results_{task}.json", instances) for kind, task in TASKS.items()
    }
    if results["box"] is None:
        raise DataError(f"{folder.path} has no results_bbox.json; evaluate the run again")
    scores = {kind: score(truth, found, kind) for kind, found in results.items() if found is not None}
    parts = [_numbers(scores), _classes(scores)]
    for kind, of_kind in scores.items():
        parts += [_thresholds(kind, of_kind), _confusion(kind, of_kind)]
    main = scores.get("mask") or scores["box"]
    worst, missing = _worst(main, results, instances, images)
    return [*parts, worst], missing


def _truth(instances: CocoInstances) -> dict[str, Any]:
    """The instances file as the validation reads it, without what is dropped from it."""
    annotations = [a for image in instances.images for a in instances.annotations_of(image.id)]
    names = distinct_names(instances.class_names, instances.category_ids)
    categories = zip(instances.category_ids, names, strict=True)
    return {
        "images": [asdict(image) for image in instances.images],
        "categories": [{"id": category, "name": name} for category, name in categories],
        "annotations": [_object(instances, a, number) for number, a in enumerate(annotations, 1)],
    }


def _object(instances: CocoInstances, annotation: Annotation, number: int) -> dict[str, Any]:
    """An object with the area by which the validation counts it as small, medium or large."""
    mask = instances.mask_of(annotation)
    area = annotation.area
    if area is None:
        _, _, width, height = annotation.bbox
        area = width * height if annotation.segmentation is None else mask_area(mask)
    return {
        "id": number,
        "image_id": annotation.image_id,
        "category_id": annotation.category_id,
        "bbox": list(annotation.bbox),
        "segmentation": mask,
        "area": area,
        "iscrowd": int(bool(annotation.iscrowd)),
    }


def _results(path: Path, instances: CocoInstances) -> list[ResultRecord] | None:
    """The records of a results file; None if there is none."""
    if not path.is_file():
        return None
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        strange = {r["image_id"] for r in records} - {image.id for image in instances.images}
        strange |= {r["category_id"] for r in records} - set(instances.category_ids)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is broken ({type(error).__name__}: {error}); evaluate the run again"
        ) from error
    if strange:
        raise DataError(f"{path} is not of the images of {instances.path}; evaluate the run again")
    return records


def _numbers(scores: dict[str, Scores]) -> Part:
    rows = [
        [name, *(_number(of_kind.numbers[name]) for of_kind in scores.values()), over]
        for name, over in COCO_NUMBERS
    ]
    return Part("COCO metrics", [Table(["metric", *scores, "averaged over"], rows, ["averaged over"])])


def _classes(scores: dict[str, Scores]) -> Part:
    first = next(iter(scores.values()))
    rows = []
    for i, of_class in enumerate(first.classes):
        cells = [_number(value) for s in scores.values() for value in (s.classes[i].ap, s.classes[i].ap50)]
        rows.append([of_class.name, f"{of_class.objects:,}", *cells])
    heads = [f"{kind} {name}" for kind in scores for name in ("AP", "AP50")]
    return Part("By class", [Table(["class", "objects", *heads], rows)])


def _thresholds(kind: str, scores: Scores) -> Part:
    best = scores.best
    text = (
        f"Keeping {kind} detections with a score of at least {best.score:.2f} gives the highest F1, "
        f"{best.f1:.3f}: precision {best.precision:.3f}, recall {best.recall:.3f}."
        if best
        else "Nothing was detected."
    )
    plots = (
        (figures.precision_recall, "precision against recall"),
        (figures.thresholds, "precision, recall and F1 against the lowest score kept"),
        (figures.errors, "AP50 lost to each type of error"),
    )
    images = [Picture(draw(scores), alt) for draw, alt in plots] if best else []
    return Part(f"Thresholds and errors, {kind}", text=text, images=images)


def _confusion(kind: str, scores: Scores) -> Part:
    names = [*(of_class.name for of_class in scores.classes), "background"]
    image, hidden = figures.confusion(scores.confusion, names)
    threshold = f"a score of at least {scores.best.score:.2f}" if scores.best else "any score"
    text = (
        f"Detections of {threshold}, matched at an IoU of {IOU} whatever their class. Predicted as "
        "background: missed. Truly background: found where nothing is. Crowd regions count neither as "
        "found nor as missed."
    )
    if hidden:
        text += f" The {hidden} least confused classes are left out."
    return Part(f"Confusion, {kind}", text=text, images=[Picture(image, "confusion matrix")])


def _number(value: float | None) -> str:
    return "-" if value is None or value < 0 else f"{value:.3f}"


def _worst(
    scores: Scores,
    results: dict[str, list[ResultRecord] | None],
    instances: CocoInstances,
    images: Path,
) -> tuple[Part, list[str]]:
    """The images with the lowest F1, truth beside prediction; and why some could not be drawn."""
    threshold = scores.best.score if scores.best else 1.0
    names = {record.id: record.file_name for record in instances.images}
    drawn: list[Picture] = []
    missing: list[str] = []
    for image in [image for image in scores.images if image.wrong or image.missed][:WORST]:
        name = names[image.image_id]
        found = {
            kind: [record for record in records if record["image_id"] == image.image_id]
            for kind, records in results.items()
            if records is not None
        }
        try:
            pair = _pair(images / name, image.image_id, instances, found, threshold)
        except DataError as error:
            missing.append(f"Not drawn: {error}")
            continue
        counts = f"{image.right} right, {image.wrong} wrong, {image.missed} missed"
        drawn.append(Picture(embedded_picture(pair), f"{name}: {counts}, F1 {image.f1:.2f}"))
    good = sum(not image.wrong and not image.missed for image in scores.images)
    text = f"{good} of {len(scores.images)} images have no error at a score of at least {threshold:.2f}."
    return Part("Worst images", text=text, images=drawn), missing


def _pair(
    path: Path,
    image_id: int,
    instances: CocoInstances,
    found: dict[str, list[ResultRecord]],
    threshold: float,
) -> Image.Image:
    """The drawings of an image's truth and of its detections, side by side."""
    image = load_image(path, instances.size_of(image_id))
    truth = draw(image, instances.detections_of(image_id))
    records = found.get("mask") or found["box"]
    detections = _detections(records, instances, (image.height, image.width))
    return beside_truth(truth, draw(image, detections, threshold), round(threshold, 2))


def _detections(
    records: Sequence[ResultRecord], instances: CocoInstances, size: tuple[int, int]
) -> Detections:
    """Records of one image, as they are drawn."""
    masks = [record["segmentation"] for record in records if "segmentation" in record]
    # Records of masks have no boxes.
    boxes: list[Any] = [mask_box(mask) for mask in masks] or [record["bbox"] for record in records]
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    classes = np.array([instances.category_ids.index(record["category_id"]) for record in records], int)
    return Detections(
        xyxy=corners,
        mask=compact_masks(masks, *size) if masks else None,
        confidence=np.array([record["score"] for record in records], np.float32),
        class_id=classes,
        data={"class_name": np.array(instances.class_names)[classes]},
    )
