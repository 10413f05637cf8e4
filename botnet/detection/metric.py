"""COCO's metrics, computed by hotcoco."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from hotcoco import StreamingEval
from rich.table import Table
from torchvision.ops import box_convert

from botnet.detection.records import distinct_names
from botnet.detection.results import ResultRecord, Truth
from botnet.masks import Rle

# The twelve numbers of COCO, in its order: name, what it averages over.
COCO_NUMBERS = (
    ("AP", "IoU 0.50:0.95"),
    ("AP50", "IoU 0.50"),
    ("AP75", "IoU 0.75"),
    ("APs", "objects under 32² px"),
    ("APm", "32² to 96² px"),
    ("APl", "over 96² px"),
    ("AR1", "1 detection per image"),
    ("AR10", "10 detections"),
    ("AR100", "100 detections"),
    ("ARs", "objects under 32² px"),
    ("ARm", "32² to 96² px"),
    ("ARl", "over 96² px"),
)
TASKS = {"box": "bbox", "mask": "segm"}
MOST_OBJECTS = 2**20  # of an image: objects are numbered from image to image


def truth_of(target: Truth) -> Truth:
    """One image's truth for :class:`CocoMetric`, from a target of the evaluation's data set."""
    truth = Truth(
        boxes=target["boxes"].cpu(),
        labels=target["labels"].cpu(),
        iscrowd=target["iscrowd"].cpu(),
        area=target["area"].cpu(),
    )
    if "masks" in target:
        truth["masks"] = target["masks"]
    return truth


class CocoMetric:
    """Average precision and recall as pycocotools computes them, for boxes and masks.

    Args:
        class_names: of labels 1, 2, ...
        category_ids: of the same classes in COCO's records.
        masks: score masks as well as boxes.
    """

    def __init__(self, class_names: Sequence[str], category_ids: Sequence[int], masks: bool = True) -> None:
        self.class_names, self.category_ids = list(class_names), list(category_ids)
        self._labels = {category: label for label, category in enumerate(category_ids, 1)}
        categories = [{"id": label, "name": name} for label, name in enumerate(self.class_names, 1)]
        kinds = ("box", "mask") if masks else ("box",)
        self._evaluators = {kind: StreamingEval(categories, TASKS[kind]) for kind in kinds}
        self._images = 0

    def update(self, found: Sequence[ResultRecord], truth: Truth, place: int | None = None) -> None:
        """Add an image.

        Args:
            found: its detections, of :func:`botnet.detection.results.to_coco`.
            truth: of :func:`truth_of`.
            place: of the image in the data set, where several devices share it; default: behind the last one.
        """
        number = 1 + (self._images if place is None else place)
        columns = [
            [*record["bbox"], record["score"], self._labels[record["category_id"]]] for record in found
        ]
        masks = [record["segmentation"] for record in found if "segmentation" in record]
        self._add(np.array(columns, np.float64).reshape(-1, 6), masks, _records(truth, number), number)

    def _add(
        self, found: np.ndarray, masks: Sequence[Rle], objects: list[dict[str, Any]], number: int
    ) -> None:
        """Match an image's detections with its objects.

        Args:
            found: (n, 6) x, y, width, height, score, label.
            masks: of the detections.
            objects: COCO's annotations.
            number: of the image.
        """
        self._images += 1
        columns = np.column_stack([np.full(len(found), float(number)), found])
        self._evaluators["box"].update([{"id": number}], objects, columns)
        if "mask" in self._evaluators:
            # With its box, a mask would be counted as small, medium or large by the box's area.
            labels, scores = found[:, 5].astype(int).tolist(), found[:, 4].tolist()
            records = [
                {"image_id": number, "category_id": label, "score": score, "segmentation": mask}
                for label, score, mask in zip(labels, scores, masks, strict=True)
            ]
            self._evaluators["mask"].update([{"id": number}], objects, records)

    def state(self) -> dict[str, bytes]:
        """What was added, to be sent to another process."""
        return {kind: evaluator.to_bytes() for kind, evaluator in self._evaluators.items()}

    def merge(self, states: Sequence[dict[str, bytes]]) -> None:
        """Hold what the metrics of all devices, this one among them, have in their states."""
        for kind in self._evaluators:
            self._evaluators[kind] = StreamingEval.merge(
                StreamingEval.from_bytes(state[kind]) for state in states
            )

    def report(self) -> dict[str, dict[str, Any]]:
        """All twelve numbers for ``box`` and, if scored, ``mask``; -1 where there is nothing to average.

        Each also holds ``per_class``, the AP of every class by its :func:`distinct_names`.
        """
        return {kind: self._table(evaluator) for kind, evaluator in self._evaluators.items()}

    def _table(self, evaluator: StreamingEval) -> dict[str, Any]:
        evaluation = evaluator.finalize()
        evaluation.accumulate()
        with contextlib.redirect_stdout(io.StringIO()):  # it also prints the numbers
            evaluation.summarize()
        results = evaluation.get_results()
        assert evaluation.eval is not None
        # (IoU thresholds, recalls, classes, areas, detection limits); -1 where a class has no object.
        precision = np.asarray(evaluation.eval["precision"])[..., 0, -1]
        table: dict[str, Any] = {name: float(results[name]) for name, _ in COCO_NUMBERS}
        names = distinct_names(self.class_names, self.category_ids)
        table["per_class"] = {
            name: float(of_class[of_class > -1].mean()) if (of_class > -1).any() else -1.0
            for name, of_class in zip(names, precision.transpose(2, 0, 1), strict=True)
        }
        return table


def _records(truth: Truth, number: int) -> list[dict[str, Any]]:
    """COCO's annotations of the objects of one image, which has a number."""
    boxes = box_convert(truth["boxes"], "xyxy", "xywh").tolist()
    columns = zip(
        boxes, truth["labels"].tolist(), truth["iscrowd"].tolist(), truth["area"].tolist(), strict=True
    )
    records: list[dict[str, Any]] = [
        {
            "id": number * MOST_OBJECTS + index,
            "image_id": number,
            "category_id": label,
            "bbox": box,
            "iscrowd": int(crowd),
            "area": area,
        }
        for index, (box, label, crowd, area) in enumerate(columns)
    ]
    for record, mask in zip(records, truth.get("masks", ()), strict=False):
        record["segmentation"] = mask
    return records


def metrics_table(title: str, numbers: dict[str, Any]) -> Table:
    """The twelve numbers as a table for the terminal."""
    table = Table("metric", "value", "averaged over", title=title, title_justify="left")
    for name, over in COCO_NUMBERS:
        value = numbers[name]
        table.add_row(name, f"{value:.3f}" if value >= 0 else "-", over)
    return table
