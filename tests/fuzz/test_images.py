"""Image files that are nearly right: decoded to RGB of the size in the header, or refused by name."""

import io
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from botnet.errors import DataError
from botnet.images import FORMATS, decode_stored, find_fault, image_size, load_image
from tests.support.fuzz import cases, nearly

WIDTH, HEIGHT = 24, 16
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LAB"),
    "PPM": ("1", "L", "RGB", "I"),
    "JPEG2000": ("L", "RGB"),
}


def saved(kind, mode, **options):
    image = Image.fromarray(PIXELS)
    if mode == "LAB":
        image = Image.fromarray(PIXELS, "LAB")
    elif mode.startswith("I;16"):
        image = Image.fromarray((PIXELS[..., 0].astype(np.uint16) << 8) + 3)
    else:
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


SOUND = [(kind, mode) for kind, modes in MODES.items() for mode in modes]


def check(contents, sound=None):
    """Decoded, or refused with the name of the file; with ``sound``, decoded only to those pixels."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.bin"
        path.write_bytes(contents)
        try:
            size = image_size(path)
        except DataError as error:
            assert str(error).startswith(f"{path}: ")
            size = None
        try:
            image = load_image(path)
        except DataError as error:
            assert str(error).startswith(f"{path}: ")
            assert size is None or find_fault(path, size, decode=True) is not None
        else:
            assert image.mode == "RGB"
            assert (image.height, image.width) == size
            assert find_fault(path, size, decode=True) is None
            if sound is not None:
                assert np.array_equal(np.asarray(image), sound)
        try:
            assert decode_stored(path, "sample 3").mode == "RGB"
        except DataError as error:
            assert str(error).startswith("sample 3: ")


@st.composite
def broken(draw):
    kind, mode = draw(st.sampled_from(SOUND))
    options = {}
    if kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        if draw(st.booleans()):
            options["icc_profile"] = draw(st.binary(min_size=1, max_size=200))
        if draw(st.booleans()) and kind != "TIFF":
            exif = Image.Exif()
            exif[0x0112] = draw(st.sampled_from([0, 1, 3, 6, 8, 9, 65535]))
            whole = exif.tobytes()
            options["exif"] = draw(
                st.just(whole) | nearly(whole) | st.binary(max_size=60).map(b"Exif\0\0".__add__)
            )
    if kind == "JPEG":
        options["progressive"] = draw(st.booleans())
    contents = saved(kind, mode, **options)
    return draw(st.just(contents) | nearly(contents))


@cases(45)
@given(contents=broken())
def test_images_are_decoded_or_refused(contents):
    check(contents)


def markers(contents):
    """Where the segments of a JPEG begin, and where the first scan's data begin and end."""
    at, found = 2, [0, 2]
    while contents[at] == 0xFF and contents[at + 1] != 0xD9:
        (length,) = struct.unpack(">H", contents[at + 2 : at + 4])
        scan, at = contents[at + 1] == 0xDA, at + 2 + length
        found.append(at)
        if scan:
            while not (contents[at] == 0xFF and contents[at + 1] not in (0, *range(0xD0, 0xD8))):
                at += 1
            found.append(at)
    return found


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_at_any_marker_is_refused(progressive):
    """With restart markers and a comment, too; in the middle of each segment as well."""
    options = {"progressive": progressive, "comment": b"c" * 20, "restart_marker_blocks": 2}
    contents = saved("JPEG", "RGB", **options)
    sound = np.asarray(Image.open(io.BytesIO(contents)).convert("RGB"))
    cuts = markers(contents)
    assert len(cuts) > 8
    for cut, following in zip(cuts, [*cuts[1:], len(contents)], strict=True):
        for length in (cut, cut + 1, (cut + following) // 2, following - 1):
            check(contents[:length], sound)


@cases(5)
@given(kind=st.sampled_from(["PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM"]), part=st.floats(0, 1))
def test_a_cut_file_is_refused_or_whole(kind, part):
    contents = saved(kind, "L" if kind == "GIF" else "RGB", **({"lossless": True} if kind == "WEBP" else {}))
    sound = np.asarray(Image.open(io.BytesIO(contents)).convert("RGB"))
    check(contents[: int(part * len(contents))], sound)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("side", [20_000, 65_000, 2**31 - 1])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "JPEG"])
def test_bombs_are_refused(kind, side):
    """Small files that claim many pixels."""
    if kind == "PNG":
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        data = (
            b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        )
    elif kind == "BMP":
        data = bytearray(saved("BMP", "RGB"))
        data[18:26] = struct.pack("<ii", side, side)
    else:
        side = min(side, 65_000)
        data = bytearray(saved(kind, "L"))
        at = 6 if kind == "GIF" else data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack("<HH" if kind == "GIF" else ">HH", side, side)
        if kind == "GIF":
            at = data.index(b"\x2c", 13) + 5
            data[at : at + 4] = struct.pack("<HH", side, side)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bomb"
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"bomb: (too large|cannot be decoded)"):
            load_image(path)


def test_the_formats_are_those_that_are_tried():
    assert set(FORMATS) - set(MODES) <= {"AVIF"}  # which not every Pillow has
