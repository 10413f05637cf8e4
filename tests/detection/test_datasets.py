"""Samples against the instances file."""

import json
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as reference

from botnet.detection.coco import CocoInstances
from botnet.detection.datasets import TrainDataset, collate
from botnet.detection.metric import CocoMetric, truth_of
from botnet.detection.placement import Placement
from botnet.detection.results import to_coco, true_detections
from botnet.detection.transforms import IMAGENET_MEAN, IMAGENET_STD, TrainTransform
from botnet.errors import ConfigError, DataError
from botnet.images import denormalise
from botnet.masks import encode_mask
from botnet.training.loader import make_loader


def test_a_sample_is_what_the_file_says(made):
    image, target = made.dataset()[0]
    shown = denormalise(image, IMAGENET_MEAN, IMAGENET_STD)[:, :30].permute(1, 2, 0).numpy()
    assert np.array_equal(shown, np.asarray(Image.open(made.folder / "a.png")))
    assert image.dtype == torch.float32
    assert target["boxes"].tolist() == [[10, 5, 30, 25], [0, 0, 4, 6]]
    assert target["boxes"].dtype == torch.float32
    assert target["image_id"] == 7
    assert target["size"] == target["valid"] == (30, 40)
    assert target["scale"] == (1, 1)
    square = np.zeros((30, 40), np.uint8)
    square[5:25, 10:30] = 1
    assert target["masks"][0] == encode_mask(square)
    # The file has no areas.
    assert target["area"].tolist() == [400, reference.decode(target["masks"][1]).sum()]
    assert target["iscrowd"].tolist() == [False, False]


def test_a_training_sample_is_what_the_file_says(made):
    image, target = made.dataset(train=True)[0, 0]
    shown = denormalise(image, IMAGENET_MEAN, IMAGENET_STD)[:, :30].permute(1, 2, 0).numpy()
    assert np.array_equal(shown, np.asarray(Image.open(made.folder / "a.png")))
    square = torch.zeros(40, 40, dtype=torch.uint8)
    square[5:25, 10:30] = 1
    assert torch.equal(target["masks"][0], square)
    rows, columns = np.nonzero(target["masks"][1].numpy())
    corner = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert target["boxes"].tolist() == [[10, 5, 30, 25], corner]
    assert target["area"].tolist() == target["masks"].sum((1, 2)).tolist()
    assert target["labels"].tolist() == [2, 1]
    assert {key: target[key] for key in ("image_id", "size", "valid", "scale")} == {
        "image_id": 7,
        "size": (30, 40),
        "valid": (30, 40),
        "scale": (1, 1),
    }


def test_the_area_of_the_file_is_kept(made):
    made.annotation(area=123.5)
    assert made.target()["area"][2] == 123.5


def test_an_image_without_annotations_has_tensors_of_length_zero(made):
    for train in (True, False):
        target = made.target(train, index=1)
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].dtype == torch.int64
        assert len(target["labels"]) == len(target["area"]) == len(target["masks"]) == 0
    assert made.target(train=True, index=1)["masks"].shape == (0, 40, 40)


def test_crowd_is_kept_for_scoring_and_left_out_of_training(made):
    counts = [0, 1200]
    made.annotation(iscrowd=1, segmentation={"size": [30, 40], "counts": counts})
    assert made.target()["iscrowd"].tolist() == [False, False, True]
    assert reference.decode(made.target()["masks"][2]).all()
    assert made.target(train=True)["labels"].tolist() == [2, 1]


class RightHalf(TrainTransform):
    """A transform that shows the right half of the images."""

    def place(self, size, rng):
        return Placement(size, size, top=0, left=20, valid=(30, 20))


@pytest.mark.parametrize("masks", [True, False])
def test_training_keeps_a_hundred_objects_of_those_that_the_transform_leaves(made, masks):
    for number in range(150):
        left, category = (22, 90) if number >= 5 else (1, 3)
        corner = [left, 2, left + 9, 2, left + 9, 12]
        made.annotation(id=1000 + number, category_id=category, bbox=[left, 2, 9, 10], segmentation=[corner])
    samples = TrainDataset(CocoInstances(made.write()), made.folder, RightHalf(40), masks=masks)
    _, target = samples[0, 0]
    assert {len(target[key]) for key in ("boxes", "labels", "area")} == {100}
    assert target["labels"].tolist() == [2] * 100
    assert len(target["masks"]) == 100 if masks else "masks" not in target
    assert len(made.target()["labels"]) == 152


@pytest.mark.parametrize("copy_paste", [0.0, 1.0])
def test_a_training_sample_depends_on_seed_epoch_and_index_alone(made, copy_paste, monkeypatch):
    def sample(seed, epoch, index):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        instances, transform = CocoInstances(made.write()), TrainTransform(24, (0.5, 2))
        image, target = TrainDataset(instances, made.folder, transform, copy_paste=copy_paste)[epoch, index]
        return [image, *(target[key] for key in ("boxes", "labels", "masks", "area"))]

    first = sample(0, 0, 0)
    torch.manual_seed(1)
    assert all(map(torch.equal, first, sample(0, 0, 0)))
    others = [sample(0, 0, 1), sample(0, 1, 0), sample(1, 0, 0)]
    assert not any(torch.equal(first[0], other[0]) for other in others)


def test_what_is_pasted_into_a_crowded_image_has_its_targets(made):
    for number in range(96):  # beside a cat and a dog
        made.annotation(id=1000 + number)
    for number in range(10):
        left, top = 21 + 2 * (number % 4), 2 + 3 * (number // 4)
        square = [left, top, left + 1, top, left + 1, top + 1, left, top + 1]
        made.annotation(
            id=2000 + number, image_id=12, category_id=3, bbox=[left, top, 1, 1], segmentation=[square]
        )
    plain, pasting = made.dataset(train=True), made.dataset(train=True, copy_paste=1.0)
    dogs = []
    for epoch in range(20):
        (before, _), (image, target) = plain[epoch, 0], pasting[epoch, 0]
        if (changed := (image != before).any(0).numpy()).any():
            assert not (changed & ~target["masks"].numpy().any(0)).any()
            assert (target["labels"] == 2).sum() == 97  # every cat is still there
            dogs.append((target["labels"] == 1).sum().item())
    assert set(dogs) == {2, 3}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_pasted_image_is_replaced_and_marked(made, log_to_stderr, capfd, workers):
    """Images 7 and 12 are valid, 20 is broken: the destination stays, with another source."""
    made.data["images"].append({"id": 20, "file_name": "c.png", "height": 30, "width": 40})
    (made.folder / "c.png").write_bytes(b"broken")
    samples = made.dataset(train=True, copy_paste=1.0)
    loader = make_loader(samples, 1, workers, collate, train=True, skip_broken=1)
    for epoch in range(8):
        loader.sampler.set_epoch(epoch)
        seen = [target["image_id"] for _, (target,) in loader]
        # In the place of c.png itself comes the next, a.png.
        assert Counter(seen) == {7: 2, 12: 1}
    assert loader.samples.broken.tolist() == [False, False, True]
    assert "c.png: cannot be decoded" in capfd.readouterr().err


def test_copy_paste_needs_masks_and_a_probability(made):
    for arguments in ({"copy_paste": 1.5}, {"copy_paste": 0.5, "masks": False}):
        with pytest.raises(ConfigError, match="copy_paste"):
            made.dataset(train=True, **arguments)


def test_boxes_alone_are_enough_without_masks(made):
    for annotation in made.data["annotations"]:
        del annotation["segmentation"]
    for train in (False, True):
        target = made.target(train, masks=False)
        assert "masks" not in target
        assert target["boxes"].tolist() == [[10, 5, 30, 25], [0, 0, 4, 6]]
        assert target["area"].tolist() == [400, 24]
    assert made.kinds(masks=False) == {}
    assert made.kinds() == {("no mask", "error"): 2}
    with pytest.raises(
        DataError, match=r"instances.json: annotation 100 of image 7 \(a.png\).*no segmentation"
    ):
        made.dataset()


def test_an_object_that_fills_the_canvas_has_a_box_of_floating_point_numbers(made):
    made.data["annotations"] = made.data["annotations"][:1]
    made.data["annotations"][0] |= {"bbox": [0, 0, 40, 30], "iscrowd": 0}
    transform = TrainTransform(40, (2, 2), flip=0)  # a crop in the middle of it
    target = TrainDataset(CocoInstances(made.write()), made.folder, transform, masks=False)[0, 0][1]
    assert target["boxes"].tolist() == [[0, 0, 40, 40]]
    assert target["boxes"].dtype == target["area"].dtype == torch.float32


def test_files_in_subfolders(made):
    (made.folder / "deep" / "er").mkdir(parents=True)
    (made.folder / "a.png").rename(made.folder / "deep" / "er" / "a.png")
    made.data["images"][0]["file_name"] = "deep/er/a.png"
    assert made.kinds() == {}
    assert made.target()["image_id"] == 7


def test_a_batch_has_one_canvas(made):
    samples = made.dataset()
    images, targets = collate([samples[0], samples[1]])
    assert torch.equal(images, torch.stack([samples[0][0], samples[1][0]]))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert [target["image_id"] for target in targets] == [7, 12]


def test_datasets_can_be_pickled(made):
    samples = pickle.loads(pickle.dumps(made.dataset()))
    assert samples[0][1]["labels"].tolist() == [2, 1]


@pytest.mark.parametrize("absent", [[], [[]], None], ids=str)
def test_an_empty_segmentation_is_none(made, absent):
    """Exporters of boxes write ``[]``; the object stays for Faster R-CNN, and Mask R-CNN is refused."""
    made.annotation(segmentation=absent)
    assert made.target(train=True, masks=False)["labels"].tolist() == [2, 1, 2]
    assert made.target(masks=False)["labels"].tolist() == [2, 1, 2]
    assert not made.dataset(masks=False).instances.dropped
    assert made.kinds(masks=False) == {}
    assert made.kinds() == {("no mask", "error"): 1}
    for train in (True, False):
        with pytest.raises(DataError, match=r"annotation 200 of image 7 .*no segmentation.*Faster R-CNN"):
            made.dataset(train)


@pytest.mark.parametrize(
    ("segmentation", "masks"),
    [([], False), (None, False), ([[50, 5, 70, 5, 70, 25]], True), ([[50, 5, 70, 5, 70, 25]], False)],
    ids=["empty", "null", "outside, masks", "outside, boxes"],
)
def test_scores_are_those_of_pycocotools_where_masks_are_absent(made, segmentation, masks):
    """The truth as predictions, half of its objects without a mask that could be found."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    for number in range(6):
        box = [6 * number, 10, 5, 5]
        polygon = [6 * number, 10, 6 * number + 5, 10, 6 * number + 5, 15, 6 * number, 15]
        made.annotation(
            id=300 + number, image_id=12, bbox=box, segmentation=segmentation if number % 2 else [polygon]
        )
    for annotation in made.data["annotations"]:
        annotation |= {"area": 25, "iscrowd": 0}
    samples, results = made.dataset(masks=masks), []
    names, ids = samples.instances.class_names, samples.instances.category_ids
    metric = CocoMetric(names, ids, masks)
    for _, target in samples:
        detections = true_detections(target, names, target["size"])
        detections.data["category_id"] = np.array(ids)[detections.class_id]
        detections.confidence = np.linspace(0.9, 0.1, len(detections), dtype=np.float32)
        found = to_coco(detections, target["image_id"])
        metric.update(found, truth_of(target))
        results += found
    report = metric.report()

    theirs = COCO(made.file)
    for kind, task in (("box", "bbox"), ("mask", "segm"))[: 1 + masks]:
        evaluation = COCOeval(theirs, theirs.loadRes(json.loads(json.dumps(results))), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert report[kind]["AP"] == pytest.approx(evaluation.stats[0])
        assert (report[kind]["AP"] == pytest.approx(1)) == (kind == "box")
