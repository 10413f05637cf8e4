"""Data loaders whose order, shared among devices, a resumed run continues exactly."""

import atexit
import logging
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from botnet.arguments import Count, Workers, checked
from botnet.errors import BotnetError, ConfigError, DataError
from botnet.training.seeding import Key, generator, run_seed

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

logger = logging.getLogger(__name__)
Collate = Callable[[list[Any]], Any]
MOST_WORKERS = 16  # each holds two batches in memory


class Samples(Protocol):
    """A data set with a name for every sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...

    def name(self, index: int) -> str:
        """Name of a sample in messages."""
        ...


class EpochSampler(Sampler[Key]):
    """A new order in every epoch, of which each device takes its share, in whole optimiser steps.

    The order is that of one device, dealt out in turn: in each step, several devices and passes see the
    images that a single one with the whole batch would see. What does not fill a step is left out.

    Args:
        length: samples of the data set.
        seed: of the run.
        batch_size: of each device.
        rank: of this device, from 0.
        world_size: devices.
        passes: batches of each device in an optimiser step.
    """

    def __init__(
        self, length: int, seed: int, batch_size: int, rank: int = 0, world_size: int = 1, passes: int = 1
    ) -> None:
        self.length, self.seed, self.batch_size = length, seed, batch_size
        self.rank, self.world_size, self.passes = rank, world_size, passes
        self.epoch = 0
        self.first_batch = 0  # of this epoch that has not been seen yet

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        share = self.batch_size * self.passes  # of each device in a step
        return self.length // (share * self.world_size) * share

    def __iter__(self) -> Iterator[Key]:
        order = self._order()
        for batch in range(self.first_batch, len(self) // self.batch_size):
            yield from ((self.epoch, index) for index in self._share(order, batch))

    def indices(self, batch: int) -> list[int]:
        """The samples of one batch of this epoch."""
        return self._share(self._order(), batch)

    def _order(self) -> list[int]:
        return torch.randperm(self.length, generator=generator(self.seed, self.epoch, self.length)).tolist()

    def _share(self, order: list[int], batch: int) -> list[int]:
        start = (batch * self.world_size + self.rank) * self.batch_size
        return order[start : start + self.batch_size]


class EvalSampler(Sampler[int]):
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


class SkipBrokenDataset(Dataset[Any]):
    """Training samples of which some cannot be read: each of these is replaced by the next that can be.

    Args:
        dataset: indexed by :data:`Key`; a sample that cannot be read raises
            :class:`~botnet.errors.DataError`. One made of several samples names the broken one in the
            error's ``sample``, and leaves out those in ``known_broken``, (length,) bool, which is set here.
        limit: different samples that may be replaced in a run, counted over all workers of a device.

    Raises:
        ConfigError: the limit allows all samples to be broken.
    """

    def __init__(self, dataset: Samples, limit: int) -> None:
        self.dataset, self.limit = dataset, limit
        self.length = len(dataset)
        if limit >= self.length:
            raise ConfigError(
                f"of {self.length} samples {limit} cannot be replaced by others; lower skip_broken"
            )
        # In memory that the workers share.
        self.broken = torch.zeros(self.length, dtype=torch.bool).share_memory_()
        dataset.known_broken = self.broken  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        """Name of a sample in messages."""
        return self.dataset.name(index)

    def __getitem__(self, key: Key) -> Any:
        epoch, index = key
        while True:
            try:
                return self.dataset[epoch, index]
            except DataError as error:
                broken = index if error.sample is None else error.sample
                self._count(broken, error)
                if broken == index:
                    index = (index + 1) % self.length

    def _count(self, broken: int, error: DataError) -> None:
        """Mark a sample as broken, and refuse it if it is one too many."""
        known = bool(self.broken[broken])
        self.broken[broken] = True
        count = int(self.broken.sum())
        if count > self.limit:
            raise DataError(
                f"{error} ({count} samples cannot be read, more than skip_broken {self.limit} allows)"
            ) from error
        if not known:
            logger.warning("%s; replaced by another (%d of at most %d)", error, count, self.limit)


class Batches(Dataset[Any]):
    """A data set that collates its samples itself, so that an error of the user's data is a batch, too.

    Of an exception in a worker, torch makes one in the main process whose message is the worker's traceback.
    The error itself gets there as the batch, and is raised there by :class:`Loader`.

    Args:
        samples: the data set.
        collate: a batch from a list of samples.
    """

    def __init__(self, samples: Samples, collate: Collate) -> None:
        self.samples, self.collate = samples, collate

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, keys: list[Any]) -> Any:
        """A batch of the samples with these keys, or the error that prevents it."""
        try:
            return self.collate([self.samples[key] for key in keys])
        except BotnetError as error:
            return error


def _unchanged(batch: Any) -> Any:
    return batch


def _ignore_sigterm(worker: int) -> None:
    """Let the run finish its step when all processes of a job get SIGTERM, perhaps several times.

    The main process ends its workers, and they end themselves when it is gone.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


_iterators: "weakref.WeakSet[Any]" = weakref.WeakSet()  # torch's, with workers
_workers: "weakref.WeakSet[Any]" = weakref.WeakSet()  # their processes


@atexit.register
def _shut_down() -> None:
    """End all workers that are left.

    multiprocessing would send them SIGTERM, which they ignore, and wait for them for ever. A worker may also
    outlive an iterator that was collected as garbage, which sends the same signal.
    """
    for iterator in list(_iterators):
        iterator._shutdown_workers()
    for worker in list(_workers):
        if worker.is_alive():  # it did not answer
            worker.kill()


class Loader(DataLoader[Any]):
    """A DataLoader that continues where a run stopped.

    Its workers start with the first batch: by then the trainer has read its checkpoint and knows the epoch
    and the batch. Made by :func:`make_loader`.

    Args:
        dataset: the batches.
        first_batch: of an epoch that has not been seen yet.
        kwargs: torch's further arguments.
    """

    dataset: Batches

    def __init__(self, dataset: Batches, *, first_batch: Callable[[], int], **kwargs: Any) -> None:
        self.first_batch = first_batch
        super().__init__(dataset, **kwargs)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if not isinstance(self.sampler, EpochSampler | EvalSampler):
            raise ConfigError(
                "the trainer has replaced the sampler of the data; give it use_distributed_sampler=False, "
                "and limit_train_batches rather than overfit_batches"
            )
        first = self.first_batch()
        if isinstance(self.sampler, EpochSampler):
            self.sampler.first_batch = first
        iterator = super().__iter__()
        if hasattr(iterator, "_shutdown_workers"):
            _iterators.add(iterator)
            _workers.update(iterator._workers)  # type: ignore[attr-defined]
        for number, batch in enumerate(iterator, first + 1):
            if isinstance(batch, BotnetError):
                self._end(iterator)
                raise batch
            if number == len(self):
                self._report_broken()
            yield batch

    def _end(self, iterator: Any) -> None:
        """Stop the workers at once: the garbage collector would take five seconds for each."""
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
            self._iterator = None

    @property
    def samples(self) -> Samples:
        """The data set, sample by sample."""
        return self.dataset.samples

    def names(self, batch: int) -> list[str]:
        """Names of the samples of one training batch of this epoch."""
        assert isinstance(self.sampler, EpochSampler)
        return [self.samples.name(index) for index in self.sampler.indices(batch)]

    def _report_broken(self) -> None:
        if isinstance(self.samples, SkipBrokenDataset) and (count := int(self.samples.broken.sum())):
            logger.warning("unreadable samples so far, replaced by others: %d", count)

    # The position is the trainer's own count of batches; these two methods show it that the order continues.

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the order is drawn from the seed and the epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def default_workers(devices: int = 1) -> int:
    """Processes that prepare samples for each of a machine's devices: its cores are shared out.

    Only cores that this process may use count; from 1 to 16.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores // devices, 1), MOST_WORKERS)


@checked
def make_loader(
    dataset: Samples,
    batch_size: Count,
    num_workers: Workers | None,
    collate: Collate,
    trainer: "Trainer | None" = None,
    *,
    train: bool,
    skip_broken: int = 0,
) -> Loader:
    """Batches for one device: its share of the samples, in an order that an interruption does not change.

    Args:
        dataset: indexed by :data:`Key` in training, otherwise by a number; ``name(index)`` is the name of a
            sample in messages.
        batch_size: samples a batch.
        num_workers: processes that prepare samples; None: :func:`default_workers`.
        collate: a batch from a list of samples.
        trainer: whose devices share the samples, and which knows where a resumed run stopped; None: one
            device, from the start.
        train: a new order in every epoch, and whole optimiser steps only; otherwise every sample exactly
            once.
        skip_broken: different samples that may be unreadable, on each device, and are replaced by others;
            only in training, where they do not falsify a result. 0: the first ends the run.

    Raises:
        ConfigError: a number out of its range, or (``train``) fewer samples than one
            optimiser step.
        DataError: when iterated: more samples than ``skip_broken`` cannot be read.
    """
    if num_workers is None:
        num_workers = default_workers(trainer.num_devices if trainer else 1)
    length = len(dataset)
    rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
    sampler: Sampler[Any]
    if train:
        passes = trainer.accumulate_grad_batches if trainer else 1
        if length < batch_size * world_size * passes:
            raise ConfigError(
                f"{length} training samples are fewer than one optimiser step of {world_size} x {batch_size} "
                f"x {passes} (devices x data.batch_size x passes); lower data.batch_size, or global_batch "
                "where a step has several passes"
            )
        sampler = EpochSampler(length, run_seed(), batch_size, rank, world_size, passes)
        if skip_broken:
            dataset = SkipBrokenDataset(dataset, skip_broken)
    else:
        sampler = EvalSampler(length, rank, world_size)
    return Loader(
        Batches(dataset, collate),
        batch_size=batch_size,
        sampler=sampler,
        drop_last=train,
        num_workers=num_workers,
        collate_fn=_unchanged,
        worker_init_fn=_ignore_sigterm,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        first_batch=(lambda: trainer.fit_loop.batch_idx + 1) if train and trainer else (lambda: 0),
    )
