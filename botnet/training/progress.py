"""Progress on a terminal, and for logs and pipes; losses are read from the device rarely."""

import logging
import time
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback, RichProgressBar

logger = logging.getLogger(__name__)


def losses(trainer: L.Trainer) -> dict[str, float]:
    """The losses of the last step, read from the device, for which the host waits."""
    return {
        name.removeprefix("train/"): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("train/")
    }


class BarProgress(RichProgressBar):
    """Lightning's bar for a terminal; the losses beside it are those of at most a second ago.

    Metrics that are logged with ``prog_bar`` are read from the device in every step, so the losses are not.

    Args:
        seconds: between two looks at the losses.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.last = float("-inf")
        self.shown: dict[str, Any] = {}

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What is shown beside the bar."""
        if time.monotonic() - self.last >= self.seconds:
            self.last = time.monotonic()
            self.shown = super().get_metrics(trainer, pl_module) | losses(trainer)
        return self.shown


class LineProgress(Callback):
    """Logs a line of progress from time to time, for logs and pipes, where a live bar shows nothing.

    Args:
        seconds: between two lines.
    """

    def __init__(self, seconds: float = 20.0) -> None:
        self.seconds = seconds
        self.started = self.last = 0.0
        self.first_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.started = self.last = time.monotonic()
        self.first_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Log step, losses and the time left, if a line is due."""
        now = time.monotonic()
        if not trainer.is_global_zero or now - self.last < self.seconds:
            return
        self.last = now
        step, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        left = (now - self.started) / max(step - self.first_step, 1) * (total - step)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in losses(trainer).items())
        logger.info("step %d/%d  %s  %.1f min left", step, total, shown, left / 60)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log how many batches are validated."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            logger.info("validating %d batches", sum(trainer.num_val_batches))
