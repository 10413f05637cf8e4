"""COCO-format data for training and evaluation."""

from pathlib import Path
from typing import Any

from botnet.arguments import Count, CountOrZero, Part, Side, Span, Workers, checked
from botnet.detection.coco import CocoInstances
from botnet.detection.datasets import EvalDataset, TrainDataset, collate
from botnet.detection.transforms import EvalTransform, TrainTransform
from botnet.errors import ConfigError, DataError
from botnet.training.task import TaskDataModule


class CocoDataModule(TaskDataModule):
    """Training and validation images of any COCO-format data set.

    Args:
        train_instances: instances file of the training images.
        train_images: folder that its file names are relative to.
        val_instances: instances file of the validation images, with the same categories.
        val_images: their folder.
        canvas: side in pixels of the square that every image is brought to; 1024 or 1280 in the paper.
        jitter: range of the random scale, relative to the canvas ([0.8, 1.25], [0.5, 2.0] or [0.1, 2.0] in
            the paper, Section 4.2).
        flip: probability of a horizontal flip.
        batch_size: images a step on each device.
        val_batch_size: images at once in validation.
        num_workers: processes that prepare images; default: as many as the machine has cores for each device,
            at most 16.
        masks: read masks; False for Faster R-CNN on files without any.
        copy_paste: probability that objects of a second image are pasted into a training image (Simple
            Copy-Paste); 0 in the paper.
        skip_broken: different training images on each device that may be unreadable, and are replaced by
            others; 0: the first ends the run.
        cache: keep the packed records of large instances files in the user's cache folder, from where all
            processes of the machine map them.

    Raises:
        DataError: a file is missing or broken, or the two files differ in their categories.
        ConfigError: a number out of its range, or a batch of more than the training images.
    """

    train_set: TrainDataset
    val_set: EvalDataset

    @checked
    def __init__(
        self,
        train_instances: Path,
        train_images: Path,
        val_instances: Path,
        val_images: Path,
        canvas: Side = 1024,
        jitter: Span = (0.1, 2.0),
        flip: Part = 0.5,
        batch_size: Count = 2,
        val_batch_size: Count = 2,
        num_workers: Workers | None = None,
        masks: bool = True,
        copy_paste: Part = 0.0,
        skip_broken: CountOrZero = 0,
        cache: bool = True,
    ) -> None:
        super().__init__(batch_size, val_batch_size, num_workers, skip_broken)
        self.canvas, self.masks = canvas, masks
        self.train_instances = CocoInstances(train_instances, cache)
        self.val_instances = CocoInstances(val_instances, cache)
        if self.val_instances.class_names != self.train_instances.class_names:
            raise DataError(
                f"{val_instances} and {train_instances} do not have the same categories: "
                f"{self.val_instances.class_names} and {self.train_instances.class_names}; "
                "write the same list into both"
            )
        self.train_set = TrainDataset(
            self.train_instances,
            train_images,
            TrainTransform(canvas, jitter, flip),
            masks,
            copy_paste=copy_paste,
        )
        self.val_set = EvalDataset(self.val_instances, val_images, EvalTransform(canvas), masks)
        if len(self.train_set) < batch_size:
            raise ConfigError(
                f"{train_instances} has {len(self.train_set)} images, fewer than one batch of {batch_size}; "
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
