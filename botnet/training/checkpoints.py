"""When last.ckpt and best.ckpt are written, and clean stops."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.utilities.exceptions import SIGTERMException

from botnet.errors import DataError
from botnet.training.checkpoint_file import PARTIAL
from botnet.training.finite_loss import greatest
from botnet.training.run_folder import RunFolder


def run_ends(trainer: L.Trainer) -> bool:
    """Whether the batch that was just trained on is the run's last one.

    True at ``max_steps``, at the end of epoch ``max_epochs``, and at the end of the optimiser step in which a
    stop was asked for, as ``max_time`` and early stopping do. Not foreseen: a stop at the end of an epoch.
    """
    loop = trainer.fit_loop
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return True
    if trainer.should_stop and loop._can_stop_early and _between_steps(trainer):
        return True
    return trainer.is_last_batch and loop.epoch_progress.current.ready == trainer.max_epochs


def _between_steps(trainer: L.Trainer) -> bool:
    """Whether no gradient is half collected after this batch."""
    done = trainer.fit_loop.batch_idx + 1
    return trainer.is_last_batch or done % trainer.accumulate_grad_batches == 0


def _validates_next(trainer: L.Trainer) -> bool:
    """Whether a validation is scheduled after this batch, apart from the one at the end of the run."""
    loop = trainer.fit_loop
    scheduled = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]
    return scheduled and not run_ends(trainer)


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``: from time to time, before and at an epoch's end, at the run's end, and on SIGTERM.

    Always between two optimiser steps, so that no half-collected gradient is lost. The one before the last
    step of an epoch is there for a run that is killed in the validation that follows: it goes on with one
    step and the whole validation.

    SIGTERM, with which schedulers announce that a machine will be taken away, ends the run on all devices
    after the step at hand, or in a validation after the batch at hand.

    Args:
        path: the file.
        minutes: between two within an epoch.
    """

    def __init__(self, path: Path, minutes: float = 10.0) -> None:
        if minutes < 0:
            raise DataError(
                f"--save_minutes {minutes:g}: give the minutes between two checkpoints, 0 or more"
            )
        self.path, self.minutes = Path(path), minutes
        self.saved_at = 0.0
        self.saved_step = -1
        self.terminated = False
        self.stop_wanted = False
        self.shared_batches = 0
        self.logs_saved = True
        self.validation_due = False  # after the step of the checkpoint

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            RunFolder(Path(trainer.default_root_dir)).remove_partial_files()

    def state_dict(self) -> dict[str, Any]:
        return {"validation_due": self.validation_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validation_due = state_dict["validation_due"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_at, self.stop_wanted = time.monotonic(), False
        loop = trainer.fit_loop
        if self.validation_due:
            # Lightning takes a validation that followed the checkpoint's step for done, unless it had begun.
            validation = loop.epoch_loop.val_loop
            validation.batch_progress.reset_on_run()
            validation._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
            loop.epoch_loop._batches_that_stepped -= 1  # it is counted again after the validation
            self.validation_due = False
        epochs = loop.epoch_progress
        if loop.restarting and epochs.current.processed == epochs.current.ready:  # type: ignore[attr-defined]
            # The checkpoint is from the end of an epoch. With max_steps, Lightning would take the next epoch
            # for this one, and skip it.
            for progress in (epochs.total, epochs.current):
                progress.completed = progress.processed  # type: ignore[attr-defined]
            for part in (loop, loop.epoch_loop, loop.epoch_loop.val_loop):
                part.on_iteration_done()
        self._listen()

    def _listen(self) -> None:
        # Lightning's own handler would not wait for the end of the step, and would let a validation go on.
        # What there was before both is put back after the run.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: Any) -> None:
        self.terminated = True

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if not self.logs_saved:  # those of the step before the checkpoint came after it
            self._save_logs(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done, total, passes = batch_idx + 1, trainer.num_training_batches, trainer.accumulate_grad_batches
        between_steps = done >= total or done % passes == 0
        self._hold_stop(trainer, until=between_steps)
        if not between_steps:
            return
        due = time.monotonic() - self.saved_at >= 60 * self.minutes or done == (total - 1) // passes * passes
        due |= run_ends(trainer)
        wish = greatest(trainer, 2 if self.terminated else int(due))
        # After the last step of an epoch Lightning could not resume before the validation.
        if wish and done < total:
            self.validation_due = _validates_next(trainer)
            self._save(trainer)
        if wish == 2:
            self._stop(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._listen()
        if self.validation_due and not trainer.sanity_checking:
            self.validation_due, self.saved_step = False, -1  # the checkpoint of this step is outdated
        # Some devices may have a batch more than others: they agree only in those that all have.
        self.shared_batches = -greatest(trainer, -int(sum(trainer.num_val_batches)))

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx < self.shared_batches and greatest(trainer, int(self.terminated)):
            self._stop(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if greatest(trainer, int(self.terminated)):
            self._stop(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.is_last_batch:
            return
        # Early stopping may end the run here, in the middle of an epoch.
        self._hold_stop(trainer, until=_between_steps(trainer))
        if run_ends(trainer) and self.saved_step != trainer.global_step:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Where the run ends within an epoch, a checkpoint from here would claim that the epoch is over.
        if trainer.is_last_batch:
            self._save(trainer)

    def _hold_stop(self, trainer: L.Trainer, until: bool) -> None:
        """Let a stop that was asked for wait for the end of the optimiser step."""
        self.stop_wanted |= trainer.should_stop
        trainer.should_stop = self.stop_wanted and until

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(self.path, weights_only=False)
        self._save_logs(trainer)
        self.saved_at, self.saved_step, self.logs_saved = time.monotonic(), trainer.global_step, False

    def _save_logs(self, trainer: L.Trainer) -> None:
        """What is logged up to a checkpoint is not logged again by the run that goes on from it."""
        for logger in trainer.loggers:
            logger.save()
        self.logs_saved = True

    def _stop(self, trainer: L.Trainer) -> None:
        if trainer.state.fn == "validate":
            raise SIGTERMException("the validation was stopped by SIGTERM; nothing was written")
        kept = f"go on from {self.path} with --ckpt_path last" if self.path.exists() else "no checkpoint yet"
        raise SIGTERMException(f"stopped by SIGTERM at step {trainer.global_step}; {kept}")


class FinalValidation(Callback):
    """Validates after the run's last step, whatever the interval of the validations is."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if run_ends(trainer):
            trainer.check_val_every_n_epoch = 1
            trainer._val_check_time_interval = None  # type: ignore[attr-defined]
            trainer.val_check_batch = batch_idx + 1


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt``: that of the validation with the greatest value of what the module monitors.

    Args:
        folder: where it is kept.
        monitor: name of the metric.
    """

    def __init__(self, folder: Path, monitor: str) -> None:
        # Not at the end of an epoch: where a run stops within one, the checkpoint would say that it is over.
        super().__init__(
            folder,
            "best",
            monitor=monitor,
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    def consider(self, trainer: L.Trainer, path: Path) -> None:
        """Copy a checkpoint that was validated after the training, if it is the best."""
        score, before = trainer.callback_metrics[self.monitor or ""], self.best_model_score
        if trainer.is_global_zero and (before is None or float(score) > float(before)):
            best = Path(self.dirpath or "", "best.ckpt")
            best.parent.mkdir(parents=True, exist_ok=True)
            partial = best.with_name(best.name + PARTIAL)
            shutil.copyfile(path, partial)
            os.replace(partial, best)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A run's folder may have been moved; what is best in another one does not count here.
        path = str(Path(self.dirpath or "", "best.ckpt"))
        score = state_dict["best_model_score"]
        if score is not None and Path(path).is_file():
            here = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path}
            super().load_state_dict(state_dict | here | {"best_k_models": {path: score}})
