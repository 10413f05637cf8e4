"""Reading the last evaluation of a run, in the paper's units."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botnet.errors import DataError
from botnet.training.run_folder import RunFolder


@dataclass(frozen=True)
class Measured:
    """The last evaluation of a run.

    Args:
        folder: of the run.
        row: id of the row that it reproduces, if any.
        epoch, epochs: the evaluation was after `epoch` of `epochs`; 0 epochs for a run limited by steps.
        numbers: in percent, named as in ``paper.yaml``: box, mask, box50, ..., top1, top5; None where there
            was nothing to measure.
    """

    folder: Path
    row: str | None
    epoch: int
    epochs: int
    numbers: dict[str, float | None]

    @property
    def faster_rcnn(self) -> bool:
        """Whether the run is a detector without masks; the paper reports Mask R-CNN."""
        return "box" in self.numbers and "mask" not in self.numbers


def read_run(folder: Path) -> Measured | None:
    """The last evaluation of a run; None if there was none yet.

    Raises:
        DataError: the folder holds no run, or its files are broken.
    """
    run = RunFolder(folder)
    config, metrics = run.read_config(), run.read_metrics()
    if metrics is None:
        return None
    try:
        epochs = int(config["trainer"]["max_epochs"] or 0)
        row = config.get("row")
        if not isinstance(row, str | None):
            raise TypeError(f"row: {row!r} is not the name of a row")
        return Measured(folder, row, int(metrics["epoch"]), epochs, _numbers(metrics))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{folder}: its config.yaml or metrics.json is broken ({reason})") from error


def _numbers(metrics: dict[str, Any]) -> dict[str, float | None]:
    """The numbers of ``metrics.json`` in percent, named as in ``paper.yaml``."""
    found: dict[str, float | None] = {}
    for kind in ("box", "mask"):
        for name, suffix in (("AP", ""), ("AP50", "50"), ("AP75", "75")):
            if kind in metrics:
                found[kind + suffix] = _percent(metrics[kind][name], 100)
    for name in ("top1", "top5"):
        if name in metrics:
            found[name] = _percent(metrics[name], 1)
    return found


def _percent(value: Any, scale: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    # COCO's AP is -1 where there are no objects.
    return scale * value if math.isfinite(value) and value >= 0 else None


def format_number(number: float | None) -> str:
    """A number for a table, or a dash for None."""
    return "-" if number is None else f"{number:.1f}"
