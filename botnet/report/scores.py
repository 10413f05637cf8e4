"""What the detections of a validation set get right and wrong, computed by hotcoco."""

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hotcoco import COCO, COCOeval

IOU = 0.5  # of a match, but for the twelve numbers
TASKS = {"box": "bbox", "mask": "segm"}


@dataclass(frozen=True)
class ClassScore:
    """A class: its objects (crowds are not counted), and its AP and AP50; None without objects."""

    name: str
    objects: int
    ap: float | None
    ap50: float | None


@dataclass(frozen=True)
class Operation:
    """Precision and recall of all classes together where detections of at least ``score`` are kept."""

    score: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.precision * self.recall / max(self.precision + self.recall, 1e-12)


@dataclass(frozen=True)
class ImageScore:
    """What was found in an image at the best threshold."""

    image_id: int
    right: int
    wrong: int
    missed: int

    @property
    def f1(self) -> float:
        """1 for an image without objects and detections."""
        return (2 * self.right + 1e-12) / (2 * self.right + self.wrong + self.missed + 1e-12)


@dataclass(frozen=True)
class Scores:
    """An evaluation of boxes or masks.

    Args:
        kind: ``box`` or ``mask``.
        numbers: COCO's twelve, from 0 to 1, -1 where there is nothing to average.
        classes: in the order of the instances file.
        recalls, precisions: at an IoU of 0.5, ``(recalls,)`` and ``(classes, recalls)``; -1 for a class
            without objects.
        operations: by falling score.
        best: the operation with the highest F1; None without detections.
        confusion: (classes + 1, classes + 1) objects by true and predicted class at ``best``; the last row
            has what was found where nothing is, the last column what was missed.
        tide: AP50 that would be gained without each of TIDE's types of error.
        images: the worst first.
    """

    kind: str
    numbers: dict[str, float]
    classes: list[ClassScore]
    recalls: np.ndarray
    precisions: np.ndarray
    operations: list[Operation]
    best: Operation | None
    confusion: np.ndarray
    tide: dict[str, float]
    images: list[ImageScore]


def score(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: str) -> Scores:
    """Score detections.

    Args:
        truth: an instances file.
        results: records of a results file of the same images.
        kind: ``box`` or ``mask``.
    """
    dataset = COCO(dict(truth))
    evaluation = _evaluate(dataset, results, kind)
    status = evaluation.image_diagnostics(IOU, 0.0)
    operations = _operations(results, status)
    best = max(operations, key=lambda operation: operation.f1, default=None)
    threshold = best.score if best else 1.0
    # Detections on a crowd count neither as right nor as wrong, and have no status.
    counted = [record for i, record in enumerate(results, 1) if i in status["dt_status"]]
    kept = COCOeval(dataset, dataset.load_res([dict(record) for record in counted]), TASKS[kind])
    matrix = kept.confusion_matrix(IOU, min_score=threshold)["matrix"].astype(int)
    matrix[-1, -1] = 0
    assert evaluation.eval is not None
    precision = np.asarray(evaluation.eval["precision"])[..., 0, -1]  # (IoUs, recalls, classes)
    return Scores(
        kind,
        {name: float(value) for name, value in evaluation.get_results().items()},
        _classes(truth, precision),
        np.asarray(evaluation.params.rec_thrs),
        precision[0].T,
        operations,
        best,
        matrix,
        {name: float(value) for name, value in evaluation.tide_errors()["delta_ap"].items()},
        _images(truth, results, status, threshold),
    )


def _evaluate(dataset: COCO, results: Sequence[Mapping[str, Any]], kind: str) -> COCOeval:
    found = dataset.load_res([dict(record) for record in results])
    evaluation = COCOeval(dataset, found, TASKS[kind])
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the numbers
        evaluation.run()
    return evaluation


def _classes(truth: Mapping[str, Any], precision: np.ndarray) -> list[ClassScore]:
    objects = Counter(
        annotation["category_id"] for annotation in truth["annotations"] if not annotation.get("iscrowd", 0)
    )
    found = []
    # hotcoco has the classes in the order of their ids.
    for of_class, category in zip(
        precision.transpose(2, 0, 1), sorted(truth["categories"], key=lambda c: c["id"]), strict=True
    ):
        some = (of_class > -1).any()
        ap, ap50 = (float(of_class.mean()), float(of_class[0].mean())) if some else (None, None)
        found.append(ClassScore(category["name"], objects[category["id"]], ap, ap50))
    return found


def _operations(results: Sequence[Mapping[str, Any]], status: Mapping[str, Any]) -> list[Operation]:
    """Precision and recall at each score that a detection has."""
    judged = status["dt_status"]
    scores = np.array([results[i - 1]["score"] for i in judged])
    right = np.array([what == "tp" for what in judged.values()], dtype=float)
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], np.cumsum(right[order])
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True))[: len(scores)]
    objects = max(len(status["gt_status"]), 1)
    return [Operation(float(scores[i]), float(right[i] / (i + 1)), float(right[i] / objects)) for i in last]


def _images(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    status: Mapping[str, Any],
    threshold: float,
) -> list[ImageScore]:
    """Every image with what is right, wrong and missed at a threshold; the worst first."""
    image_of = {a["id"]: a["image_id"] for a in truth["annotations"]}
    right: Counter[int] = Counter()
    wrong: Counter[int] = Counter()
    for i, what in status["dt_status"].items():
        record = results[i - 1]
        if record["score"] >= threshold:
            (right if what == "tp" else wrong)[record["image_id"]] += 1
    objects = Counter(image_of[i] for i in status["gt_status"])
    images = [
        ImageScore(i, right[i], wrong[i], objects[i] - right[i])
        for i in (image["id"] for image in truth["images"])
    ]
    return sorted(images, key=lambda image: (image.f1, -image.wrong - image.missed, image.image_id))
