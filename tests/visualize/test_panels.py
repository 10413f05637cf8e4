"""Sheets: every image is in its place, unchanged."""

import numpy as np
from PIL import Image

from botnet.visualize.classes import RIGHT, WRONG, draw_sheet
from botnet.visualize.panels import CAPTION_LINE, GAP, TILE, TITLE_BAR, titled_row


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_a_row_holds_its_images_below_their_titles():
    one, two = noise(40, 100), noise(40, 60)
    sheet = titled_row([(one, "one"), (two, "two")])
    assert sheet.size == (100 + GAP + 60, TITLE_BAR + 40)
    below = np.asarray(sheet)[TITLE_BAR:]
    np.testing.assert_array_equal(below[:, :100], one)
    np.testing.assert_array_equal(below[:, 106:], two)
    for left, right in ((0, 100), (106, 166)):  # each title is above its image
        assert np.asarray(sheet.crop((left, 0, right, TITLE_BAR))).min() < 100


def test_the_box_is_outlined_in_every_image():
    grey = Image.new("RGB", (50, 40), "grey")
    sheet = titled_row([(grey, ""), (grey, "")], box=(10, 10, 20, 20))
    for left in (0, 50 + GAP):
        assert sheet.getpixel((left + 10, TITLE_BAR + 10)) == (255, 255, 255)
        assert sheet.getpixel((left + 9, TITLE_BAR + 15)) == (0, 0, 0)
        assert sheet.getpixel((left + 15, TITLE_BAR + 15)) == (128, 128, 128)


def test_a_sheet_of_classes_marks_right_and_wrong():
    image = Image.new("RGB", (30, 20), "blue")
    sheet = draw_sheet([(image, "cat", "cat", 0.9), (image, "cat", "dog", 0.6)] * 3)
    height = TILE + 2 * CAPTION_LINE + 8
    assert sheet.size == (4 * TILE, 2 * height)
    for number, colour in enumerate([RIGHT, WRONG] * 3):
        x, y = number % 4 * TILE, number // 4 * height
        assert sheet.getpixel((x + TILE // 2, y + TILE // 2)) == (0, 0, 255)
        colours = sheet.crop((x, y + TILE + CAPTION_LINE, x + TILE, y + height)).getcolors(10_000)
        rgb = tuple(bytes.fromhex(colour[1:]))
        assert rgb in [found for _, found in colours]
