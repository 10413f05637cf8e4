"""Training curves."""

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

# They repeat other columns; the last two are of 0.1.0.
REPEATED = ("val/AP", "val/model_loss", "val/ema_loss")

Series = dict[str, dict[float, float]]  # value by step, by name


def plot_curves(tables: Sequence[Path], path: Path, metric_max: float = 1.0) -> None:
    """Plot losses and validation metrics against the step, from the CSV logs of a run.

    A validation loss has the colour of its training loss. The legends give the last value of each curve. The
    metrics of a single validation are drawn as bars.

    Args:
        tables: ``metrics.csv`` files, several after resumptions. Steps after the checkpoint of an interrupted
            run are in two of them and are drawn once.
        path: PNG to write.
        metric_max: greatest value of a validation metric.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    series = {name: sorted(points.items()) for name, points in _read_series(tables).items()}
    losses = {name: points for name, points in series.items() if _is_loss(name, series)}
    metrics = {name: points for name, points in series.items() if name not in losses}
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    colours: dict[str, str] = {}
    for name, points in losses.items():
        colour = colours.setdefault(name.partition("/")[2], f"C{len(colours) % 10}")
        style = {"linewidth": 1} if name.startswith("train/") else {"linestyle": "--", "marker": "o"}
        left.plot(*zip(*points, strict=True), color=colour, markersize=4, label=_label(name, points), **style)
    left.set(xlabel="step", title="losses", yscale="log")
    steps = {step for points in metrics.values() for step, _ in points}
    if len(steps) == 1:
        bars = right.barh(list(metrics), [points[0][1] for points in metrics.values()], color="C0")
        right.bar_label(bars, fmt="%.3f", padding=3)
        # Room for the number beside the longest bar.
        right.set(title=f"validation at step {steps.pop():.0f}", xlim=(0, 1.15 * metric_max))
        right.invert_yaxis()
    else:
        for name, points in metrics.items():
            right.plot(*zip(*points, strict=True), marker="o", markersize=3, label=_label(name, points))
        right.set(xlabel="step", title="validation", ylim=(0, metric_max))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))  # beside the curves
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _is_loss(name: str, series: Collection[str]) -> bool:
    part = name.partition("/")[2]
    return name.startswith("train/") or f"train/{part}" in series


def _label(name: str, points: Sequence[tuple[float, float]]) -> str:
    return f"{name}  {points[-1][1]:.3f}"


def _read_series(tables: Sequence[Path]) -> Series:
    """The columns to plot; the same step in a later table replaces that of an earlier one."""
    series: Series = {}
    for table in tables:
        with table.open(newline="") as file:
            # A run that was killed may have left its last row half written.
            for row in csv.DictReader(line for line in file if line.endswith("\n")):
                for name, value in row.items():
                    if not name.startswith(("train/", "val/")) or name in REPEATED or not value:
                        continue
                    if float(value) != -1:  # COCO's AP where there are no objects
                        series.setdefault(name, {})[float(row["step"])] = float(value)
    return series
