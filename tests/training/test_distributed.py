"""What devices exchange. Light on imports: each of its processes repeats them."""

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import get_context

from botnet.training.distributed import Greatest, batch_mean, gather_shares, sum_over_devices

pytestmark = pytest.mark.long


def device(rank, world, store, answers):
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    sums = torch.tensor([[6.0, 0.0], [4.0, 0.0], [2.0, 0.0]])[rank]
    counts = torch.tensor([[1, 0], [2, 0], [3, 0]])[rank]
    shares = gather_shares(list(range(7))[rank::world])
    first, second = Greatest(torch.tensor(rank)), Greatest(torch.tensor(-rank))  # both at once
    greatest = second.read(), first.read()
    means = batch_mean(sums, counts).tolist()
    answers.put((rank, means, shares, greatest, sum_over_devices(counts).tolist()))
    dist.destroy_process_group()


def test_means_shares_and_sums_of_three_devices(tmp_path):
    context = get_context("spawn")
    answers = context.Queue()
    workers = [
        context.Process(target=device, args=(rank, 3, str(tmp_path / "store"), answers)) for rank in range(3)
    ]
    for worker in workers:
        worker.start()
    found = sorted(answers.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    # Twelve over six; the shares average to it. Nothing counted is 0.
    assert torch.tensor([mean for _, mean, *_ in found]).mean(0).tolist() == [2.0, 0.0]
    assert [shares for _, _, shares, *_ in found] == [[0, 1, 2, 3, 4, 5, 6], None, None]
    assert [greatest for *_, greatest, _ in found] == [(0, 2)] * 3
    assert [sums for *_, sums in found] == [[6, 0]] * 3


def test_one_device_exchanges_nothing():
    assert batch_mean(torch.tensor([6.0, 0.0]), torch.tensor([3, 0])).tolist() == [2.0, 0.0]
    assert Greatest(torch.tensor(7)).read() == 7
    assert gather_shares([3, 1]) == [3, 1]
    assert sum_over_devices(torch.tensor([2, 5])).tolist() == [2, 5]
