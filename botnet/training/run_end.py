"""Where a run ends, and the validation there."""

from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback


def step_is_complete(trainer: L.Trainer) -> bool:
    """Whether the batch that was just trained on completes an optimiser step."""
    done = trainer.fit_loop.batch_idx + 1
    return trainer.is_last_batch or done % trainer.accumulate_grad_batches == 0


def run_ends(trainer: L.Trainer) -> bool:
    """Whether the batch that was just trained on is the run's last one.

    True at ``max_steps``, at the end of epoch ``max_epochs``, and at the end of the optimiser step in which
    ``max_time`` or early stopping requested a stop. A stop at the end of an epoch cannot be foreseen.
    """
    loop = trainer.fit_loop
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return True
    if trainer.should_stop and loop._can_stop_early and step_is_complete(trainer):
        return True
    return trainer.is_last_batch and loop.epoch_progress.current.ready == trainer.max_epochs


def validates_next(trainer: L.Trainer) -> bool:
    """Whether a validation is scheduled after this batch, apart from the one at the end of the run."""
    loop = trainer.fit_loop
    scheduled = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]
    return scheduled and not run_ends(trainer)


class FinalValidation(Callback):
    """Validates after the run's last step, whatever the interval of the validations is."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Schedule a validation now if the run ends."""
        if run_ends(trainer):
            trainer.check_val_every_n_epoch = 1
            trainer._val_check_time_interval = None  # type: ignore[attr-defined]
            trainer.val_check_batch = batch_idx + 1
