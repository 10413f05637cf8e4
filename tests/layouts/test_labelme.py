"""labelme's files, read and refused."""

import base64
import io
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from botnet.errors import DataError
from botnet.layouts.labelme import LabelmeSet
from botnet.layouts.samples import Object
from botnet.masks import decode_mask, encode_mask, mask_area
from tests.support.layouts import shape, write_labelme

TRIANGLE = [[2, 3], [12, 3], [12.5, 11]]
CORNERS = [[30, 12], [20, 2]]


def read(root, losses=None):
    (sample,) = LabelmeSet(root).samples("all", Counter() if losses is None else losses)
    return sample


def test_polygons_and_rectangles(tmp_path):
    (tmp_path / "deep").mkdir()
    write_labelme(
        tmp_path / "deep" / "a.json", shape("polygon", TRIANGLE, "dog"), shape("rectangle", CORNERS)
    )
    losses = Counter()
    sample = read(tmp_path, losses)
    assert (sample.name, sample.height, sample.width) == ("deep/a.png", 20, 40)
    assert sample.objects == [
        Object(1, (2, 3, 10.5, 8), [[2, 3, 12, 3, 12.5, 11]]),
        Object(0, (20, 2, 10, 10), [[20, 2, 30, 2, 30, 12, 20, 12]]),
    ]
    assert +losses == {"rectangles, written as polygons": 1}


def test_rectangles_alone_are_boxes(tmp_path):
    write_labelme(tmp_path / "a.json", shape("rectangle", CORNERS))
    losses = Counter()
    assert read(tmp_path, losses).objects == [Object(0, (20, 2, 10, 10))]
    assert not +losses


def test_shapes_of_a_group_are_one_object(tmp_path):
    other = [[20, 3], [30, 3], [30, 11]]
    write_labelme(
        tmp_path / "a.json",
        shape("polygon", TRIANGLE, group_id=1),
        shape("polygon", other, group_id=1),
        shape("polygon", other, "dog", group_id=1),
    )
    first, second = read(tmp_path).objects
    assert first.segmentation == [[2, 3, 12, 3, 12.5, 11], [20, 3, 30, 3, 30, 11]]
    assert first.box == (2, 3, 28, 8)
    assert second.label == 1


def test_masks_and_circles(tmp_path):
    pixels = np.array([[0, 1, 1], [1, 1, 0]], np.uint8)
    stored = io.BytesIO()
    Image.fromarray(pixels * 255).save(stored, "PNG")
    mask = {"mask": base64.b64encode(stored.getvalue()).decode()}
    write_labelme(
        tmp_path / "a.json",
        shape("mask", [[5, 4], [7, 5]], group_id=3, **mask),
        shape("rectangle", CORNERS, group_id=3),
        shape("circle", [[20, 10], [20, 15]]),
        shape("point", [[1, 1]]),
        shape("line", [[1, 1], [2, 2]]),
    )
    losses = Counter()
    group, circle = read(tmp_path, losses).objects
    expected = np.zeros((20, 40), np.uint8)
    expected[4:6, 5:8] = pixels
    expected[2:12, 20:30] = 1
    np.testing.assert_array_equal(decode_mask(group.segmentation, 20, 40), expected)
    assert group.box == (5, 2, 25, 10)
    area = mask_area(encode_mask(decode_mask(circle.segmentation, 20, 40)))
    assert area == pytest.approx(25 * math.pi, rel=0.05)
    assert +losses == {
        "circles, written as polygons of 64 points": 1,
        "rectangles, written as polygons": 1,
        "shapes of the kind point, left out": 1,
        "shapes of the kind line, left out": 1,
    }


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (shape("polygon", TRIANGLE[:2]), r"shape 2 \(cat\): a polygon of 2 points"),
        (shape("rectangle", CORNERS[:1]), r"shape 2 \(cat\): a rectangle of 1 points"),
        (shape("polygon", [[1, "x"], *TRIANGLE]), "its points are .*, not pairs"),
        (shape("polygon", [[1, math.inf], *TRIANGLE]), "not finite numbers"),
        (shape("polygon", TRIANGLE, None), "shape 2: its label is None"),
        (shape("mask", CORNERS, mask="x"), r"shape 2 \(cat\): its mask cannot be placed"),
    ],
)
def test_a_broken_shape_is_named(tmp_path, broken, message):
    write_labelme(tmp_path / "a.json", shape("polygon", TRIANGLE), broken)
    with pytest.raises(DataError, match=rf"a\.json: {message}" if message.startswith("shape") else message):
        read(tmp_path)


def test_a_broken_file_is_named(tmp_path):
    file = write_labelme(tmp_path / "a.json", shape("polygon", TRIANGLE), imageHeight=21)
    with pytest.raises(DataError, match=r"a\.json: imageWidth x imageHeight is 40 x 21, .*has 40 x 20"):
        read(tmp_path)
    file.write_text('{"shapes": ')
    with pytest.raises(DataError, match=r"a\.json: is not JSON"):
        read(tmp_path)
    file.write_text('{"shapes": 3}')
    with pytest.raises(DataError, match=r'a\.json: has no list "shapes"'):
        read(tmp_path)
    write_labelme(file)
    with pytest.raises(DataError, match="no file of labelme has a shape"):
        read(tmp_path)
    write_labelme(file, shape("polygon", TRIANGLE), imagePath="..\\gone.png")
    with pytest.raises(DataError, match=r"gone\.png: no such image"):
        read(tmp_path)


def test_files_that_are_in_no_split_or_share_an_image_are_refused(tmp_path):
    (tmp_path / "test").mkdir()
    for name in ("test/a.json", "b.json"):
        write_labelme(tmp_path / name, shape("polygon", TRIANGLE))
    with pytest.raises(DataError, match=r"b\.json: one of 1 annotation files outside of .*test; move"):
        LabelmeSet(tmp_path)
    (tmp_path / "b.json").unlink()
    for folder in ("val", "valid"):
        (tmp_path / folder).mkdir()
        write_labelme(tmp_path / folder / "c.json", shape("polygon", TRIANGLE))
    with pytest.raises(DataError, match=r"two folders for val: .*val and .*valid; join them"):
        LabelmeSet(tmp_path)
    (tmp_path / "valid" / "c.json").unlink()
    write_labelme(tmp_path / "val" / "d.json", shape("polygon", TRIANGLE), imagePath="c.png")
    with pytest.raises(DataError, match=r"d\.json: its image, .*c\.png, is that of .*c\.json, too; join"):
        list(LabelmeSet(tmp_path).samples("val", Counter()))
