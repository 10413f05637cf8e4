"""The geometry of the transforms, read off the pixels: a picture of coordinates goes through them."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.ops import box_area

from botnet.detection.coco import CocoDataset
from botnet.detection.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvalTransform,
    TrainTransform,
    denormalise,
)


def coordinates(height: int, width: int) -> torch.Tensor:
    """A picture whose pixels say where they are: x and y of their centres, as parts of the sides, and 1."""
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return tv_tensors.Image(torch.stack([x, y, torch.ones(height, width)]))


def raw(image: torch.Tensor) -> np.ndarray:
    """The normalised image without its normalisation, and so without rounding to 8 bits."""
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    return (image * std + mean).double().numpy()


def axis_map(values: np.ndarray, length: int) -> np.ndarray:
    """Original coordinates at the canvas pixels' centres along one axis, fitted where no border disturbs."""
    inner = np.arange(len(values))[2:-2]
    assert len(inner) >= 4
    slope, offset = np.polyfit(inner, values[2:-2] * length, 1)
    # The discrete filter of a resize shifts single pixels by a part of an original one, to and fro.
    np.testing.assert_allclose(values[2:-2] * length, slope * inner + offset, atol=0.25)
    return slope * np.arange(len(values)) + offset


def tight_box(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def target_of(masks: np.ndarray, **more) -> dict:
    """A target with the given masks (N, H, W) and labels 1, 2, ..."""
    size = masks.shape[1:]
    boxes = torch.tensor([tight_box(mask) for mask in masks], dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "labels": torch.arange(len(masks)) + 1,
        "masks": tv_tensors.Mask(torch.from_numpy(masks)),
        "iscrowd": torch.zeros(len(masks), dtype=torch.bool),
        "area": torch.from_numpy(masks.sum((1, 2)).astype(np.float32)),
        "image_id": 1,
        "size": size,
    } | more


def block(height: int, width: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((1, height, width), np.uint8)
    mask[0, top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_and_masks_follow_the_pixels_on_every_photograph(coco_by, split):
    canvas, transform = 300, TrainTransform(300, jitter=(0.1, 2.0))
    samples = CocoDataset(coco_by / f"instances_{split}.json", coco_by / "images", train=True)
    flips = crops = gone = compared = between = inside = 0
    for seed in range(len(samples)):
        _, target = samples[seed]
        height, width = target["size"]
        target["labels"] = torch.arange(len(target["masks"])) + 1  # who is who afterwards
        torch.manual_seed(seed)
        moved, new = transform(coordinates(height, width), target)
        assert moved.shape == (3, canvas, canvas)
        pixels, (valid_height, valid_width) = raw(moved), new["valid"]
        assert (pixels[2, :valid_height, :valid_width] > 0.99).all()
        assert (moved[:, valid_height:] == 0).all()
        assert (moved[:, :, valid_width:] == 0).all()
        if min(new["valid"]) < 8:
            continue  # too few pixels to fit a map through; 1:30 pictures have a test of their own

        x = axis_map(pixels[0, valid_height // 2, :valid_width], width)
        y = axis_map(pixels[1, :valid_height, valid_width // 2], height)
        flips += x[0] > x[-1]
        crops += valid_height == canvas or valid_width == canvas
        np.testing.assert_allclose([abs(1 / (y[1] - y[0])), abs(1 / (x[1] - x[0]))], new["scale"], rtol=1e-3)

        masks = target["masks"].numpy()
        # Where a centre falls between two original pixels, either is right.
        near = [
            masks[:, np.floor(y + dy).clip(0).astype(int)][:, :, np.floor(x + dx).clip(0).astype(int)]
            for dy in (-0.01, 0.01)
            for dx in (-0.01, 0.01)
        ]
        least, most = np.min(near, axis=0), np.max(near, axis=0)
        rows = new["labels"].numpy() - 1
        assert set(np.flatnonzero(least.any((1, 2)))) <= set(rows) <= set(np.flatnonzero(most.any((1, 2))))
        gone += len(masks) - len(rows)
        between += (least != most).sum()
        inside += most.sum()
        found = new["masks"].numpy()
        assert (found[:, valid_height:] == 0).all()
        assert (found[:, :, valid_width:] == 0).all()
        assert (found[:, :valid_height, :valid_width] >= least[rows]).all()
        assert (found[:, :valid_height, :valid_width] <= most[rows]).all()
        assert new["boxes"].tolist() == [tight_box(mask) for mask in found]
        assert new["area"].tolist() == found.sum((1, 2)).tolist()
        assert new["boxes"].canvas_size == (canvas, canvas)
        compared += 1
    assert 0 < flips < len(samples)  # the draw took every branch
    assert 0 < crops < len(samples)
    assert gone > 0
    assert compared > 0.9 * len(samples)
    assert between < 0.02 * inside


def test_without_masks_the_boxes_follow_the_pixels_on_every_photograph(coco_by):
    transform = TrainTransform(300, jitter=(0.1, 2.0))
    samples = CocoDataset(coco_by / "instances_train.json", coco_by / "images", train=True, masks=False)
    compared = 0
    for seed in range(len(samples)):
        _, target = samples[seed]
        height, width = target["size"]
        torch.manual_seed(seed)
        moved, new = transform(coordinates(height, width), target)
        assert "masks" not in new
        pixels, (valid_height, valid_width) = raw(moved), new["valid"]
        if min(new["valid"]) < 8:
            continue
        x = axis_map(pixels[0, valid_height // 2, :valid_width], width)
        y = axis_map(pixels[1, :valid_height, valid_width // 2], height)
        edges = target["boxes"].numpy()
        # Pixel i's centre, i + 0.5 on the canvas, shows x[i] of the original.
        across = (edges[:, ::2] - x[0]) / (x[1] - x[0]) + 0.5
        down = (edges[:, 1::2] - y[0]) / (y[1] - y[0]) + 0.5
        across, down = np.sort(across.clip(0, valid_width)), np.sort(down.clip(0, valid_height))
        expected = np.stack([across[:, 0], down[:, 0], across[:, 1], down[:, 1]], 1)
        sides = expected[:, 2:] - expected[:, :2]
        if ((sides > 0) & (sides < 0.1)).any():
            continue  # too near to vanishing for a fitted map to decide
        kept = (sides > 0).all(1)
        np.testing.assert_allclose(new["boxes"].numpy(), expected[kept], atol=0.1)
        np.testing.assert_allclose(new["area"].numpy(), box_area(new["boxes"]).numpy(), rtol=1e-4)
        assert len(new["labels"]) == len(new["iscrowd"]) == kept.sum()
        compared += kept.sum()
    assert compared > 100


def test_the_picture_passes_unchanged_where_nothing_is_to_do():
    image = tv_tensors.Image(torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8))
    target = target_of(block(40, 40, 5, 6, 20, 30))
    moved, new = TrainTransform(40, jitter=(1, 1), flip=0)(image, target)
    assert torch.equal(denormalise(moved), torch.as_tensor(image))
    assert torch.equal(new["masks"], target["masks"])
    assert new["boxes"].tolist() == [[6, 5, 30, 20]]
    assert new["valid"] == (40, 40)
    assert new["scale"] == (1, 1)
    assert target["boxes"].tolist() == [[6, 5, 30, 20]]


def test_the_normalisation_is_that_of_imagenet():
    """The numbers that every ImageNet backbone of timm and torchvision was trained with."""
    image = tv_tensors.Image(torch.full((3, 8, 8), 255, dtype=torch.uint8))
    moved, _ = EvalTransform(8)(image)
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert moved[:, 3, 3].tolist() == pytest.approx(expected)


def test_a_flip_mirrors_image_boxes_and_masks():
    image = tv_tensors.Image(torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8))
    moved, new = TrainTransform(40, jitter=(1, 1), flip=1)(image, target_of(block(40, 40, 5, 6, 20, 30)))
    assert torch.equal(denormalise(moved), torch.as_tensor(image).flip(2))
    assert new["boxes"].tolist() == [[10, 5, 34, 20]]


def test_the_padding_is_at_the_bottom_and_right_also_after_a_flip():
    image = tv_tensors.Image(torch.full((3, 20, 40), 200, dtype=torch.uint8))
    moved, new = TrainTransform(40, jitter=(0.5, 0.5), flip=1)(image, target_of(block(20, 40, 0, 0, 20, 10)))
    assert new["valid"] == (10, 20)
    assert new["boxes"].tolist() == [[15, 0, 20, 10]]
    assert (denormalise(moved)[:, :10, :20] == 200).all()
    assert (moved[:, 10:] == 0).all()
    assert (moved[:, :, 20:] == 0).all()


def test_the_longer_side_is_jittered_evenly_over_the_range():
    transform = TrainTransform(100, jitter=(0.1, 2.0))
    torch.manual_seed(0)
    image = tv_tensors.Image(torch.zeros(3, 10, 20, dtype=torch.uint8))
    longer = np.array(
        [20 * transform(image, target_of(np.zeros((0, 10, 20), np.uint8)))[1]["scale"][1] for _ in range(400)]
    )
    assert 10 <= longer.min() < 15
    assert 195 < longer.max() <= 200
    assert abs(longer.mean() - 105) < 10


def test_the_crop_reaches_every_part_of_a_larger_picture():
    transform = TrainTransform(20, jitter=(2, 2), flip=0)
    masks = np.concatenate([block(20, 20, 0, 0, 1, 1), block(20, 20, 19, 19, 20, 20)])
    image = tv_tensors.Image(torch.zeros(3, 20, 20, dtype=torch.uint8))
    torch.manual_seed(0)
    seen = [transform(image, target_of(masks))[1]["labels"].tolist() for _ in range(4000)]
    # The two corners are 40 pixels apart on a canvas of 20: never together, each with probability 1/21².
    assert [1] in seen
    assert [2] in seen
    assert [1, 2] not in seen


@pytest.mark.parametrize("shape", [(30, 900), (900, 30), (1, 30), (1, 1)])
@pytest.mark.parametrize("jitter", [0.1, 1.0, 2.0])
def test_odd_shapes_keep_their_object(shape, jitter):
    image = tv_tensors.Image(torch.zeros(3, *shape, dtype=torch.uint8))
    moved, new = TrainTransform(64, jitter=(jitter, jitter))(image, target_of(np.ones((1, *shape), np.uint8)))
    height, width = new["valid"]
    assert moved.shape == (3, 64, 64)
    assert new["boxes"].tolist() == [[0, 0, width, height]]
    assert max(new["valid"]) == min(64, round(64 * jitter))
    assert min(new["valid"]) >= 1

    moved, new = EvalTransform(64)(image)
    assert moved.shape == (3, 64, 64)
    assert max(new["valid"]) == 64


def test_an_image_without_objects_has_tensors_of_length_zero():
    image = tv_tensors.Image(torch.zeros(3, 30, 20, dtype=torch.uint8))
    _, new = TrainTransform(16)(image, target_of(np.zeros((0, 30, 20), np.uint8)))
    assert new["boxes"].shape == (0, 4)
    assert new["masks"].shape == (0, 16, 16)
    assert new["labels"].shape == new["iscrowd"].shape == new["area"].shape == (0,)
    assert new["labels"].dtype == torch.int64


def test_evaluation_maps_back_to_the_original_pixels_of_every_photograph(coco_by):
    transform = EvalTransform(400)
    plain = CocoDataset(coco_by / "instances_val.json", coco_by / "images")
    samples = CocoDataset(coco_by / "instances_val.json", coco_by / "images", transform)
    for index in range(len(samples)):
        _, truth = plain[index]
        image, target = samples[index]
        height, width = target["size"]
        assert max(target["valid"]) == 400
        for key in ("boxes", "masks", "area", "iscrowd", "labels"):
            assert torch.equal(target[key], truth[key])

        moved, about = transform(coordinates(height, width))
        assert about == {key: target[key] for key in ("valid", "scale", "size")}
        pixels, (valid_height, valid_width) = raw(moved), about["valid"]
        x = axis_map(pixels[0, valid_height // 2, :valid_width], width)
        y = axis_map(pixels[1, :valid_height, valid_width // 2], height)
        # What the canvas shows at its pixels' centres is where the scale says that they came from.
        np.testing.assert_allclose((np.arange(valid_width) + 0.5) / target["scale"][1], x, atol=0.02)
        np.testing.assert_allclose((np.arange(valid_height) + 0.5) / target["scale"][0], y, atol=0.02)
        assert (image[:, valid_height:] == 0).all()
        assert (image[:, :, valid_width:] == 0).all()


def test_the_transformed_photograph_is_the_photograph(coco_by):
    """A resized photograph, scaled back, is near to the original; a wrong channel order would not be."""
    samples = CocoDataset(coco_by / "instances_val.json", coco_by / "images")
    image, target = samples[0]
    moved, about = EvalTransform(640)(image, target)
    height, width = about["valid"]
    assert about["valid"] == target["size"]  # it is 640 pixels long already
    assert torch.equal(denormalise(moved)[:, :height, :width], torch.as_tensor(image))


@pytest.mark.parametrize(
    "arguments", [{"canvas": 0}, {"canvas": 8, "jitter": (2.0, 0.1)}, {"canvas": 8, "flip": 2}]
)
def test_arguments_that_make_no_transform_are_refused(arguments):
    with pytest.raises(ValueError, match="no transform"):
        TrainTransform(**arguments)
