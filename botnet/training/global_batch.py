"""Keeps a recipe's batch size on other numbers of devices."""

from typing import Any, Literal

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback

from botnet.errors import DataError


class GlobalBatch(Callback):
    """Keeps a recipe's batch on other machines, and says how.

    Args:
        images: an optimiser step, over all devices.
        rule: ``accumulate``: as many passes a step as it takes, each with its own batch statistics;
            ``linear``: what the devices hold, times ``trainer.accumulate_grad_batches``, the learning rate
            scaled with it and the warm-up stretched to as many images (Goyal et al. 2017).
    """

    def __init__(self, images: int, rule: Literal["accumulate", "linear"] = "accumulate") -> None:
        if images < 1:
            raise DataError(f"--global_batch {images}: an optimiser step needs 1 image or more")
        self.images, self.rule = images, rule

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        devices, each = trainer.world_size, trainer.datamodule.batch_size  # type: ignore[attr-defined]
        at_once, passes = devices * each, trainer.accumulate_grad_batches
        if min(each, passes) < 1:
            raise DataError(
                f"data.batch_size {each} and trainer.accumulate_grad_batches {passes} must both be 1 or more"
            )
        said = f"{devices} device{'s' * (devices > 1)} x {each} images"
        if self.rule == "accumulate":
            if self.images % at_once:
                raise DataError(
                    f"a batch of {self.images} images cannot be put together from {said}; set data."
                    f"batch_size so that {devices} x data.batch_size divides {self.images}, or say "
                    "--batch_rule linear"
                )
            needed = self.images // at_once
            if passes not in (1, needed):
                raise DataError(
                    f"with trainer.accumulate_grad_batches {passes} and {said} a step has {at_once * passes} "
                    f"images, not {self.images}; leave it out: global_batch sets it to {needed}"
                )
            trainer.accumulate_grad_batches = passes = needed
        images = at_once * passes
        if passes > 1:
            said += f" x {passes} passes (norms see {at_once} at a time at most)"
        said = f"a step has {images} images: {said}"
        if images != self.images:
            factor = images / self.images
            pl_module.scale_batch(factor)
            said += (
                f", not the recipe's {self.images}: by the linear rule, {factor:g} times its learning "
                "rate, and a warm-up over as many images"
            )
        if trainer.is_global_zero:
            print(said)
