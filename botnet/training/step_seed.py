"""Randomness within a training step, drawn from (seed, device, epoch, batch)."""

import random
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from botnet.errors import ConfigError
from botnet.training.loader import Loader
from botnet.training.seeding import generator, run_seed


class StepSeed(Callback):
    """Draws what is random within a training step from (seed, device, epoch, batch).

    Together with :mod:`botnet.training.loader` this makes a resumed run equal to an uninterrupted one:
    nothing depends on what was drawn before. Covers torch's generators on all devices, NumPy's and Python's.
    """

    def __init__(self) -> None:
        self.run: dict[str, int] = {}
        self.batches = 0  # in an epoch
        self.interrupted: dict[str, int] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare seed, data and batch with those of the interrupted run.

        Raises:
            ConfigError: one differs, and the run was interrupted within an epoch.
        """
        loader = trainer.train_dataloader
        if not isinstance(loader, Loader):
            return
        self.run = {
            "seed": run_seed(),
            "training samples": len(loader.dataset),
            "samples at once on all devices": (loader.batch_size or 1) * trainer.world_size,
            "batches in an optimiser step": trainer.accumulate_grad_batches,
        }
        self.batches = int(trainer.num_training_batches)
        # Between two epochs all of this may change. Whether the run stopped between two follows from the
        # length that the epoch had then: with larger batches it may now be shorter than what was done.
        length = self.interrupted.get("batches", self.batches)
        within = trainer.fit_loop.restarting and 0 <= trainer.fit_loop.batch_idx < length - 1
        for what, now in self.run.items() if within else ():
            then = self.interrupted.get(what, now)
            if then != now:
                raise ConfigError(
                    f"the run was interrupted in the middle of an epoch with {what}: {then}, not {now}; "
                    "resume it with the same"
                )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int
    ) -> None:
        """Seed every generator."""
        place = -index - 2**40 * (trainer.global_rank + 1)  # far below 0: no sample's
        seed = generator(run_seed(), trainer.current_epoch, place).initial_seed()
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (other libraries draw from it)
        random.seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """What must not change within an epoch."""
        return self.run | {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what the interrupted run had."""
        self.interrupted = state_dict
