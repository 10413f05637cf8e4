"""What every data set here shares: which sample comes when, and the chance that goes into it.

Training samples are asked for by ``(epoch, index)``. All that is random about one is drawn from
:func:`generator`, so that it does not depend on the worker that prepares it, on the number of workers and
devices, or on where a run was interrupted.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

Key = tuple[int, int]  # epoch, index of the sample


def generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """The source of everything random about one sample in one epoch.

    Args:
        seed: of the run.
        epoch: from 0.
        index: of the sample in its data set.
    """
    # Neighbouring numbers must not give related streams: a hash parts them.
    digest = hashlib.blake2b(f"{seed} {epoch} {index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class EpochSampler(Sampler[Key]):
    """A new order in every epoch, of which each device takes its share; what does not divide is left out.

    The order is that of one device, dealt out in turn: step by step, several devices see the images that a
    single one with the whole batch would.

    Args:
        length: samples of the data set.
        seed: of the run.
        batch_size: of each device.
        rank: of this device, from 0.
        world_size: devices.
    """

    def __init__(self, length: int, seed: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.seed, self.batch_size = length, seed, batch_size
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // (self.batch_size * self.world_size) * self.batch_size

    def __iter__(self) -> Iterator[Key]:
        order = torch.randperm(self.length, generator=generator(self.seed, self.epoch, self.length)).tolist()
        for step in range(len(self) // self.batch_size):
            start = (step * self.world_size + self.rank) * self.batch_size
            yield from ((self.epoch, index) for index in order[start : start + self.batch_size])


class ShareSampler(Sampler[int]):
    """Every sample exactly once over all devices, in order: shares may differ by one.

    Args:
        length: samples of the data set.
        rank: of this device, from 0.
        world_size: devices.
    """

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        self.share = range(rank, length, world_size)

    def __len__(self) -> int:
        return len(self.share)

    def __iter__(self) -> Iterator[int]:
        return iter(self.share)
