"""Labelled images for training and evaluation (paper, Section 4.7)."""

from pathlib import Path
from typing import Annotated, Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform

from botnet.arguments import (
    PART,
    POSITIVE_PART,
    BatchSize,
    Count,
    CountOrZero,
    Crop,
    Factor,
    Interpolation,
    Part,
    Range,
    Reader,
    Side,
    Span,
    Workers,
    checked,
)
from botnet.classification.datasets import ImageSet, eval_transform
from botnet.classification.readers import class_names, open_reader
from botnet.errors import ConfigError, DataError, first_few
from botnet.training.task import TaskDataModule


class ImageDataModule(TaskDataModule):
    """Training and validation images of any classes: ImageNet, or custom ones.

    The defaults are the standard augmentation of ResNets (Table 9): random resized crop and flip.

    Args:
        train: training images: a folder of class folders; for other readers see ``reader``.
        val: validation images of the same classes.
        reader: how both are stored: ``folder``; ``tar``, a tar of class folders or a folder with a tar for
            each class; ``wds``, a folder of WebDataset shards; ``hfds/NAME``, a data set of Hugging Face's
            ``datasets``, ``train`` and ``val`` then name its splits.
        image_size: side in pixels of the network's input, in training and evaluation.
        crop_pct: evaluation takes the centre crop of this part of the short side.
        interpolation: of every resize: ``bicubic``, ``bilinear`` or another of Pillow's.
        scale: smallest and largest part of the area that a random crop takes.
        ratio: smallest and largest aspect, width to height, of that crop.
        flip: probability of a horizontal flip.
        rand_augment: in timm's notation, ``rand-m10-n2`` for 2 layers of magnitude 10; none by default.
        color_jitter: strength for brightness, contrast and saturation; timm ignores it with RandAugment.
        random_erasing: probability that a rectangle is erased.
        mean, std: of the network's input, in RGB; ImageNet's by default.
        batch_size: images in a pass on each device; ``auto``: the largest power of two that fits.
        val_batch_size: images at once in validation.
        num_workers: processes that prepare images; default: one for each usable core, shared out among the
            machine's devices, at most 16 for each.
        skip_broken: different training images that may be unreadable, on each device, and are replaced by
            others; 0: the first ends the run.

    Raises:
        DataError: a set cannot be read, or the two differ in their classes.
        ConfigError: a batch without images, or augmentation that timm does not know.
    """

    train_set: ImageSet
    val_set: ImageSet

    @checked
    def __init__(
        self,
        train: Path,
        val: Path,
        reader: Reader = "folder",
        image_size: Side = 224,
        crop_pct: Crop = 0.875,
        interpolation: Interpolation = "bicubic",
        scale: Annotated[tuple[float, float], Range(float, 0, 1, above=True, rising=True)] = (0.08, 1.0),
        ratio: Span = (3 / 4, 4 / 3),
        flip: Part = 0.5,
        rand_augment: str | None = None,
        color_jitter: Factor = 0.0,
        random_erasing: Part = 0.0,
        mean: Annotated[tuple[float, float, float], PART] = IMAGENET_DEFAULT_MEAN,
        std: Annotated[tuple[float, float, float], POSITIVE_PART] = IMAGENET_DEFAULT_STD,
        batch_size: BatchSize = 64,
        val_batch_size: Count = 64,
        num_workers: Workers | None = None,
        skip_broken: CountOrZero = 0,
    ) -> None:
        super().__init__(batch_size, val_batch_size, num_workers, skip_broken)
        # How an image is prepared for the network in evaluation; saved in checkpoints.
        self.evaluation: dict[str, Any] = {
            "image_size": image_size,
            "crop_pct": crop_pct,
            "interpolation": interpolation,
            "mean": tuple(mean),
            "std": tuple(std),
        }
        training = _training_transform(
            image_size,
            scale=scale,
            ratio=ratio,
            hflip=flip,
            auto_augment=rand_augment,
            color_jitter=color_jitter or None,  # timm takes None for none
            re_prob=random_erasing,
            interpolation=interpolation,
            mean=tuple(mean),
            std=tuple(std),
        )
        self.train_set = ImageSet(open_reader(Path(train), reader), training, train=True)
        self.val_set = ImageSet(open_reader(Path(val), reader), eval_transform(**self.evaluation))
        self._check_classes(train, val)

    def _check_classes(self, train: Path, val: Path) -> None:
        ours, theirs = class_names(self.train_set.reader), class_names(self.val_set.reader)
        if ours != theirs:
            missing, additional = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
            raise DataError(
                f"{train} and {val} do not have the same classes: {len(ours)} and {len(theirs)}; "
                f"only in {train}: {first_few(missing)}; only in {val}: {first_few(additional)}"
            )

    @property
    def class_names(self) -> list[str]:
        """Names of labels 0, 1, ...: those of the class folders, in natural order."""
        return class_names(self.train_set.reader)

    @property
    def image_size(self) -> int:
        """Side in pixels of the network's input."""
        return int(self.evaluation["image_size"])


def _training_transform(image_size: int, **options: Any) -> Any:
    """timm's training transform; its options are checked."""
    try:
        return create_transform(image_size, is_training=True, re_mode="pixel", **options)
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError(
            f"rand_augment: {options['auto_augment']!r} is unknown to timm ({error}); try rand-m10-n2"
        ) from error
