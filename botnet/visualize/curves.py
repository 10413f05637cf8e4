"""How a training went, as a picture."""

import csv
from collections.abc import Sequence
from pathlib import Path


def plot_curves(tables: Sequence[Path], path: Path, top: float = 1.0) -> None:
    """Losses and validation metrics against the step, from the CSV logs of a run (several after resumptions).

    Steps that a killed run had logged after its last checkpoint are in two tables; they are drawn once.

    Args:
        tables: ``metrics.csv`` files.
        path: picture to write.
        top: greatest value of a validation metric.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    series: dict[str, dict[float, float]] = {}
    for table in tables:
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    # These repeat another's values for the choice of the best checkpoint.
                    if (
                        name.startswith(("train/", "val/"))
                        and name not in ("val/AP", "val/top1", "val/top5")
                        and value
                        and float(value) != -1  # COCO's "nothing to measure"
                    ):
                        series.setdefault(name, {})[float(row["step"])] = float(value)
    figure, (losses, metrics) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, points in series.items():
        axis = losses if name.startswith("train/") or name.endswith("loss") else metrics
        steps, values = zip(*sorted(points.items()), strict=True)
        style = {"marker": "o", "markersize": 3} if name.startswith("val/") else {"linewidth": 1}
        axis.plot(steps, values, label=name.removeprefix("train/"), **style)
    losses.set(xlabel="step", title="losses", yscale="log")
    metrics.set(xlabel="step", title="validation", ylim=(0, top))
    for axis in (losses, metrics):
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
