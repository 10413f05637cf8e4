"""Training and evaluation samples of a COCO instances file."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import box_convert

from botnet.detection.check import folder_problems
from botnet.detection.coco import CocoInstances
from botnet.detection.copy_paste import Scene, copy_paste
from botnet.detection.placement import CanvasObject, Placement, load_placed
from botnet.detection.records import broken_mask, image_name, refusal
from botnet.detection.transforms import EvalTransform, TrainTransform, to_canvas
from botnet.errors import DataError
from botnet.masks import mask_area
from botnet.training.seeding import Key, generator

MAX_OBJECTS = 100  # of an image in training (tensorflow/tpu models/official/detection)


class CocoDataset(Dataset):
    """What the samples of training and of evaluation share: an instances file and its folder of images.

    Args:
        instances: the instances file, or its path.
        images: folder that the file names are relative to.
        masks: read masks; False for boxes only.

    Raises:
        DataError: at once if an image file or a mask is missing; on access if a file or a mask is broken.
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
        """What messages call a sample."""
        return image_name(self.instances.images[index])

    def _image(self, record: dict[str, Any], placement: Placement, canvas: int) -> Tensor:
        return to_canvas(load_placed(self.folder / record["file_name"], placement), canvas)


class TrainDataset(CocoDataset):
    """Images on the canvas with what it shows of their objects, asked for by (epoch, index).

    A sample is ``(image, target)``: the image (3, canvas, canvas) float32, normalised; in the target

    - ``boxes`` (N, 4) float32 xyxy and ``area`` (N,) float32 in canvas pixels, of the masks where there are
      any; ``labels`` (N,) int64 from 1; ``masks`` (N, canvas, canvas) uint8;
    - ``image_id`` int, ``size`` (height, width) of the original image;
    - ``valid`` (height, width): the part of the canvas that is not padding; ``scale`` (y, x): canvas pixels
      per original pixel.

    Crowd regions, objects without a usable polygon and objects that the crop leaves nothing of are left out,
    and at most 100 objects are kept, as in tensorflow/tpu; images without objects stay in, with tensors of
    length zero. All that is random is drawn from the seed, the epoch and the index.

    Args:
        instances, images, masks: as in :class:`CocoDataset`.
        transform: scale, crop and flip.
        seed: of the run.
        copy_paste: probability that objects of a second image are pasted in
            (:func:`botnet.detection.copy_paste.copy_paste`); 0 in the paper.
    """

    def __init__(
        self,
        instances: CocoInstances | Path,
        images: Path,
        transform: TrainTransform,
        masks: bool = True,
        seed: int = 0,
        copy_paste: float = 0.0,
    ) -> None:
        super().__init__(instances, images, masks)
        if not 0 <= copy_paste <= 1 or (copy_paste and not masks):
            raise DataError(
                f"copy_paste {copy_paste} with masks {masks}: it is a probability, and things are pasted by "
                "their masks; set one of them otherwise"
            )
        self.transform, self.seed, self.copy_paste = transform, seed, copy_paste
        self.known_broken = torch.zeros(len(self), dtype=torch.bool)  # images that are not pasted

    def __getitem__(self, key: Key) -> tuple[Tensor, dict[str, Any]]:
        epoch, index = key
        chance = generator(self.seed, epoch, index)
        scene, placement = self._scene(index, chance)
        if self.copy_paste and torch.rand((), generator=chance) < self.copy_paste:
            other = int(torch.randint(len(self), (), generator=chance))
            while self.known_broken[other]:
                other = (other + 1) % len(self)
            try:
                pasted, _ = self._scene(other, chance)
            except DataError as error:
                error.sample = other
                raise
            scene = copy_paste(scene, pasted, chance)
        record = self.instances.images[index]
        about = {
            "image_id": record["id"],
            "size": placement.size,
            "valid": scene.valid,
            "scale": placement.scale,
        }
        return scene.image, self._target(scene.things[:MAX_OBJECTS]) | about

    def _scene(self, index: int, chance: torch.Generator) -> tuple[Scene, Placement]:
        record = self.instances.images[index]
        placement = self.transform.place((record["height"], record["width"]), chance)
        image = self._image(record, placement, self.transform.canvas)
        things = []
        for annotation in self.instances.annotations_of(record["id"]):
            if not annotation.get("iscrowd") and (thing := self._thing(annotation, record, placement)):
                things.append(thing)
        return Scene(image, placement.valid, things), placement

    def _thing(
        self, annotation: dict[str, Any], record: dict[str, Any], placement: Placement
    ) -> CanvasObject | None:
        label = self._label[annotation["category_id"]]
        if not self.masks:
            return placement.boxed(label, annotation["bbox"])
        if not annotation["segmentation"]:  # all its polygons were dropped
            return None
        try:
            return placement.masked(label, annotation["segmentation"])
        except ValueError as error:
            raise refusal(self.instances.path, broken_mask(annotation, record, error)) from error

    def _target(self, things: list[CanvasObject]) -> dict[str, Any]:
        target = {
            "boxes": torch.tensor([thing.box for thing in things]).reshape(-1, 4),
            "labels": torch.tensor([thing.label for thing in things], dtype=torch.int64),
            "area": torch.tensor([thing.area for thing in things]),
        }
        if self.masks:
            # Zeros that nobody writes to take no memory.
            masks = np.zeros((len(things), self.transform.canvas, self.transform.canvas), np.uint8)
            for mask, thing in zip(masks, things, strict=True):
                mask[thing.window] = thing.mask
            target["masks"] = torch.from_numpy(masks)
        return target


class EvalDataset(CocoDataset):
    """Images fitted into the canvas, with their truth in original pixels, where it is scored.

    A sample is ``(image, target)``: the image (3, canvas, canvas) float32, normalised; in the target

    - ``boxes`` (N, 4) float32 xyxy, ``labels`` (N,) int64 from 1, ``masks``: N compressed RLEs, ``iscrowd``
      (N,) bool, ``area`` (N,) float32 in square pixels (the file's; without it the mask's or the box's);
    - ``image_id``, ``size``, ``valid``, ``scale`` as in :class:`TrainDataset`.

    An object whose polygons were all dropped keeps its box and has an empty mask, as in pycocotools.

    Args:
        instances, images, masks: as in :class:`CocoDataset`.
        transform: the canvas.
    """

    def __init__(
        self, instances: CocoInstances | Path, images: Path, transform: EvalTransform, masks: bool = True
    ) -> None:
        super().__init__(instances, images, masks)
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        record = self.instances.images[index]
        placement = self.transform.place((record["height"], record["width"]))
        image = self._image(record, placement, self.transform.canvas)
        about = {
            "image_id": record["id"],
            "size": placement.size,
            "valid": placement.valid,
            "scale": placement.scale,
        }
        return image, self._truth(record) | about

    def _truth(self, record: dict[str, Any]) -> dict[str, Any]:
        annotations = self.instances.annotations_of(record["id"])
        boxes = torch.tensor([annotation["bbox"] for annotation in annotations], dtype=torch.float32)
        truth: dict[str, Any] = {
            "boxes": box_convert(boxes.reshape(-1, 4), "xywh", "xyxy"),
            "labels": torch.tensor([self._label[a["category_id"]] for a in annotations], dtype=torch.int64),
            "iscrowd": torch.tensor([bool(a.get("iscrowd")) for a in annotations], dtype=torch.bool),
        }
        areas = [annotation["bbox"][2] * annotation["bbox"][3] for annotation in annotations]
        if self.masks:
            truth["masks"] = [self.instances.mask_of(annotation) for annotation in annotations]
            areas = [float(mask_area(mask)) for mask in truth["masks"]]
        areas = [
            area if a.get("area") is None else a["area"] for a, area in zip(annotations, areas, strict=True)
        ]
        truth["area"] = torch.tensor(areas, dtype=torch.float32)
        return truth


def collate(batch: list[tuple[Tensor, dict[str, Any]]]) -> tuple[Tensor, list[dict[str, Any]]]:
    """Images of one canvas size as a batch (B, 3, S, S), channels last, and the list of their targets."""
    images, targets = zip(*batch, strict=True)
    # Stacked as they lie in memory, in one stroke.
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2), list(targets)
