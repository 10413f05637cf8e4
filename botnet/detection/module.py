"""Training and evaluation of detectors with Lightning (paper, Section 4)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import Tensor, nn

from botnet.curves import plot_curves
from botnet.data import generator, run_seed
from botnet.detection.pictures import draw, side_by_side
from botnet.detection.rcnn import RCNN
from botnet.detection.results import (
    CocoMetric,
    coco_results,
    metrics_table,
    to_original,
    truth_of,
    write_results,
)
from botnet.detection.transforms import denormalise
from botnet.distributed import gather_shares
from botnet.errors import DataError
from botnet.layers.position import PositionTables
from botnet.training import parameter_groups

PICTURE_SCORE = 0.5  # least score of a detection that is drawn

# Parts of the detector with one row, or four, for the background and each class.
CLASS_PARTS = tuple(
    f"roi_heads.{name}."
    for name in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
)


class DetectionModule(L.LightningModule):
    """A detector, its optimiser and its evaluation.

    The defaults are those of the paper's codebase (tensorflow/tpu ``models/official/detection``) at its
    batch of 64 images.

    Args:
        detector: from :func:`botnet.detection.mask_rcnn` or :func:`botnet.detection.faster_rcnn`.
        learning_rate: after the warm-up, for the whole batch over all devices.
        momentum: of SGD, without Nesterov's form.
        weight_decay: on the kernels of convolutions and fully connected layers only.
        warmup_steps: optimiser steps in which the rate rises linearly.
        warmup_learning_rate: where it starts from.
        decay_at: parts of the run after which the rate falls by ten.
        pictures: validation images that are drawn, truth beside prediction.
        init_from: checkpoint of another run to start from, whose classes may be others
            (:func:`initialise`); a run that goes on does not read it.
    """

    monitor = "val/AP"  # of masks, or of boxes where there are none: the best checkpoint has most of it

    def __init__(
        self,
        detector: RCNN,
        learning_rate: float = 0.08,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        warmup_steps: int = 500,
        warmup_learning_rate: float = 0.0067,
        decay_at: Sequence[float] = (2 / 3, 8 / 9),
        pictures: int = 8,
        init_from: Path | None = None,
    ) -> None:
        super().__init__()
        # The attention and oneDNN's and cuDNN's convolutions are at their best with channels last.
        self.detector = detector.to(memory_format=torch.channels_last)
        self.learning_rate, self.momentum, self.weight_decay = learning_rate, momentum, weight_decay
        self.warmup_steps, self.warmup_learning_rate = warmup_steps, warmup_learning_rate
        self.decay_at = tuple(decay_at)
        self.pictures, self.init_from = pictures, init_from
        # Of the validation: this device's share, then on the first device what all shares come to.
        self.share: list[tuple[int, dict[str, Any], dict[str, Any]]] = []
        self.sheets: list[tuple[int, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.report: dict[str, dict[str, Any]] = {}

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise DataError("the classes come with the data: trainer.fit(module, CocoDataModule(...))")
        if self.detector.num_classes != data.num_classes:
            raise DataError(
                f"the detector has {self.detector.num_classes} classes, {data.train_instances.path} has "
                f"{data.num_classes}; build it with num_classes={data.num_classes}"
            )
        trainer = self.trainer
        if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
            raise DataError(
                f"{type(trainer.strategy).__name__} splits the detector, which fits on any device; "
                "evaluation and checkpoints are made for trainer.strategy ddp"
            )
        # In the first batch of an evaluation, and only then, DDP shares the norms' statistics.
        if trainer.world_size > len(data.val_set):
            raise DataError(
                f"{len(data.val_set)} validation images are fewer than {trainer.world_size} devices; each "
                "needs one"
            )

    # ---- training

    def on_fit_start(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.init_from is not None:
            said = initialise(self.detector, self.init_from, data.class_names)
            if self.trainer.is_global_zero:
                print(said)
        self._introduce(data)

    @rank_zero_only
    def _introduce(self, data: Any) -> None:
        name = self.detector.spec["backbone"] if self.detector.spec else type(self.detector.backbone).__name__
        kind = "Mask R-CNN" if self.detector.has_masks else "Faster R-CNN"
        parameters = sum(p.numel() for p in self.detector.parameters()) / 1e6
        print(f"{kind} on {name}: {parameters:.1f} M parameters, {data.num_classes} classes")
        print(f"{len(data.train_set)} training and {len(data.val_set)} validation images")
        for instances in (data.train_instances, data.val_instances):
            if instances.dropped:
                parts = ", ".join(f"{count} x {what}" for what, count in instances.dropped.items())
                print(f"{instances.path}: left out or trimmed: {parts} (botnet check-data lists them)")

    def training_step(self, batch: tuple[Tensor, list[dict[str, Any]]], index: int) -> Tensor:
        images, targets = batch
        images = images.contiguous(memory_format=torch.channels_last)
        # What is sampled in an image depends on no other image, and is the same in a run that went on.
        seeds = [
            generator(run_seed(), self.current_epoch, target["image_id"]).initial_seed() for target in targets
        ]
        losses = self.detector(images, targets, [target["valid"] for target in targets], seeds)
        total = torch.stack(list(losses.values())).sum()
        parts = {f"train/{name}": loss.detach() for name, loss in losses.items()}
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(images))
        self.log_dict(parts, prog_bar=True, batch_size=len(images))
        return total

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(
            parameter_groups(self.detector, self.weight_decay), lr=self.learning_rate, momentum=self.momentum
        )
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.rate(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def scale_batch(self, factor: float) -> None:
        """Follow a batch ``factor`` times as large: rate and warm-up by the linear rule."""
        self.learning_rate *= factor
        self.warmup_learning_rate *= factor
        self.warmup_steps = round(self.warmup_steps / factor)

    def rate(self, step: int, total: int) -> float:
        """The learning rate at an optimiser step, relative to ``learning_rate``."""
        decayed = 0.1 ** sum(step >= round(part * total) for part in self.decay_at)
        if step >= self.warmup_steps:
            return decayed
        start = self.warmup_learning_rate / self.learning_rate
        return decayed * (start + (1 - start) * step / self.warmup_steps)

    # ---- evaluation

    def on_validation_start(self) -> None:
        self.share, self.sheets = [], []

    def validation_step(self, batch: tuple[Tensor, list[dict[str, Any]]], index: int) -> None:
        images, targets = batch
        images = images.contiguous(memory_format=torch.channels_last)
        detections = self.detector(images, valid=[target["valid"] for target in targets])
        names = self.trainer.datamodule.class_names  # type: ignore[attr-defined]
        for image, detection, target in zip(images, detections, targets, strict=True):
            result = to_original(detection, target["scale"], target["size"])
            truth = truth_of(target)
            self.share.append((target["image_id"], result, truth))
            if len(self.sheets) * self.trainer.world_size < self.pictures:
                self._draw(image, result, truth, target, names)

    def _draw(
        self,
        image: Tensor,
        result: dict[str, Any],
        truth: dict[str, Any],
        target: dict[str, Any],
        names: Sequence[str],
    ) -> None:
        """Keep a picture of one image in its original size and aspect: truth beside prediction."""
        height, width = target["valid"]
        shown = nn.functional.interpolate(
            denormalise(image.cpu())[None, :, :height, :width].float(), target["size"], mode="bilinear"
        )[0].byte()
        left = draw(shown, truth, names, PICTURE_SCORE)
        right = draw(shown, result, names, PICTURE_SCORE)
        titles = ("truth", f"prediction, score of at least {PICTURE_SCORE}")
        self.sheets.append((target["image_id"], side_by_side(left, right, titles)))

    def on_validation_epoch_end(self) -> None:
        """Score all devices' images on the first one, each once, and tell the others."""
        everything, sheets = gather_shares(self.share), gather_shares(self.sheets)
        if everything is not None and sheets is not None:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            self.sheets = sheets[: self.pictures]
            metric, self.results = CocoMetric(masks=self.detector.has_masks), []
            for image_id, result, truth in everything:
                metric.update([result], [truth])
                self.results += coco_results(result, image_id, data.val_instances.category_ids)
            self.report = metric.report(data.class_names)
        self.share = []
        self.report = self.trainer.strategy.broadcast(self.report)
        for kind, table in self.report.items():
            for number in ("AP", "AP50", "AP75"):
                self.log(f"val/{kind}_{number}", table[number], prog_bar=number == "AP", sync_dist=True)
        self.log("val/AP", self.report["mask" if "mask" in self.report else "box"]["AP"], sync_dist=True)

    def on_fit_end(self) -> None:
        self._write(Path(self.trainer.default_root_dir))

    def on_validation_end(self) -> None:
        if self.trainer.state.fn == "validate":
            self._write(Path(self.trainer.default_root_dir) / "validate")

    @rank_zero_only
    def _write(self, folder: Path) -> None:
        """Everything that people want to see of the last evaluation, into one folder."""
        if not self.report:  # the run ended before its first evaluation
            return
        console = Console()
        folder.mkdir(parents=True, exist_ok=True)
        for kind, table in self.report.items():
            console.print(metrics_table(f"{kind} metrics on the validation images", table))
        written = {"metrics": folder / "metrics.json"}
        step = {"epoch": self.current_epoch, "step": self.global_step}
        written["metrics"].write_text(json.dumps(step | self.report, indent=2))
        for task, path in write_results(folder, self.results).items():
            written[f"COCO results, {task}"] = path
        if self.sheets:
            (folder / "pictures").mkdir(exist_ok=True)
            for image_id, sheet in self.sheets:
                sheet.save(folder / "pictures" / f"{image_id}.png")
            written["pictures"] = folder / "pictures"
        logs = sorted((Path(self.trainer.default_root_dir) / "csv").glob("version_*/metrics.csv"))
        if logs:
            written["curves"] = folder / "curves.png"
            plot_curves(logs, written["curves"])
        for what, path in written.items():
            console.print(f"{what}: {path}", highlight=False, soft_wrap=True)

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        checkpoint["botnet"] = {
            "detector": self.detector.spec,
            "class_names": list(data.class_names),
            "category_ids": list(data.train_instances.category_ids),
            "canvas": data.canvas,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.init_from = None  # a run that goes on has weights of its own
        theirs = checkpoint.get("botnet", {}).get("class_names")
        data = getattr(self._trainer, "datamodule", None)
        if theirs is not None and data is not None and list(data.class_names) != theirs:
            raise DataError(
                f"the checkpoint knows {len(theirs)} classes ({_some(theirs)}), the data have "
                f"{data.num_classes} ({_some(data.class_names)}); a run can only go on with the categories "
                "it was started with"
            )


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The detector's tensors in a checkpoint of :class:`DetectionModule`, read as data, and what it is.

    Args:
        path: ``last.ckpt`` or ``best.ckpt`` of a run.

    Returns:
        The state dict of the detector; and ``detector``, the arguments of :class:`RCNN` or None where its
        backbone has no name, ``class_names``, ``category_ids``, ``canvas``.

    Raises:
        DataError: no such file, no checkpoint, or one that was not written by this class.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such checkpoint; a run keeps its own in checkpoints/")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as data ({str(error).splitlines()[0]}); it is broken, or it holds code, "
            "which is not executed"
        ) from error
    about = checkpoint.get("botnet") if isinstance(checkpoint, dict) else None
    if not about or "detector" not in about:
        raise DataError(
            f"{path} does not say which detector it holds; only checkpoints of `botnet fit` with a detector "
            "can be read"
        )
    prefix = "detector."
    state = {name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items()}
    return state, about


def load_detector(path: Path) -> tuple[RCNN, dict[str, Any]]:
    """A trained detector from a checkpoint of :class:`DetectionModule`, read as data.

    Args:
        path: ``last.ckpt`` or ``best.ckpt`` of a run.

    Returns:
        The detector in evaluation mode, and what the checkpoint says of its data: ``class_names``,
        ``category_ids``, ``canvas``.

    Raises:
        DataError: as :func:`read_checkpoint`, or the backbone has no name.
    """
    state, about = read_checkpoint(path)
    if not about["detector"]:
        raise DataError(
            f"{path} does not say which detector it holds: its backbone was given as a module; build it and "
            "read the checkpoint with torch.load"
        )
    detector = RCNN(**about["detector"])
    detector.load_state_dict(state)
    return detector.eval(), {key: about[key] for key in ("class_names", "category_ids", "canvas")}


def initialise(detector: RCNN, path: Path, class_names: Sequence[str]) -> str:
    """Start a detector from a trained one of other classes: fine-tuning, from COCO to a set of one's own.

    Taken is whatever fits. What belongs to a class is taken by the class's name, so that classes which both
    have are known from the start; position tables of another canvas are resized.

    Args:
        detector: whose weights are replaced.
        path: checkpoint of :class:`DetectionModule`.
        class_names: of labels 1, 2, ... of the new detector.

    Returns:
        What was taken and what was not, in words.

    Raises:
        DataError: as :func:`read_checkpoint`, or none of the backbone's kernels fits.
    """
    state, about = read_checkpoint(path)
    theirs = about["class_names"]
    common = [name for name in class_names if name in theirs]
    new = [0, *(1 + class_names.index(name) for name in common)]  # 0 is the background
    old = [0, *(1 + theirs.index(name) for name in common)]
    own, taken = detector.state_dict(), {}
    for name in own.keys() & state.keys():
        before, value = own[name], state[name]
        if name.startswith(CLASS_PARTS):
            before = before.unflatten(0, (len(class_names) + 1, -1)).clone()
            value = value.unflatten(0, (len(theirs) + 1, -1))
            if before.shape[1:] == value.shape[1:]:
                before[new] = value[old]
                taken[name] = before.flatten(0, 1)
        elif before.shape == value.shape or isinstance(
            detector.get_submodule(name.rpartition(".")[0]), PositionTables
        ):
            taken[name] = value
    if not any(name.startswith("backbone.") and value.ndim == 4 for name, value in taken.items()):
        raise DataError(f"{path}: none of its backbone's kernels fits this one; it is of another network")
    detector.load_state_dict(taken, strict=False)
    left = sorted(own.keys() - taken.keys())
    return (
        f"started from {path}: {len(taken)} of {len(own)} tensors taken, {len(common)} of "
        f"{len(class_names)} classes known" + (f"; as they were: {_some(left)}" if left else "")
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
