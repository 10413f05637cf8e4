"""Detections in images of any kind and size, from a trained detector. The module loads without PyTorch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
from PIL import Image

from botnet.detection.placement import Placement, load_placed
from botnet.detection.postprocess import as_arrays, to_original
from botnet.detection.transforms import EvalTransform, to_canvas
from botnet.errors import ConfigError
from botnet.images import Size, as_image, image_size
from botnet.predictor import ImageLike, answer_all

if TYPE_CHECKING:
    from supervision import Detections

    from botnet.detection.rcnn import RCNN

MERGED = 0.5  # least part of the smaller of two boxes under the other that makes them parts of one object


@dataclass(frozen=True)
class Prepared:
    """An image on the canvas.

    Args:
        pixels: (h, w, 3) uint8, what the canvas shows of it; the rest is padding.
        placement: where it lies.
    """

    pixels: np.ndarray
    placement: Placement


class Detector(ABC):
    """A trained detector, as :func:`botnet.load` returns it. It may be used from several threads.

    Args:
        class_names: of class ids 0, 1, ...
        category_ids: of class ids 0, 1, ... in the data that it was trained on.
        size: (height, width) in pixels of the canvas that an image is fitted into.
    """

    task = "detector"

    def __init__(
        self, class_names: Sequence[str], category_ids: Sequence[int], size: tuple[int, int]
    ) -> None:
        self.class_names, self.category_ids, self.size = list(class_names), list(category_ids), size

    # A string is an image, though also an iterable of strings.
    @overload
    def predict(  # type: ignore[overload-overlap]
        self, images: ImageLike, threshold: float = ..., *, tile: int | None = ..., overlap: int | None = ...
    ) -> "Detections": ...

    @overload
    def predict(
        self,
        images: Iterable[ImageLike],
        threshold: float = ...,
        *,
        batch_size: int = ...,
        stream: bool = ...,
        tile: int | None = ...,
        overlap: int | None = ...,
    ) -> "list[Detections] | Iterator[Detections]": ...

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        threshold: float = 0.5,
        *,
        batch_size: int = 1,
        stream: bool = False,
        tile: int | None = None,
        overlap: int | None = None,
    ) -> "Detections | list[Detections] | Iterator[Detections]":
        """Find objects in one image or in several.

        Args:
            images: a path, a Pillow image, an array (H, W, 3) uint8 RGB, or a tensor (3, H, W), uint8 or from
                0 to 1; or several of them, of any sizes.
            threshold: lowest confidence of a detection. Default 0.5. The network itself leaves out those
                below 0.05, unless it was built with another ``score_threshold``.
            batch_size: images at once. Default 1.
            stream: return an iterator, which takes images as it is read. Default False.
            tile: side in pixels of the tiles that a large image is cut into; each is fitted into the canvas.
                Default None: the whole image is.
            overlap: of neighbouring tiles in pixels. Default 128, or a quarter of a smaller tile. An object
                that is smaller is whole in one of them.

        Returns:
            ``supervision.Detections`` for each image, the highest confidence first: ``xyxy`` (n, 4) float32
            in the image's pixels, ``confidence``, ``class_id`` from 0, ``data["class_name"]``,
            ``data["category_id"]`` and, from Mask R-CNN, ``mask``, a ``CompactMask``.

        Raises:
            DataError: an image cannot be read, or is of another shape, type or range.
            ConfigError: a batch below 1, a tile that is not larger than its overlap, or a threshold outside
                of [0, 1].
        """
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold {threshold}: give a confidence from 0 to 1")
        overlap = min(128, (tile or 0) // 4) if overlap is None else overlap
        if tile is not None and not 0 <= overlap < tile:
            raise ConfigError(
                f"tile {tile}, overlap {overlap}: give a tile in pixels, larger than the overlap"
            )

        def answers(batch: Sequence[Image.Image | str | PathLike[str]]) -> "list[Detections]":
            if tile is not None:
                return [
                    self._in_tiles(as_image(image), threshold, tile, overlap, batch_size) for image in batch
                ]
            found = self.detect([self.prepare(image) for image in batch])
            return [_at_least(threshold, detections) for detections in found]

        return answer_all(images, answers, batch_size, stream)

    def prepare(self, image: Image.Image | str | PathLike[str], size: Size | None = None) -> Prepared:
        """An image on the canvas.

        Args:
            image: a path, or an image.
            size: (height, width) that an image file must have, see :func:`botnet.images.load_image`.

        Raises:
            DataError: the file cannot be read, or is of another size.
        """
        place = EvalTransform(self.size).place
        if isinstance(image, Image.Image):
            pixels = as_image(image)
            placement = place((pixels.height, pixels.width))
            return Prepared(placement.pixels(pixels), placement)
        placement = place(size or image_size(Path(image)))
        return Prepared(load_placed(Path(image), placement), placement)

    def detect(self, prepared: Sequence[Prepared]) -> "list[Detections]":
        """All detections in prepared images, in their original pixels."""
        return [
            to_original(
                found, image.placement.scale, image.placement.size, self.class_names, self.category_ids
            )
            for found, image in zip(self.run(prepared), prepared, strict=True)
        ]

    @abstractmethod
    def run(self, prepared: Sequence[Prepared]) -> list[dict[str, np.ndarray]]:
        """What the network finds on each canvas: ``boxes``, ``scores``, ``labels``, perhaps ``masks``."""

    def _in_tiles(
        self, image: Image.Image, threshold: float, tile: int, overlap: int, batch_size: int
    ) -> "Detections":
        """The detections in the tiles of an image; those that are parts of one object are merged."""
        from supervision import InferenceSlicer, OverlapFilter, OverlapMetric

        def in_tiles(tiles: Any) -> Any:
            several = isinstance(tiles, list)  # with batches of one tile, supervision gives it alone
            batch = [Image.fromarray(part) for part in (tiles if several else [tiles])]
            found = [_at_least(threshold, d) for d in self.detect([self.prepare(part) for part in batch])]
            return found if several else found[0]

        slicer = InferenceSlicer(
            in_tiles,
            slice_wh=tile,
            overlap_wh=overlap,
            overlap_filter=OverlapFilter.NON_MAX_MERGE,
            overlap_metric=OverlapMetric.IOS,
            iou_threshold=MERGED,
            compact_masks=True,
            batch_size=batch_size,
        )
        found = slicer(np.asarray(image))
        order = np.argsort(-cast(np.ndarray, found.confidence), kind="stable")
        return cast("Detections", found[order])


def _at_least(threshold: float, detections: "Detections") -> "Detections":
    kept = cast(np.ndarray, detections.confidence) >= threshold
    return cast("Detections", detections[kept])


class TorchDetector(Detector):
    """A detector that PyTorch runs.

    Args:
        network: in evaluation mode, on its device.
        class_names, category_ids: see :class:`Detector`.
        canvas: side in pixels of the square canvas.
    """

    def __init__(
        self, network: "RCNN", class_names: Sequence[str], category_ids: Sequence[int], canvas: int
    ) -> None:
        super().__init__(class_names, category_ids, (canvas, canvas))
        self.network, self.canvas = network, canvas

    def run(self, prepared: Sequence[Prepared]) -> list[dict[str, np.ndarray]]:
        """What the network finds on each canvas."""
        import torch

        pixels = np.stack([to_canvas(image.pixels, self.canvas).transpose(1, 2, 0) for image in prepared])
        # Channels last in memory.
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            found = self.network(images.to(device), valid=[image.placement.valid for image in prepared])
        return [as_arrays(detections) for detections in found]
