"""Checks of what a detector is given, with messages that name the image and the object."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from botnet.errors import ConfigError


def input_channels(backbone: nn.Module) -> int | None:
    """Channels of the images that a network takes: those of its first convolution; None without one."""
    convolutions = (module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    first = next(convolutions, None)
    return first.in_channels if first is not None else None


def traced() -> bool:
    """Whether the detector is being compiled or exported: a graph cannot hold a check of values."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def check_images(images: Any, channels: int | None) -> None:
    """Refuse what is not a batch of normalised canvases; nothing is read from the device.

    Raises:
        ValueError: with what was given and what is expected.
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        given = f"a tensor {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be one batch (B, 3, H, W) of canvases, got {given}")
    if channels is not None and images.shape[1] != channels:
        raise ValueError(
            f"images have {images.shape[1]} channels, got {tuple(images.shape)}; "
            f"the backbone takes {channels}"
        )
    if not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype}; give floating-point numbers, divided by 255 and normalised as the "
            "backbone expects"
        )
    if not traced() and 0 in images.shape:
        raise ValueError(f"images are empty: {tuple(images.shape)}; give at least one image with pixels")


def check_statistics(images: Tensor, stride: int, norm: nn.Module) -> None:
    """Refuse a batch that leaves the coarsest level one cell, of which batch norm has no statistics.

    Args:
        images: (B, C, H, W), of a batch in training.
        stride: of p6.
        norm: of p6. One that is frozen, or takes its statistics over several devices, needs no two cells.

    Raises:
        ConfigError: with the batch, the canvas and the level.
    """
    height, width = images.shape[-2:]
    one_cell = len(images) == 1 and max(height, width) <= stride
    if one_cell and isinstance(norm, nn.BatchNorm2d) and norm.training:
        raise ConfigError(
            f"a training batch of 1 image (data.batch_size) of {height} x {width} pixels (data.canvas): "
            f"p6, of stride {stride}, has a single cell, too few for batch norm statistics; give 2 images or "
            f"more, or a canvas of more than {stride} pixels"
        )


def image_sizes(valid: Sequence[tuple[int, int]] | None, images: Tensor) -> list[tuple[int, int]]:
    """The unpadded (height, width) of each image, the whole canvas by default.

    Raises:
        ValueError: ``valid`` is not one pair of pixels for each image, inside the canvas.
    """
    height, width = images.shape[-2:]
    if valid is None:
        return [(height, width)] * len(images)
    if traced():
        return [(int(h), int(w)) for h, w in valid]
    if len(valid) != len(images):
        raise ValueError(
            f"valid has {len(valid)} sizes for {len(images)} images; give one (height, width) each"
        )
    sizes = []
    for index, size in enumerate(valid):
        try:
            h, w = (operator.index(side) for side in size)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"image {index}: valid is {size!r}; give two integers, (height, width)"
            ) from error
        if not (1 <= h <= height and 1 <= w <= width):
            raise ValueError(
                f"image {index}: valid is {(h, w)}; height and width are from 1 to those of the canvas, "
                f"{(height, width)}"
            )
        sizes.append((h, w))
    return sizes


def check_targets(targets: Any, images: Tensor, masks: bool) -> None:
    """Refuse targets of a wrong form; nothing is read from the device.

    Args:
        targets: as :meth:`botnet.detection.rcnn.RCNN.forward` takes them.
        images: ``(B, 3, H, W)``.
        masks: whether the targets need masks.

    Raises:
        ValueError: with the image, what was given and what is expected.
    """
    if not isinstance(targets, Sequence):
        raise ValueError(
            f"targets must be a list of dictionaries, one per image, got {type(targets).__name__}"
        )
    if len(targets) != len(images):
        raise ValueError(f"{len(targets)} targets for {len(images)} images; give one dictionary per image")
    for index, target in enumerate(targets):
        if not isinstance(target, Mapping):
            raise ValueError(f"image {index}: its target is a {type(target).__name__}, not a dictionary")
        needed = ("boxes", "labels", "masks") if masks else ("boxes", "labels")
        for name in needed:
            if not isinstance(target.get(name), Tensor):
                given = type(target[name]).__name__ if name in target else "missing"
                raise ValueError(
                    f"image {index}: target {name!r} must be a tensor, is {given}"
                    + ("; Mask R-CNN needs masks, Faster R-CNN does not" if name == "masks" else "")
                )
            if target[name].device != images.device:
                raise ValueError(
                    f"image {index}: target {name!r} is on {target[name].device}, "
                    f"the images on {images.device}"
                )
        _check_form(index, target, tuple(images.shape[-2:]), masks)


def _check_form(index: int, target: Mapping[str, Tensor], canvas: tuple[int, ...], masks: bool) -> None:
    """Shapes and types of one image's target."""
    boxes, labels = target["boxes"], target["labels"]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise ValueError(
            f"image {index}: boxes are {tuple(boxes.shape)} {boxes.dtype}; give (objects, 4), floating-point "
            "numbers x1, y1, x2, y2 in pixels of the canvas"
        )
    if labels.shape != boxes.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"image {index}: labels are {tuple(labels.shape)} {labels.dtype} beside {len(boxes)} boxes; give "
            f"({len(boxes)},) torch.int64"
        )
    if not masks:
        return
    given, expected = target["masks"], (len(boxes), *canvas)
    if tuple(given.shape) != expected or given.dtype not in (torch.uint8, torch.bool):
        raise ValueError(
            f"image {index}: masks are {tuple(given.shape)} {given.dtype}; give {expected} torch.uint8, "
            "one of the size of the canvas for each box"
        )


@torch.no_grad()
def check_values(images: Tensor, targets: Sequence[Mapping[str, Tensor]] | None, num_classes: int) -> None:
    """Refuse images that are not finite, and boxes and labels that cannot be learnt from.

    The host waits for the device once. That is before the images reach the backbone, whose batch norms
    would keep a NaN in their statistics.

    Args:
        images: ``(B, 3, H, W)``.
        targets: that passed :func:`check_targets`, or None.
        num_classes: object classes, without background.

    Raises:
        ValueError: with the image, the object, what was given and what is expected.
    """
    if traced():
        return
    finite = images.sum((1, 2, 3), dtype=torch.float32).isfinite()  # of each image, without a copy of them
    sound = [finite]
    if targets is not None:
        canvas = (images.shape[-2], images.shape[-1])
        boxes = torch.cat([target["boxes"] for target in targets])
        labels = torch.cat([target["labels"] for target in targets])
        sound += [sound_boxes(boxes, canvas), (labels >= 1) & (labels <= num_classes)]
    if torch.cat(sound).all():
        return
    for index, pixels in enumerate(images):
        if targets is not None:
            _explain_objects(index, targets[index], canvas, num_classes)
        if not pixels.isfinite().all():
            where = (~pixels.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"image {index}: it has NaN or infinite values, the first at (channel, y, x) {tuple(where)}; "
                "give finite numbers"
            )


def sound_boxes(boxes: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Which boxes (n, 4) are finite, have an area, and lie on the canvas with a part of it.

    As in torchvision, a box may reach beyond the canvas; one that is wholly outside shows nothing.
    """
    (height, width), (x1, y1, x2, y2) = canvas, boxes.unbind(1)
    on_canvas = (x2 > 0) & (y2 > 0) & (x1 < width) & (y1 < height)
    return boxes.isfinite().all(1) & (x2 > x1) & (y2 > y1) & on_canvas


def _explain_objects(
    index: int, target: Mapping[str, Tensor], canvas: tuple[int, int], num_classes: int
) -> None:
    """Raise for the first wrong object of an image."""
    sound = sound_boxes(target["boxes"], canvas).tolist()
    numbers = zip(sound, target["boxes"].tolist(), target["labels"].tolist(), strict=True)
    for position, (good, box, label) in enumerate(numbers):
        where = f"image {index}, object {position}"
        if not good:
            raise ValueError(
                f"{where}: the box is {box}; give finite x1, y1, x2, y2 with x1 < x2 and y1 < y2, in pixels "
                f"of the canvas, of which it covers a part (height {canvas[0]}, width {canvas[1]})"
            )
        if not 1 <= label <= num_classes:
            raise ValueError(
                f"{where}: the label is {label}; labels are from 1 to {num_classes}, the number of classes "
                "(0 is the background)"
            )
