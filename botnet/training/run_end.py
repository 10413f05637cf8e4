"""Where a run ends, and the validation there."""

import logging
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback, EarlyStopping

from botnet.arguments import Count, checked

logger = logging.getLogger(__name__)


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


class Patience(EarlyStopping):
    """Ends a run after so many validations in a row that were no better than the best one.

    Args:
        validations: of the recipe; a checkpoint's own number does not count.
        monitor: name of the metric; the greatest value is the best.

    Raises:
        ConfigError: no validations.
    """

    @checked
    def __init__(self, validations: Count, monitor: str) -> None:
        super().__init__(
            monitor, patience=validations, mode="max", check_finite=False, check_on_train_epoch_end=False
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End a run that had been ended when it was killed."""
        self._stop_if_exhausted(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the metric with the best one."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_skip_check(trainer):
            self._stop_if_exhausted(trainer)

    def _stop_if_exhausted(self, trainer: L.Trainer) -> None:
        if self.wait_count < self.patience:
            return
        trainer.should_stop = True
        if trainer.is_global_zero:
            logger.info(
                "%s was no better in the last %d validations than before, %.4g: the run ends",
                self.monitor,
                self.wait_count,
                float(self.best_score),
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value and the validations since."""
        super().load_state_dict(state_dict | {"patience": self.patience})
