"""Pictures of every mode and the way up."""

import numpy as np
import pytest
from PIL import Image

from botnet.detection.images import load_image, load_placed
from botnet.detection.transforms import EvalTransform

COLOURS = np.array(
    [[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [128, 128, 128]], [[0, 0, 0], [255, 255, 255]]]
)


def colour_picture() -> Image.Image:
    """40 x 60, six even patches: turned or mirrored, it is another one."""
    return Image.fromarray(COLOURS.astype(np.uint8)).resize((40, 60), Image.Resampling.NEAREST)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("L", "jpg"), ("P", "png"), ("1", "png"), ("LA", "png"), ("RGBA", "png"), ("CMYK", "jpg")],
)
def test_pictures_of_every_mode_become_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"picture.{suffix}"
    picture = (
        colour_picture() if mode != "1" else colour_picture().convert("L").point(lambda p: 255 * (p > 99))
    )
    if mode in ("L", "LA"):
        picture = picture.convert("L")
    expected = np.asarray(picture.convert("RGB")).astype(int)
    (picture.quantize() if mode == "P" else picture.convert(mode)).save(path)
    image = load_image(path, (60, 40))
    assert image.mode == "RGB"
    assert abs(np.asarray(image).astype(int) - expected).mean() < 8


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    path = tmp_path / "deep.png"
    grey = np.linspace(0, 65535, 20 * 30).astype(np.uint16).reshape(20, 30)
    Image.fromarray(grey).save(path)
    np.testing.assert_array_equal(np.asarray(load_image(path))[..., 0], grey // 256)


# How each EXIF orientation stores an upright picture; the inverse of what a viewer does.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_exif_orientation_is_obeyed_where_the_record_agrees(tmp_path, orientation, suffix):
    path = tmp_path / f"turned.{suffix}"
    upright = np.asarray(colour_picture())
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if suffix == "jpg" else {}))

    for size in ((60, 40), None):
        assert abs(np.asarray(load_image(path, size)).astype(int) - upright).mean() < 4
        # Resized, it is cut and turned alike.
        placed = load_placed(path, EvalTransform(30).place((60, 40)))
        assert abs(placed.astype(int) - upright[::2, ::2]).mean() < 9
    if orientation >= 5:  # annotated as stored: the record has the stored size
        assert abs(np.asarray(load_image(path, (40, 60))).astype(int) - np.asarray(stored)).mean() < 4
