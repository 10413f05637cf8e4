"""Training and evaluation of classifiers with Lightning (paper, Section 4.7)."""

import csv
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from rich.console import Console
from timm.data import Mixup
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

from botnet.arguments import (
    Count,
    CountOrZero,
    Duration,
    Factor,
    Part,
    PartBelowOne,
    Side,
    checked,
)
from botnet.classification.checkpoint import create_classifier, start_from
from botnet.classification.datamodule import ImageDataModule
from botnet.classification.metric import Accuracy, accuracy_table
from botnet.errors import ConfigError
from botnet.images import denormalise
from botnet.models.zoo import NetworkName
from botnet.training.distributed import gather_shares
from botnet.training.run_folder import EvaluationFolder
from botnet.training.task import OptimizerName, TaskModule, half_cosine
from botnet.visualize.classes import draw_sheet

logger = logging.getLogger(__name__)
DECIDED = ("name", "num_classes", "image_size", "in_chans", "features_only")  # not by model_kwargs
Shown = tuple[Image.Image, str, str, float]  # an image, its class, the predicted class, its probability


class ClassificationModule(TaskModule):
    """A classifier, its optimiser and its evaluation.

    The defaults are those of the 100-epoch setting (Table 9) at its batch of 1024 images.

    Args:
        model: name of a network of timm or of this project.
        num_classes: comes from the data.
        image_size: side in pixels; comes from the data.
        model_kwargs: timm's further arguments of the network, such as ``pretrained: true``.
        init_from: file to start from, or to validate, of the same network: a checkpoint of ``botnet fit`` or
            a file of tensors, whose classes may be others (:func:`start_from`); not read where a checkpoint
            of this run is.
        learning_rate: after the warm-up, for the whole batch over all devices.
        momentum: of SGD, without Nesterov's form; the first beta of AdamW.
        weight_decay: on the kernels of convolutions and fully connected layers only.
        warmup_epochs: in which the rate rises linearly from 0; then it falls to 0 as a half cosine.
        label_smoothing: part of the target that is spread over all classes.
        mixup, cutmix: parameter of the beta distribution that mixes images; 0: none. With both, one of them
            is drawn for each batch.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth: probability to skip the last block, the greatest of all blocks.
        ema_decay: of a moving average of the weights, which is validated and kept in checkpoints; None: no
            average.
        compile: run the network through ``torch.compile``.
        pictures: validation images that are drawn.
        optimizer: SGD, or AdamW, whose rates are some hundred times as small.
    """

    task, metric_max = "classifier", 100.0  # accuracies are logged in percent
    monitor = "val/top1"
    schedule_settings = ("warmup_epochs",)

    @checked
    def __init__(
        self,
        model: NetworkName,
        num_classes: Count,
        image_size: Side,
        model_kwargs: dict[str, Any] | None = None,
        init_from: Path | None = None,
        learning_rate: Factor = 0.4,
        momentum: PartBelowOne = 0.9,
        weight_decay: Part = 1e-4,
        warmup_epochs: Duration = 5.0,
        label_smoothing: Part = 0.0,
        mixup: Factor = 0.0,
        cutmix: Factor = 0.0,
        drop_rate: PartBelowOne = 0.0,
        drop_path_rate: PartBelowOne = 0.0,
        ema_decay: PartBelowOne | None = None,
        compile: bool = False,
        pictures: CountOrZero = 16,
        optimizer: OptimizerName = "sgd",
    ) -> None:
        super().__init__(learning_rate, momentum, weight_decay, init_from, ema_decay, optimizer)
        options = dict(model_kwargs or {})
        decided = [option for option in DECIDED if option in options]
        if decided or options.get("img_size", image_size) != image_size:
            raise ConfigError(
                f"model_kwargs: {[*decided, 'img_size'][0]} is not allowed; it follows from the data and the "
                "task, so leave it out"
            )
        # Only what is used: not every network of timm knows both.
        options |= {"drop_rate": drop_rate} if drop_rate else {}
        options |= {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
        # What rebuilds it from a checkpoint alone; weights come from there.
        self.spec: dict[str, Any] = {"name": model, "num_classes": num_classes, "image_size": image_size}
        self.spec |= {key: value for key, value in options.items() if key != "pretrained"}
        network = create_classifier(model, num_classes, image_size, **options)
        # The attention and oneDNN's and cuDNN's convolutions are fastest with channels last.
        self.model = network.to(memory_format=torch.channels_last)
        self.mix = (
            Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.0, num_classes=num_classes)
            if mixup or cutmix
            else None
        )
        self.warmup_epochs, self.label_smoothing = warmup_epochs, label_smoothing
        self.compiles, self.pictures = compile, pictures
        self.accuracy: Accuracy | None = None
        self.shown: list[Shown] = []
        self.worst: list[Shown] = []  # the least probable of their own class so far, the first the worst
        self.confusion: Counter[tuple[int, int]] = Counter()  # images by class and predicted class

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self.model

    @property
    def num_classes(self) -> int:
        """Number of classes of the network."""
        return int(self.spec["num_classes"])

    @property
    def data(self) -> ImageDataModule:
        """The data of the run."""
        data = super().data
        if not isinstance(data, ImageDataModule):
            raise ConfigError(f"a classifier is trained on an ImageDataModule, not on {type(data).__name__}")
        return data

    def setup(self, stage: str) -> None:
        """Check the batch, and compile the network."""
        super().setup(stage)
        if stage == "fit" and self.mix is not None and self.data.batch_size % 2:
            raise ConfigError(
                f"mixup and cutmix pair the images of a batch, and {self.data.batch_size} is odd; "
                "set an even data.batch_size"
            )
        if self.compiles:
            self.model.compile()  # in place: the names of its parameters stay

    def training_batch(self, images: int) -> tuple[nn.Module, tuple[int, ...]] | None:
        """The network and the shape of a batch; None where ``torch.compile`` chooses what is kept."""
        size = self.spec["image_size"]
        return None if self.compiles else (self.model, (images, 3, size, size))

    # ---- training

    def on_fit_start(self) -> None:
        """Start from other weights, and log a summary."""
        super().on_fit_start()
        self._log_summary()

    def start_from(self, path: Path, class_names: Sequence[str]) -> str:
        """Take the weights of another run; returns a message on what was taken."""
        return start_from(self.model, path, class_names)

    @rank_zero_only
    def _log_summary(self) -> None:
        data, name = self.data, self.spec["name"]
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        size = self.spec["image_size"]
        logger.info("%s: %.1f M parameters, %d classes, %d px", name, parameters, data.num_classes, size)
        logger.info("%d training and %d validation images", len(data.train_set), len(data.val_set))
        for part, images in (("training", data.train_set), ("validation", data.val_set)):
            if left_out := getattr(images.reader, "left_out", 0):
                logger.warning("%d files in the %s folder are not images and were left out", left_out, part)

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The loss of a batch."""
        images, target = batch
        if self.mix is not None:
            images, target = self.mix(images, target)
        logits = self.model(images.contiguous(memory_format=torch.channels_last))
        return {"loss": F.cross_entropy(logits.float(), target, label_smoothing=self.label_smoothing)}

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of a batch."""
        loss = self.losses(batch)["loss"]
        self.log("train/loss", loss.detach(), batch_size=len(batch[0]))
        return loss

    def schedule(self, total: int) -> Callable[[int], float]:
        """The learning rate at each of ``total`` optimiser steps, relative to ``learning_rate``."""
        epochs = self.trainer.max_epochs
        if not epochs or epochs < 0:
            raise ConfigError("the schedule is given in epochs; set trainer.max_epochs")
        warmup = self.warmup_epochs / epochs * total
        return lambda step: self.rate(step, total, warmup)

    @staticmethod
    def rate(step: int, total: int, warmup: float) -> float:
        """The learning rate at an optimiser step, relative to ``learning_rate``."""
        if step < warmup:
            return step / warmup
        return half_cosine(step, total, warmup)

    # ---- evaluation

    def on_validation_start(self) -> None:
        """Start counting."""
        super().on_validation_start()
        self.accuracy = Accuracy(self.num_classes, self.device)
        self.shown, self.worst, self.confusion = [], [], Counter()

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Count what is right, and keep some images."""
        images, labels = batch
        images = images.contiguous(memory_format=torch.channels_last)
        logits = self.model(images)
        assert self.accuracy is not None
        self.accuracy.update(logits, labels)
        predicted = logits.argmax(1)
        self.confusion.update(zip(labels.tolist(), predicted.tolist(), strict=True))
        for position in self._chosen(len(images), index):
            self.shown.append(self._as_shown(images[position], int(labels[position]), logits[position]))
        self._keep_worst(images, labels, logits)

    def _chosen(self, images: int, batch: int) -> list[int]:
        """Positions in a batch of the images to draw.

        They come from all over the validation set, which is in the order of its classes: the first of each of
        ``pictures`` equal parts of this device's share.
        """
        share = math.ceil(len(self.data.val_set) / self.trainer.world_size)
        start = batch * self.data.val_batch_size
        parts = [(start + position) * self.pictures // share for position in range(-1, images)]
        return [position for position in range(images) if parts[position] != parts[position + 1]]

    def _as_shown(self, image: Tensor, label: int, logits: Tensor) -> Shown:
        """An image for :meth:`write_report`, with its class and the predicted one."""
        data = self.data
        probability, predicted = logits.float().softmax(0).max(0)
        picture = to_pil_image(denormalise(image, data.evaluation["mean"], data.evaluation["std"]))
        names = data.class_names
        return picture, names[label], names[int(predicted)], float(probability)

    def _keep_worst(self, images: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Keep the images of a batch that are most surely taken for another class."""
        sure = logits.float().softmax(1).amax(1).where(logits.argmax(1) != labels, 0.0)
        probabilities, positions = sure.topk(min(self.pictures, len(sure)))
        for probability, position in zip(probabilities.tolist(), positions.tolist(), strict=True):
            if probability > 0 and (len(self.worst) < self.pictures or probability > self.worst[-1][-1]):
                self.worst.append(self._as_shown(images[position], int(labels[position]), logits[position]))
                self.worst = _surest(self.worst)[: self.pictures]

    def on_validation_epoch_end(self) -> None:
        """Log the accuracies over all devices."""
        assert self.accuracy is not None
        self.report["model"] = numbers = self._numbers(self.accuracy)
        self._gather()
        self.log("val/loss", numbers["loss"], sync_dist=True)
        self.headline = {name: numbers[name] for name in ("top1", "top5")}
        for name, value in self.headline.items():
            self.log(f"val/{name}", value, prog_bar=name == "top1", sync_dist=True)

    def _gather(self) -> None:
        """Bring the confusions and the worst images of all devices to the first one."""
        counts, worst = gather_shares([self.confusion]), gather_shares(self.worst)
        if counts is not None and worst is not None:
            self.confusion = sum(counts, Counter())
            self.worst = _surest(worst)[: self.pictures]

    def _numbers(self, metric: Accuracy) -> dict[str, Any]:
        """Accuracies in percent, as JSON has them: None for a class without images."""
        values = metric.compute()
        numbers: dict[str, Any] = {name: float(values[name]) for name in ("top1", "top5", "loss")}
        numbers["per_class"] = {
            name: None if math.isnan(value) else value
            for name, value in zip(self.data.class_names, values["per_class"].tolist(), strict=True)
        }
        return numbers

    def write_report(self, console: Console, folder: EvaluationFolder) -> dict[str, Path]:
        """Print the numbers; write the confusions and the pictures."""
        console.print(accuracy_table(self.report["model"]))
        names = self.data.class_names
        with folder.confusion.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("class", "predicted", "images"))
            table.writerows((names[a], names[b], count) for (a, b), count in sorted(self.confusion.items()))
        written = {"confusions": folder.confusion}
        for name, shown in (("worst", self.worst), ("predictions", self.shown)):
            path = folder.pictures / f"{name}.png"
            path.unlink(missing_ok=True)  # of an earlier evaluation
            if shown:
                path.parent.mkdir(exist_ok=True)
                draw_sheet(shown).save(path)
                written["pictures"] = path
        return written

    # ---- checkpoints

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Arguments of the network, and how images are prepared."""
        return {"classifier": self.spec, "evaluation": self.data.evaluation}


def _surest(shown: Sequence[Shown]) -> list[Shown]:
    """Images in the order of the probability of their predicted class."""
    return sorted(shown, key=lambda one: -one[-1])
