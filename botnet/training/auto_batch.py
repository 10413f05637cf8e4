"""The largest batch that fits on a device, for ``--data.batch_size auto``."""

import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from botnet.errors import ConfigError
from botnet.training.checkpoint_file import peek
from botnet.training.distributed import alone, greatest
from botnet.training.loader import SkipBrokenDataset
from botnet.training.memory import step_bytes, total_memory

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from botnet.training.task import TaskDataModule, TaskModule

logger = logging.getLogger(__name__)

ESTIMATED = 1 / 4  # of a CPU's memory may the lower bound of a step take; the rest of the step takes more
TRIED = 0.9  # of a GPU's memory may a trial take; what several devices exchange, and fragments, need the rest
SAMPLES = 8  # different ones in a trial


def find_batch_size(trainer: "Trainer", module: "TaskModule", data: "TaskDataModule") -> int:
    """The largest power of two of images whose training step fits on every device.

    On a GPU steps are tried; the module is left as it was. On a CPU, where a step that does not fit may end
    other programs, it is estimated.

    Args:
        trainer: of the run, which is being set up.
        module: that is to be trained.
        data: its data.

    Raises:
        ConfigError: it is not known how much memory the device has, or a step takes.
    """
    device, most = trainer.strategy.root_device, len(data.train_set) // trainer.world_size
    if device.type == "cuda":
        found = _tried(trainer, module, data, most)
    else:
        found = largest(lambda images: _is_small(trainer, module, images), most)
    found = -greatest(trainer, -found)
    if trainer.is_global_zero:
        logger.info("data.batch_size auto: %d images at once on each device", found)
    return found


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest power of two up to ``most`` that fits, where all smaller ones do.

    1 is not asked for: a norm may need two images, and if not even one fits, the run says so.
    """
    found, candidate = 1, 2
    while candidate <= most and fits(candidate):
        found, candidate = candidate, 2 * candidate
    return found


def _is_small(trainer: "Trainer", module: "TaskModule", images: int) -> bool:
    """Whether the estimate of a step leaves enough of the machine's memory."""
    device, batch = trainer.strategy.root_device, module.training_batch(images)
    available = total_memory(device)
    if available is None or batch is None:
        what = f"the memory of {device}" if available is None else "what torch.compile keeps"
        raise ConfigError(f"data.batch_size auto: {what} is not known; give a number")
    needed = step_bytes(*batch, half="16" in str(trainer.precision))
    return needed * trainer.num_devices <= ESTIMATED * available


def _tried(trainer: "Trainer", module: "TaskModule", data: "TaskDataModule", most: int) -> int:
    """The largest batch whose step does not run out of the GPU's memory."""
    device = trainer.strategy.root_device
    dataset = SkipBrokenDataset(data.train_set, data.skip_broken) if data.skip_broken else data.train_set
    samples = [dataset[0, index] for index in range(min(SAMPLES, len(dataset)))]
    before = {name: tensor.to("cpu", copy=True) for name, tensor in module.state_dict().items()}
    module.to(device)

    def fits(images: int) -> bool:
        try:
            batch = data.collate([samples[index % len(samples)] for index in range(images)])
            try_step(trainer, module, batch)
        except torch.OutOfMemoryError:
            return False
        finally:
            module.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
        return True

    torch.cuda.set_per_process_memory_fraction(TRIED, device)
    try:
        return largest(fits, most)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        module.load_state_dict(before)


def try_step(trainer: "Trainer", module: "TaskModule", batch: Any) -> None:
    """A training step as the run does it: forward, backward, and an update with the state that it makes."""
    optimizer = module.make_optimizer()
    module.train()
    batch = trainer.strategy.batch_to_device(batch, trainer.strategy.root_device)
    with trainer.precision_plugin.forward_context(), alone():
        loss = torch.stack(list(module.losses(batch).values())).sum()
    loss.backward()
    optimizer.step()


def kept_batch_size(path: str | Path) -> int | None:
    """The images at once on each device in the run of a checkpoint; None where it does not say."""
    found: int | None = peek(path).get("botnet", {}).get("batch_size")
    return found
