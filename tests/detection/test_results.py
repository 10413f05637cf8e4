"""Results and their scores: against pycocotools, against the truth itself, against hand-made numbers."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from pycocotools import mask as reference
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from supervision import Detections
from supervision.detection.compact_mask import CompactMask

from botnet.detection.coco import CocoInstances
from botnet.detection.datasets import EvalDataset
from botnet.detection.metric import COCO_NUMBERS, CocoMetric, truth_of
from botnet.detection.postprocess import as_arrays, to_original
from botnet.detection.results import to_coco, true_detections, write_results
from botnet.detection.transforms import EvalTransform
from botnet.masks import compact_masks, encode_mask


@pytest.fixture(scope="module", params=["train", "val"])
def photographs(coco_by, request):
    """Instances of real photographs and (id, truth) of each."""
    instances = CocoInstances(coco_by / f"instances_{request.param}.json")
    dataset = EvalDataset(instances, coco_by / "images", EvalTransform(64))
    targets = [target for _, target in (dataset[i] for i in range(len(dataset)))]
    return instances, [(target["image_id"], truth_of(target)) for target in targets]


def predictions_like(truth, generator, category_ids):
    """Plausible detections: truths missed, moved, mislabelled and found twice."""
    boxes, labels, masks = [], [], []
    for box, label, rle in zip(truth["boxes"], truth["labels"], truth["masks"], strict=True):
        for _ in range(int(torch.randint(0, 3, (), generator=generator))):
            sides = (box[2:] - box[:2]).repeat(2)
            boxes.append(box + 0.1 * sides * torch.randn(4, generator=generator))
            wrong = torch.rand((), generator=generator) < 0.2
            labels.append(
                int(torch.randint(1, len(category_ids) + 1, (), generator=generator)) if wrong else int(label)
            )
            mask = reference.decode(rle)
            shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
            masks.append(encode_mask(np.roll(mask, shift, (0, 1))))
    return detections_of(
        torch.stack(boxes) if boxes else torch.zeros(0, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.rand(len(boxes), generator=generator),
        category_ids,
        compact_masks(masks, *truth["masks"][0]["size"]) if masks else None,
    )


def detections_of(boxes, labels, scores, category_ids, masks=None):
    """Detections from labels that count from 1."""
    classes = labels.numpy() - 1
    data = {"category_id": np.array(category_ids)[classes]}
    return Detections(boxes.numpy(), mask=masks, class_id=classes, confidence=scores.numpy(), data=data)


def test_scores_equal_pycocotools(photographs, tmp_path):
    instances, truths = photographs
    generator = torch.Generator().manual_seed(0)
    metric, records = CocoMetric(instances.class_names, instances.category_ids), []
    for image_id, truth in truths:
        detections = predictions_like(truth, generator, instances.category_ids)
        found = to_coco(detections, image_id)
        metric.update(found, truth)
        records += found
    files = write_results(tmp_path, records)
    report = metric.report()

    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(instances.path))
        for name, iou_type in (("box", "bbox"), ("mask", "segm")):
            evaluation = COCOeval(theirs, theirs.loadRes(str(files[iou_type])), iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            ours = [report[name][number] for number, _ in COCO_NUMBERS]
            assert ours == pytest.approx(evaluation.stats.tolist(), abs=1e-6)
            assert 0.05 < report[name]["AP"] < 0.95  # neither trivial end would prove much
            precision = evaluation.eval["precision"][:, :, :, 0, 2]
            for index, label in enumerate(instances.class_names):
                values = precision[:, :, index]
                expected = values[values > -1].mean() if (values > -1).any() else -1
                assert report[name]["per_class"][label] == pytest.approx(expected, abs=1e-6)


def test_truth_scored_as_prediction_is_perfect(photographs):
    instances, truths = photographs
    metric = CocoMetric(instances.class_names, instances.category_ids)
    for image_id, truth in truths:
        size = truth["masks"][0]["size"] if truth["masks"] else (1, 1)
        detections = true_detections(truth, instances.class_names, size)[~truth["iscrowd"].numpy()]
        assert detections["class_name"].tolist() == [
            instances.class_names[label - 1] for label in truth["labels"][~truth["iscrowd"]].tolist()
        ]
        detections.data["category_id"] = np.array(instances.category_ids)[detections.class_id]
        detections.confidence = np.ones(len(detections), np.float32)
        metric.update(to_coco(detections, image_id), truth)
    for table in metric.report().values():
        for number in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"):
            assert table[number] == pytest.approx(1.0)


def test_nothing_found_scores_zero():
    truth = {
        "boxes": torch.tensor([[0.0, 0, 10, 10]]),
        "labels": torch.tensor([1]),
        "iscrowd": torch.tensor([False]),
        "area": torch.tensor([100.0]),
        "masks": [encode_mask(np.ones((10, 10), np.uint8))],
    }
    metric = CocoMetric(["thing"], [1])
    metric.update([], truth)
    report = metric.report()
    assert report["box"]["AP"] == report["mask"]["AP"] == 0
    assert report["mask"]["APl"] == -1  # there is no large object: nothing to average


def test_boxes_only_have_one_table():
    truth = {
        "boxes": torch.tensor([[0.0, 0, 10, 10]]),
        "labels": torch.tensor([1]),
        "iscrowd": torch.tensor([False]),
        "area": torch.tensor([100.0]),
    }
    metric = CocoMetric(["thing"], [7], masks=False)
    found = to_coco(detections_of(truth["boxes"], truth["labels"], torch.ones(1), [7]), 1)
    metric.update(found, truth)
    report = metric.report()
    assert set(report) == {"box"}
    assert report["box"]["AP"] == pytest.approx(1.0)
    assert report["box"]["per_class"] == {"thing": pytest.approx(1.0)}


def test_classes_of_one_name_have_an_ap_each():
    truth = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]]),
        "labels": torch.tensor([1, 2]),
        "iscrowd": torch.tensor([False, False]),
        "area": torch.tensor([100.0, 400.0]),
    }
    metric = CocoMetric(["fish", "fish", "cat"], [0, 1, 2], masks=False)
    metric.update(to_coco(detections_of(truth["boxes"][:1], torch.tensor([1]), torch.ones(1), [0]), 1), truth)
    table = metric.report()["box"]
    assert table["per_class"] == {"fish (id 0)": pytest.approx(1), "fish (id 1)": 0, "cat": -1}
    assert table["AP"] == pytest.approx(0.5)


def test_detections_go_back_to_the_original_pixels():
    # 200 x 100 (height x width) shown on a canvas at half the size.
    detection = {
        "boxes": torch.tensor([[10.0, 20.0, 30.0, 60.0], [40.0, 90.0, 55.0, 120.0]]),
        "scores": torch.tensor([0.9, 0.6]),
        "labels": torch.tensor([2, 1]),
        "masks": torch.ones(2, 1, 28, 28),
    }
    detection["masks"][0, :, :, 14:] = 0  # its right half is empty
    found = to_original(as_arrays(detection), (0.5, 0.5), (200, 100), ["one", "two"], [11, 30])
    assert found.xyxy.tolist() == [[20, 40, 60, 120], [80, 180, 100, 200]]  # the second one clipped
    assert found.xyxy.dtype == found.confidence.dtype == np.float32
    assert found.class_id.tolist() == [1, 0]
    assert found["class_name"].tolist() == ["two", "one"]
    assert isinstance(found.mask, CompactMask)
    first, second = found.mask.to_dense()
    assert first.shape == (200, 100)
    assert first[40:120, 20:40].all()
    assert first.sum() == 80 * 20
    assert second[180:200, 80:100].all()
    assert second.sum() == 20 * 20
    records = to_coco(found, 7)
    assert [record["category_id"] for record in records] == [30, 11]
    assert records[0]["bbox"] == [20, 40, 40, 80]
    assert json.loads(json.dumps(records))[0]["segmentation"]["size"] == [200, 100]
    np.testing.assert_array_equal(reference.decode(records[1]["segmentation"]), second)


def test_nothing_found_goes_back_to_the_original_pixels():
    detection = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=int)}
    for masks in ({}, {"masks": torch.zeros(0, 1, 28, 28)}):
        found = to_original(as_arrays(detection | masks), (0.5, 0.5), (200, 100), ["a"], [1])
        assert len(found) == len(found["class_name"]) == 0
        assert to_coco(found, 7) == []
