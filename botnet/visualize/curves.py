"""Training curves."""

import csv
from collections.abc import Sequence
from pathlib import Path

# They repeat other columns, for the choice of the best checkpoint.
REPEATED = ("val/AP", "val/top1", "val/top5")

Series = dict[str, dict[float, float]]  # value by step, by name


def plot_curves(tables: Sequence[Path], path: Path, metric_max: float = 1.0) -> None:
    """Plot losses and validation metrics against the step, from the CSV logs of a run.

    Args:
        tables: ``metrics.csv`` files, several after resumptions. Steps after the checkpoint of an interrupted
            run are in two of them and are drawn once.
        path: PNG to write.
        metric_max: greatest value of a validation metric.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (losses, metrics) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, points in _read_series(tables).items():
        axis = losses if name.startswith("train/") or name.endswith("loss") else metrics
        steps, values = zip(*sorted(points.items()), strict=True)
        style = {"marker": "o", "markersize": 3} if name.startswith("val/") else {"linewidth": 1}
        axis.plot(steps, values, label=name.removeprefix("train/"), **style)
    losses.set(xlabel="step", title="losses", yscale="log")
    metrics.set(xlabel="step", title="validation", ylim=(0, metric_max))
    for axis in (losses, metrics):
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _read_series(tables: Sequence[Path]) -> Series:
    """The columns to plot; the same step in a later table replaces that of an earlier one."""
    series: Series = {}
    for table in tables:
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if not name.startswith(("train/", "val/")) or name in REPEATED or not value:
                        continue
                    if float(value) != -1:  # COCO's AP where there are no objects
                        series.setdefault(name, {})[float(row["step"])] = float(value)
    return series
