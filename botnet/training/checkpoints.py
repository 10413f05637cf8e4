"""When last.ckpt and best.ckpt are written, resuming, and clean stops."""

import signal
import threading
import time
from enum import IntEnum
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from botnet.arguments import Duration, checked
from botnet.training.checkpoint_file import copy_file
from botnet.training.checkpoint_io import AtomicCheckpointIO
from botnet.training.distributed import Greatest, greatest
from botnet.training.run_end import run_ends, step_is_complete, validates_next
from botnet.training.run_folder import PREVIOUS, RunFolder


class Action(IntEnum):
    """What follows an optimiser step; where devices differ, the greatest counts."""

    CONTINUE = 0
    SAVE = 1
    SAVE_AND_STOP = 2


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt``: periodically, before and at an epoch's end, at the run's end, and on SIGTERM.

    Always between two optimiser steps, so that no half-collected gradient is lost. The one before the last
    step of an epoch is there for a run that is killed in the validation that follows: it resumes with one
    step and the complete validation.

    SIGTERM, with which schedulers announce that a machine will be taken away, ends the run on all devices
    after the current step (on several devices perhaps after the next), or in a validation after the current
    batch.

    The one before stays beside it as ``previous.ckpt``, for a run whose ``last.ckpt`` the disk has damaged.

    Args:
        path: the file.
        minutes: between two checkpoints within an epoch.

    Raises:
        ConfigError: negative minutes.
    """

    @checked
    def __init__(self, path: Path, minutes: Duration = 10.0) -> None:
        self.path, self.minutes = Path(path), minutes
        self.saved_at = 0.0
        self.saved_step = -1
        self.terminated = False  # SIGTERM was received
        self.stop_requested = False
        self.wish: Greatest | None = None  # of all devices, while they compute a step
        self.shared_batches = 0  # of a validation that all devices have
        self.logs_saved = True
        self.validation_due = False  # after the step of the checkpoint

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove what a killed run left half-written."""
        if stage == "fit" and trainer.is_global_zero:
            RunFolder(Path(trainer.default_root_dir)).remove_partial_files()

    def state_dict(self) -> dict[str, Any]:
        """Whether a validation follows the step of this checkpoint."""
        return {"validation_due": self.validation_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.validation_due = state_dict["validation_due"]

    # ---- resuming

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Correct what Lightning's loops would make of the checkpoint."""
        self.saved_at, self.stop_requested = time.monotonic(), False
        if self.validation_due:
            self._repeat_validation(trainer)
        self._complete_epoch(trainer)
        self._listen()

    def _repeat_validation(self, trainer: L.Trainer) -> None:
        """Lightning regards a validation after the checkpoint's step as done, unless it had begun."""
        loop = trainer.fit_loop.epoch_loop
        loop.val_loop.batch_progress.reset_on_run()
        loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
        loop._batches_that_stepped -= 1  # it is counted again after the validation
        self.validation_due = False

    @staticmethod
    def _complete_epoch(trainer: L.Trainer) -> None:
        """With max_steps, Lightning would take the epoch after a checkpoint for its own, and skip it."""
        loop = trainer.fit_loop
        epochs = loop.epoch_progress
        if loop.restarting and epochs.current.processed == epochs.current.ready:  # type: ignore[attr-defined]
            for progress in (epochs.total, epochs.current):
                progress.completed = progress.processed  # type: ignore[attr-defined]
            for part in (loop, loop.epoch_loop, loop.epoch_loop.val_loop):
                part.on_iteration_done()

    def _listen(self) -> None:
        # Lightning's own handler would not wait for the end of the step, and would let a validation continue.
        # The earlier handler is restored after the run.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: Any) -> None:
        self.terminated = True

    # ---- in training

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Save the logs of the step before the checkpoint, which came after it."""
        if not self.logs_saved:
            self._save_logs(trainer)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Start to ask all devices; the gradients are computed in the meantime."""
        if trainer.world_size > 1:
            self.wish = Greatest(torch.full((), self._wish(), dtype=torch.int32, device=loss.device))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, or save and stop, after an optimiser step."""
        complete = step_is_complete(trainer)
        self._hold_stop(trainer, until=complete)
        if not complete:
            return
        action = self._action(trainer)
        # After the last step of an epoch Lightning could not resume before the validation.
        if action != Action.CONTINUE and not trainer.is_last_batch:
            self.validation_due = validates_next(trainer)
            self._save(trainer)
        if action == Action.SAVE_AND_STOP:
            self._stop(trainer)

    def _action(self, trainer: L.Trainer) -> Action:
        """What all devices do now: save before the last step of an epoch, at the run's end, or as wished."""
        passes = trainer.accumulate_grad_batches
        before_last_step = (trainer.num_training_batches - 1) // passes * passes
        due = trainer.fit_loop.batch_idx + 1 == before_last_step or run_ends(trainer)
        wish = self._wish() if self.wish is None else self.wish.read()
        return Action(max(wish, Action.SAVE if due else Action.CONTINUE))

    def _wish(self) -> Action:
        """What this device wants: signals and clocks differ between devices."""
        if self.terminated:
            return Action.SAVE_AND_STOP
        return Action.SAVE if time.monotonic() - self.saved_at >= 60 * self.minutes else Action.CONTINUE

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save at the end of an epoch."""
        # Where the run ends within an epoch, a checkpoint from here would claim that the epoch is over.
        if trainer.is_last_batch:
            self._save(trainer)

    # ---- in validation

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mark the validation as begun."""
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
        """Stop after SIGTERM."""
        if batch_idx < self.shared_batches:
            self._stop_if_terminated(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop after SIGTERM."""
        self._stop_if_terminated(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if early stopping ends the run here, in the middle of an epoch."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.is_last_batch:
            return
        self._hold_stop(trainer, until=step_is_complete(trainer))
        if run_ends(trainer) and self.saved_step != trainer.global_step:
            self._save(trainer)

    # ---- steps of these

    def _hold_stop(self, trainer: L.Trainer, until: bool) -> None:
        """Delay a requested stop to the end of the optimiser step."""
        self.stop_requested |= trainer.should_stop
        trainer.should_stop = self.stop_requested and until

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        # Another plugin, of a Trainer that the command did not make, keeps no checkpoint before the last.
        ours = isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
        keep = {"previous": self.path.with_name(PREVIOUS)} if ours else None
        trainer.save_checkpoint(self.path, weights_only=False, storage_options=keep)
        self._save_logs(trainer)
        self.saved_at, self.saved_step, self.logs_saved = time.monotonic(), trainer.global_step, False

    def _save_logs(self, trainer: L.Trainer) -> None:
        """A run that resumes from a checkpoint does not log again what was logged before it."""
        for logger in trainer.loggers:
            logger.save()
        self.logs_saved = True

    def _stop_if_terminated(self, trainer: L.Trainer) -> None:
        if greatest(trainer, int(self.terminated)):
            self._stop(trainer)

    def _stop(self, trainer: L.Trainer) -> None:
        if trainer.state.fn == "validate":
            raise SIGTERMException("the validation was stopped by SIGTERM; nothing was written")
        kept = f"resume from {self.path} with --ckpt_path last" if self.path.exists() else "no checkpoint yet"
        raise SIGTERMException(f"stopped by SIGTERM at step {trainer.global_step}; {kept}")


class BestCheckpoint(ModelCheckpoint):
    """Writes ``best.ckpt``, that of the validation with the greatest value of the module's ``monitor``.

    Args:
        folder: where it is written.
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

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.dirpath or "", "best.ckpt")

    def consider(self, trainer: L.Trainer, path: Path) -> None:
        """Copy a checkpoint that was validated after the training, if it is the best."""
        score, before = trainer.callback_metrics[self.monitor or ""], self.best_model_score
        if trainer.is_global_zero and (before is None or float(score) > float(before)):
            copy_file(path, self.path)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score of this run, whose folder may have been moved; not that of another run."""
        score = state_dict["best_model_score"]
        if score is not None and self.path.is_file():
            path = str(self.path)
            here = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path}
            super().load_state_dict(state_dict | here | {"best_k_models": {path: score}})
