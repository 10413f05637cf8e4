"""Training and evaluation samples of a COCO instances file."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import box_convert

from botnet.arguments import Part, checked
from botnet.detection.augment import Augmentation
from botnet.detection.check import folder_problems
from botnet.detection.coco import CocoInstances
from botnet.detection.copy_paste import Scene, copy_paste
from botnet.detection.placement import CanvasObject, Placement, load_placed
from botnet.detection.records import Annotation, ImageRecord, broken_mask, image_name, refusal
from botnet.detection.results import Truth
from botnet.detection.transforms import EvalTransform, TrainTransform, load_on_canvas, to_canvas
from botnet.errors import ConfigError, DataError
from botnet.masks import mask_area
from botnet.training.seeding import Key, generator, run_seed

MAX_OBJECTS = 100  # of an image in training (tensorflow/tpu models/official/detection)


T = TypeVar("T")


class PlacedImage(TypedDict):
    """Which image is on a canvas, and where.

    ``size`` is the (height, width) of the original image; ``valid`` the (height, width) of the part of the
    canvas that is not padding; ``scale`` canvas pixels per original pixel, (y, x).
    """

    image_id: int
    size: tuple[int, int]
    valid: tuple[int, int]
    scale: tuple[float, float]


class TrainTarget(PlacedImage):
    """Objects that the canvas shows; the tensors are described in :class:`TrainDataset`."""

    boxes: Tensor
    labels: Tensor
    area: Tensor
    masks: NotRequired[Tensor]


class EvalTarget(PlacedImage, Truth):
    """Objects in original pixels, where they are scored."""


class CocoDataset(Dataset[Any]):
    """The common part of training and evaluation: an instances file and its folder of images.

    Args:
        instances: the instances file, or its path.
        images: folder that the file names are relative to.
        masks: read masks; False for boxes only.

    Raises:
        DataError: an image file or a mask is missing; on access, a file or a mask is broken.
    """

    def __init__(self, instances: CocoInstances | Path, images: Path, masks: bool = True) -> None:
        self.instances = instances if isinstance(instances, CocoInstances) else CocoInstances(instances)
        self.folder, self.masks = Path(images), masks
        self._label = {category: i + 1 for i, category in enumerate(self.instances.category_ids)}
        for problem in folder_problems(self.instances.images, self.folder):
            raise DataError(f"{problem.record}: {problem.message}")
        if masks and self.instances.maskless:
            raise refusal(self.instances.path, self.instances.maskless)

    def __len__(self) -> int:
        return len(self.instances.images)

    def name(self, index: int) -> str:
        """The name of a sample in messages."""
        return image_name(self.instances.images[index])


class TrainDataset(CocoDataset):
    """Images on the canvas with the visible parts of their objects, indexed by (epoch, index).

    A sample is ``(image, target)``: the image (3, canvas, canvas) float32, normalised; in the target

    - ``boxes`` (N, 4) float32 xyxy and ``area`` (N,) float32 in canvas pixels, of the masks where there are
      any; ``labels`` (N,) int64 from 1; ``masks`` (N, canvas, canvas) uint8;
    - ``image_id`` int, ``size`` (height, width) of the original image;
    - ``valid`` (height, width): the part of the canvas that is not padding; ``scale`` (y, x): canvas pixels
      per original pixel.

    Crowd regions, objects without a usable polygon and objects that are cropped away are left out, and at
    most 100 objects are kept, as in tensorflow/tpu; images without objects stay in, with tensors of length
    zero. All randomness depends on the seed, the epoch and the index alone.

    Args:
        instances, images, masks: as in :class:`CocoDataset`.
        transform: scale, crop and flip, colour and rotation.
        copy_paste: probability that objects of a second image are pasted in
            (:func:`botnet.detection.copy_paste.copy_paste`), as many as there is room for among the 100; 0 in
            the paper.

    Raises:
        ConfigError: ``copy_paste`` is not a probability, or is used without masks.
    """

    @checked
    def __init__(
        self,
        instances: CocoInstances | Path,
        images: Path,
        transform: TrainTransform,
        masks: bool = True,
        copy_paste: Part = 0.0,
    ) -> None:
        super().__init__(instances, images, masks)
        if copy_paste and not masks:
            raise ConfigError(
                f"copy_paste {copy_paste} needs masks; set data.masks true or data.copy_paste 0"
            )
        self.transform, self.copy_paste = transform, copy_paste
        self.known_broken = torch.zeros(len(self), dtype=torch.bool)  # images that must not be pasted

    def __getitem__(self, key: Key) -> tuple[Tensor, TrainTarget]:
        """The sample of an epoch and an index."""
        epoch, index = key
        rng = generator(run_seed(), epoch, index)
        scene, placement = self._scene(index, rng)
        if self.copy_paste and torch.rand((), generator=rng) < self.copy_paste:
            scene = self._paste_another(scene, rng)
        target = self._target(scene, placement, self.instances.images[index].id)
        return scene.image, target

    def _paste_another(self, scene: Scene, rng: torch.Generator) -> Scene:
        """The scene with objects of another image; a broken image is named in the error's ``sample``."""
        other = int(torch.randint(len(self), (), generator=rng))
        while self.known_broken[other]:
            other = (other + 1) % len(self)
        try:
            source, _ = self._scene(other, rng)
        except DataError as error:
            error.sample = other
            raise
        # More than are kept would be seen, but learnt as background.
        room = max(MAX_OBJECTS - len(scene.objects), 0)
        return copy_paste(scene, replace(source, objects=source.objects[:room]), rng)

    def _scene(self, index: int, rng: torch.Generator) -> tuple[Scene, Placement]:
        record = self.instances.images[index]
        placement, augmentation = self._drawn(record, rng)
        pixels = augmentation.pixels(load_placed(self.folder / record.file_name, placement))
        image = torch.from_numpy(to_canvas(pixels, self.transform.canvas))
        objects = augmentation.objects(self._objects(record, placement), placement.valid)
        return Scene(image, placement.valid, objects), placement

    def _drawn(self, record: ImageRecord, rng: torch.Generator) -> tuple[Placement, Augmentation]:
        placement = self.transform.place((record.height, record.width), rng)
        return placement, self.transform.augmentation(rng)

    def target(self, index: int) -> TrainTarget:
        """The target alone of an index in epoch 0, without objects of a second image."""
        record = self.instances.images[index]
        placement, augmentation = self._drawn(record, generator(run_seed(), 0, index))
        objects = augmentation.objects(self._objects(record, placement), placement.valid)
        return self._target(Scene(torch.empty(0), placement.valid, objects), placement, record.id)

    def _objects(self, record: ImageRecord, placement: Placement) -> list[CanvasObject]:
        return [
            placed
            for annotation in self.instances.annotations_of(record.id)
            if not annotation.iscrowd and (placed := self._place(annotation, record, placement))
        ]

    def _place(
        self, annotation: Annotation, record: ImageRecord, placement: Placement
    ) -> CanvasObject | None:
        label = self._label[annotation.category_id]
        if not self.masks:
            return placement.place_box(label, annotation.bbox)
        if not annotation.segmentation:  # all its polygons were left out
            return None
        try:
            return placement.place_mask(label, annotation.segmentation)
        except ValueError as error:
            raise refusal(self.instances.path, broken_mask(annotation, record, error)) from error

    def _target(self, scene: Scene, placement: Placement, image_id: int) -> TrainTarget:
        objects = scene.objects[:MAX_OBJECTS]
        target = TrainTarget(
            # An object that fills the canvas has edges that are whole numbers.
            boxes=torch.tensor([placed.box for placed in objects], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor([placed.label for placed in objects], dtype=torch.int64),
            area=torch.tensor([placed.area for placed in objects], dtype=torch.float32),
            image_id=image_id,
            size=placement.size,
            valid=scene.valid,
            scale=placement.scale,
        )
        if self.masks:
            # Zeros that are never written to take no memory.
            masks = np.zeros((len(objects), self.transform.canvas, self.transform.canvas), np.uint8)
            for mask, placed in zip(masks, objects, strict=True):
                mask[placed.window] = placed.mask
            target["masks"] = torch.from_numpy(masks)
        return target


class EvalDataset(CocoDataset):
    """Images fitted into the canvas, with their truth in original pixels, where it is scored.

    A sample is ``(image, target)``: the image (3, canvas, canvas) float32, normalised; in the target

    - ``boxes`` (N, 4) float32 xyxy, ``labels`` (N,) int64 from 1, ``masks``: N compressed RLEs, ``iscrowd``
      (N,) bool, ``area`` (N,) float32 in square pixels (the file's; without it the mask's or the box's);
    - ``image_id``, ``size``, ``valid``, ``scale`` as in :class:`TrainDataset`.

    An object whose polygons were all left out keeps its box and has an empty mask, as in pycocotools.

    Args:
        instances, images, masks: as in :class:`CocoDataset`.
        transform: the canvas.
    """

    def __init__(
        self, instances: CocoInstances | Path, images: Path, transform: EvalTransform, masks: bool = True
    ) -> None:
        super().__init__(instances, images, masks)
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Tensor, EvalTarget]:
        """The sample of an index."""
        record = self.instances.images[index]
        placement = self.transform.place((record.height, record.width))
        path = self.folder / record.file_name
        image = torch.from_numpy(load_on_canvas(path, placement, self.transform.canvas))
        target = EvalTarget(
            **self._truth(record),
            image_id=record.id,
            size=placement.size,
            valid=placement.valid,
            scale=placement.scale,
        )
        return image, target

    def _truth(self, record: ImageRecord) -> Truth:
        annotations = self.instances.annotations_of(record.id)
        boxes = torch.tensor([annotation.bbox for annotation in annotations], dtype=torch.float32)
        areas = [annotation.bbox[2] * annotation.bbox[3] for annotation in annotations]
        if self.masks:
            masks = [self.instances.mask_of(annotation) for annotation in annotations]
            areas = [float(mask_area(mask)) for mask in masks]
        for index, annotation in enumerate(annotations):
            if (stated := annotation.area) is not None:
                areas[index] = stated
        truth = Truth(
            boxes=box_convert(boxes.reshape(-1, 4), "xywh", "xyxy"),
            labels=torch.tensor([self._label[a.category_id] for a in annotations], dtype=torch.int64),
            iscrowd=torch.tensor([a.iscrowd for a in annotations], dtype=torch.bool),
            area=torch.tensor(areas, dtype=torch.float32),
        )
        if self.masks:
            truth["masks"] = masks
        return truth


def collate(batch: list[tuple[Tensor, T]]) -> tuple[Tensor, list[T]]:
    """Images of one canvas size as a batch (B, 3, S, S), channels last, and the list of their targets."""
    images, targets = zip(*batch, strict=True)
    # Stacked in the layout that they have in memory, channels last.
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2), list(targets)
