"""What the detector refuses: messages name the image, the object, what was given, what is expected."""

import copy

import pytest
import timm
import torch

from botnet.detection.inputs import check_values
from tests.support.detector import small_detector, targets_for
from tests.support.synchronisations import Synchronisations

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def detector():
    return small_detector()


@pytest.fixture
def given():
    images = torch.randn(2, 3, 96, 112, generator=torch.Generator().manual_seed(0))
    return {"images": images, "targets": targets_for(images)}


def box(*corners):
    def change(given):
        given["targets"][1]["boxes"][1] = torch.tensor(corners)

    return change


def label(value):
    def change(given):
        given["targets"][1]["labels"][1] = value

    return change


def target(**changes):
    def change(given):
        given["targets"][1].update({key: value(given["targets"][1][key]) for key, value in changes.items()})

    return change


def without(name):
    return lambda given: given["targets"][1].pop(name)


def pixel(value):
    def change(given):
        given["images"][1, 2, 5, 7] = value

    return change


def images(function):
    return lambda given: given.update(images=function(given["images"]))


def argument(**values):
    return lambda given: given.update(values)


WRONG = {
    "label 0": (label(0), r"image 1, object 1: the label is 0; labels are from 1 to 3"),
    "label above the classes": (label(4), r"image 1, object 1: the label is 4; labels are from 1 to 3"),
    "negative label": (label(-1), r"image 1, object 1: the label is -1"),
    "no width": (box(8.0, 8, 8, 40), r"object 1: the box is \[8.0, 8.0, 8.0, 40.0\].*x1 < x2 and y1 < y2"),
    "no height": (box(8.0, 40, 48, 40), r"image 1, object 1: the box is"),
    "swapped x": (box(48.0, 8, 8, 40), r"image 1, object 1: the box is"),
    "swapped y": (box(8.0, 40, 48, 8), r"image 1, object 1: the box is"),
    "NaN in a box": (box(8.0, NAN, 48, 40), r"object 1: the box is \[8.0, nan, 48.0, 40.0\]; give finite"),
    "infinite box": (box(8.0, 8, INF, 40), r"image 1, object 1: the box is"),
    "left of the canvas": (box(-20.0, 8, 0, 40), r"image 1, object 1: .*a part \(height 96, width 112\)"),
    "right of the canvas": (box(112.0, 8, 130, 40), r"image 1, object 1: the box is"),
    "above the canvas": (box(8.0, -20, 48, 0), r"image 1, object 1: the box is"),
    "below the canvas": (box(8.0, 96, 48, 99), r"image 1, object 1: the box is"),
    "five numbers a box": (target(boxes=lambda b: b.repeat(1, 2)[:, :5]), r"image 1: boxes are \(2, 5\)"),
    "a single box": (target(boxes=lambda b: b[0]), r"image 1: boxes are \(4,\).*give \(objects, 4\)"),
    "integer boxes": (target(boxes=lambda b: b.long()), r"image 1: boxes are \(2, 4\) torch.int64.*floating"),
    "boxes as a list": (target(boxes=lambda b: b.tolist()), r"image 1: target 'boxes' .* is list"),
    "no boxes": (without("boxes"), r"image 1: target 'boxes' must be a tensor, is missing"),
    "no labels": (without("labels"), r"image 1: target 'labels' must be a tensor, is missing"),
    "too few labels": (target(labels=lambda x: x[:1]), r"image 1: labels are \(1,\) .* 2 boxes; give \(2,\)"),
    "labels of int32": (target(labels=lambda x: x.int()), r"image 1: labels are \(2,\) torch.int32"),
    "no masks": (without("masks"), r"image 1: target 'masks' .* missing; Mask R-CNN needs masks"),
    "masks of another size": (
        target(masks=lambda m: m[:, :95]),
        r"image 1: masks are \(2, 95, 112\) torch.uint8; give \(2, 96, 112\)",
    ),
    "too few masks": (target(masks=lambda m: m[:1]), r"image 1: masks are \(1, 96, 112\).*\(2, 96, 112\)"),
    "masks of int64": (target(masks=lambda m: m.long()), r"image 1: masks are \(2, 96, 112\) torch.int64"),
    "too few targets": (lambda given: given["targets"].pop(), r"1 targets for 2 images"),
    "too many targets": (lambda given: given["targets"].append({}), r"3 targets for 2 images"),
    "targets of one image": (argument(targets={"boxes": torch.zeros(0, 4)}), r"targets must be a list"),
    "a target of None": (argument(targets=[None, None]), r"image 0: its target is"),
    "sizes for one image": (argument(valid=[(96, 112)]), r"valid has 1 sizes for 2 images"),
    "a size of one number": (argument(valid=[(96, 112), (96,)]), r"image 1: valid is \(96,\); give two"),
    "a number as size": (argument(valid=[(96, 112), 96]), r"image 1: valid is 96; give two integers"),
    "a fractional size": (argument(valid=[(96, 112), (96, 50.5)]), r"image 1: valid is \(96, 50.5\)"),
    "a size beyond the canvas": (argument(valid=[(96, 112), (112, 9)]), r"is \(112, 9\); .*\(96, 112\)"),
    "a size of 0": (argument(valid=[(96, 112), (0, 96)]), r"image 1: valid is \(0, 96\)"),
    "a seed for one image": (argument(seeds=[1]), r"1 seeds for 2 images"),
    "bytes": (images(lambda x: x.byte()), r"images are torch.uint8; give floating-point"),
    "one channel": (images(lambda x: x[:, :1]), r"have 1 channels, got \(2, 1, 96, 112\); .* takes 3"),
    "channels last": (images(lambda x: x.permute(0, 2, 3, 1)), r"images have 96 channels"),
    "one image": (images(lambda x: x[0]), r"images must be one batch .* got a tensor \(3, 96, 112\)"),
    "a list of images": (images(list), r"images must be one batch .* got list"),
    "no image": (lambda given: given.update(images=given["images"][:0], targets=[]), r"images are empty"),
    "NaN in an image": (pixel(NAN), r"image 1: it has NaN or infinite values, the first at .* \(2, 5, 7\)"),
    "infinity in an image": (pixel(-INF), r"image 1: it has NaN or infinite"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_learnt_from_is_refused(case, detector, given):
    change, message = WRONG[case]
    change(given)
    before = copy.deepcopy(detector.state_dict())
    with pytest.raises(ValueError, match=message):
        detector(**given)
    # Not even the statistics of the norms have seen it.
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def test_the_first_wrong_object_is_named(detector, given):
    given["targets"][0]["labels"][1] = 9
    given["targets"][1]["boxes"][0] = NAN
    with pytest.raises(ValueError, match="image 0, object 1: the label is 9"):
        detector(**given)


def test_images_are_also_checked_in_evaluation(given):
    detector = small_detector().eval()
    with pytest.raises(ValueError, match="images have 1 channels"):
        detector(given["images"][:, :1])
    given["images"][1, 0, 0, 0] = NAN
    with pytest.raises(ValueError, match="image 1: it has NaN"):
        detector(given["images"])


def test_boxes_may_touch_the_edges_and_reach_beyond_them(given):
    """As in torchvision."""
    for target in given["targets"]:
        target["boxes"] = torch.tensor([[0.0, 0, 112, 96], [-9, -9, 120, 50]], dtype=torch.float64)
        target["masks"] = target["masks"].bool()
    losses = small_detector()(**given, valid=[(96, 112), (40, 1)])
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_a_backbone_of_one_channel_takes_such_images():
    backbone = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4), in_chans=1)
    detector = small_detector(backbone=backbone)
    images = torch.randn(2, 1, 64, 64)
    detector(images, targets_for(images, count=1))
    with pytest.raises(ValueError, match="the backbone takes 1"):
        detector(torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("count", [0, 2])
def test_all_values_are_checked_with_one_synchronisation(count, given):
    targets = targets_for(given["images"], count)
    with Synchronisations() as counted:
        check_values(given["images"], targets, num_classes=3)
    assert counted.found == {"aten._local_scalar_dense": 1}


def test_a_check_leaves_images_and_targets_as_they_are(given):
    images = given["images"].to(memory_format=torch.channels_last).half().requires_grad_()
    kept = images.detach().clone(), copy.deepcopy(given["targets"])
    check_values(images, given["targets"], num_classes=3)
    assert torch.equal(images, kept[0])
    assert images.grad is None
    for target, before in zip(given["targets"], kept[1], strict=True):
        assert all(torch.equal(value, before[name]) for name, value in target.items())


@pytest.mark.parametrize("autocast", [False, True])
def test_the_checks_do_not_change_the_losses(autocast, given, monkeypatch):
    def losses():
        detector = small_detector()
        detector.to(memory_format=torch.channels_last)
        images = given["images"].to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return detector(images, given["targets"], seeds=[1, 2])

    checked = losses()
    monkeypatch.setattr("botnet.detection.rcnn.check_values", lambda *_: None)
    assert losses() == checked


def test_a_compiled_backbone_is_checked_too(given):
    detector = small_detector()
    detector.backbone.compile(backend="eager")
    assert all(torch.isfinite(loss) for loss in detector(**given).values())
    given["targets"][1]["labels"][0] = 0
    with pytest.raises(ValueError, match="image 1, object 0"):
        detector(**given)
