"""The moving average of the weights, which is what validation and checkpoints hold."""

from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

OLD_PREFIX = "ema.module."  # of the average in a checkpoint of 0.1.0, which held both


class WeightAverage(WeightAveraging):
    """Lightning's exponential moving average, with a decay that rises from 0 to the module's ``ema_decay``.

    While it is young it is the plain mean of the weights after each optimiser step, so that the random
    weights of the start never count; from 1 / (1 - decay) steps on, its decay is the one given. Running
    statistics of norms are averaged, too; whole numbers are those of the last step.

    A checkpoint holds the average as its ``state_dict``, and the weights that are trained on beside it.

    Args:
        device: of the module; Lightning would ask it before the module is moved there.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device, multi_avg_fn=self._update)
        self.decay = 0.0
        self.shown = False  # the module has the average, the average model the weights

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Copy the module."""
        super().setup(trainer, pl_module, stage)
        if (model := self._average_model) is not None:
            # Read by the host in each step, which need not wait for a device then.
            model.n_averaged = model.n_averaged.cpu()

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Take the decay, which follows the size of the batch."""
        self.decay = pl_module.ema_decay

    @torch.no_grad()
    def _update(self, average: Any, weights: Any, _: Tensor | int) -> None:
        """Add the weights after one more step, all of one type, to the average."""
        # The average is a copy from before the module was brought to another precision.
        weights = [weight.to(old.dtype) for old, weight in zip(average, weights, strict=True)]
        assert self._average_model is not None
        if not average[0].is_floating_point():
            torch._foreach_copy_(average, weights)
            return
        count = int(self._average_model.n_averaged)
        torch._foreach_lerp_(average, weights, max(1 - self.decay, 1 / (count + 1)))

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the module the average, once there is one."""
        if self._average_model is not None and self._average_model.n_averaged > 0:
            self._swap_models(pl_module)
            self.shown = True

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the module its weights back."""
        if self.shown:
            self._swap_models(pl_module)
            self.shown = False

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the average in the module, if a step was taken."""
        if self._average_model is not None and self._average_model.n_averaged > 0:
            super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the average in the place of the weights, and these beside it."""
        if self._average_model is None or not self._average_model.n_averaged:
            return
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self.shown:  # Lightning saves on SLURM's signal wherever it comes, in a validation, too
            raw, average = checkpoint["state_dict"], checkpoint["current_model_state"]
            checkpoint |= {"state_dict": average, "current_model_state": raw}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore both; a validation needs the average alone, which the module has by now."""
        if self._average_model is not None and "averaging_state" in checkpoint:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def choose_weights(checkpoint: dict[str, Any], resumed: bool, averaging: bool) -> None:
    """Choose what a checkpoint gives to a module, before Lightning loads it.

    Args:
        checkpoint: of this version or of 0.1.0; changed in place.
        resumed: the training goes on; otherwise the average is what counts.
        averaging: :class:`WeightAverage` restores both kinds of weights itself.
    """
    state = checkpoint["state_dict"]
    if any(name.startswith(OLD_PREFIX) for name in state):
        raw = {name: tensor for name, tensor in state.items() if not name.startswith(OLD_PREFIX)}
        checkpoint["state_dict"] = {name: state.get(_old_name(name), raw[name]) for name in raw}
        checkpoint["current_model_state"] = raw
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(checkpoint["global_step"])}
    if resumed and not averaging and "current_model_state" in checkpoint:
        checkpoint["state_dict"] = checkpoint["current_model_state"]


def _old_name(name: str) -> str:
    return OLD_PREFIX + name.removeprefix("model.")
