"""Progress for logs and pipes."""

import logging
import time
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback

logger = logging.getLogger(__name__)


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
        losses = "  ".join(
            f"{name.removeprefix('train/')} {float(value):.3f}"
            for name, value in trainer.progress_bar_metrics.items()
            if name.startswith("train/")
        )
        logger.info("step %d/%d  %s  %.1f min left", step, total, losses, left / 60)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log how many batches are validated."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            logger.info("validating %d batches", sum(trainer.num_val_batches))
