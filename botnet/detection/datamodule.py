"""COCO-format data for training and evaluation."""

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from botnet.arguments import (
    BatchSize,
    Count,
    CountOrZero,
    Degrees,
    Factor,
    Part,
    Side,
    Span,
    Workers,
    checked,
)
from botnet.detection.coco import CocoInstances
from botnet.detection.datasets import EvalDataset, TrainDataset, collate
from botnet.detection.transforms import EvalTransform, TrainTransform
from botnet.errors import ConfigError, DataError, first_few
from botnet.layouts.find import TRAINABLE, CocoFiles, find_layout, find_split
from botnet.training.task import TaskDataModule

logger = logging.getLogger(__name__)


class CocoDataModule(TaskDataModule):
    """Training and validation images of any COCO-format or YOLO data set.

    Args:
        train_instances: instances file of the training images; default: found in ``root``.
        train_images: folder that its file names are relative to.
        val_instances: instances file of the validation images, with the same categories; default: found in
            ``root``.
        val_images: their folder.
        canvas: side in pixels of the square that every image is brought to; 1024 or 1280 in the paper.
        jitter: range of the random scale, relative to the canvas ([0.8, 1.25], [0.5, 2.0] or [0.1, 2.0] in
            the paper, Section 4.2).
        flip: probability of a horizontal flip.
        batch_size: images in a pass on each device; ``auto``: the largest power of two that fits.
        val_batch_size: images at once in validation.
        num_workers: processes that prepare images; default: one for each usable core, shared out among the
            machine's devices, at most 16 for each.
        masks: read masks; False for Faster R-CNN on files without any.
        copy_paste: probability that objects of a second image are pasted into a training image (Simple
            Copy-Paste); 0 in the paper.
        skip_broken: different training images on each device that may be unreadable, and are replaced by
            others; 0: the first ends the run.
        cache: keep the packed records of large instances files in the user's cache folder, from where all
            processes of the machine map them.
        root: folder of the data set, where splits that are not named are looked for: COCO's own layout,
            Roboflow's COCO export, ``train.json`` with ``train/``, or YOLO's ``data.yaml``.
        color_jitter: brightness, contrast and saturation of training images change by factors of up to so
            much below or above 1; 0 in the paper.
        rotation: greatest angle in degrees by which training images are turned; 0 in the paper.

    Raises:
        DataError: a file is missing or broken, the root has no known layout, or the two files differ in
            their categories.
        ConfigError: an instances file without its folder, neither files nor a root, a number out of range,
            or a batch of more than the training images.
    """

    train_set: TrainDataset
    val_set: EvalDataset

    @checked
    def __init__(
        self,
        train_instances: Path | None = None,
        train_images: Path | None = None,
        val_instances: Path | None = None,
        val_images: Path | None = None,
        canvas: Side = 1024,
        jitter: Span = (0.1, 2.0),
        flip: Part = 0.5,
        batch_size: BatchSize = 2,
        val_batch_size: Count = 2,
        num_workers: Workers | None = None,
        masks: bool = True,
        copy_paste: Part = 0.0,
        skip_broken: CountOrZero = 0,
        cache: bool = True,
        root: Path | None = None,
        color_jitter: Factor = 0.0,
        rotation: Degrees = 0.0,
    ) -> None:
        super().__init__(batch_size, val_batch_size, num_workers, skip_broken)
        self.canvas, self.masks = canvas, masks
        train = _named("train", train_instances, train_images)
        val = _named("val", val_instances, val_images)
        if train is None or val is None:
            train, val = _found(root, train, val)
        self.train_instances = CocoInstances(train.instances, cache)
        self.val_instances = CocoInstances(val.instances, cache)
        _check_classes(self.train_instances, self.val_instances)
        self.train_set = TrainDataset(
            self.train_instances,
            train.images,
            TrainTransform(canvas, jitter, flip, color_jitter, rotation),
            masks,
            copy_paste=copy_paste,
        )
        self.val_set = EvalDataset(self.val_instances, val.images, EvalTransform(canvas), masks)
        if len(self.train_set) < self.batch_size:
            raise ConfigError(
                f"{train.instances} has {len(self.train_set)} images, fewer than one batch of {batch_size}; "
                "lower data.batch_size"
            )

    @property
    def class_names(self) -> list[str]:
        """Names of labels 1, 2, ..., in the order of their category ids."""
        return self.train_instances.class_names

    @staticmethod
    def collate(samples: list[Any]) -> Any:
        """A batch of images (B, 3, canvas, canvas) and the list of their targets."""
        return collate(samples)


def _named(split: str, instances: Path | None, images: Path | None) -> CocoFiles | None:
    """A split whose paths were given."""
    if (instances is None) != (images is None):
        given, missing = ("instances", "images") if images is None else ("images", "instances")
        raise ConfigError(f"data.{split}_{given} needs data.{split}_{missing}; give both, or data.root alone")
    return None if instances is None or images is None else CocoFiles(instances, images)


def _found(root: Path | None, train: CocoFiles | None, val: CocoFiles | None) -> tuple[CocoFiles, CocoFiles]:
    """The splits, those that were not named from the root."""
    if root is None:
        missing = "train" if train is None else "val"
        raise ConfigError(
            f"no {missing} data: give data.root, the folder of a data set, or data.{missing}_instances and "
            f"data.{missing}_images"
        )
    layout = find_layout(root, TRAINABLE)
    train, val = train or find_split(layout, "train"), val or find_split(layout, "val")
    for split, files in (("train", train), ("val", val)):
        rank_zero_only(logger.info)(
            "%s, %s layout: %s: %s, %s", root, layout.kind, split, files.instances, files.images
        )
    return train, val


def _check_classes(train: CocoInstances, val: CocoInstances) -> None:
    if train.class_names == val.class_names:
        return
    differences = [
        f"only in {path}: {first_few(names)}"
        for path, names in (
            (train.path, [name for name in train.class_names if name not in val.class_names]),
            (val.path, [name for name in val.class_names if name not in train.class_names]),
        )
        if names
    ]
    pairs = zip(train.class_names, val.class_names, strict=False)
    swapped = [f"{one} instead of {other}" for one, other in pairs if one != other]
    raise DataError(
        f"{val.path} and {train.path} do not have the same categories: "
        f"{'; '.join(differences) or 'their order differs, ' + first_few(swapped)}; "
        "write the same list into both"
    )
