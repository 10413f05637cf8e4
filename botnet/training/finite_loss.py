"""Stops a run whose loss is not finite."""

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from botnet.errors import TrainingError
from botnet.training.distributed import greatest
from botnet.training.loader import Loader


class FiniteLoss(Callback):
    """Stops a run whose loss is NaN or infinite, before it reaches the weights."""

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Check the loss of all devices.

        Raises:
            TrainingError: it is not finite on one of them.
        """
        broken = not bool(torch.isfinite(loss.detach()).all())
        # All devices stop: none may wait for another's gradient.
        if not greatest(trainer, int(broken)):
            return
        batch, loader = trainer.fit_loop.batch_idx, trainer.train_dataloader
        where = f"step {trainer.global_step} (epoch {trainer.current_epoch}, batch {batch})"
        if not broken:
            raise TrainingError(f"{where}: the loss of another device is not finite; see its message")
        parts = ", ".join(
            f"{name.removeprefix('train/')} {float(value):g}"
            for name, value in trainer.callback_metrics.items()
            if name.startswith("train/")
        )
        samples = f" for {', '.join(loader.names(batch))}" if isinstance(loader, Loader) else ""
        raise TrainingError(
            f"{where}: the loss is {loss.item():g} ({parts}){samples}; the weights have not been changed. "
            "Look at these samples, or resume from the last checkpoint with a lower learning rate"
        )
