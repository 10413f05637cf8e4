"""What the devices of one run tell one another. With one device, nothing."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch.distributed as dist
from torch import Tensor


def batch_mean(sums: Tensor, counts: Tensor) -> Tensor:
    """Means over the images of all devices, in the form that data parallelism averages.

    DDP takes the mean of the devices' gradients. Where each divides its sums by its own counts, that is no
    mean over the batch: an image beside many objects would weigh less than one beside few, and the result
    would depend on how the images were dealt out. Here the sums are this device's, the counts everyone's.

    Args:
        sums: over this device's images, with gradient.
        counts: how many terms each sum has.

    Returns:
        Shares whose average over the devices is the mean over the batch; 0 where there was nothing to count.
    """
    devices = 1
    if dist.is_available() and dist.is_initialized():
        devices = dist.get_world_size()
        counts = counts.clone()
        dist.all_reduce(counts)
    return devices * sums / counts.clamp(min=1)


def gather_shares(share: Sequence[Any]) -> list[Any] | None:
    """All devices' shares on the first one, in the order of the set; None on the others.

    Args:
        share: what this device has made of every n-th sample
            (:class:`botnet.training.loader.EvalSampler`), in order.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return list(share)
    first = dist.get_rank() == 0
    shares: list[Sequence[Any]] | None = [()] * dist.get_world_size() if first else None
    dist.gather_object(share, shares)
    if shares is None:
        return None
    absent = object()
    return [item for turn in zip_longest(*shares, fillvalue=absent) for item in turn if item is not absent]
