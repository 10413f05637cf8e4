"""The order of samples on any number of devices and workers, and unreadable samples."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import SequentialSampler, default_collate

from botnet.errors import CheckpointError, ConfigError, DataError
from botnet.training.loader import (
    EpochSampler,
    EvalSampler,
    Loader,
    SkipBrokenDataset,
    default_workers,
    make_loader,
)
from botnet.training.seeding import generator
from tests.support.tiny import Numbers


def batches(sampler):
    keys = list(sampler)
    return [keys[i : i + sampler.batch_size] for i in range(0, len(keys), sampler.batch_size)]


# ---- randomness


def test_random_numbers_depend_on_seed_epoch_and_sample():
    draw = lambda *place: torch.rand(4, generator=generator(*place))  # noqa: E731
    assert torch.equal(draw(1, 2, 3), draw(1, 2, 3))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0), (1, 3, 2), (12, 3, 3), (1, 23, 3)):
        assert not torch.equal(draw(1, 2, 3), draw(*other))


def test_neighbouring_samples_draw_independently():
    first = torch.stack([torch.rand(8, generator=generator(0, 0, index)) for index in range(2000)])
    # Of 2000 uniform numbers the mean strays by 0.0065 and the correlation by 0.022 (one sigma).
    assert (first.mean(0) - 0.5).abs().max() < 5 * 0.0065
    neighbours = torch.corrcoef(torch.cat([first[:-1], first[1:]], 1).T)[:8, 8:]
    assert neighbours.abs().max() < 5 * 0.0224


# ---- order


def test_devices_together_see_step_by_step_what_one_sees():
    alone = batches(EpochSampler(23, seed=5, batch_size=6))
    shares = [batches(EpochSampler(23, 5, batch_size=2, rank=rank, world_size=3)) for rank in range(3)]
    assert len(alone) == 3  # 23 // 6, the other five are left out
    assert all(len(share) == 3 for share in shares)
    for step, whole in enumerate(alone):
        assert shares[0][step] + shares[1][step] + shares[2][step] == whole
    seen = [key for batch in alone for key in batch]
    assert len(set(seen)) == 18
    assert set(seen) <= {(0, index) for index in range(23)}


@pytest.mark.parametrize("devices", [1, 2])
def test_passes_together_see_step_by_step_what_one_sees_at_once(devices):
    passes = 6 // devices
    alone = batches(EpochSampler(47, seed=5, batch_size=12))
    shares = [batches(EpochSampler(47, 5, 2, rank, devices, passes)) for rank in range(devices)]
    assert len(alone) == 3  # 47 // 12, the other eleven are left out
    assert all(len(share) == 3 * passes for share in shares)
    for step, whole in enumerate(alone):
        turns = range(step * passes, (step + 1) * passes)
        assert [key for turn in turns for share in shares for key in share[turn]] == whole


def test_an_epoch_of_coco_has_as_many_steps_with_passes_as_without():
    images = 117_266  # of train2017 with objects
    assert len(EpochSampler(images, 0, 64)) // 64 == 1832
    assert len(EpochSampler(images, 0, 4, passes=16)) // 4 == 1832 * 16


def test_every_epoch_has_its_own_reproducible_order():
    sampler = EpochSampler(50, seed=5, batch_size=5)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert [epoch for epoch, _ in second] == [1] * 50
    assert sorted(index for _, index in second) == list(range(50))
    assert [index for _, index in second] != [index for _, index in first]
    again = EpochSampler(50, seed=5, batch_size=5)
    again.set_epoch(1)
    assert list(again) == second
    assert list(EpochSampler(50, seed=6, batch_size=5)) != first


@pytest.mark.parametrize(
    ("length", "batch", "devices", "passes", "samples"),
    [(23, 2, 3, 1, 6), (24, 4, 2, 1, 12), (5, 4, 2, 1, 0), (23, 2, 3, 2, 4), (23, 2, 3, 4, 0)],
)
def test_length_of_an_epoch(length, batch, devices, passes, samples):
    for rank in range(devices):
        sampler = EpochSampler(length, 0, batch, rank, devices, passes)
        assert len(sampler) == samples == len(list(sampler))


def test_samples_of_a_batch_by_its_index():
    sampler = EpochSampler(40, 5, batch_size=3, rank=1, world_size=2)
    sampler.set_epoch(4)
    for number, batch in enumerate(batches(sampler)):
        assert sampler.indices(number) == [index for _, index in batch]


@pytest.mark.parametrize(("length", "devices"), [(10, 1), (10, 3), (2, 3)])
def test_evaluation_sees_every_sample_once(length, devices):
    shares = [EvalSampler(length, rank, devices) for rank in range(devices)]
    assert sorted(index for share in shares for index in share) == list(range(length))
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# ---- loader


def trainer(batch=-1, rank=0, devices=1, passes=1):
    """The part of a trainer that the loader uses: its devices, and the last batch that is done."""
    return SimpleNamespace(
        global_rank=rank,
        world_size=devices,
        accumulate_grad_batches=passes,
        fit_loop=SimpleNamespace(batch_idx=batch),
    )


def loaded(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return [(vectors, keys.tolist()) for vectors, keys in loader]


def keys_of(loader, epoch=0):
    return [keys for _, keys in loaded(loader, epoch)]


def test_batches_do_not_depend_on_the_workers():
    few, many = (make_loader(Numbers(21), 4, workers, default_collate, train=True) for workers in (0, 2))
    for epoch in (0, 1):
        for (vectors, keys), (theirs, their_keys) in zip(
            loaded(few, epoch), loaded(many, epoch), strict=True
        ):
            assert keys == their_keys
            assert torch.equal(vectors, theirs)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_continues_where_the_trainer_stopped(workers):
    whole = keys_of(make_loader(Numbers(21), 4, 0, default_collate, train=True), epoch=3)
    state = trainer(batch=1)
    loader = make_loader(Numbers(21), 4, workers, default_collate, state, train=True)
    begun = iter(loader)  # a trainer does this before it has read its checkpoint
    loader.sampler.set_epoch(3)
    assert [keys.tolist() for _, keys in begun] == whole[2:]
    assert len(loader) == 5
    state.fit_loop.batch_idx = -1
    assert keys_of(loader, epoch=3) == whole


def test_a_loader_takes_the_trainers_share():
    alone = keys_of(make_loader(Numbers(24), 4, 0, default_collate, train=True))
    shares = [
        keys_of(make_loader(Numbers(24), 2, 0, default_collate, trainer(rank=rank, devices=2), train=True))
        for rank in (0, 1)
    ]
    assert [a + b for a, b in zip(*shares, strict=True)] == alone
    evaluated = [
        [
            tuple(key)
            for _, keys in make_loader(
                Numbers(7), 2, 0, default_collate, trainer(rank=rank, devices=2), train=False
            )
            for key in keys.tolist()
        ]
        for rank in (0, 1)
    ]
    assert sorted(evaluated[0] + evaluated[1]) == [(-1, index) for index in range(7)]


def test_a_sampler_of_the_trainer_is_refused():
    loader = Loader(Numbers(8), batch_size=2, sampler=SequentialSampler(range(8)), first_batch=lambda: 0)
    with pytest.raises(ConfigError, match="use_distributed_sampler=False"):
        next(iter(loader))


@pytest.mark.parametrize(
    ("cores", "devices", "workers"), [(1, 1, 1), (2, 1, 2), (2, 8, 1), (8, 2, 4), (96, 1, 16), (96, 8, 12)]
)
def test_the_cores_of_a_machine_are_shared_out(cores, devices, workers, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert default_workers(devices) == workers


def test_by_default_there_are_no_more_workers_than_torch_suggests(recwarn):
    make_loader(Numbers(8), 2, None, default_collate, train=False)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("batch", "workers", "message"), [(0, 0, "batch_size: 0"), (2, -1, "num_workers: -1")]
)
def test_impossible_batches_and_workers_are_refused(batch, workers, message):
    with pytest.raises(ConfigError, match=message):
        make_loader(Numbers(4), batch, workers, default_collate, train=False)


def test_fewer_samples_than_a_batch_over_all_devices_are_refused():
    make_loader(Numbers(7), 4, 0, default_collate, train=True)
    with pytest.raises(ConfigError, match=r"7 training samples .* 2 x 4"):
        make_loader(Numbers(7), 4, 0, default_collate, trainer(devices=2), train=True)
    with pytest.raises(ConfigError, match=r"7 training samples .* 1 x 4 x 2"):
        make_loader(Numbers(7), 4, 0, default_collate, trainer(passes=2), train=True)


def test_a_worker_outlasts_sigterm():
    """Schedulers send it to all processes of a job, some of them several times."""
    loader = make_loader(Numbers(40), 4, 1, default_collate, train=True)
    begun = iter(loader)
    next(begun)
    worker = loader._iterator._workers[0]
    for _ in range(3):
        os.kill(worker.pid, signal.SIGTERM)
        time.sleep(0.1)
    assert len(list(begun)) == 9
    loader._iterator._shutdown_workers()
    worker.join(20)
    assert worker.exitcode == 0


FAILS = """
import sys
from torch.utils.data import default_collate
from botnet.training import loader
from tests.support.tiny import Numbers
batches = iter(loader.make_loader(Numbers(12), 2, 2, default_collate, train=False))
next(batches)
print("begun", flush=True)
sys.exit(2)  # the module, and so the loader, is still there when the functions of atexit are called
"""


FORGETS = """
from torch.utils.data import default_collate
from botnet.training import loader
from tests.support.tiny import Numbers
batches = iter(loader.make_loader(Numbers(12), 2, 2, default_collate, train=False))
next(batches)
for iterator in loader._iterators:
    iterator._shutdown_workers = lambda: None  # as if a worker did not answer
print("begun", flush=True)
"""


@pytest.mark.long
@pytest.mark.parametrize(("program", "status"), [(FAILS, 2), (FORGETS, 0)], ids=["fails", "forgets"])
def test_a_process_does_not_wait_for_its_workers(program, status):
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (status, "begun\n"), ended.stderr


def test_an_error_ends_the_workers_at_once():
    loader = make_loader(Numbers(12, broken=(5,)), 4, 2, default_collate, train=True)
    started = time.monotonic()
    refusal(loader)
    assert time.monotonic() - started < 5
    assert not any(process.is_alive() for process in multiprocessing.active_children())


# ---- samples that cannot be read


def refusal(loader):
    """The message with which it ends."""
    with pytest.raises(DataError) as caught:
        list(loader)
    return str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_unreadable_sample_ends_the_run(workers):
    loader = make_loader(Numbers(12, broken=(5,)), 4, workers, default_collate, train=True)
    assert refusal(loader) == "sample 5: cannot be read"


class Refusing(Numbers):
    """Raises an error for every sample."""

    def __init__(self, error):
        super().__init__(8)
        self.error = error

    def __getitem__(self, key):
        raise self.error


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [DataError, ConfigError, CheckpointError])
def test_an_error_of_a_worker_arrives_as_it_was_raised(kind, workers):
    error = kind("a.png: DataError: of two\nlines")
    error.sample = 5
    loader = make_loader(Refusing(error), 4, workers, default_collate, train=False)
    with pytest.raises(kind) as caught:
        next(iter(loader))
    assert type(caught.value) is kind
    assert (str(caught.value), caught.value.sample) == (str(error), 5)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bug_in_a_worker_shows_its_traceback(workers):
    loader = make_loader(Refusing(KeyError("bug")), 4, workers, default_collate, train=False)
    with pytest.raises(KeyError, match="bug") as caught:
        next(iter(loader))
    assert workers == 0 or "in __getitem__" in str(caught.value)
    if workers:
        loader._iterator._shutdown_workers()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_few_are_replaced_by_their_successors(workers, log_to_stderr, capfd):
    broken = (3, 7, 8)
    loader = make_loader(Numbers(12, broken), 4, workers, default_collate, train=True, skip_broken=3)
    replaced = {3: 4, 7: 9, 8: 9}
    for epoch in (0, 1):
        whole = keys_of(make_loader(Numbers(12), 4, 0, default_collate, train=True), epoch)
        expected = [[[e, replaced.get(i, i)] for e, i in batch] for batch in whole]
        assert keys_of(loader, epoch) == expected
        said = capfd.readouterr().err
        assert "unreadable samples so far, replaced by others: 3" in said
        # Each by its name once, in the epoch in which it was found.
        assert [said.count(f"sample {index}: cannot be read") for index in broken] == [1 - epoch] * 3


def test_too_many_end_the_run_whichever_worker_finds_them():
    loader = make_loader(Numbers(12, (3, 7, 8)), 2, 2, default_collate, train=True, skip_broken=2)
    message = r"sample [378]: cannot be read \(3 samples cannot be read, more than skip_broken 2 allows\)"
    assert re.fullmatch(message, refusal(loader))


def test_evaluation_replaces_none():
    loader = make_loader(Numbers(12, (3,)), 2, 0, default_collate, train=False, skip_broken=2)
    assert refusal(loader) == "sample 3: cannot be read"


def test_some_sample_must_be_readable():
    with pytest.raises(ConfigError, match="lower skip_broken"):
        SkipBrokenDataset(Numbers(3), 3)
