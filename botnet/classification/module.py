"""Training and evaluation of classifiers with Lightning (paper, Section 4.7)."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

from botnet.classification.checkpoint import create_classifier, start_from
from botnet.classification.metric import Accuracy, accuracy_table
from botnet.errors import DataError
from botnet.training.run_folder import EvaluationFolder
from botnet.training.task import TaskModule
from botnet.visualize.classes import draw_sheet


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
        momentum: of SGD, without Nesterov's form.
        weight_decay: on the kernels of convolutions and fully connected layers only.
        warmup_epochs: in which the rate rises linearly from 0; then it falls to 0 as a half cosine.
        label_smoothing: part of the target that is spread over all classes.
        mixup, cutmix: parameter of the beta distribution that mixes images; 0: none. With both, either one,
            by chance, for each batch.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth: greatest probability, that of the last block, to leave one out.
        ema_decay: of a moving average of the weights, which is then evaluated, too; None: no average.
        compile: run the network through ``torch.compile``.
        pictures: validation images that are drawn.
    """

    kind, most = "classifier", 100.0
    monitor = "val/top1"  # of the average of the weights where there is one, else of the network
    schedule_settings = ("warmup_epochs",)

    def __init__(
        self,
        model: str,
        num_classes: int,
        image_size: int,
        model_kwargs: dict[str, Any] | None = None,
        init_from: Path | None = None,
        learning_rate: float = 0.4,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        warmup_epochs: float = 5.0,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        ema_decay: float | None = None,
        compile: bool = False,
        pictures: int = 16,
    ) -> None:
        super().__init__(learning_rate, momentum, weight_decay, init_from)
        kwargs = dict(model_kwargs or {})
        # Only what is used: not every network of timm knows both.
        kwargs |= {"drop_rate": drop_rate} if drop_rate else {}
        kwargs |= {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
        network = create_classifier(model, num_classes, image_size, **kwargs)
        # What rebuilds it from a checkpoint alone; weights come from there.
        kept = {key: value for key, value in kwargs.items() if key != "pretrained"}
        self.spec: dict[str, Any] = {
            "name": model,
            "num_classes": num_classes,
            "image_size": image_size,
        } | kept
        # The attention and oneDNN's and cuDNN's convolutions are at their best with channels last.
        self.model = network.to(memory_format=torch.channels_last)
        self.ema: ModelEmaV3 | None = None
        if ema_decay is not None:
            # Its memory grows with the run: at first it is the plain mean of all weights so far.
            self.ema = ModelEmaV3(self.model, decay=ema_decay, use_warmup=True, warmup_power=1.0)
            # Only validation runs it, which sets its mode; Lightning warns of parts that are in another.
            self.ema.requires_grad_(False).train()
        self.mix = (
            Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.0, num_classes=num_classes)
            if mixup or cutmix
            else None
        )
        self.warmup_epochs, self.label_smoothing = warmup_epochs, label_smoothing
        self.compiles, self.pictures = compile, pictures
        self.metrics = nn.ModuleDict({"model": Accuracy(num_classes)})
        if self.ema is not None:
            self.metrics["ema"] = Accuracy(num_classes)
        self.shown: list[tuple[Any, str, str, float]] = []

    @property
    def network(self) -> nn.Module:
        return self.model

    @property
    def num_classes(self) -> int:
        return self.spec["num_classes"]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" and self.mix is not None and data.batch_size % 2:
            raise DataError(
                f"mixup and cutmix pair the images of a batch, and {data.batch_size} is odd; "
                "set an even data.batch_size"
            )
        if self.compiles:
            self.model.compile()  # in place: the names of its parameters stay

    # ---- training

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._introduce(self.trainer.datamodule)  # type: ignore[attr-defined]

    def start_from(self, path: Path, class_names: Sequence[str]) -> str:
        said = start_from(self.model, path, class_names)
        if self.ema is not None:
            self.ema.module.load_state_dict(self.model.state_dict())
        return said

    @rank_zero_only
    def _introduce(self, data: Any) -> None:
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        size = self.spec["image_size"]
        print(f"{self.spec['name']}: {parameters:.1f} M parameters, {data.num_classes} classes, {size} px")
        print(f"{len(data.train_set)} training and {len(data.val_set)} validation images")
        for name, images in (("training", data.train_set), ("validation", data.val_set)):
            if left_out := getattr(images.reader, "left_out", 0):
                print(f"{left_out} files in the {name} folder are no images and were left out")

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, target = batch
        if self.mix is not None:
            images, target = self.mix(images, target)
        logits = self.model(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), target, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(images))
        return loss

    def schedule(self, total: int) -> Callable[[int], float]:
        epochs = self.trainer.max_epochs
        if not epochs or epochs < 0:
            raise DataError("the schedule is told in epochs; set trainer.max_epochs")
        warmup = self.warmup_epochs / epochs * total
        return lambda step: self.rate(step, total, warmup)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step + 1)

    def scale_batch(self, factor: float) -> None:
        """Follow a batch ``factor`` times as large: the rate by the linear rule.

        The average of the weights remembers as many images as before; the warm-up is told in epochs anyway.
        """
        self.learning_rate *= factor
        if self.ema is not None:
            self.ema.decay **= factor

    @staticmethod
    def rate(step: int, total: int, warmup: float) -> float:
        """The learning rate at an optimiser step, relative to ``learning_rate``."""
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))

    # ---- evaluation

    def on_validation_start(self) -> None:
        super().on_validation_start()
        for metric in self.metrics.values():
            metric.reset()  # type: ignore[operator]
        self.shown = []

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        images = images.contiguous(memory_format=torch.channels_last)
        logits = self.model(images)
        self.metrics["model"].update(logits, labels)  # type: ignore[operator]
        if self.ema is not None:
            logits = self.ema.module(images)
            self.metrics["ema"].update(logits, labels)  # type: ignore[operator]
        self._keep_pictures(images, labels, logits, index)

    def _keep_pictures(self, images: Tensor, labels: Tensor, logits: Tensor, index: int) -> None:
        """Keep images from all over the validation set, which is in the order of its classes."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        share = math.ceil(len(data.val_set) / self.trainer.world_size)
        start = index * data.val_batch_size
        mean, std = (torch.tensor(data.evaluation[key])[:, None, None] for key in ("mean", "std"))
        names = data.class_names
        for position in range(len(images)):
            number = (start + position) * self.pictures  # the first of each of `pictures` equal parts
            if number // share == (number - self.pictures) // share or not self.pictures:
                continue
            probability, predicted = logits[position].float().softmax(0).max(0)
            picture = to_pil_image((images[position].float().cpu() * std + mean).clamp(0, 1))
            self.shown.append((picture, names[labels[position]], names[predicted], float(probability)))

    def on_validation_epoch_end(self) -> None:
        names = self.trainer.datamodule.class_names  # type: ignore[attr-defined]
        for kind, metric in self.metrics.items():
            values = metric.compute()  # type: ignore[operator]
            numbers: dict[str, Any] = {name: float(values[name]) for name in ("top1", "top5", "loss")}
            for name, value in numbers.items():
                self.log(f"val/{kind}_{name}", value, prog_bar=name == "top1", rank_zero_only=True)
            of_classes = values["per_class"].tolist()
            numbers["per_class"] = {
                name: None if math.isnan(value) else value
                for name, value in zip(names, of_classes, strict=True)
            }
            self.report[kind] = numbers
        best = self.report["ema" if self.ema is not None else "model"]
        self.headline = {name: best[name] for name in ("top1", "top5")}
        self.log_dict({f"val/{name}": value for name, value in self.headline.items()}, sync_dist=True)

    def show(self, console: Console, folder: EvaluationFolder) -> dict[str, Path]:
        console.print(accuracy_table(self.report))
        if not self.shown:
            return {}
        path = folder.pictures / "predictions.png"
        path.parent.mkdir(exist_ok=True)
        draw_sheet(self.shown).save(path)
        return {"pictures": path}

    # ---- checkpoints

    def about(self, data: Any) -> dict[str, Any]:
        return {"classifier": self.spec, "evaluation": data.evaluation}
