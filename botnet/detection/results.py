"""From a detector's answer to COCO results: back to the original pixels, encoded, scored, tabulated."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_convert, clip_boxes_to_image

from botnet.detection.masks import encode_mask

# The twelve numbers of COCO, in its order: key of torchmetrics, name, what it averages over.
COCO_NUMBERS = (
    ("map", "AP", "IoU 0.50:0.95"),
    ("map_50", "AP50", "IoU 0.50"),
    ("map_75", "AP75", "IoU 0.75"),
    ("map_small", "APs", "objects under 32² px"),
    ("map_medium", "APm", "32² to 96² px"),
    ("map_large", "APl", "over 96² px"),
    ("mar_1", "AR1", "1 detection an image"),
    ("mar_10", "AR10", "10 detections"),
    ("mar_100", "AR100", "100 detections"),
    ("mar_small", "ARs", "objects under 32² px"),
    ("mar_medium", "ARm", "32² to 96² px"),
    ("mar_large", "ARl", "over 96² px"),
)


def paste_mask(probabilities: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """One box's mask grid laid onto the image, bilinearly, at the centres of the pixels inside the box.

    Args:
        probabilities: ``(M, M)``, the box cut into M x M cells.
        box: ``(4,)`` xyxy in pixels.
        height, width: of the image.

    Returns:
        ``(height, width)`` bool: probability of at least one half.
    """
    pasted = torch.zeros(height, width, dtype=torch.bool)
    x1, y1, x2, y2 = box.tolist()
    # Pixel i is inside where its centre i + 0.5 is.
    left, right = max(round(x1), 0), min(round(x2), width)
    top, bottom = max(round(y1), 0), min(round(y2), height)
    if right <= left or bottom <= top:
        return pasted
    x = (torch.arange(left, right) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(top, bottom) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    inside = F.grid_sample(
        probabilities[None, None].float().cpu(), grid[None], align_corners=False, padding_mode="border"
    )
    pasted[top:bottom, left:right] = inside[0, 0] >= 0.5
    return pasted


def to_original(
    detection: dict[str, Tensor], scale: tuple[float, float], size: tuple[int, int]
) -> dict[str, Any]:
    """A detection on the canvas, mapped back to the pixels of the original image.

    Args:
        detection: of one image, as :class:`botnet.detection.rcnn.RCNN` gives it.
        scale: canvas pixels per original pixel, ``(y, x)``.
        size: ``(height, width)`` of the original image.

    Returns:
        On the CPU: ``boxes`` ``(n, 4)`` xyxy original pixels, ``scores``, ``labels``; for Mask R-CNN also
        ``masks``, a list of n compressed RLEs. Masks are pasted and encoded one by one, so that a hundred
        of them on a large image never stand in memory together.
    """
    scale_y, scale_x = scale
    boxes = detection["boxes"].float().cpu() / torch.tensor([scale_x, scale_y, scale_x, scale_y])
    boxes = clip_boxes_to_image(boxes, size)
    result: dict[str, Any] = {
        "boxes": boxes,
        "scores": detection["scores"].float().cpu(),
        "labels": detection["labels"].cpu(),
    }
    if "masks" in detection:
        result["masks"] = [
            encode_mask(paste_mask(mask[0], box, *size).numpy())
            for mask, box in zip(detection["masks"].cpu(), boxes, strict=True)
        ]
    return result


def truth_of(target: dict[str, Any]) -> dict[str, Any]:
    """One image's truth for :class:`CocoMetric`, from a target of the evaluation's data set."""
    truth = {key: target[key].cpu() for key in ("boxes", "labels", "iscrowd", "area")}
    if "masks" in target:
        truth["masks"] = target["masks"]  # RLEs already
    return truth


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


class CocoMetric(MeanAveragePrecision):
    """torchmetrics' COCO metrics on faster-coco-eval, fed with encoded masks.

    torchmetrics takes dense masks and encodes them; ours are encoded when they are made.

    Args:
        masks: score masks as well as boxes.
    """

    def __init__(self, masks: bool = True) -> None:
        super().__init__(
            iou_type=("bbox", "segm") if masks else "bbox",
            # pycocotools' own thresholds: torchmetrics' default goes through float32, where 0.6 is not 0.6.
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
            rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
            extended_summary=True,
            backend="faster_coco_eval",
            # Images of several devices are put together before they are scored (botnet.distributed):
            # torchmetrics' own way takes the devices to have equally many.
            sync_on_compute=False,
        )
        self.warn_on_many_detections = False

    def update(self, preds: list[dict[str, Any]], target: list[dict[str, Any]]) -> None:
        """Add images.

        Args:
            preds: as :func:`to_original` gives them.
            target: as :func:`truth_of` gives them, in original pixels.
        """
        for result in preds:
            self.detection_box.append(box_convert(result["boxes"], "xyxy", "xywh"))
            self.detection_scores.append(result["scores"])
            self.detection_labels.append(result["labels"])
            if "segm" in self.iou_type:
                self.detection_mask.append(_rle_tuples(result["masks"]))
        for truth in target:
            self.groundtruth_box.append(box_convert(truth["boxes"], "xyxy", "xywh"))
            self.groundtruth_labels.append(truth["labels"])
            self.groundtruth_crowds.append(truth["iscrowd"])
            self.groundtruth_area.append(truth["area"])
            if "segm" in self.iou_type:
                self.groundtruth_mask.append(_rle_tuples(truth["masks"]))

    def report(self, class_names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """All twelve numbers for ``box`` and, if scored, ``mask``; -1 where there is nothing to average.

        Each also holds ``per_class``, the AP of every class.
        """
        values = self.compute()
        several = len(self.iou_type) > 1
        tables = {}
        for iou_type, name in (("bbox", "box"), ("segm", "mask")):
            if iou_type not in self.iou_type:
                continue
            prefix = f"{iou_type}_" if several else ""
            table: dict[str, Any] = {short: float(values[prefix + key]) for key, short, _ in COCO_NUMBERS}
            table["per_class"] = dict.fromkeys(class_names, -1.0)
            # (IoU thresholds, recalls, classes, areas, detection limits); -1 where a class has no object.
            precision = values.get(f"{prefix}precision")
            for index, label in enumerate(values["classes"].view(-1).tolist()):
                of_class = precision[:, :, index, 0, -1] if precision is not None else torch.empty(0)
                if (of_class > -1).any():
                    table["per_class"][class_names[label - 1]] = float(of_class[of_class > -1].mean())
            tables[name] = table
        return tables


def _rle_tuples(masks: list[dict[str, Any]]) -> Any:
    return tuple((tuple(mask["size"]), mask["counts"]) for mask in masks)


def metrics_table(title: str, numbers: dict[str, Any]) -> Table:
    """The twelve numbers as a table for the terminal."""
    table = Table("metric", "value", "averaged over", title=title, title_justify="left")
    for _, name, over in COCO_NUMBERS:
        value = numbers[name]
        table.add_row(name, f"{value:.3f}" if value >= 0 else "-", over)
    return table
