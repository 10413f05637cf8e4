"""Images in classes, prepared for training and evaluation (paper, Section 4.7)."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch.utils.data import default_collate

from botnet.classification.datasets import ImageSet, eval_transform
from botnet.classification.readers import class_names, open_reader
from botnet.errors import DataError, first_few
from botnet.training.loader import Loader, make_loader


class ImageDataModule(L.LightningDataModule):
    """Training and validation images of any classes: ImageNet, or one's own.

    The defaults are the standard augmentation of ResNets (Table 9): random resized crop and flip.

    Args:
        train: training images: a folder of class folders; for other readers see ``reader``.
        val: validation images of the same classes.
        reader: how both are stored: ``folder``; ``tar``, a tar of class folders or a folder with a tar for
            each class; ``wds``, a folder of WebDataset shards; ``hfds/NAME``, a data set of Hugging Face's
            ``datasets``, ``train`` and ``val`` then name its splits.
        image_size: side in pixels of what the network is given, in training and evaluation.
        crop_pct: evaluation sees the centre crop of this part of the short side.
        interpolation: of every resize: ``bicubic``, ``bilinear`` or another of timm's.
        scale: least and largest part of the area that a random crop takes.
        ratio: least and largest aspect, width to height, of that crop.
        flip: probability of a horizontal flip.
        rand_augment: timm's word for it, ``rand-m10-n2`` for 2 layers of magnitude 10; none by default.
        color_jitter: strength for brightness, contrast and saturation; timm leaves it out beside RandAugment.
        random_erasing: probability that a rectangle is erased.
        mean, std: of the network's input, in RGB; ImageNet's by default.
        batch_size: images a step on each device.
        val_batch_size: images at once in validation.
        num_workers: processes that prepare images.
        skip_broken: different training images that may be unreadable, on each device, and are replaced by
            others; 0: the first ends the run.
    """

    def __init__(
        self,
        train: Path,
        val: Path,
        reader: str = "folder",
        image_size: int = 224,
        crop_pct: float = 0.875,
        interpolation: str = "bicubic",
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        rand_augment: str | None = None,
        color_jitter: float = 0.0,
        random_erasing: float = 0.0,
        mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, float, float] = IMAGENET_DEFAULT_STD,
        batch_size: int = 64,
        val_batch_size: int = 64,
        num_workers: int = 4,
        skip_broken: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.val_batch_size, self.num_workers = batch_size, val_batch_size, num_workers
        self.skip_broken = skip_broken
        # What a picture goes through before the network sees it in evaluation; kept in checkpoints.
        self.evaluation: dict[str, Any] = {
            "image_size": image_size,
            "crop_pct": crop_pct,
            "interpolation": interpolation,
            "mean": tuple(mean),
            "std": tuple(std),
        }
        try:
            training = create_transform(
                image_size,
                is_training=True,
                scale=scale,
                ratio=ratio,
                hflip=flip,
                auto_augment=rand_augment,
                color_jitter=color_jitter or None,  # type: ignore[arg-type]  # timm takes None for none
                re_prob=random_erasing,
                re_mode="pixel",
                interpolation=interpolation,
                mean=tuple(mean),
                std=tuple(std),
            )
        except (AssertionError, KeyError) as error:
            raise DataError(
                f"rand_augment {rand_augment!r}, interpolation {interpolation!r}: not both are timm's words "
                f"({error}); such as rand-m10-n2 and bicubic"
            ) from error
        self.train_set = ImageSet(open_reader(Path(train), reader), training, train=True)
        self.val_set = ImageSet(open_reader(Path(val), reader), eval_transform(**self.evaluation))
        ours, theirs = class_names(self.train_set.reader), class_names(self.val_set.reader)
        if ours != theirs:
            missing, beyond = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
            raise DataError(
                f"{train} and {val} do not have the same classes: {len(ours)} and {len(theirs)}; "
                f"only in {train}: {first_few(missing)}; only in {val}: {first_few(beyond)}"
            )

    @property
    def class_names(self) -> list[str]:
        """Names of labels 0, 1, ...: those of the class folders, in natural order."""
        return class_names(self.train_set.reader)

    @property
    def num_classes(self) -> int:
        """Classes of the training images."""
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """Side in pixels of what the network is given."""
        return int(self.evaluation["image_size"])

    def train_dataloader(self) -> Loader:
        return make_loader(
            self.train_set,
            self.batch_size,
            self.num_workers,
            default_collate,
            self.trainer,
            train=True,
            skip_broken=self.skip_broken,
        )

    def val_dataloader(self) -> Loader:
        return make_loader(
            self.val_set, self.val_batch_size, self.num_workers, default_collate, self.trainer, train=False
        )
