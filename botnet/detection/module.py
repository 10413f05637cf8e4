"""Training and evaluation of detectors with Lightning (paper, Section 4)."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import Tensor, nn

from botnet.arguments import PART, CountOrZero, Factor, Part, PartBelowOne, checked
from botnet.detection.checkpoint import initialise
from botnet.detection.datamodule import CocoDataModule
from botnet.detection.datasets import EvalTarget
from botnet.detection.metric import CocoMetric, metrics_table
from botnet.detection.postprocess import as_arrays
from botnet.detection.rcnn import RCNN, checkpoint_activations
from botnet.detection.records import distinct_names
from botnet.detection.results import ResultRecord, write_results
from botnet.detection.scoring import BackgroundScoring
from botnet.detection.transforms import IMAGENET_MEAN, IMAGENET_STD
from botnet.detection.validation_loss import ValidationLoss
from botnet.errors import ConfigError
from botnet.images import denormalise
from botnet.training.distributed import gather_shares
from botnet.training.run_folder import EvaluationFolder
from botnet.training.seeding import generator, run_seed
from botnet.training.task import OptimizerName, TaskModule, half_cosine

logger = logging.getLogger(__name__)


class DetectionModule(TaskModule):
    """A detector, its optimiser and its evaluation.

    The defaults are those of the paper's code base (tensorflow/tpu ``models/official/detection``) at its
    batch of 64 images.

    Args:
        detector: from :func:`botnet.detection.mask_rcnn` or :func:`botnet.detection.faster_rcnn`.
        learning_rate: after the warm-up, for the whole batch over all devices.
        momentum: of SGD, without Nesterov's form; the first beta of AdamW.
        weight_decay: on the kernels of convolutions and fully connected layers only.
        warmup_steps: optimiser steps in which the rate rises linearly.
        warmup_learning_rate: the rate at the first step.
        decay_at: parts of the run after which the rate is divided by ten.
        pictures: validation images that are drawn, ground truth beside prediction.
        init_from: checkpoint of another run to start from, or to validate, whose classes may be others
            (:func:`initialise`); not read where a checkpoint of this run is.
        ema_decay: of a moving average of the weights, which is validated and kept in checkpoints; None: no
            average, as in the paper.
        optimizer: SGD, or AdamW, whose rates are some hundred times as small.
        cosine: after the warm-up the rate falls to 0 as half a cosine, and ``decay_at`` does not count.
        compile: run backbone and pyramid through ``torch.compile``.
        activation_checkpointing: compute c2 to c4 again in the backward pass instead of keeping what they
            need there: less memory, more time, the same results.

    Raises:
        ConfigError: a number out of its range, or both of the last two.
    """

    task, metric_max = "detector", 1.0
    monitor = "val/AP"  # of masks, or of boxes where there are none
    schedule_settings = ("warmup_steps", "warmup_learning_rate", "decay_at", "cosine")

    @checked
    def __init__(
        self,
        detector: RCNN,
        learning_rate: Factor = 0.08,
        momentum: PartBelowOne = 0.9,
        weight_decay: Part = 1e-4,
        warmup_steps: CountOrZero = 500,
        warmup_learning_rate: Factor = 0.0067,
        decay_at: Annotated[Sequence[float], PART] = (2 / 3, 8 / 9),
        pictures: CountOrZero = 8,
        init_from: Path | None = None,
        ema_decay: PartBelowOne | None = None,
        optimizer: OptimizerName = "sgd",
        cosine: bool = False,
        compile: bool = False,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(learning_rate, momentum, weight_decay, init_from, ema_decay, optimizer)
        if compile and activation_checkpointing:
            raise ConfigError(
                "compile and activation_checkpointing: a compiled backbone decides itself what it computes "
                "again; set one of the two"
            )
        self.compiles, self.activation_checkpointing = compile, activation_checkpointing
        # The attention and oneDNN's and cuDNN's convolutions are fastest with channels last.
        self.detector = detector.to(memory_format=torch.channels_last)
        self.warmup_steps, self.warmup_learning_rate = warmup_steps, warmup_learning_rate
        self.decay_at, self.cosine = tuple(decay_at), cosine
        self.pictures = pictures
        # Of the last validation, on the first device.
        self.sheets: list[tuple[int, Any]] = []
        self.results: list[ResultRecord] = []

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self.detector

    @property
    def num_classes(self) -> int:
        """Number of classes of the network."""
        return self.detector.num_classes

    @property
    def data(self) -> CocoDataModule:
        """The data of the run."""
        data = super().data
        if not isinstance(data, CocoDataModule):
            raise ConfigError(f"a detector is trained on a CocoDataModule, not on {type(data).__name__}")
        return data

    def setup(self, stage: str) -> None:
        """Check the run, and prepare the backbone for it.

        Raises:
            ConfigError: see :meth:`TaskModule.setup`, or a precision that boxes do not have.
        """
        if stage == "fit" and self.activation_checkpointing:
            checkpoint_activations(self.detector.backbone)
        super().setup(stage)
        precision = str(self.trainer.precision)
        if precision.endswith("-true") and precision != "32-true":
            raise ConfigError(
                f"trainer.precision {precision}: a detector's boxes are 32-bit numbers; give bf16-mixed, "
                "16-mixed or 32-true"
            )
        if self.compiles:
            # In place: the names of the parameters stay. The canvas is constant; another number of images, as
            # in a validation, is compiled once more, for any number.
            self.detector.backbone.compile()
            self.detector.fpn.compile()

    def training_batch(self, images: int) -> tuple[nn.Module, tuple[int, ...]] | None:
        """The backbone and the shape of a batch; None where ``torch.compile`` chooses what is kept."""
        if self.compiles:
            return None
        return self.detector.backbone, (images, 3, self.data.canvas, self.data.canvas)

    # ---- training

    def on_fit_start(self) -> None:
        """Start from other weights, and log a summary."""
        super().on_fit_start()
        self._log_summary()

    def start_from(self, path: Path, class_names: Sequence[str]) -> str:
        """Take the weights of another run; returns a message on what was taken."""
        names = distinct_names(class_names, self.data.train_instances.category_ids)
        return initialise(self.detector, path, names)

    @rank_zero_only
    def _log_summary(self) -> None:
        data = self.data
        name = self.detector.spec["backbone"] if self.detector.spec else type(self.detector.backbone).__name__
        kind = "Mask R-CNN" if self.detector.has_masks else "Faster R-CNN"
        parameters = sum(p.numel() for p in self.detector.parameters()) / 1e6
        logger.info("%s on %s: %.1f M parameters, %d classes", kind, name, parameters, data.num_classes)
        logger.info("%d training and %d validation images", len(data.train_set), len(data.val_set))
        for instances in (data.train_instances, data.val_instances):
            if instances.dropped:
                parts = ", ".join(f"{count} x {what}" for what, count in instances.dropped.items())
                logger.warning(
                    "%s: left out or trimmed: %s (botnet check-data lists them)", instances.path, parts
                )

    def losses(self, batch: tuple[Tensor, list[dict[str, Any]]]) -> dict[str, Tensor]:
        """The parts of the loss of a batch, whose plain sum is minimised."""
        images, targets = batch
        images = images.contiguous(memory_format=torch.channels_last)
        # What is sampled in an image depends on no other image, and is the same in a resumed run.
        seeds = [
            generator(run_seed(), self.current_epoch, target["image_id"]).initial_seed() for target in targets
        ]
        found: dict[str, Tensor] = self.detector(
            images, targets, [target["valid"] for target in targets], seeds
        )
        return found

    def training_step(self, batch: tuple[Tensor, list[dict[str, Any]]], index: int) -> Tensor:
        """The loss of a batch."""
        losses, images = self.losses(batch), len(batch[0])
        total = torch.stack(list(losses.values())).sum()
        self.log("train/loss", total.detach(), batch_size=images)
        parts = {f"train/{name}": loss.detach() for name, loss in losses.items()}
        self.log_dict(parts, batch_size=images)
        return total

    def scale_batch(self, factor: float) -> None:
        """Follow a batch ``factor`` times as large: linear rule, and a warm-up over as many images."""
        super().scale_batch(factor)
        self.warmup_learning_rate *= factor
        self.warmup_steps = round(self.warmup_steps / factor)

    def schedule(self, total: int) -> Callable[[int], float]:
        """The learning rate at each of ``total`` optimiser steps, relative to ``learning_rate``."""
        return lambda step: self.rate(step, total)

    def rate(self, step: int, total: int) -> float:
        """The learning rate at an optimiser step, relative to ``learning_rate``."""
        decayed = 0.1 ** sum(step >= round(part * total) for part in self.decay_at)
        if self.cosine:
            decayed = half_cosine(max(step, self.warmup_steps), total, self.warmup_steps)
        if step >= self.warmup_steps or not self.learning_rate:
            return decayed
        start = self.warmup_learning_rate / self.learning_rate
        return decayed * (start + (1 - start) * step / self.warmup_steps)

    # ---- evaluation

    def on_validation_start(self) -> None:
        """Start collecting."""
        super().on_validation_start()
        data, trainer = self.data, self.trainer
        metric = CocoMetric(data.class_names, data.val_instances.category_ids, self.detector.has_masks)
        self.scoring = BackgroundScoring(metric, trainer.global_rank, trainer.world_size)
        # Each device draws its share of the first images.
        self.drawn = len(range(trainer.global_rank, self.pictures, trainer.world_size))
        self.validation_loss = ValidationLoss(self.detector, data)

    def validation_step(self, batch: tuple[Tensor, list[EvalTarget]], index: int) -> None:
        """Detect; a thread brings the detections to original pixels, scores them and draws some images."""
        images, targets = batch
        images = images.contiguous(memory_format=torch.channels_last)
        detections = self.detector(images, valid=[target["valid"] for target in targets])
        for image, detection, target in zip(images, detections, targets, strict=True):
            self.validation_loss.update(image, target["image_id"])
            picture = self._picture(image, target) if self.drawn > 0 else None
            self.drawn -= 1
            self.scoring.add(as_arrays(detection), target, picture)

    @staticmethod
    def _picture(image: Tensor, target: EvalTarget) -> Tensor:
        """An image (3, canvas, canvas) in its original size and aspect, (3, H, W) uint8 on the CPU."""
        height, width = target["valid"]
        pixels = denormalise(image[:, :height, :width], IMAGENET_MEAN, IMAGENET_STD)
        return (
            nn.functional.interpolate(pixels[None].float(), target["size"], mode="bilinear")[0].byte().cpu()
        )

    def on_validation_epoch_end(self) -> None:
        """Put together on the first device what all have scored, and send the numbers to the others."""
        scoring = self.scoring
        scoring.finish()
        results, sheets = gather_shares(scoring.results), gather_shares(scoring.sheets)
        states = gather_shares([scoring.metric.state()]) if self.trainer.world_size > 1 else None
        if results is not None and sheets is not None:
            self.results = [record for found in results for record in found]
            self.sheets = sheets
            if states is not None:
                scoring.metric.merge(states)
            self.report = scoring.metric.report()
        del self.scoring
        self.report = self.trainer.strategy.broadcast(self.report)
        # Every device has the same.
        losses = self.validation_loss.compute(self.device)
        self.log_dict({f"val/{name}": loss for name, loss in losses.items()}, sync_dist=True)
        for kind, table in self.report.items():
            for number in ("AP", "AP50", "AP75"):
                self.log(f"val/{kind}_{number}", table[number], prog_bar=number == "AP", sync_dist=True)
        self.log("val/AP", self.report["mask" if "mask" in self.report else "box"]["AP"], sync_dist=True)

    def write_report(self, console: Console, folder: EvaluationFolder) -> dict[str, Path]:
        """Print the numbers; write results files and pictures."""
        for kind, table in self.report.items():
            console.print(metrics_table(f"{kind} metrics on the validation images", table))
        results = write_results(folder.path, self.results)
        written = {f"COCO results, {task}": path for task, path in results.items()}
        if self.sheets:
            written["pictures"] = folder.pictures
            folder.pictures.mkdir(exist_ok=True)
            for image_id, sheet in self.sheets:
                sheet.save(folder.pictures / f"{image_id}.png")
        return written

    # ---- checkpoints

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Arguments of the detector, and its data's category ids and canvas."""
        return {
            "detector": self.detector.spec,  # arguments of RCNN; None where its backbone has no name
            "category_ids": list(self.data.train_instances.category_ids),
            "canvas": self.data.canvas,
        }
