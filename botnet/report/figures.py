"""The plots of a report, as PNG images inside of the page."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from botnet.report.scores import IOU, Scores
from botnet.visualize.embed import embedded

MOST_CLASSES = 20  # of a plot in which each class has a line, a bar or a row
MOST_CELLS = 12  # classes whose matrix has room for numbers
TIDE = {
    "Cls": "wrong class",
    "Loc": "badly placed",
    "Both": "wrong class and badly placed",
    "Dupe": "found twice",
    "Bkg": "nothing there",
    "Miss": "missed",
}


def embedded_file(path: Path) -> str:
    """A PNG file."""
    return embedded(path.read_bytes(), "png")


def _embedded_figure(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return embedded(file.getvalue(), "png")


def _axes(width: float = 4.9, height: float = 3.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def precision_recall(scores: Scores) -> str:
    """Precision against recall: the mean over classes, and the classes if they are few."""
    figure, axes = _axes()
    curves = [
        (c.name, curve) for c, curve in zip(scores.classes, scores.precisions, strict=True) if c.objects
    ]
    if 1 < len(curves) <= MOST_CLASSES:
        for name, curve in curves:
            axes.plot(scores.recalls, curve, linewidth=0.9, alpha=0.7, label=_plain(name))
    if curves:
        mean = np.mean([curve for _, curve in curves], axis=0)
        axes.plot(scores.recalls, mean, color="black", linewidth=2, label="mean")
        axes.legend(fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(f"precision and recall, IoU {IOU}", fontsize=10)
    axes.grid(alpha=0.3)
    return _embedded_figure(figure)


def thresholds(scores: Scores) -> str:
    """Precision, recall and F1 of all classes together against the lowest score that is kept."""
    figure, axes = _axes()
    at = [operation.score for operation in scores.operations]
    for name in ("precision", "recall", "f1"):
        values = [getattr(operation, name) for operation in scores.operations]
        axes.plot(
            at, values, label=name.upper() if name == "f1" else name, linewidth=2 if name == "f1" else 1
        )
    if scores.best:
        axes.axvline(scores.best.score, color="black", linestyle=":", linewidth=1)
        axes.legend(fontsize=8)
    axes.set(xlabel="lowest score that is kept", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(f"all classes together, IoU {IOU}", fontsize=10)
    axes.grid(alpha=0.3)
    return _embedded_figure(figure)


def errors(scores: Scores) -> str:
    """What AP50 would gain without each type of error."""
    figure, axes = _axes(4.9, 2.6)
    names = list(TIDE)[::-1]
    bars = axes.barh([TIDE[name] for name in names], [scores.tide[name] for name in names], color="#4477aa")
    axes.bar_label(bars, fmt="%.3f", fontsize=8, padding=2)
    axes.margins(x=0.25)  # room for the number of the longest bar
    axes.set_title("AP50 lost to each type of error (TIDE)", fontsize=10)
    return _embedded_figure(figure)


def confusion(matrix: np.ndarray, names: Sequence[str]) -> tuple[str, int]:
    """A matrix of true against predicted classes, each row in parts of its sum.

    Args:
        matrix: counts, the true class in the row.
        names: of the rows and columns.

    Returns:
        The image, and how many classes are left out: of many classes only the most confused are shown.
    """
    wrong = matrix - np.diag(np.diag(matrix))
    most = np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:MOST_CLASSES]
    shown = np.sort(most)
    matrix, names = matrix[np.ix_(shown, shown)], [_plain(names[i]) for i in shown]
    part = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = 1.8 + 0.34 * len(names)
    figure, axes = _axes(side + 0.8, side)
    axes.imshow(part, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    for (row, column), count in np.ndenumerate(matrix if len(names) <= MOST_CELLS else np.empty((0, 0))):
        if count:
            colour = "white" if part[row, column] > 0.6 else "black"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)
    return _embedded_figure(figure), len(wrong) - len(shown)


def _plain(name: str) -> str:
    """A name of a class that matplotlib does not take for a formula or hide from a legend."""
    return name.replace("$", r"\$").lstrip("_") or "_"
