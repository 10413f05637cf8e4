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


class Greatest:
    """The greatest of all devices' values, exchanged while the devices compute.

    Neither the host nor the computation waits for it until it is read. All devices start the same ones in
    the same order.

    Args:
        value: of this device, a whole number without dimensions on the device that computes; overwritten.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self.work = dist.all_reduce(value, dist.ReduceOp.MAX, async_op=True) if _several() else None
        self.copied: torch.cuda.Event | None = None
        if value.is_cuda:
            self._start_copy()

    def _start_copy(self) -> None:
        # On a stream of its own: the computation must not wait for the other devices.
        device = self.value.device
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self.value.record_stream(stream)
            if self.work is not None:
                self.work.wait()  # by the stream, not by the host
            self.value = self.value.to("cpu", non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> int:
        """The greatest value; waits for the exchange alone, not for what the device computes since."""
        if self.copied is not None:
            self.copied.synchronize()
        elif self.work is not None:
            self.work.wait()
        return int(self.value)


def greatest(trainer: "Trainer", value: int) -> int:
    """The greatest of all devices' values."""
    if trainer.world_size == 1:
        return value
    everyone = torch.tensor(value, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(everyone, reduce_op="max"))
