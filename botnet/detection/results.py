"""What is found in an image and what is there, and detections in COCO's results format."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict, cast

import numpy as np

from botnet.masks import Rle, compact_masks, encode_mask, to_rles

if TYPE_CHECKING:
    from supervision import Detections
    from supervision.detection.compact_mask import CompactMask
    from torch import Tensor


class Objects(TypedDict):
    """Objects of one image: boxes (n, 4) xyxy original pixels, labels (n,) from 1, masks."""

    boxes: "Tensor"
    labels: "Tensor"
    masks: NotRequired[list[Rle]]


class Truth(Objects):
    """Objects of one image as they are scored: also crowds and areas."""

    iscrowd: "Tensor"
    area: "Tensor"


class ResultRecord(TypedDict):
    """A detection in COCO's results format; ``bbox`` is x, y, width, height in pixels."""

    image_id: int
    category_id: int
    bbox: list[float]
    score: float
    segmentation: NotRequired[Rle]


def to_coco(detections: "Detections", image_id: int) -> list[ResultRecord]:
    """One image's detections in COCO's results format.

    Args:
        detections: of a detector's ``predict``, perhaps filtered.
        image_id: of the instances file.

    Raises:
        ValueError: detections without confidence or without the category ids that a detector gives.
    """
    category_ids = detections.data.get("category_id")
    if category_ids is None or detections.confidence is None:
        raise ValueError(
            'detections without confidence or data["category_id"]; give those of a detector of this package'
        )
    boxes = np.array(detections.xyxy, np.float32)
    boxes[:, 2:] -= boxes[:, :2]
    categories = np.asarray(category_ids).tolist()
    found = zip(boxes.tolist(), detections.confidence.tolist(), categories, strict=True)
    records: list[ResultRecord] = [
        {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
        for box, score, category in found
    ]
    if detections.mask is not None:
        for record, mask in zip(records, _rles(detections), strict=True):
            record["segmentation"] = mask
    return records


def _rles(detections: "Detections") -> list[Rle]:
    masks = detections.mask
    if isinstance(masks, np.ndarray):  # as some of supervision's tools return them
        return [encode_mask(mask) for mask in masks]
    return to_rles(cast("CompactMask", masks))


def true_detections(truth: Objects, class_names: Sequence[str], size: tuple[int, int]) -> "Detections":
    """One image's objects in the form of detections, without confidence, to be drawn.

    Args:
        truth: of the image.
        class_names: of labels 1, 2, ...
        size: (height, width) of the image.
    """
    from supervision import Detections  # takes half a second to import

    labels = truth["labels"].cpu().numpy()
    return Detections(
        xyxy=truth["boxes"].cpu().numpy(),
        mask=compact_masks(truth["masks"], *size) if "masks" in truth else None,
        class_id=labels - 1,
        data={"class_name": np.array(class_names)[labels - 1]},
    )


def write_results(folder: Path, records: Sequence[ResultRecord]) -> dict[str, Path]:
    """Write records of :func:`to_coco` as COCO results files, one per task.

    Masks are written without boxes, as COCO's server takes them: where a record has both, pycocotools
    sorts masks into small, medium and large by the area of their box.

    Returns:
        The files by task: ``results_bbox.json`` and, if there are masks, ``results_segm.json``.
    """
    tasks = {"bbox": "segmentation"}
    if any("segmentation" in record for record in records):
        tasks["segm"] = "bbox"
    files = {}
    for task, other in tasks.items():
        files[task] = folder / f"results_{task}.json"
        kept = [{key: value for key, value in record.items() if key != other} for record in records]
        files[task].write_text(json.dumps(kept))
    return files
