"""Detections drawn on their images."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from botnet.masks import Rle, decode_mask, mask_area, mask_box
from botnet.visualize.panels import titled_row

OPACITY = 0.55  # of a mask
LEAST_SIDE = 480  # pixels: smaller images are enlarged so that names can be read


def colour_of(label: int) -> tuple[int, int, int]:
    """A saturated colour for each label, the same in every picture."""
    hue = int(hashlib.sha256(str(label).encode()).hexdigest(), 16) % 360
    red, green, blue = Image.new("HSV", (1, 1), (hue * 255 // 360, 200, 255)).convert("RGB").getpixel((0, 0))  # type: ignore[misc]
    return red, green, blue


def draw(
    image: Tensor, result: Mapping[str, Any], class_names: Sequence[str], threshold: float
) -> Image.Image:
    """Boxes, masks, class names and scores on an image.

    Args:
        image: ``(3, H, W)`` uint8.
        result: ``boxes`` xyxy and ``labels`` in the image's pixels, and optionally ``scores`` and ``masks``
            (run lengths): predictions or ground truth.
        class_names: of labels 1, 2, ...
        threshold: predictions below this score are not drawn.

    Returns:
        The picture, at least 480 pixels on its longer side.
    """
    scores = result.get("scores")
    count = len(result["boxes"])
    shown = [i for i in range(count) if scores is None or scores[i] >= threshold]
    colours = [colour_of(int(result["labels"][i])) for i in shown]
    pixels = image.permute(1, 2, 0).numpy().copy()
    if result.get("masks"):
        masks = [(result["masks"][i], colour) for i, colour in zip(shown, colours, strict=True)]
        for mask, colour in sorted(masks, key=lambda drawn: mask_area(drawn[0]), reverse=True):
            _blend(pixels, mask, colour)
    picture = Image.fromarray(pixels)
    zoom = max(1.0, LEAST_SIDE / max(picture.size))
    picture = picture.resize((round(picture.width * zoom), round(picture.height * zoom)))
    pen = ImageDraw.Draw(picture)
    unit = max(picture.size)
    font = ImageFont.load_default(size=max(12, unit // 45))
    for i, colour in zip(shown, colours, strict=True):
        x1, y1, x2, y2 = (float(side) * zoom for side in result["boxes"][i])
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=max(2, unit // 320))
        name = class_names[int(result["labels"][i]) - 1]
        text = name if scores is None else f"{name} {float(scores[i]):.2f}"
        left, top, right, bottom = pen.textbbox((x1, y1), text, font=font, anchor="lb")
        drop = max(0.0, -top)  # at the upper edge of the image the name goes inside the box
        pen.rectangle((left, top + drop, right, bottom + drop), fill=colour)
        pen.text((x1, y1 + drop), text, font=font, anchor="lb", fill="black")
    return picture


def _blend(pixels: np.ndarray, mask: Rle, colour: tuple[int, int, int]) -> None:
    """Tint the pixels (H, W, 3) inside a mask, in place."""
    x, y, width, height = mask_box(mask)
    box = slice(y, y + height), slice(x, x + width)
    inside = decode_mask(mask, *pixels.shape[:2])[box] > 0
    for channel, tint in enumerate(colour):
        # A table of the 256 values avoids floating-point copies of the pixels.
        table = ((1 - OPACITY) * np.arange(256) + OPACITY * tint).astype(np.uint8)
        window = pixels[(*box, channel)]
        np.copyto(window, table[window], where=inside)


def beside_truth(truth: Image.Image, prediction: Image.Image, threshold: float) -> Image.Image:
    """The drawings of an image's ground truth and of its predictions, side by side under their titles."""
    return titled_row([(truth, "truth"), (prediction, f"prediction, score of at least {threshold}")])
