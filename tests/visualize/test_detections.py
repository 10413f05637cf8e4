"""Drawings of detections: what is seen, read and told apart, measured on the pixels."""

import resource
import subprocess
import sys
import time
from itertools import combinations

import numpy as np
import pytest
import supervision
import torch
from PIL import ExifTags, Image
from supervision import Color, Detections
from supervision.detection.compact_mask import CompactMask

import botnet
from botnet.detection import predict
from botnet.detection.coco import CocoInstances
from botnet.detection.detector import Detector
from botnet.errors import DataError
from botnet.masks import encode_mask
from botnet.pasting import paste_masks
from botnet.visualize.detections import OPACITY, PALETTE, draw, ink_on, place_labels
from tests.support.colour import contrast, least_difference


def compact(masks):
    """Dense masks (n, H, W) as supervision's compact ones."""
    height, width = masks.shape[1:]
    whole = np.tile([0, 0, width - 1, height - 1], (len(masks), 1))
    return CompactMask.from_dense(masks.astype(bool), whole, (height, width))


def two_squares():
    """A large square and a small one inside it."""
    masks = np.zeros((2, 480, 480), bool)
    masks[0, 100:400, 100:400] = True
    masks[1, 200:260, 200:260] = True
    return Detections(
        xyxy=np.array([[100, 100, 400, 400], [200, 200, 260, 260]], np.float32),
        mask=compact(masks),
        confidence=np.array([0.9, 0.4], np.float32),
        class_id=np.array([0, 1]),
        data={"class_name": np.array(["a", "b"])},
    )


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


# ---- what is drawn


def test_objects_are_tinted_and_outlined_the_small_ones_on_top():
    image = noise(480, 480)
    found = two_squares()
    picture = np.asarray(draw(image, found)).astype(float)
    colours = [np.array(PALETTE.by_idx(index).as_rgb()) for index in (0, 1)]
    for window, colour in ((np.s_[300:390, 110:390], colours[0]), (np.s_[201:259, 201:259], colours[1])):
        expected = (1 - OPACITY) * image[window] + OPACITY * colour
        assert abs(picture[window] - expected).max() <= 1
    assert (picture[230, 260] == colours[1]).all()  # the outlines, just outside of the masks
    assert (picture[350, 400] == colours[0]).all()
    np.testing.assert_array_equal(picture[420:], image[420:])


def test_an_object_keeps_its_contrast_and_all_its_pixels_under_mask_box_and_name():
    """Nothing opaque is drawn on the object, wherever it is, and its contrast falls by a fifth only."""
    image = noise(480, 640)
    for x1, y1, x2, y2 in ((200, 100, 300, 180), (0, 0, 90, 60), (600, 0, 640, 480), (0, 300, 640, 400)):
        mask = np.zeros((1, 480, 640), bool)
        mask[0, y1:y2, x1:x2] = True
        box = np.array([[x1, y1, x2, y2]], np.float32)
        truth = Detections(xyxy=box, mask=compact(mask), class_id=np.array([3]))
        edge = 2  # of the picture: there the frame cannot lie outside of the box
        inside = np.s_[max(y1, edge) : min(y2, 480 - edge), max(x1, edge) : min(x2, 640 - edge)]
        seen = np.asarray(draw(image, truth))[inside].astype(float)
        kept = np.std(seen, axis=(0, 1)) / np.std(image[inside], axis=(0, 1))
        assert kept.min() > 0.79
        unchanged = seen - (1 - OPACITY) * image[inside]
        assert np.ptp(unchanged, axis=(0, 1)).max() <= 2


def test_low_scores_are_not_drawn():
    found, black = two_squares(), np.zeros((480, 480, 3), np.uint8)
    assert draw(black, found, 0.5) == draw(black, found[:1])
    assert draw(black, found, 0.4) == draw(black, found) != draw(black, found, 0.5)
    assert draw(black, found, 0.95) == Image.fromarray(black)


def test_every_form_of_an_image_gives_the_same_picture(tmp_path):
    pixels, found = noise(480, 480), two_squares()
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    before = pixels.copy()
    expected = botnet.draw(pixels, found)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for form in (image, tmp_path / "a.png", str(tmp_path / "a.png"), tensor, image.convert("RGBA")):
        assert draw(form, found) == expected
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    "image",
    [np.zeros((3, 480, 480), np.uint8), np.zeros((480, 480, 3)), torch.zeros(480, 480, 3, dtype=torch.uint8)],
)
def test_arrays_of_another_form_are_refused(image):
    with pytest.raises(ValueError, match="an image of shape"):
        draw(image, two_squares())


def test_masks_of_another_image_are_refused():
    with pytest.raises(ValueError, match="masks of 480 x 480 pixels on an image of 40 x 30"):
        draw(Image.new("RGB", (40, 30)), two_squares())


def test_dense_masks_are_drawn_as_compact_ones():
    found, image = two_squares(), noise(480, 480)
    expected = draw(image, found)
    found.mask = found.mask.to_dense()
    assert draw(image, found) == expected


def test_without_class_names_the_ids_are_written(monkeypatch):
    found, image = two_squares(), noise(480, 480)
    named = draw(image, found)
    del found.data["class_name"]
    ids = draw(image, found)
    found.data["class_name"] = np.array(["0", "1"])
    assert draw(image, found) == ids != named


def test_drawing_loads_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import botnet, numpy, supervision\n"
        "found = supervision.Detections(numpy.ones((1, 4)), class_id=numpy.ones(1, int))\n"
        "botnet.draw(numpy.zeros((30, 40, 3), numpy.uint8), found)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# ---- colours


def test_colours_are_told_apart_by_everyone():
    """CIELAB distance for normal vision, protanopia and deuteranopia; 2.3 is just noticeable."""
    colours = [colour.as_rgb() for colour in PALETTE.colors]
    assert len(colours) >= 10
    assert min(least_difference(one, two) for one, two in combinations(colours, 2)) > 25


def test_the_measure_of_difference_knows_what_the_colour_blind_confuse():
    red, green, blue = (200, 60, 60), (110, 120, 50), (60, 60, 200)
    assert least_difference(red, green) < 25 < least_difference(red, blue)
    assert least_difference((255, 255, 255), (0, 0, 0)) == pytest.approx(100, abs=0.1)


def test_names_have_contrast():
    for colour in PALETTE.colors:
        ink = {"black": (0, 0, 0), "white": (255, 255, 255)}[ink_on(colour)]
        assert contrast(colour.as_rgb(), ink) >= 4.5


@pytest.mark.parametrize(
    "annotator",
    [
        supervision.BoxAnnotator,
        supervision.MaskAnnotator,
        supervision.PolygonAnnotator,
        supervision.LabelAnnotator,
        supervision.RichLabelAnnotator,
    ],
)
def test_supervisions_annotators_draw_our_detections_in_bgr_arrays_and_rgb_images(annotator):
    """What is returned works with supervision, without OpenCV; red is red in a Pillow image only."""
    found, red = two_squares(), Color(255, 0, 0)
    image = annotator(red).annotate(Image.new("RGB", (480, 480)), found)
    array = annotator(red).annotate(np.zeros((480, 480, 3), np.uint8), found)
    assert "cv2" not in sys.modules
    for pixels, channel in ((np.asarray(image), 0), (array, 2)):
        coloured = pixels[pixels.max(axis=-1) != pixels.min(axis=-1)]
        assert len(coloured)
        assert (coloured.argmax(axis=-1) == channel).all()


# ---- names


def test_names_lie_in_the_picture_and_off_their_objects():
    rng = np.random.default_rng(0)
    for _ in range(20):
        corner = rng.integers(0, 900, (30, 2))
        boxes = np.concatenate([corner, np.minimum(corner + rng.integers(5, 500, (30, 2)), 999)], axis=1)
        places = place_labels(boxes, np.tile([120, 24], (30, 1)), (1000, 1000))
        assert (places >= 0).all()
        assert (places <= 1000).all()
        assert (places[:, 2:] - places[:, :2] == (120, 24)).all()
        least = np.maximum(boxes[:, :2], places[:, :2])
        most = np.minimum(boxes[:, 2:] + 1, places[:, 2:])  # the last pixel of a box is its own
        assert not (most > least).all(axis=1).any()


def test_a_name_inside_its_object_is_the_last_resort():
    (place,) = place_labels(np.array([[0, 0, 99, 99]]), np.array([[40, 10]]), (100, 100))
    assert place.tolist() == [0, 0, 40, 10]
    (place,) = place_labels(np.array([[0, 0, 99, 80]]), np.array([[40, 10]]), (100, 100))
    assert place.tolist() == [0, 81, 40, 91]
    (place,) = place_labels(np.array([[0, 0, 50, 99]]), np.array([[40, 10]]), (100, 100))
    assert place.tolist() == [51, 0, 91, 10]


def test_names_avoid_each_other_and_other_objects():
    boxes = np.array([[10, 50, 60, 90], [14, 52, 62, 92]])
    first, second = place_labels(boxes, np.array([[45, 12]] * 2), (200, 200))
    assert first.tolist() == [10, 38, 55, 50]
    assert not (np.minimum(first[2:], second[2:]) > np.maximum(first[:2], second[:2])).all()
    stacked = np.array([[10, 50, 60, 90], [10, 20, 60, 49]])  # the second is just above the first
    first, _ = place_labels(stacked, np.array([[45, 12]] * 2), (200, 200))
    assert first[1] == 91


@pytest.mark.parametrize(("side", "least", "most"), [(160, 8, 16), (640, 8, 20), (4000, 40, 80)])
def test_names_are_legible_at_every_size(side, least, most):
    """The height of a capital letter, in the picture's pixels: at least 1/100 of it, at most 1/30."""
    found = Detections(np.array([[side / 4, side / 4, side / 2, side * 0.4]]), class_id=np.array([6]))
    found.data["class_name"] = np.array(["H"])
    picture = np.asarray(draw(np.zeros((side // 2, side, 3), np.uint8), found))
    label = (picture == PALETTE.by_idx(6).as_rgb()).all(axis=-1)
    longer = picture.shape[1]
    above = label[: longer // 4 - max(2, longer // 400)]  # above the frame
    rows = np.flatnonzero(above.any(axis=1))
    columns = np.flatnonzero(above.any(axis=0))
    ink = ~above[rows[1] : rows[-1], columns[1] : columns[-1]]
    height = int(ink.any(axis=1).sum())
    assert least <= height <= most
    assert longer / 100 <= height <= longer / 30


# ---- cost


def test_a_hundred_masks_on_twelve_megapixels_take_little_memory_and_time():
    """Measured: 1.1 s and 110 MB; a hundred dense masks take 1.2 GB."""
    rng = np.random.default_rng(0)
    sides = rng.uniform(100, 1200, (100, 2))
    corners = rng.uniform(0, 1, (100, 2)) * ((4000, 3000) - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    masks = paste_masks(rng.random((100, 28, 28), np.float32), boxes, 3000, 4000)
    found = Detections(boxes, mask=masks, class_id=np.arange(100), confidence=np.ones(100))
    image = Image.new("RGB", (4000, 3000))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    draw(image, found)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB
    assert time.process_time() - start < 10  # of the processor; ten times what it takes


# ---- truth


@pytest.mark.parametrize("as_stored", [True, False])
@pytest.mark.parametrize("kind", ["polygon", "run lengths", "null", "absent"])
def test_truth_is_drawn_in_the_frame_of_its_record(made, monkeypatch, tmp_path, as_stored, kind):
    """An image with an EXIF orientation, annotated as stored (40 x 30) or as shown (30 x 40)."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 30)).save(made.folder / "a.png", exif=exif)
    height, width = (30, 40) if as_stored else (40, 30)
    made.data["images"][0] |= {"height": height, "width": width}
    mask = np.zeros((height, width), np.uint8)
    mask[10:25, 5:15] = 1
    segmentation = {
        "polygon": [[5, 10, 15, 10, 15, 25, 5, 25]],
        "run lengths": encode_mask(mask),
        "null": None,
    }
    annotation = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [5, 10, 10, 15]}
    made.data["annotations"] = [
        annotation | ({} if kind == "absent" else {"segmentation": segmentation[kind]})
    ]
    sizes, drawn = [], []

    class FindsOne(Detector):
        def run(self, prepared):
            sizes.extend(image.placement.size for image in prepared)
            return [{"boxes": np.zeros((1, 4), np.float32), "scores": np.ones(1), "labels": np.ones(1, int)}]

    def record(image, detections, *rest):
        drawn.append((image.size, detections))
        return draw(image, detections, *rest)

    monkeypatch.setattr(predict, "draw", record)
    output = tmp_path / "out"
    detector = FindsOne(["dog", "cat"], [3, 90], (40, 40))
    predict.predict(detector, [made.folder / "a.png"], output, truth=made.write())
    assert sizes == [(height, width)]
    (_, prediction), (size, truth) = drawn
    assert prediction.confidence.tolist() == [1]
    assert size == (width, height)
    assert truth.xyxy.tolist() == [[5, 10, 15, 25]]
    assert truth["class_name"].tolist() == ["dog"]
    np.testing.assert_array_equal(truth.mask.to_dense()[0], mask * (kind in ("polygon", "run lengths")))
    assert (output / "a.png").is_file()


def test_a_true_mask_that_cannot_be_decoded_is_named(made):
    made.annotation(segmentation={"size": [30, 40], "counts": "o"})
    instances = CocoInstances(made.write())
    with pytest.raises(DataError, match=r"instances\.json: annotation 200 of image 7 .*cannot be decoded"):
        instances.detections_of(7)
