"""The report of a classifier's last evaluation."""

import csv
from typing import Any

import numpy as np

from botnet.errors import DataError
from botnet.report import figures
from botnet.report.page import Part, Picture, Table
from botnet.training.run_folder import EvaluationFolder

WORST = 20  # classes, and confusions


def classification_parts(folder: EvaluationFolder, metrics: dict[str, Any]) -> tuple[list[Part], list[str]]:
    """The parts of a classifier's report, and what could not be shown.

    Args:
        folder: of the evaluation.
        metrics: its ``metrics.json``.

    Raises:
        DataError: its ``metrics.json`` or ``confusion.csv`` is broken.
    """
    try:
        numbers = metrics.get("ema", metrics["model"])  # 0.1.0 has those of the average beside the others
        accuracies: dict[str, float | None] = numbers["per_class"]
        row = [f"{numbers[key]:.2f}" for key in ("top1", "top5")]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder.metrics} is broken ({error!r}); evaluate the run again") from error
    parts = [Part("Accuracy, %", [Table(["top-1", "top-5"], [row])])]
    missing: list[str] = []
    if folder.confusion.is_file():
        parts += _confusion(folder, list(accuracies))
    else:
        missing.append(
            f"{folder.confusion} does not exist, so the confusions are not shown; evaluate the run again"
        )
    parts.append(_worst_classes(accuracies))
    sheets = {"worst.png": "the most wrong", "predictions.png": "from all over the validation images"}
    images = [
        Picture(figures.embedded_file(folder.pictures / name), text)
        for name, text in sheets.items()
        if (folder.pictures / name).is_file()
    ]
    if images:
        parts.append(Part("Pictures", images=images))
    return parts, missing


def _confusion(folder: EvaluationFolder, names: list[str]) -> list[Part]:
    """The matrix, and the most frequent confusions."""
    index = {name: i for i, name in enumerate(names)}
    pairs: list[tuple[int, str, str]] = []
    matrix = np.zeros((len(names), len(names)), dtype=int)
    try:
        with folder.confusion.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                count = int(row["images"])
                matrix[index[row["class"]], index[row["predicted"]]] += count
                if row["class"] != row["predicted"]:
                    pairs.append((count, row["class"], row["predicted"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder.confusion} is broken ({error!r}); evaluate the run again") from error
    image, hidden = figures.confusion(matrix, names)
    text = f"The {hidden} least confused classes are left out." if hidden else ""
    most = sorted(pairs, key=lambda pair: (-pair[0], *pair[1:]))[:WORST]
    rows = [[a, b, f"{count:,}"] for count, a, b in most]
    table = Table(["class", "taken for", "images"], rows, ["taken for"])
    return [
        Part("Confusion", text=text, images=[Picture(image, "confusion matrix")]),
        Part("Most frequent confusions", [table]),
    ]


def _worst_classes(accuracies: dict[str, float | None]) -> Part:
    known = sorted((value, name) for name, value in accuracies.items() if value is not None)[:WORST]
    rows = [[name, f"{value:.1f}"] for value, name in known]
    return Part("Worst classes", [Table(["class", "top-1 %"], rows)])
