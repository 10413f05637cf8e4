"""Images of every mode and orientation."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from botnet.classification.images import read_image
from botnet.detection.placement import load_placed
from botnet.detection.transforms import EvalTransform
from botnet.errors import DataError
from botnet.images import denormalise, find_fault, image_size, load_image

COLOURS = np.array(
    [[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [128, 128, 128]], [[0, 0, 0], [255, 255, 255]]]
)


def colour_patches() -> Image.Image:
    """40 x 60, six patches without symmetry: rotated or flipped, the image differs."""
    return Image.fromarray(COLOURS.astype(np.uint8)).resize((40, 60), Image.Resampling.NEAREST)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("L", "jpg"), ("P", "png"), ("1", "png"), ("LA", "png"), ("RGBA", "png"), ("CMYK", "jpg")],
)
def test_images_of_every_mode_become_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"image.{suffix}"
    original = (
        colour_patches() if mode != "1" else colour_patches().convert("L").point(lambda p: 255 * (p > 99))
    )
    if mode in ("L", "LA"):
        original = original.convert("L")
    expected = np.asarray(original.convert("RGB")).astype(int)
    (original.quantize() if mode == "P" else original.convert(mode)).save(path)
    image = load_image(path, (60, 40))
    assert image.mode == "RGB"
    assert abs(np.asarray(image).astype(int) - expected).mean() < 8


def decoded_by_both(path):
    """Pixels as detectors and as classifiers decode them."""
    return np.asarray(load_image(path)), np.asarray(read_image(path, str(path)))


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_sixteen_bit_grey_keeps_its_range(tmp_path, name):
    path = tmp_path / name
    grey = np.linspace(0, 65535, 20 * 30).astype(np.uint16).reshape(20, 30)
    (Image.fromarray(grey.astype(np.int32)) if name == "deep.pgm" else Image.fromarray(grey)).save(path)
    for pixels in decoded_by_both(path):
        np.testing.assert_array_equal(pixels, np.repeat(grey[..., None] // 256, 3, 2))
    assert find_fault(path, (20, 30), decode=True) is None


def test_twelve_bit_grey_keeps_its_range(tmp_path):
    path = tmp_path / "twelve.tif"
    grey = np.linspace(0, 4095, 20 * 30).astype(int).reshape(20, 30)
    first, second = grey[:, ::2], grey[:, 1::2]  # two pixels in three bytes
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8)
    tags = {256: 30, 257: 20, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 20, 279: packed.size}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<I", 8 + packed.size)
    path.write_bytes(header + packed.tobytes() + struct.pack("<H", len(tags)) + entries + bytes(4))
    for pixels in decoded_by_both(path):
        np.testing.assert_array_equal(pixels[..., 0], grey // 16)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
@pytest.mark.parametrize("peak", [1, 70_000])
def test_grey_without_an_agreed_range_is_refused(tmp_path, kind, peak):
    path = tmp_path / "deep.tif"
    Image.fromarray(np.linspace(0, peak, 20 * 30).astype(kind).reshape(20, 30)).save(path)
    message = r"deep\.tif: cannot be decoded \(its pixels are 32-bit, signed or float; save it as 8-bit"
    for read in (load_image, lambda path: read_image(path, str(path))):
        with pytest.raises(DataError, match=message):
            read(path)
    assert find_fault(path, (20, 30), decode=True)[0] == "broken image"
    assert find_fault(path, (20, 30), decode=False) is None


# How each EXIF orientation stores an upright image: the inverse of what a viewer does.
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
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_exif_orientation_is_applied_unless_the_record_has_the_stored_size(tmp_path, orientation, suffix):
    path = tmp_path / f"turned.{suffix}"
    upright = np.asarray(colour_patches())
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if suffix == "jpg" else {}))

    for size in ((60, 40), None):
        assert abs(np.asarray(load_image(path, size)).astype(int) - upright).mean() < 4
        # The same on a smaller canvas.
        placed = load_placed(path, EvalTransform(30).place((60, 40)))
        assert abs(placed.astype(int) - upright[::2, ::2]).mean() < 9
    assert image_size(path) == (60, 40)
    if suffix == "tif":  # Pillow always turns it
        assert find_fault(path, (40, 60), decode=False)[0] == "wrong size"
    elif orientation >= 5:  # annotated as stored: the record has the stored size
        assert abs(np.asarray(load_image(path, (40, 60))).astype(int) - np.asarray(stored)).mean() < 4


def test_denormalise_inverts_the_normalisation():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 2, 1)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    normalised = (pixels / 255 - shift) / scale
    assert torch.equal(denormalise(normalised, mean, std), pixels)
    assert torch.equal(denormalise(normalised + 9, mean, std), torch.full_like(pixels, 255))  # clipped
