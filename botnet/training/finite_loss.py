"""Stops a run whose loss is not finite."""

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from botnet.errors import TrainingError
from botnet.training.distributed import Greatest
from botnet.training.loader import Loader
from botnet.training.progress import losses


class FiniteLoss(Callback):
    """Stops a run whose loss is NaN or infinite, before it reaches the weights."""

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        self.broken: Greatest | None = None  # on any device

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Start to check the loss of all devices; the gradients are computed in the meantime."""
        self.loss = loss.detach()
        self.broken = Greatest((~torch.isfinite(self.loss)).any().int())

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop all devices, since none may wait for another's gradient; the optimiser has not stepped yet.

        Raises:
            TrainingError: the loss is not finite on one of them.
        """
        if self.loss is None or self.broken is None or not self.broken.read():
            return
        loss = self.loss
        batch, loader = trainer.fit_loop.batch_idx, trainer.train_dataloader
        where = f"step {trainer.global_step} (epoch {trainer.current_epoch}, batch {batch})"
        if bool(torch.isfinite(loss).all()):
            raise TrainingError(f"{where}: the loss of another device is not finite; see its message")
        # What is checked has been scaled; what was logged has not.
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        what = "the loss" if scaler is None else f"the loss, scaled by {scaler.get_scale():g} for fp16,"
        parts = ", ".join(f"{name} {value:g}" for name, value in losses(trainer).items())
        samples = f" for {', '.join(loader.names(batch))}" if isinstance(loader, Loader) else ""
        raise TrainingError(
            f"{where}: {what} is not finite ({parts}){samples}; the weights have not been changed. "
            "Look at these samples, or resume from the last checkpoint with a lower learning rate"
        )
