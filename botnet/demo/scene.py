"""Composing a scene: handwritten digits pasted onto a crop of a photograph, with exact visible masks."""

import numpy as np
from PIL import Image

MAX_OBJECTS = 4
MIN_VISIBLE = 0.9  # of each digit's own pixels, after later digits have covered it
MIN_CONTRAST = 100  # grey levels between a digit and the mean of what it covers
INK = 0.3  # of full ink: where a pixel of MNIST starts to belong to its digit


def background(rng: np.random.Generator, photographs: list[Image.Image], size: int) -> np.ndarray:
    """A random crop of a random photograph, (H, W, 3) uint8, its longer side ``size``."""
    short = round(size * rng.uniform(0.65, 1))
    width, height = (size, short) if rng.random() < 0.5 else (short, size)
    photograph = photographs[rng.integers(len(photographs))]
    zoom = rng.uniform(0.5, 1) * min(photograph.width / width, photograph.height / height)
    x = rng.uniform(0, photograph.width - zoom * width)
    y = rng.uniform(0, photograph.height - zoom * height)
    box = (x, y, x + zoom * width, y + zoom * height)
    crop = photograph.resize((width, height), Image.Resampling.BICUBIC, box)
    pixels = np.array(crop)
    return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels


def paste_digits(
    rng: np.random.Generator, image: np.ndarray, digits: list[np.ndarray], size: int
) -> list[tuple[int, np.ndarray]]:
    """Paste 1 to 4 digits into an image, in place.

    Args:
        rng: of every random choice.
        image: (H, W, 3) uint8.
        digits: ten arrays (n, 28, 28) uint8, one for each class, ink 255 on 0.
        size: of the image's longer side, in pixels; digits are size/6 to 0.65 size high.

    Returns:
        (label, visible mask (H, W) bool) of each.
    """
    height, width = image.shape[:2]
    owner = np.full((height, width), -1)  # which digit is on top
    labels: list[int] = []
    areas: list[int] = []  # pixels of each digit before anything covers it
    heights = np.exp(rng.uniform(np.log(size / 6), np.log(0.65 * size), rng.integers(1, MAX_OBJECTS + 1)))
    for digit_height in np.sort(heights)[::-1]:  # small ones on top, where they are visible
        label = int(rng.integers(10))
        ink = digits[label][rng.integers(len(digits[label]))]
        alpha = _render(rng, ink, digit_height, 0.95 * height, 0.95 * width)
        mask = alpha >= 0.5
        window = _free_place(rng, owner, mask, areas)
        if window is None:  # better left out than covering a digit that keeps its annotation
            continue
        owner[window][mask] = len(labels)
        labels.append(label)
        areas.append(int(mask.sum()))
        colour = _contrasting_colour(rng, image[window][mask])
        pixels = image[window]
        image[window] = np.rint(pixels + alpha[..., None] * (colour - pixels)).astype(np.uint8)
    return [(label, owner == index) for index, label in enumerate(labels)]


def _free_place(
    rng: np.random.Generator, owner: np.ndarray, mask: np.ndarray, areas: list[int]
) -> tuple[slice, slice] | None:
    """A random place for a digit where those before it stay visible; None if ten tries find none."""
    rows, columns = mask.shape
    for _ in range(10):
        y = rng.integers(owner.shape[0] - rows + 1)
        x = rng.integers(owner.shape[1] - columns + 1)
        window = slice(y, y + rows), slice(x, x + columns)
        covered = owner[window][mask]
        visible = np.bincount(owner[owner >= 0], minlength=len(areas))
        visible -= np.bincount(covered[covered >= 0], minlength=len(areas))
        if np.all(visible >= MIN_VISIBLE * np.array(areas)):
            return window
    return None


def _render(
    rng: np.random.Generator, ink: np.ndarray, height: float, max_height: float, max_width: float
) -> np.ndarray:
    """A digit enlarged, rotated and sheared: alpha (h, w) in [0, 1], cropped to where alpha >= 0.5."""
    x, y, right, bottom = extent(ink >= INK * 255)
    ink_width, ink_height = right - x, bottom - y
    centre = np.array([x + right, y + bottom]) / 2
    angle, shear = np.deg2rad(rng.uniform(-15, 15)), rng.uniform(-0.15, 0.15)
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ [
        [1, shear],
        [0, 1],
    ]
    sides = np.abs(linear) @ [ink_width, ink_height]  # of the transformed box, in pixels of MNIST
    scale = min(height / ink_height, max_width / sides[0], max_height / sides[1])
    canvas = np.ceil(scale * sides).astype(int) + 2
    inverse = np.linalg.inv(scale * linear)  # from the canvas to MNIST, both about their centres
    offset = centre - inverse @ (canvas / 2)
    grey = np.asarray(
        Image.fromarray(ink).transform(
            (int(canvas[0]), int(canvas[1])),
            Image.Transform.AFFINE,
            (*inverse[0], offset[0], *inverse[1], offset[1]),
            Image.Resampling.BICUBIC,
        )
    )
    # MNIST's edges are about 2 pixels wide and are enlarged, too: a steeper ramp keeps them narrow.
    alpha = np.clip(0.5 + (grey / 255 - INK) * max(1, 0.75 * scale), 0, 1)
    x, y, right, bottom = extent(alpha >= 0.5)
    return alpha[y:bottom, x:right]


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Smallest box around a mask: left, top, right, bottom; the last two are exclusive."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _contrasting_colour(rng: np.random.Generator, covered: np.ndarray) -> np.ndarray:
    """A random colour whose brightness differs from the mean of the pixels (n, 3) that it will cover."""
    brightness = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    mean = covered.mean(0) @ brightness
    while True:
        colour = rng.uniform(0, 255, 3)
        if abs(colour @ brightness - mean) >= MIN_CONTRAST:
            return colour
