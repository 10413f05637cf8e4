"""From the arguments of a recipe to batches."""

import pytest
import torch

from botnet.detection import CocoDataModule
from botnet.errors import ConfigError


def module(digits, **arguments) -> CocoDataModule:
    paths = (digits / name for name in ("instances_train.json", "train", "instances_val.json", "val"))
    return CocoDataModule(*paths, **{"canvas": 64, "jitter": (0.5, 1.5), "num_workers": 0} | arguments)


def test_batches_are_ready_for_the_detector(digits):
    data = module(digits, batch_size=4)
    batches = list(data.train_dataloader())
    assert len(batches) == 2
    seen = []
    for images, targets in batches:
        assert images.shape == (4, 3, 64, 64)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert all(target["masks"].shape == (len(target["boxes"]), 64, 64) for target in targets)
        seen += [target["image_id"] for target in targets]
    assert sorted(seen) == list(range(1, 9))
    assert [target["image_id"] for _, targets in data.val_dataloader() for target in targets] == [1, 2, 3, 4]


@pytest.mark.parametrize("copy_paste", [0.0, 1.0])
def test_workers_change_nothing(digits, copy_paste):
    alone, helped = (
        list(module(digits, num_workers=workers, copy_paste=copy_paste).train_dataloader())
        for workers in (0, 2)
    )
    for (images, targets), (others, their_targets) in zip(alone, helped, strict=True):
        assert torch.equal(images, others)
        assert others.is_contiguous(memory_format=torch.channels_last)
        for target, other in zip(targets, their_targets, strict=True):
            assert target["image_id"] == other["image_id"]
            assert all(torch.equal(target[key], other[key]) for key in ("boxes", "labels", "masks"))


def test_the_seed_of_the_run_reaches_the_samples(digits, monkeypatch):
    def first(seed):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        return module(digits).train_set[0, 0][0]

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))


def test_copy_paste_brings_more_objects(digits):
    counts = [
        sum(len(module(digits, copy_paste=p).train_set[0, i][1]["labels"]) for i in range(8)) for p in (0, 1)
    ]
    assert counts[1] > counts[0]


@pytest.mark.parametrize("name", ["batch_size", "val_batch_size"])
def test_a_batch_of_nothing_is_refused(digits, name):
    with pytest.raises(ConfigError, match="batch_size: 0 is not allowed"):
        module(digits, **{name: 0})
