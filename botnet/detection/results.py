"""Detections in COCO's results format."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchvision.ops import box_convert


def coco_results(result: dict[str, Any], image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """One image's result in COCO's results format (a list of records, as its server takes them)."""
    boxes = box_convert(result["boxes"], "xyxy", "xywh").tolist()
    records: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for box, score, label in zip(boxes, result["scores"].tolist(), result["labels"].tolist(), strict=True)
    ]
    for record, mask in zip(records, result.get("masks", ()), strict=False):
        record["segmentation"] = mask
    return records


def write_results(folder: Path, records: Sequence[dict[str, Any]]) -> dict[str, Path]:
    """Write records of :func:`coco_results` as COCO results files, one a task.

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
