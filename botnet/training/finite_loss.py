"""Stops a run whose loss is not finite."""

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from botnet.errors import DataError
from botnet.training.loader import Loader


def greatest(trainer: L.Trainer, value: int) -> int:
    """Of all devices' values."""
    if trainer.world_size == 1:
        return value
    everyone = torch.tensor(value, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(everyone, reduce_op="max"))


class FiniteLoss(Callback):
    """Stops a run whose loss is not a number or infinite, before that reaches the weights."""

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        broken = not bool(torch.isfinite(loss.detach()).all())
        # Every device hears of it: none may wait for another's gradient.
        if not greatest(trainer, int(broken)):
            return
        batch, loader = trainer.fit_loop.batch_idx, trainer.train_dataloader
        where = f"step {trainer.global_step} (epoch {trainer.current_epoch}, batch {batch})"
        if not broken:
            raise DataError(f"{where}: the loss of another device is not finite; its message says more")
        parts = ", ".join(
            f"{name.removeprefix('train/')} {float(value):g}"
            for name, value in trainer.callback_metrics.items()
            if name.startswith("train/")
        )
        samples = f" for {', '.join(loader.names(batch))}" if isinstance(loader, Loader) else ""
        raise DataError(
            f"{where}: the loss is {loss.item():g} ({parts}){samples}; it has not touched the weights. Look "
            "at these samples, or go on from the last checkpoint with a lower learning rate"
        )
