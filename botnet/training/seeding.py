"""Reproducible randomness: everything random about a sample is drawn from (seed, epoch, index).

The seed is read from :func:`run_seed` at the moment something is drawn, in the main process and in workers.
"""

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

Key = tuple[int, int]  # epoch, index of the sample


def run_seed() -> int:
    """The seed of this run, as set by Lightning's ``seed_everything``; 0 if it was not called."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """The generator of everything random about one sample in one epoch.

    Args:
        seed: of the run.
        epoch: from 0.
        index: of the sample in its data set.
    """
    # A hash, because neighbouring numbers must not give related streams.
    digest = hashlib.blake2b(f"{seed} {epoch} {index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@contextmanager
def seeded(source: torch.Generator) -> Iterator[None]:
    """Let the global generators that timm draws from follow ``source``, and restore them afterwards."""
    python, tensor = random.getstate(), torch.default_generator.get_state()
    array = np.random.get_state()  # noqa: NPY002 - timm draws from numpy's global state
    seed = int(torch.randint(2**62, (), generator=source))
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs, too
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002
        torch.default_generator.set_state(tensor)
