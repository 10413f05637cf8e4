"""What the devices of a run exchange. With one device, nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Item = TypeVar("Item")


_alone: ContextVar[bool] = ContextVar("alone", default=False)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and not _alone.get()


@contextmanager
def alone() -> Iterator[None]:
    """Within it, this device computes as if there were no others."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def batch_mean(sums: Tensor, counts: Tensor) -> Tensor:
    """Means over the images of all devices, in the form that data parallelism averages.

    DDP takes the mean of the devices' gradients. Where each divides its sums by its own counts, that is no
    mean over the batch: an image beside many objects would weigh less than one beside few, and the result
    would depend on how the images were dealt out. Here the sums are this device's, the counts those of all.

    Args:
        sums: over this device's images, with gradient.
        counts: how many terms each sum has.

    Returns:
        Shares whose average over the devices is the mean over the batch; 0 where there was nothing to count.
    """
    devices = 1
    if _several():
        devices = dist.get_world_size()
        counts = counts.clone()
        dist.all_reduce(counts)
    return devices * sums / counts.clamp(min=1)


def sum_over_devices(values: Tensor) -> Tensor:
    """The sum of all devices' tensors, on each of them, always in the same order."""
    if not _several():
        return values
    shares = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(shares, values)
    return torch.stack(shares).sum(0)


def gather_shares(share: Sequence[Item]) -> list[Item] | None:
    """All devices' shares on the first one, in the order of the set; None on the others.

    Args:
        share: what this device has made of every n-th sample
            (:class:`botnet.training.loader.EvalSampler`), in order.
    """
    if not _several():
        return list(share)
    first = dist.get_rank() == 0
    shares: list[Sequence[Item]] | None = [()] * dist.get_world_size() if first else None
    dist.gather_object(share, shares)
    if shares is None:
        return None
    absent: Any = object()
    return [item for turn in zip_longest(*shares, fillvalue=absent) for item in turn if item is not absent]


def greatest(trainer: "Trainer", value: int) -> int:
    """The greatest of all devices' values."""
    if trainer.world_size == 1:
        return value
    everyone = torch.tensor(value, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(everyone, reduce_op="max"))
