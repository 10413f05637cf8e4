"""Keeps a recipe's batch size on other numbers of devices."""

import logging
from typing import Any, Literal

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback

from botnet.arguments import Count, checked
from botnet.errors import ConfigError
from botnet.training.task import data_of

logger = logging.getLogger(__name__)


class GlobalBatch(Callback):
    """Keeps a recipe's batch size on other machines, and logs how.

    Args:
        images: an optimiser step, over all devices.
        rule: ``accumulate``: as many passes a step as needed, each with its own batch statistics;
            ``linear``: what the devices hold, times ``trainer.accumulate_grad_batches``, the learning rate
            scaled with it and the warm-up stretched to as many images (Goyal et al. 2017).

    Raises:
        ConfigError: fewer than 1 image.
    """

    @checked
    def __init__(self, images: Count, rule: Literal["accumulate", "linear"] = "accumulate") -> None:
        self.images, self.rule = images, rule

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Set the passes of a step, or scale the learning rate.

        Raises:
            ConfigError: the devices cannot make up this batch.
        """
        if stage != "fit":
            return
        devices, each = trainer.world_size, data_of(trainer).batch_size
        at_once = devices * each
        if min(each, trainer.accumulate_grad_batches) < 1:
            raise ConfigError(
                f"data.batch_size {each} and trainer.accumulate_grad_batches "
                f"{trainer.accumulate_grad_batches} must both be 1 or more"
            )
        parts = f"{devices} device{'s' * (devices > 1)} x {each} images"
        if self.rule == "accumulate":
            trainer.accumulate_grad_batches = self._passes(trainer, at_once, parts)
        passes = trainer.accumulate_grad_batches
        images = at_once * passes
        if passes > 1:
            parts += f" x {passes} passes (norms see {at_once} at a time at most)"
        message = f"a step has {images} images: {parts}"
        factor = images / self.images
        if factor != pl_module.batch_factor:  # a second fit of the module need not change it again
            pl_module.scale_batch(factor / pl_module.batch_factor)
        if factor != 1:
            message += (
                f", not the recipe's {self.images}: by the linear rule, {factor:g} times its learning "
                "rate, and a warm-up over as many images"
            )
        if trainer.is_global_zero:
            logger.info(message)

    def _passes(self, trainer: L.Trainer, at_once: int, parts: str) -> int:
        """Passes that make up a step, where ``at_once`` images are one pass."""
        devices, given = trainer.world_size, trainer.accumulate_grad_batches
        if self.images % at_once:
            raise ConfigError(
                f"a batch of {self.images} images cannot be made up of {parts}; set data.batch_size so that "
                f"{devices} x data.batch_size divides {self.images}, or give --batch_rule linear"
            )
        needed = self.images // at_once
        if given not in (1, needed):
            raise ConfigError(
                f"with trainer.accumulate_grad_batches {given} and {parts} a step has {at_once * given} "
                f"images, not {self.images}; leave it out: global_batch sets it to {needed}"
            )
        return needed
