"""What keeps a run alive: checkpoints that are never half-written, resuming to the bit, clean stops."""

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from botnet.data import Loader, generator, run_seed
from botnet.errors import DataError

PARTIAL = ".partial"  # ends the name of a checkpoint that is being written


def _greatest(trainer: L.Trainer, value: int) -> int:
    """Of all devices' values."""
    if trainer.world_size == 1:
        return value
    everyone = torch.tensor(value, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(everyone, reduce_op="max"))


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under another name, to the disk, and only then gives it its own.

    Whatever happens in between, the one that stood there before is whole.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            DataError: it cannot be written, for instance for want of space.
        """
        path = Path(path)
        partial = path.with_name(path.name + PARTIAL)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:  # torch's writer turns some of the first into the second
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            kept = "the one before it is whole" if path.exists() else "there is none before it"
            raise DataError(
                f"{path}: the checkpoint cannot be written ({error}); {kept}; make room, and go on with "
                "--ckpt_path last"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, onto the CPU whatever device wrote it.

        Raises:
            DataError: there is none, it is broken, or it holds more than data where only data are wanted.
        """
        try:
            return super().load_checkpoint(path, map_location, weights_only)
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such checkpoint; a run keeps its own in checkpoints/") from error
        except Exception as error:  # torch's reader and unpickler have many
            # Of torch's advice how to run the code all the same, only the first sentence.
            reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
            raise DataError(
                f"{path} cannot be read as data ({reason}); it is broken, or it holds code, which is not "
                "executed"
            ) from error


def newest_checkpoint(folder: Path) -> Path | None:
    """Where a run goes on: its ``last.ckpt``, or what Lightning saved for SLURM if that has more steps.

    Raises:
        DataError: there are several, and one of them cannot be read.
    """
    found = [*folder.glob("checkpoints/last.ckpt"), *folder.glob("hpc_ckpt_*.ckpt")]
    # Times of modification would not do: copying a folder changes them.
    return max(found, key=steps_of, default=None) if len(found) > 1 else next(iter(found), None)


def steps_of(path: Path) -> int:
    """The optimiser steps of a checkpoint, of which no tensor is read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    except Exception:  # the reader of whole checkpoints knows older formats, and says what is wrong
        return WholeCheckpointIO().load_checkpoint(path, weights_only=True)["global_step"]


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
            for leftover in (self.path.parent, Path(trainer.default_root_dir)):
                for partial in leftover.glob("*" + PARTIAL):
                    partial.unlink(missing_ok=True)

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
        wish = _greatest(trainer, 2 if self.terminated else int(due))
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
        self.shared_batches = -_greatest(trainer, -int(sum(trainer.num_val_batches)))

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx < self.shared_batches and _greatest(trainer, int(self.terminated)):
            self._stop(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if _greatest(trainer, int(self.terminated)):
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


class StepSeed(Callback):
    """Draws what is random within a training step from (seed, device, epoch, batch).

    Together with :mod:`botnet.data` this makes a resumed run the run that was interrupted: nothing depends
    on what was drawn before. Covers torch's generators on all devices, NumPy's and Python's.
    """

    def __init__(self) -> None:
        self.run: dict[str, int] = {}
        self.batches = 0  # in an epoch
        self.interrupted: dict[str, int] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loader = trainer.train_dataloader
        if not isinstance(loader, Loader):
            return
        self.run = {
            "seed": run_seed(),
            "training samples": len(loader.dataset),  # type: ignore[arg-type]
            "samples at once on all devices": (loader.batch_size or 1) * trainer.world_size,
            "batches in an optimiser step": trainer.accumulate_grad_batches,
        }
        self.batches = int(trainer.num_training_batches)
        # Between two epochs all of this may change. Whether the run stopped between two is told by the length
        # that the epoch had then: with larger batches it may now be shorter than what was done.
        length = self.interrupted.get("batches", self.batches)
        within = trainer.fit_loop.restarting and 0 <= trainer.fit_loop.batch_idx < length - 1
        for what, now in self.run.items() if within else ():
            then = self.interrupted.get(what, now)
            if then != now:
                raise DataError(
                    f"the run was interrupted in the middle of an epoch with {what}: {then}, not {now}; go "
                    "on with what it had"
                )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int
    ) -> None:
        place = -index - 2**40 * (trainer.global_rank + 1)  # far below 0: no sample's
        seed = generator(run_seed(), trainer.current_epoch, place).initial_seed()
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (other libraries draw from it)
        random.seed(seed)

    def state_dict(self) -> dict[str, Any]:
        return self.run | {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.interrupted = state_dict


class FiniteLoss(Callback):
    """Stops a run whose loss is not a number or infinite, before that reaches the weights."""

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        broken = not bool(torch.isfinite(loss.detach()).all())
        # Every device hears of it: none may wait for another's gradient.
        if not _greatest(trainer, int(broken)):
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
