"""Detections drawn on their images.

The colours and masks are supervision's; Pillow draws. supervision's annotators for masks, outlines and boxes
need OpenCV to be quick: without it, a hundred masks on 12 megapixels take them 19 s and 600 MB. Its labels
may cover the object that they name.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from supervision import Color, ColorPalette, Detections
from supervision.annotators.utils import get_labels_text
from supervision.detection.compact_mask import CompactMask

from botnet.images import load_image
from botnet.visualize.panels import titled_row

if TYPE_CHECKING:
    from torch import Tensor

OPACITY = 0.2  # of a mask's tint: the object stays visible
LEAST_SIDE = 480  # pixels: smaller images are enlarged so that names can be read

# One after the other, each was chosen to be farthest from those before it, in CIELAB, for the best of normal
# vision, protanopia and deuteranopia.
PALETTE = ColorPalette.from_hex(
    [
        "#D55E00", "#4B00FF", "#00E1FF", "#873C4B", "#87FFB4", "#3C4BA5",
        "#FFE100", "#00C3A5", "#0F87A5", "#3CA5FF", "#4B69FF", "#963C1E",
    ]
)  # fmt: skip


def draw(
    image: "str | PathLike[str] | Image.Image | np.ndarray | Tensor",
    detections: Detections,
    threshold: float = 0.0,
) -> Image.Image:
    """Boxes, masks, class names and scores on an image.

    Each object is outlined and lightly tinted in the colour of its class. Its name stands outside of its box
    where there is room.

    Args:
        image: a path, a Pillow image, an array (H, W, 3) uint8 RGB or a tensor (3, H, W) uint8.
        detections: in the image's pixels: predictions, or ground truth without confidence. The names are
            those of ``data["class_name"]``, without it the class ids.
        threshold: predictions of a lower confidence are not drawn.

    Returns:
        The picture, at least 480 pixels on its longer side.

    Raises:
        DataError: the file cannot be read.
        ValueError: an array of another shape or type, or masks of another size than the image.
    """
    picture = _as_picture(image)
    if detections.confidence is not None:
        detections = cast(Detections, detections[detections.confidence >= threshold])
    masks = _compact(detections, picture.size)
    zoom = max(1.0, LEAST_SIDE / max(picture.size))
    size = round(picture.width * zoom), round(picture.height * zoom)
    picture = picture if zoom == 1 else picture.resize(size)
    unit = max(size)
    colours = [PALETTE.by_idx(index) for index in _colour_indices(detections)]
    if masks is not None:
        masks = masks if zoom == 1 else masks.resize(size[::-1])
        picture = _draw_masks(picture, masks, colours, max(2, unit // 600))
    width = max(2, unit // 400)
    boxes = _around(detections.xyxy * zoom, width, size)
    pen = ImageDraw.Draw(picture)
    for box, colour in zip(boxes.tolist(), colours, strict=True):
        pen.rectangle(box, outline=colour.as_rgb(), width=width)
    _draw_labels(pen, _labels(detections), boxes, colours, max(13, unit // 48), size)
    return picture


def _as_picture(image: "str | PathLike[str] | Image.Image | np.ndarray | Tensor") -> Image.Image:
    if isinstance(image, str | PathLike):
        return load_image(Path(image))
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    # Of arrays and tensors, only tensors have channels first and know .cpu().
    array = image if isinstance(image, np.ndarray) else np.moveaxis(image.cpu().numpy(), 0, -1)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(
            f"an image of shape {tuple(image.shape)} and type {image.dtype}; give an array (H, W, 3) or a "
            "tensor (3, H, W) of uint8 RGB"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _compact(detections: Detections, size: tuple[int, int]) -> CompactMask | None:
    """The masks, checked against an image of ``size`` (width, height)."""
    masks = detections.mask
    if masks is None:
        return None
    if tuple(masks.shape[1:]) != size[::-1]:
        raise ValueError(
            f"masks of {masks.shape[2]} x {masks.shape[1]} pixels on an image of {size[0]} x {size[1]}; draw "
            "detections on their own image"
        )
    if isinstance(masks, CompactMask):
        return masks
    whole = np.tile([0, 0, size[0] - 1, size[1] - 1], (len(masks), 1))
    return CompactMask.from_dense(masks, whole, size[::-1])


def _colour_indices(detections: Detections) -> list[int]:
    indices = np.arange(len(detections)) if detections.class_id is None else detections.class_id
    return cast("list[int]", indices.tolist())


def _labels(detections: Detections) -> list[str]:
    """Names, with scores where there are some."""
    names = get_labels_text(detections, None)
    if detections.confidence is None:
        return names
    return [f"{name} {score:.2f}" for name, score in zip(names, detections.confidence.tolist(), strict=True)]


# ---- masks


def _draw_masks(
    picture: Image.Image, masks: CompactMask, colours: Sequence[Color], width: int
) -> Image.Image:
    """Tint the objects and outline them outside, the small ones on top of the large ones."""
    order = np.argsort(-masks.area).tolist()
    tint = picture.copy()
    for index in order:
        crop = _image_of(masks.crop(index))
        tint.paste(colours[index].as_rgb(), tuple(masks.offsets[index].tolist()), crop)
    picture = Image.blend(picture, tint, OPACITY)
    for index in order:
        mask = masks.crop(index)
        ring = _image_of(_grown(mask, width) & ~np.pad(mask, width))
        corner = (masks.offsets[index] - width).tolist()
        picture.paste(colours[index].as_rgb(), tuple(corner), ring)
    return picture


def _image_of(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.view(np.uint8) * np.uint8(255))


def _grown(mask: np.ndarray, width: int) -> np.ndarray:
    """A mask (h, w), padded by ``width``, with all pixels at most ``width`` rows and columns from it."""
    grown = np.pad(mask, ((0, 2 * width), (0, 2 * width)))
    for along in (grown, grown.T):
        reach = 0
        while reach < 2 * width:
            step = min(reach + 1, 2 * width - reach)
            along[step:] |= along[:-step]
            reach += step
    return grown


# ---- boxes and names


def _around(boxes: np.ndarray, width: int, size: tuple[int, int]) -> np.ndarray:
    """Frames ``width`` wide that lie around boxes (n, 4), as far as the picture (width, height) reaches."""
    outer = np.concatenate([np.floor(boxes[:, :2]) - width, np.ceil(boxes[:, 2:]) - 1 + width], axis=1)
    least = np.array([0, 0, width, width])
    return np.clip(outer, least, np.array([*size, *size]) - 1 - least[::-1]).astype(int)


def _draw_labels(
    pen: ImageDraw.ImageDraw,
    labels: Sequence[str],
    boxes: np.ndarray,
    colours: Sequence[Color],
    font_size: int,
    size: tuple[int, int],
) -> None:
    """Write the names beside their boxes, black or white on their colours."""
    font = ImageFont.load_default(size=font_size)
    margin = max(2, font_size // 6)
    ascent, descent = cast(Any, font).getmetrics()
    height = ascent + descent + margin
    widths = [int(pen.textlength(label, font=font)) + 2 * margin for label in labels]
    places = place_labels(boxes, np.array([(width, height) for width in widths]).reshape(-1, 2), size)
    for label, (x1, y1, x2, y2), colour in zip(labels, places.tolist(), colours, strict=True):
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour.as_rgb())
        pen.text((x1 + margin, y1 + margin // 2), label, font=font, fill=ink_on(colour))


def ink_on(colour: Color) -> str:
    """Black or white, whichever has the higher contrast on a colour; at least 4.5 : 1 (WCAG 2)."""
    channels = np.array(colour.as_rgb()) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"


def place_labels(boxes: np.ndarray, sizes: np.ndarray, picture: tuple[int, int]) -> np.ndarray:
    """A place for each label: above, below or beside its box, and inside only if there is no other.

    Of the places in the picture, the one that covers least of the labels before it is taken, then that which
    covers least of the other boxes, then the first.

    Args:
        boxes: (n, 4) xyxy.
        sizes: width and height of the labels, (n, 2).
        picture: width and height of the picture.

    Returns:
        (n, 4) xyxy, inside the picture if the labels are not larger than it.
    """
    placed = np.zeros((0, 4), int)
    for index, (box, size) in enumerate(zip(boxes, sizes, strict=True)):
        most = np.maximum(picture - size, 0)
        corners = _corners_beside(box, size, most)
        if not len(corners):
            corners = np.clip(box[None, :2], 0, most)  # inside
        places = np.concatenate([corners, corners + size], axis=1)
        others = np.delete(boxes, index, axis=0)
        cost = np.lexsort([_overlap(places, others), _overlap(places, placed)])
        placed = np.concatenate([placed, places[cost[:1]]])
    return placed


def _corners_beside(box: np.ndarray, size: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Upper left corners (n, 2) from (0, 0) to ``most`` of a label outside of a box, the best first."""
    (x1, y1, x2, y2), (width, height) = box, size
    x = np.clip([x1, x2 + 1 - width], 0, most[0])  # along an edge of the box, it is moved into the picture
    y = np.clip([y1, y2 + 1 - height], 0, most[1])
    above, below, right, left = y1 - height, y2 + 1, x2 + 1, x1 - width
    corners = np.array(
        [
            *((at, edge) for edge in (above, below) for at in x),
            *((edge, at) for at in y for edge in (right, left)),
        ]
    )
    return corners[((corners >= 0) & (corners <= most)).all(axis=1)]


def _overlap(places: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Pixels of each place (p, 4) that boxes (n, 4) cover: (p,)."""
    least, most = (
        function(places[:, None, corner], boxes[None, :, corner])
        for function, corner in ((np.maximum, slice(2)), (np.minimum, slice(2, 4)))
    )
    return cast(np.ndarray, np.clip(most - least, 0, None).prod(axis=-1).sum(axis=-1))


def beside_truth(truth: Image.Image, prediction: Image.Image, threshold: float) -> Image.Image:
    """The drawings of an image's ground truth and of its predictions, side by side under their titles."""
    return titled_row([(truth, "truth"), (prediction, f"prediction, score of at least {threshold}")])
