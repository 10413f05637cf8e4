"""The geometry of the transforms, read off the pixels and compared with transforms of the full image."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.ops import box_iou, clip_boxes_to_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from botnet.detection.coco import CocoInstances
from botnet.detection.copy_paste import Scene, copy_paste
from botnet.detection.datasets import EvalDataset, TrainDataset
from botnet.detection.placement import CanvasObject, Placement, canvas_object, load_placed, original_boxes
from botnet.detection.transforms import IMAGENET_MEAN, IMAGENET_STD, EvalTransform, TrainTransform, to_canvas
from botnet.errors import ConfigError
from botnet.images import denormalise, load_image
from botnet.masks import compress_mask, decode_mask, encode_mask
from botnet.training.seeding import generator


def transform_all(placement: Placement, pixels: np.ndarray, mode=InterpolationMode.BILINEAR) -> np.ndarray:
    """The plain way, by torchvision: resize all of (C, H, W), then crop, then mirror."""
    resized = F.resize(torch.tensor(pixels), list(placement.resized), mode, antialias=True)
    cut = F.crop(resized, placement.top, placement.left, *placement.valid)
    return (F.horizontal_flip(cut) if placement.flipped else cut).numpy()


def on_canvas(found: CanvasObject, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[found.window] = found.mask
    return mask


def tight_box(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.logical_and(a, b).sum() / np.logical_or(a, b).sum()


def photographs(coco_by):
    """Every photograph: path, record and annotations."""
    for split in ("train", "val"):
        instances = CocoInstances(coco_by / f"instances_{split}.json")
        for record in instances.images:
            yield coco_by / "images" / record.file_name, record, instances.annotations_of(record.id)


def placements(size, canvas, jitter=(0.1, 2.0), count=1):
    transform = TrainTransform(canvas, jitter)
    return [transform.place(size, generator(0, epoch, sum(size))) for epoch in range(count)]


# ---- placement


def test_placements_depend_on_the_size_and_the_generator_alone():
    transform = TrainTransform(100, (0.1, 2.0))
    drawn = [transform.place((30, 20), generator(0, epoch, 0)) for epoch in range(2000)]
    assert transform.place((30, 20), generator(0, 7, 0)) == drawn[7]
    longer = np.array([placement.resized[0] for placement in drawn])
    # Evenly over the range: each tenth of it has its share.
    counts, _ = np.histogram(longer, 10, (10, 200))
    assert counts.min() > 150
    assert abs(np.mean([placement.flipped for placement in drawn]) - 0.5) < 0.05
    for placement in drawn:
        height, width = placement.resized
        assert abs(width - height * 2 / 3) <= 1
        assert placement.valid == (min(height, 100), min(width, 100))
        assert 0 <= placement.top <= height - placement.valid[0]
        assert 0 <= placement.left <= width - placement.valid[1]
    larger = [p for p in drawn if p.resized[0] > 150]
    assert {p.top == 0 for p in larger} == {True, False}
    assert max(p.top / (p.resized[0] - 100) for p in larger) == 1
    assert TrainTransform(100, flip=0).place((9, 9), generator(0, 7, 0)).flipped is False
    assert TrainTransform(100, flip=1).place((9, 9), generator(0, 7, 0)).flipped is True


@pytest.mark.parametrize("size", [(30, 900), (900, 30), (1, 30), (1, 1)])
@pytest.mark.parametrize("jitter", [0.1, 1.0, 2.0])
def test_extreme_aspect_ratios_keep_their_object(size, jitter):
    transform = TrainTransform(64, jitter=(jitter, jitter))
    placement = transform.place(size, generator(0, 0, 0))
    height, width = placement.valid
    assert max(placement.valid) == min(64, round(64 * jitter))
    assert min(placement.valid) >= 1
    everything = [0, 0, size[1], 0, size[1], size[0], 0, size[0]]
    for segmentation in ([everything], encode_mask(np.ones(size))):
        found = placement.place_mask(1, segmentation)
        assert found.box == (0, 0, width, height)
        assert found.mask.all()
    assert placement.place_box(1, [0, 0, size[1], size[0]]).box == (0, 0, width, height)
    picture = Image.new("RGB", size[::-1], (200, 100, 0))
    assert (placement.pixels(picture) == (200, 100, 0)).all()
    assert placement.pixels(picture).shape == (height, width, 3)
    assert max(EvalTransform(64).place(size).valid) == 64


@pytest.mark.parametrize(
    "arguments", [{"canvas": 0}, {"canvas": 8, "jitter": (2.0, 0.1)}, {"canvas": 8, "flip": 2}]
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigError, match="is not allowed"):
        TrainTransform(**arguments)


# ---- pixels


def test_a_crop_equals_that_of_the_resized_image(coco_by):
    """Cropped while it is resized, an image equals the crop of the resized image, up to its edges."""
    crops = flips = 0
    for path, record, _ in photographs(coco_by):
        size = record.height, record.width
        (placement,) = placements(size, 300, jitter=(0.3, 2.0))
        picture = load_image(path, size)
        ours = placement.pixels(picture).astype(int)
        theirs = (
            transform_all(placement, np.asarray(picture).transpose(2, 0, 1)).transpose(1, 2, 0).astype(int)
        )
        assert abs(ours - theirs).max() <= 2
        assert (ours != theirs).mean() < 0.2
        crops += placement.top > 0 or placement.left > 0
        flips += placement.flipped
    assert 10 < crops < 50
    assert 10 < flips < 50


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(161, 90), (67, 203)])
def test_a_jpeg_decoded_at_reduced_size_is_not_shifted(tmp_path, orientation, mode, size):
    """A ramp shows every shift: a pixel of the canvas is some 5 levels; mirrored or odd, it must not move."""
    height, width = size if orientation < 5 else size[::-1]
    y, x = np.mgrid[:height, :width]
    ramp = np.stack([255 * x / width, 255 * y / height, 0 * x], -1).astype(np.uint8)
    stored = Image.fromarray(ramp) if mode != "L" else Image.fromarray(ramp[..., 0])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.convert(mode).save(tmp_path / "ramp.jpg", quality=95, subsampling=0, exif=exif)
    placement = EvalTransform(48).place(size)
    small = load_placed(tmp_path / "ramp.jpg", placement).astype(int)
    full = placement.pixels(load_image(tmp_path / "ramp.jpg", size)).astype(int)
    inner = np.s_[2:-2, 2:-2]
    assert abs((small - full)[inner].mean((0, 1))).max() < 0.5
    assert abs((small - full)[inner]).max() <= 4


def test_a_jpeg_is_never_decoded_smaller_than_wanted(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(Placement, "pixels", lambda placement, image, extent: decoded.append(image.size))
    # Of 479 pixels a half, rounded up, is enough for what 321 make of the longer side: that side decides.
    for size in ((479, 640), (640, 479)):
        Image.new("RGB", size[::-1]).save(tmp_path / "plain.jpg")
        decoded.clear()
        for canvas in (640, 321, 320, 161, 160, 80, 79, 20):
            load_placed(tmp_path / "plain.jpg", EvalTransform(canvas).place(size))
        assert [max(decoded_size) for decoded_size in decoded] == [640, 640, 320, 320, 160, 80, 80, 80]


def test_decoding_at_reduced_size_changes_pixels_little(coco_by):
    """A half or a quarter by the decoder, then the rest, against all of it by the resize, on photographs.

    The decoder averages squares, the resize weighs with a triangle: edges come out a little sharper.
    """
    differences = []
    for path, record, _ in photographs(coco_by):
        size = record.height, record.width
        placement = EvalTransform(250).place(size)
        small = load_placed(path, placement).astype(int)
        differences.append(abs(small - placement.pixels(load_image(path, size))))
    assert 0.5 < np.mean([difference.mean() for difference in differences]) < 4  # of 255 levels
    assert np.mean([(difference > 32).mean() for difference in differences]) < 0.01


def test_boxes_go_back_to_the_image_as_by_torch():
    boxes = torch.rand(200, 4, generator=torch.Generator().manual_seed(3)) * 1200 - 100
    for size in ((480, 640), (997, 313), (2, 3)):
        scale = EvalTransform(1024).place(size).scale
        expected = clip_boxes_to_image(boxes / torch.tensor([scale[1], scale[0]] * 2), size)
        found = original_boxes(boxes.numpy(), scale, size)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


def test_the_normalisation_is_imagenets():
    assert (IMAGENET_MEAN, IMAGENET_STD) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def test_the_normalisation_is_that_of_imagenet():
    """The numbers that every ImageNet backbone of timm and torchvision was trained with."""
    image = torch.from_numpy(to_canvas(np.full((4, 6, 3), 255, np.uint8), 8))
    assert image.shape == (3, 8, 8)
    assert image[None].is_contiguous(memory_format=torch.channels_last)
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert image[:, 3, 5].tolist() == pytest.approx(expected, rel=1e-5)
    assert (image[:, 4:] == 0).all()
    assert (image[:, :, 6:] == 0).all()


def test_denormalising_restores_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    shown = denormalise(torch.from_numpy(to_canvas(pixels, 40)), IMAGENET_MEAN, IMAGENET_STD)
    assert np.array_equal(shown[:, :, :30].permute(1, 2, 0), pixels)
    mirrored = denormalise(torch.from_numpy(to_canvas(pixels[:, ::-1], 40)), IMAGENET_MEAN, IMAGENET_STD)
    assert np.array_equal(mirrored[:, :, :30].flip(2), shown[:, :, :30])


# ---- masks and boxes


def test_masks_equal_those_of_the_resized_image_on_every_photograph(coco_by):
    """Polygons rasterised on the canvas, and run lengths read in their box, beside the plain way.

    Run lengths are sampled, as the plain way does it, and equal it but where a centre falls between two
    pixels. Polygons are rasterised at the canvas' own resolution: the plain way repeats the pixels of the
    original there, and differs by parts of an original pixel along the edge.
    """
    polygons = runs = gone = different = pixels_seen = 0
    overlaps, drift = [], []
    for _, record, annotations in photographs(coco_by):
        size = record.height, record.width
        for placement in placements(size, 300, count=3):
            coarse = max(1.0, placement.scale[0])  # canvas pixels of an original pixel
            for annotation in annotations:
                segmentation = annotation.segmentation
                pixels = decode_mask(segmentation, *size)
                expected = transform_all(placement, pixels[None], InterpolationMode.NEAREST_EXACT)[0]

                found = placement.place_mask(5, compress_mask(segmentation, *size))
                if found is None or not expected.any():
                    assert expected.sum() + (found.area if found else 0) < 10
                    gone += 1
                    continue
                sampled = on_canvas(found, placement.valid)
                different += (sampled != expected).sum()
                pixels_seen += expected.sum()
                assert found.label == 5
                assert list(found.box) == tight_box(sampled)
                assert found.area == sampled.sum()
                runs += 1

                if isinstance(segmentation, list) and expected.sum() >= 400 * coarse**2:
                    found = placement.place_mask(5, segmentation)
                    drawn = on_canvas(found, placement.valid)
                    assert list(found.box) == tight_box(drawn)
                    assert found.area == drawn.sum()
                    overlaps.append(iou(drawn, expected))
                    drift.append(max(abs(np.subtract(found.box, tight_box(expected)))) / coarse)
                    polygons += 1
    assert polygons > 300
    assert runs > 800
    assert gone > 50
    assert different < 1e-4 * pixels_seen  # ties
    assert np.mean(overlaps) > 0.97
    assert np.min(overlaps) > 0.85
    assert np.quantile(drift, 0.95) <= 1.5


SHAPES = {
    "triangle": [[12.0, 8.0, 52.0, 14.0, 30.0, 44.0]],
    "two parts": [[4, 4, 24, 4, 24, 20, 4, 20], [40, 24, 60, 24, 60, 46, 40, 46]],
    "parts that overlap": [[4, 4, 40, 4, 40, 30, 4, 30], [20, 10, 60, 10, 60, 46, 20, 46]],
    "self-crossing": [[10, 10, 50, 40, 50, 10, 10, 40]],
    "beyond the picture": [[-30, 10, 90, 10, 90, 30, -30, 30]],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("flipped", [False, True])
def test_polygons_of_every_kind_are_rasterised_where_they_lie(shape, flipped):
    """An exact enlargement: the same points, ten times as far apart, by COCO's code at that size."""
    size = (48, 64)
    large = decode_mask([[10 * value for value in polygon] for polygon in SHAPES[shape]], 480, 640)
    placement = Placement(size, (480, 640), top=100, left=40, valid=(300, 500), flipped=flipped)
    expected = large[100:400, 40:540]
    found = placement.place_mask(1, SHAPES[shape])
    assert iou(on_canvas(found, (300, 500)), expected[:, ::-1] if flipped else expected) > 0.995


def test_a_hole_stays_a_hole():
    ring = np.zeros((48, 64), np.uint8)
    ring[8:40, 10:50] = 1
    ring[16:30, 20:36] = 0
    for counts in (encode_mask(ring), {"size": [48, 64], "counts": run_lengths(ring)}):
        found = Placement((48, 64), (96, 128), top=10, left=30, valid=(64, 64)).place_mask(1, counts)
        expected = ring.repeat(2, 0).repeat(2, 1)[10:74, 30:94]
        assert np.array_equal(on_canvas(found, (64, 64)), expected)


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed form, by its definition: lengths of runs down the columns, zeros first."""
    values = mask.T.ravel().tolist()
    counts, current = [0], 0
    for value in values:
        if value != current:
            counts.append(0)
            current = value
        counts[-1] += 1
    return counts


def test_objects_that_are_cropped_away_are_not_decoded(monkeypatch):
    monkeypatch.setattr("botnet.detection.placement.decode_mask", lambda *_: pytest.fail("decoded"))
    corner = np.zeros((40, 40), np.uint8)
    corner[:10, :10] = 1
    placement = Placement((40, 40), (80, 80), top=40, left=0, valid=(40, 40))
    assert placement.place_mask(1, encode_mask(corner)) is None
    assert placement.place_mask(1, [[0, 0, 10, 0, 10, 10, 0, 10]]) is None
    assert placement.place_box(1, [0, 0, 10, 10]) is None


def test_a_box_without_width_in_float32_is_left_out():
    """Its loss would be infinite."""
    placement = Placement((40, 40), (80, 80), top=0, left=20, valid=(40, 40))
    for box in ([20, 0, 1e-9, 10], [20, 0, 10, 1e-9], [5, 5, 5 + 1e-9, 10]):  # the last is nearly cut away
        assert placement.place_box(1, box) is None
    assert placement.place_box(1, [20, 0, 0.1, 10]) is not None


def test_boxes_are_cropped_and_mirrored():
    placement = Placement((100, 200), (50, 100), top=10, left=20, valid=(40, 60))
    assert placement.place_box(1, [60, 30, 20, 100]).box == (10, 5, 20, 40)
    mirrored = Placement((100, 200), (50, 100), top=10, left=20, valid=(40, 60), flipped=True)
    found = mirrored.place_box(3, [60, 30, 20, 100])
    assert (found.label, found.box, found.area) == (3, (40, 5, 50, 40), 350)


def test_without_masks_the_boxes_are_about_those_of_the_masks(coco_by):
    close = compared = 0
    for _, record, annotations in photographs(coco_by):
        (placement,) = placements((record.height, record.width), 600, jitter=(0.5, 1.0))
        for annotation in annotations:
            if not annotation.iscrowd and annotation.area > 1000:
                ours = placement.place_box(1, annotation.bbox)
                of_mask = placement.place_mask(1, annotation.segmentation)
                close += box_iou(torch.tensor([ours.box]), torch.tensor([of_mask.box])).item() > 0.9
                compared += 1
    assert compared > 150
    assert close > 0.98 * compared


def test_crowds_are_not_decoded_in_training(coco_by, monkeypatch):
    seen = []
    place_mask = Placement.place_mask
    monkeypatch.setattr(
        Placement,
        "place_mask",
        lambda self, label, rle: (seen.append(type(rle)), place_mask(self, label, rle))[1],
    )
    samples = TrainDataset(coco_by / "instances_train.json", coco_by / "images", TrainTransform(100, (1, 1)))
    crowded = [
        index
        for index, record in enumerate(samples.instances.images)
        if any(a.iscrowd for a in samples.instances.annotations_of(record.id))
    ]
    assert crowded
    for index in crowded:
        samples[0, index]
    assert set(seen) == {list}  # crowds are the set's only run lengths


def test_evaluation_maps_back_to_the_original_pixels(coco_by):
    samples = EvalDataset(coco_by / "instances_val.json", coco_by / "images", EvalTransform(640))
    for index in (0, 5):
        image, target = samples[index]
        record = samples.instances.images[index]
        height, width = target["valid"]
        assert target["size"] == (record.height, record.width)
        assert max(target["valid"]) == 640
        assert target["scale"] == (height / record.height, width / record.width)
        if target["size"] == target["valid"]:
            picture = np.asarray(load_image(coco_by / "images" / record.file_name))
            shown = denormalise(image, IMAGENET_MEAN, IMAGENET_STD)
            assert np.array_equal(shown[:, :height, :width].permute(1, 2, 0), picture)
        expected = [a.bbox for a in samples.instances.annotations_of(record.id)]
        corners = target["boxes"].numpy()
        corners[:, 2:] -= corners[:, :2]
        np.testing.assert_allclose(corners, expected, atol=1e-3)


# ---- copy and paste


def scene(value: float, valid: tuple[int, int], *masks: np.ndarray) -> Scene:
    image = torch.zeros(3, 40, 40)
    image[:, : valid[0], : valid[1]] = value
    objects = [canvas_object(label, mask, 0, 0) for label, mask in enumerate(masks, start=int(10 * value))]
    return Scene(image, valid, objects)


def block(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((40, 40), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def test_pasted_objects_hide_those_beneath():
    destination = scene(1.0, (30, 40), block(0, 0, 10, 10), block(2, 20, 6, 24), block(20, 0, 28, 8))
    source = scene(2.0, (40, 20), block(5, 5, 12, 30), block(0, 18, 8, 26))
    results = {}
    for seed in range(40):
        pasted = copy_paste(destination, source, torch.Generator().manual_seed(seed))
        results[tuple(instance.label for instance in pasted.objects)] = pasted
    # Neither, the first, the second, which hides an object completely, or both.
    assert set(results) == {(10, 11, 12), (10, 11, 12, 20), (10, 12, 21), (10, 12, 20, 21)}
    assert torch.equal(results[10, 11, 12].image, destination.image)
    assert results[10, 11, 12].valid == (30, 40)

    first = results[10, 11, 12, 20]
    assert first.objects[0].box == (0, 0, 10, 10)
    assert first.objects[0].area == 100 - 25
    assert (first.image[:, 5:12, 5:30] == source.image[:, 5:12, 5:30]).all()
    untouched = torch.from_numpy(block(5, 5, 12, 30) == 0)
    assert torch.equal(first.image[:, untouched], destination.image[:, untouched])
    assert first.valid == (40, 40)
    assert destination.objects[0].area == 100  # the input is unchanged

    cut = results[10, 12, 21].objects[0]
    assert cut.area == 100
    assert results[10, 12, 20, 21].objects[-1].mask.all()


def test_a_partly_hidden_object_has_a_new_box():
    destination = scene(1.0, (40, 40), block(0, 0, 20, 20))
    source = scene(2.0, (40, 40), block(0, 10, 40, 40))
    for seed in range(20):
        pasted = copy_paste(destination, source, torch.Generator().manual_seed(seed))
        if len(pasted.objects) == 2:
            assert pasted.objects[0].box == (0, 0, 10, 20)
            break
    else:
        pytest.fail("never pasted")


def test_the_data_set_pastes_with_the_given_probability(coco_by):
    def samples(probability):
        return TrainDataset(
            coco_by / "instances_train.json",
            coco_by / "images",
            TrainTransform(100, (1, 1)),
            copy_paste=probability,
        )

    plain, never, always = (samples(p) for p in (0.0, 1e-9, 1.0))
    more = 0
    for index in range(20):
        image, target = plain[0, index]
        assert torch.equal(image, never[0, index][0])
        pasted, new = always[0, index]
        more += not torch.equal(image, pasted)
        # Where nothing was pasted, the image is as it would be without.
        covered = new["masks"].numpy().any(0)
        height, width = target["valid"]
        assert torch.equal(
            image[:, :height, :width][:, ~covered[:height, :width]],
            pasted[:, :height, :width][:, ~covered[:height, :width]],
        )
        for box, mask in zip(new["boxes"].tolist(), new["masks"].numpy(), strict=True):
            assert box == tight_box(mask)
    assert more >= 10
