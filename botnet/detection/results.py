"""What is found in an image and what is there, and detections in COCO's results format."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from torch import Tensor
from torchvision.ops import box_convert

from botnet.masks import Rle


class Result(TypedDict):
    """Detections of one image: boxes (n, 4) xyxy original pixels, scores (n,), labels (n,) from 1, masks."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: NotRequired[list[Rle]]


class Truth(TypedDict):
    """Objects of one image: boxes (n, 4) xyxy original pixels, labels (n,) from 1, crowds, areas, masks."""

    boxes: Tensor
    labels: Tensor
    iscrowd: Tensor
    area: Tensor
    masks: NotRequired[list[Rle]]


class ResultRecord(TypedDict):
    """A detection in COCO's results format; ``bbox`` is x, y, width, height in pixels."""

    image_id: int
    category_id: int
    bbox: list[float]
    score: float
    segmentation: NotRequired[Rle]


def coco_results(result: Result, image_id: int, category_ids: Sequence[int]) -> list[ResultRecord]:
    """One image's result in COCO's results format.

    Args:
        result: in original pixels.
        image_id: of the instances file.
        category_ids: of labels 1, 2, ...
    """
    boxes = box_convert(result["boxes"], "xyxy", "xywh").tolist()
    records: list[ResultRecord] = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for box, score, label in zip(boxes, result["scores"].tolist(), result["labels"].tolist(), strict=True)
    ]
    for record, mask in zip(records, result.get("masks", ()), strict=False):
        record["segmentation"] = mask
    return records


def write_results(folder: Path, records: Sequence[ResultRecord]) -> dict[str, Path]:
    """Write records of :func:`coco_results` as COCO results files, one per task.

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
