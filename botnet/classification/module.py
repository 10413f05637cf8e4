"""Training and evaluation of classifiers with Lightning (paper, Section 4.7)."""

import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from rich.text import Text
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchmetrics import Metric
from torchvision.transforms.v2.functional import to_pil_image

from botnet.classification.pictures import draw_sheet
from botnet.errors import DataError, some
from botnet.models.weights import read_weights
from botnet.models.zoo import NETWORKS
from botnet.module import TaskModule, read_checkpoint


def create_classifier(name: str, num_classes: int, image_size: int, **kwargs: Any) -> nn.Module:
    """A classifier by its timm name; what has tables for one image size gets them for this one.

    Args:
        name: any that ``timm.create_model`` takes, this project's included.
        num_classes: classes it tells apart.
        image_size: side of its images in pixels.
        kwargs: timm's further arguments, such as ``drop_path_rate`` or ``pretrained``.

    Raises:
        DataError: timm has no network of that name.
    """
    if ":" not in name and not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), 3, 0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise DataError(f"no network {name!r} in timm or here{hint}")
    about = timm.get_pretrained_cfg(name)
    if name in NETWORKS or (about is not None and about.fixed_input_size):
        kwargs["img_size"] = image_size
    return timm.create_model(name, num_classes=num_classes, **kwargs)


class Accuracy(Metric):
    """Top-1 and top-5 accuracy, over all images and by class, exact over any number of devices.

    Args:
        num_classes: classes.
    """

    full_state_update = False
    hits: Tensor
    images: Tensor
    loss: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # Counts, by class; their sums over devices are exact.
        self.add_state("hits", torch.zeros(num_classes, 2, dtype=torch.long), "sum")
        self.add_state("images", torch.zeros(num_classes, dtype=torch.long), "sum")
        self.add_state("loss", torch.zeros(()), "sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add images: logits ``(B, classes)``, labels ``(B,)``."""
        logits = logits.float()
        among = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        hit = torch.stack([among[:, 0], among.any(1)], dim=1)
        self.hits.index_add_(0, labels, hit.long())
        self.images += torch.bincount(labels, minlength=len(self.images))
        self.loss += F.cross_entropy(logits, labels, reduction="sum")

    def compute(self) -> dict[str, Tensor]:
        """``top1`` and ``top5`` in percent, ``loss``, and ``per_class``, top-1 (NaN without images)."""
        count = self.images.sum()
        top1, top5 = 100 * self.hits.sum(0) / count
        per_class = 100 * self.hits[:, 0] / self.images
        return {"top1": top1, "top5": top5, "loss": self.loss / count, "per_class": per_class}


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

    def show(self, console: Console, folder: Path) -> dict[str, Path]:
        console.print(accuracy_table(self.report))
        if not self.shown:
            return {}
        path = folder / "pictures" / "predictions.png"
        path.parent.mkdir(exist_ok=True)
        draw_sheet(self.shown).save(path)
        return {"pictures": path}

    # ---- checkpoints

    def about(self, data: Any) -> dict[str, Any]:
        return {"classifier": self.spec, "evaluation": data.evaluation}


def accuracy_table(report: dict[str, dict[str, Any]]) -> Table:
    """Accuracies for the terminal, with the classes that are told worst."""
    table = Table("", "top-1 %", "top-5 %", "loss", "worst classes", title="on the validation images")
    for kind, numbers in report.items():
        known = {name: value for name, value in numbers["per_class"].items() if value is not None}
        worst = sorted(known, key=known.__getitem__)[:3]
        table.add_row(
            {"model": "network", "ema": "average of its weights"}[kind],
            f"{numbers['top1']:.2f}",
            f"{numbers['top5']:.2f}",
            f"{numbers['loss']:.3f}",
            Text(", ".join(f"{name} {known[name]:.0f}" for name in worst)),
        )
    return table


# ---- weights of earlier runs


def start_from(model: nn.Module, path: Path, class_names: Sequence[str]) -> str:
    """Load weights of the same network, from a checkpoint of ``botnet fit`` or a file of tensors.

    Position tables are resized. A checkpoint names its classes: the classifier's rows are taken by name, and
    those of classes it does not know start anew. A file of tensors does not: its classifier is taken as it is
    if it has as many classes, else it starts anew.

    Args:
        model: whose weights are replaced.
        path: the file.
        class_names: of the model's outputs.

    Returns:
        What was taken and what was not, in words.

    Raises:
        DataError: the file cannot be read as data, or is of another network.
    """
    theirs: list[str] | None = None
    try:
        checkpoint, about = read_checkpoint(path, "classifier")
        state, theirs = _network_state(checkpoint["state_dict"]), about["class_names"]
    except DataError:  # not a checkpoint that names its classes
        try:
            state = _network_state(read_weights(path))
        except (FileNotFoundError, ValueError) as error:
            raise DataError(str(error)) from error
    own = model.state_dict()
    heads = model.pretrained_cfg["classifier"]  # type: ignore[index]
    names = [
        name
        for head in ((heads,) if isinstance(heads, str) else heads)
        for name in (f"{head}.weight", f"{head}.bias")
        if name in state and name in own
    ]
    if theirs is not None:
        common = [name for name in class_names if name in theirs]
        new = [class_names.index(name) for name in common]
        old = [theirs.index(name) for name in common]
        for name in names:
            if own[name].shape[1:] == state[name].shape[1:]:
                rows = own[name].clone()
                rows[new] = state[name][old].to(rows)
                state[name] = rows
        others = [name for name in class_names if name not in theirs]
        said = f"{len(common)} of {len(class_names)} classes known"
        said += f"; the others start anew: {some(others)}" if others else ""
    elif any(state[name].shape != own[name].shape for name in names):
        said = f"its classifier has {len(state[names[0]])} classes; this one starts anew"
        state |= {name: own[name] for name in names}
    else:
        said = f"its {len(class_names)} classes, which it does not name, are taken in their order"
    _load(model, state, path)
    return f"started from {path}: {said}"


def _network_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors by its own names: the average of the weights where a checkpoint has one."""
    for prefix in ("ema.module.", "model."):
        found = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        if found:
            return found
    return dict(state)


def _load(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise DataError(f"{path}: not the weights of this {type(model).__name__}: {reason[:300]}") from error


def load_classifier(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A trained classifier from a checkpoint of :class:`ClassificationModule`, read as data.

    Args:
        path: ``last.ckpt`` or ``best.ckpt`` of a run.

    Returns:
        The network in evaluation mode, with the average of its weights where the run kept one; and what the
        checkpoint says of its data: ``class_names``, and in ``evaluation`` how its images are prepared:
        ``image_size``, ``crop_pct``, ``interpolation``, ``mean``, ``std``.

    Raises:
        DataError: as :func:`botnet.module.read_checkpoint`.
    """
    checkpoint, about = read_checkpoint(path, "classifier")
    model = create_classifier(**about["classifier"])
    _load(model, _network_state(checkpoint["state_dict"]), path)
    return model.eval(), {key: about[key] for key in ("class_names", "evaluation")}
