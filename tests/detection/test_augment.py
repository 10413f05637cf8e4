"""Colour and rotation: the image, its masks and its boxes change together, and as torchvision has it."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import ColorJitter

from botnet.detection.augment import FILL, Augmentation
from botnet.detection.datasets import TrainDataset
from botnet.detection.placement import NO_MASK, CanvasObject, canvas_object
from botnet.detection.transforms import TrainTransform
from botnet.errors import ConfigError
from botnet.training.seeding import generator
from tests.support.detection import Set

HEIGHT, WIDTH = 90, 140


def turned_by_formula(mask: np.ndarray, angle: float) -> np.ndarray:
    """Each pixel's centre, turned back around the image's centre, in the original, pixel by pixel."""
    height, width = mask.shape
    radians, found = np.deg2rad(angle), np.zeros_like(mask)
    for row in range(height):
        for column in range(width):
            x, y = column + 0.5 - width / 2, row + 0.5 - height / 2
            # Counter-clockwise as seen, where y points down.
            from_x = np.cos(radians) * x - np.sin(radians) * y + width / 2
            from_y = np.sin(radians) * x + np.cos(radians) * y + height / 2
            if 0 <= from_x < width and 0 <= from_y < height:
                found[row, column] = mask[int(from_y), int(from_x)]
    return found


def blob(seed: int) -> np.ndarray:
    """An irregular mask."""
    rng, mask = np.random.default_rng(seed), np.zeros((HEIGHT, WIDTH), np.uint8)
    for _ in range(4):
        top, left = rng.integers(10, HEIGHT - 30), rng.integers(10, WIDTH - 40)
        mask[top : top + rng.integers(6, 30), left : left + rng.integers(6, 40)] = 1
    return mask


def on_canvas(found: CanvasObject) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[found.window] = found.mask
    return mask


def tight_box(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("angle", [-30.0, -7.5, 0.6, 10.0, 90.0])
def test_masks_and_pixels_turn_alike_and_the_box_is_the_masks_own(angle):
    masks = [blob(seed) for seed in range(3)]
    objects = [canvas_object(label, mask, 0, 0) for label, mask in enumerate(masks, 1)]
    change = Augmentation(angle=angle)
    for mask, found in zip(masks, change.objects(objects, (HEIGHT, WIDTH)), strict=True):
        expected = turned_by_formula(mask, angle)
        drawn = on_canvas(found)
        assert (drawn != expected).sum() <= 0.01 * expected.sum()  # centres on an edge
        assert list(found.box) == tight_box(drawn)
        assert found.area == drawn.sum()
        # The image of the mask turns with it: half of its level is the edge.
        picture = np.repeat(255 * mask[..., None], 3, 2)
        shown = change.pixels(picture)[..., 0] > 127
        outside = turned_by_formula(np.ones_like(mask), angle) == 0
        assert (shown != drawn)[~outside].sum() <= 0.05 * expected.sum()
    assert [found.label for found in change.objects(objects, (HEIGHT, WIDTH))] == [1, 2, 3]


@pytest.mark.parametrize("angle", [-20.0, 5.0, 90.0])
def test_a_box_without_a_mask_becomes_the_box_around_it(angle):
    """Within a pixel, that of what is visible of all of the box."""
    boxes = [(20.0, 30.0, 60.0, 50.0), (0.0, 0.0, 30.0, 12.0), (100.5, 60.2, 139.9, 90.0), (70, 40, 72.3, 42)]
    objects = [CanvasObject(label, box, 1.0, NO_MASK) for label, box in enumerate(boxes)]
    found = {one.label: one for one in Augmentation(angle=angle).objects(objects, (HEIGHT, WIDTH))}
    for label, (left, top, right, bottom) in enumerate(boxes):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[int(top) : math.ceil(bottom), int(left) : math.ceil(right)] = 1
        expected = turned_by_formula(mask, angle)
        assert (label in found) == expected.any()
        if label in found:
            one = found[label]
            assert abs(np.subtract(tight_box(expected), one.box)).max() <= 1
            assert one.area == (one.box[2] - one.box[0]) * (one.box[3] - one.box[1])
            assert not one.mask.size
    assert {0, 3} <= found.keys()


def test_a_crowd_turns_as_each_object_alone_in_the_memory_of_a_few():
    canvas, change = 400, Augmentation(angle=5)
    mask = blob(0)[:40, :40]
    objects = [canvas_object(label, mask, 3 * label, 2 * label) for label in range(1, 101)]
    tracemalloc.start()
    found = change.objects(objects, (canvas, canvas))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * canvas**2
    assert all(one.mask.base is None for one in found)  # none keeps a whole canvas
    for one, new in zip(objects, found, strict=True):
        (alone,) = change.objects([one], (canvas, canvas))
        assert (new.label, new.box, new.area) == (alone.label, alone.box, alone.area)
        assert np.array_equal(new.mask, alone.mask)


def test_what_is_turned_out_of_the_image_is_left_out():
    corner = np.zeros((HEIGHT, WIDTH), np.uint8)
    corner[:3, :3] = 1
    for one in (canvas_object(1, corner, 0, 0), CanvasObject(1, (0.0, 0.0, 3.0, 3.0), 9.0, NO_MASK)):
        assert Augmentation(angle=45).objects([one], (HEIGHT, WIDTH)) == []
    assert Augmentation(angle=45).objects([], (HEIGHT, WIDTH)) == []


def test_the_corners_are_filled_with_the_mean_colour():
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    assert Augmentation(angle=30).pixels(white)[0, 0].tolist() == FILL == [124, 116, 104]


def test_colours_are_those_of_torchvisions_jitter():
    """Its factors and its order, found from what it draws."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    jitter = ColorJitter(0.4, 0.4, 0.4)
    for seed in range(5):
        torch.manual_seed(seed)
        drawn = jitter.make_params([])
        factors = [drawn[name] for name in ("brightness_factor", "contrast_factor", "saturation_factor")]
        order = [int(index) for index in drawn["fn_idx"] if index < 3]
        torch.manual_seed(seed)
        expected = np.asarray(jitter(Image.fromarray(pixels)))
        found = Augmentation(tuple((index, factors[index]) for index in order)).pixels(pixels)
        assert np.array_equal(found, expected)


def test_what_is_drawn_is_spread_over_its_range_and_depends_on_the_generator_alone():
    draws = [Augmentation.draw(0.3, 10, generator(0, epoch, 5)) for epoch in range(500)]
    assert Augmentation.draw(0.3, 10, generator(0, 7, 5)) == draws[7]
    angles = np.array([draw.angle for draw in draws])
    assert angles.min() < -9
    assert angles.max() > 9
    assert abs(angles.mean()) < 1
    factors = np.array([factor for draw in draws for _, factor in draw.colours])
    assert 0.7 <= factors.min() < 0.72
    assert 1.28 < factors.max() <= 1.3
    assert len({tuple(index for index, _ in draw.colours) for draw in draws}) == 6
    assert min(factor for _, factor in Augmentation.draw(5, 0, generator(0, 0, 0)).colours) >= 0
    rng = generator(0, 0, 0)
    before = rng.get_state()
    assert Augmentation.draw(0, 0, rng) == Augmentation()
    assert torch.equal(rng.get_state(), before)  # runs without it stay as they were


def test_a_sample_depends_on_seed_epoch_and_index_alone(made: Set):
    """In another order, again, and with masks or boxes; the target alone is that of the sample."""
    made.annotation(segmentation=[[12, 8, 30, 8, 30, 22, 12, 22]])

    def samples(**options):
        transform = TrainTransform(40, (0.9, 1.1), 0.5, **options)
        return TrainDataset(made.write(), made.folder, transform)

    one, other = (samples(color_jitter=0.4, rotation=15) for _ in range(2))
    keys = [(epoch, index) for epoch in range(3) for index in range(2)]
    found = {key: one[key] for key in keys}
    for key in reversed(keys):
        image, target = other[key]
        assert torch.equal(image, found[key][0])
        assert torch.equal(target["masks"], found[key][1]["masks"])
        for box, mask in zip(target["boxes"].tolist(), target["masks"].numpy(), strict=True):
            assert box == tight_box(mask)
    assert torch.equal(one.target(0)["boxes"], found[0, 0][1]["boxes"])
    plain = samples()
    assert any(not torch.equal(plain[key][0], found[key][0]) for key in keys)


@pytest.mark.parametrize("arguments", [{"rotation": 181}, {"rotation": -1}, {"color_jitter": -0.1}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigError, match="is not allowed"):
        TrainTransform(64, **arguments)
