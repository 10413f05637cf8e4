"""Scoring on a thread: the same numbers, records and drawings as one after the other, and its errors."""

import ctypes
import gc
import re
import runpy
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from botnet.detection import scoring
from botnet.detection.coco import CocoInstances
from botnet.detection.datasets import EvalDataset
from botnet.detection.metric import CocoMetric, truth_of
from botnet.detection.postprocess import to_original
from botnet.detection.results import to_coco
from botnet.detection.scoring import BackgroundScoring
from botnet.detection.transforms import EvalTransform
from botnet.masks import encode_mask
from tests.support.recipes import DETECTOR

CANVAS = 96
Y, X = np.mgrid[-1:1:28j, -1:1:28j]
ELLIPSE = np.clip(1.8 - X**2 - Y**2, 0, 1)


@pytest.fixture(scope="module")
def images(digits):
    """Detections near the truth, with equal scores in many images, and their targets."""
    instances = CocoInstances(digits / "instances_val.json")
    dataset = EvalDataset(instances, digits / "val", EvalTransform(CANVAS))
    rng = np.random.default_rng(0)
    samples = []
    for index in range(40):
        _, target = dataset[index % len(dataset)]
        boxes = target["boxes"].numpy() * target["scale"][0]
        found = np.repeat(boxes, 2, axis=0) + rng.normal(0, 2, (2 * len(boxes), 4)).astype(np.float32)
        labels = np.repeat(target["labels"].numpy(), 2)
        labels[rng.random(len(labels)) < 0.2] = 1
        masks = np.broadcast_to(ELLIPSE, (len(found), 1, 28, 28)) * rng.random((len(found), 1, 1, 1))
        masks = masks.astype(np.float32)
        scores = rng.integers(1, 5, len(found)).astype(np.float32) / 4
        detection = {"boxes": found, "labels": labels, "scores": scores, "masks": masks}
        samples.append((detection, {**target, "image_id": index}))
    return instances, samples


def metric_of(instances):
    return CocoMetric(instances.class_names, instances.category_ids)


def one_by_one(images):
    instances, samples = images
    metric, records = metric_of(instances), []
    for detection, target in samples:
        found = to_original(
            detection, target["scale"], target["size"], instances.class_names, instances.category_ids
        )
        records.append(to_coco(found, target["image_id"]))
        metric.update(records[-1], truth_of(target))
    return metric.report(), records


def test_the_thread_gives_what_one_image_after_the_other_gives(images):
    instances, samples = images
    background = BackgroundScoring(metric_of(instances))
    for index, (detection, target) in enumerate(samples):
        picture = torch.zeros(3, *target["size"], dtype=torch.uint8) if index in (3, 7) else None
        background.add(detection, target, picture)
    background.finish()
    report, records = one_by_one(images)
    assert 0 < report["mask"]["AP"] < 1
    assert background.metric.report() == report
    assert background.results == records
    assert [image_id for image_id, _ in background.sheets] == [3, 7]


@pytest.mark.parametrize("devices", [2, 3])
def test_what_several_devices_score_is_what_one_does(images, devices):
    instances, samples = images
    shares = [BackgroundScoring(metric_of(instances), rank, devices) for rank in range(devices)]
    for index, (detection, target) in enumerate(samples):
        shares[index % devices].add(detection, target)
    for share in shares:
        share.finish()
    first = shares[0].metric
    first.merge([share.metric.state() for share in shares])
    assert first.report() == one_by_one(images)[0]


def test_no_more_images_wait_than_there_is_room_for(images, monkeypatch):
    instances, samples = images
    go, begun = threading.Event(), []
    paste = scoring.to_original

    def slow(*given):
        begun.append(1)
        go.wait(60)
        return paste(*given)

    monkeypatch.setattr(scoring, "to_original", slow)
    monkeypatch.setattr(scoring, "WAITING", 3)
    background, added = BackgroundScoring(metric_of(instances)), []

    def add_all():
        for detection, target in samples[:8]:
            background.add(detection, target)
            added.append(1)

    feeder = threading.Thread(target=add_all)
    feeder.start()
    deadline = time.monotonic() + 60
    while len(added) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    feeder.join(0.2)
    assert feeder.is_alive()
    assert (len(added), len(begun)) == (3, 1)
    go.set()
    feeder.join(60)
    background.finish()
    assert len(background.results) == 8


def test_an_error_of_the_thread_ends_the_validation(images):
    instances, samples = images
    detection, target = samples[0]
    for broken in (2, 19):
        background = BackgroundScoring(metric_of(instances))
        with pytest.raises(KeyError, match="scale"):  # noqa: PT012
            for index in range(20):
                bad = {key: value for key, value in target.items() if key != "scale"}
                background.add(detection, bad if index == broken else target)
            background.finish()


@pytest.mark.long
def test_the_benchmark_compares_equal_validations():
    """Of each image with its 30 detections; the benchmark itself compares records and numbers."""
    compare = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "eval.py"))["compare"]
    rates, detections = compare(DETECTOR, (96, 64), images=3, canvas=64, batch=2, rounds=1)
    assert set(rates) == {"before the next batch", "on a thread"}
    assert detections > 10


def score_large(crowds, height=4800, width=6400, images=2):
    """Score images of 31 megapixels, each with 100 detections and so many crowd regions."""
    rng = np.random.default_rng(0)
    corners = rng.random((100, 2)) / 2
    boxes = np.hstack([corners, corners + 0.05 + 0.4 * rng.random((100, 2))]).astype(np.float32)
    detection = {
        "boxes": CANVAS * boxes,
        "labels": rng.integers(1, 4, 100),
        "scores": rng.random(100).astype(np.float32),
        "masks": np.broadcast_to(ELLIPSE, (100, 1, 28, 28)).astype(np.float32),
    }
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 4 : width // 2] = 1
    count = 10 + crowds
    truth = {
        "boxes": torch.from_numpy(np.resize(boxes * np.float32([width, height] * 2), (count, 4))),
        "labels": torch.ones(count, dtype=torch.int64),
        "iscrowd": torch.tensor([0] * 10 + [1] * crowds),
        "area": torch.full((count,), float(mask.sum())),
        "masks": [encode_mask(mask)] * count,
        "size": (height, width),
        "scale": (CANVAS / height, CANVAS / width),
    }
    del mask
    background = BackgroundScoring(CocoMetric(["a", "b", "c"], [1, 2, 3]))
    for image_id in range(images):
        background.add(detection, {**truth, "image_id": image_id})
    background.finish()
    background.metric.report()


def resident(field):
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("crowds", [0, 200])
def test_memory_grows_neither_with_the_images_size_nor_with_crowds(crowds):
    score_large(crowds)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts from what is resident now
    before = resident("VmRSS")
    score_large(crowds)
    # The fixture's own mask is one of 31 MB; those of the detections would take 3,000.
    assert resident("VmHWM") - before < 100
