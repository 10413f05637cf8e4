"""The contract between a model and its data: what detectors and classifiers share in training."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import default_collate

from botnet import __version__
from botnet.arguments import BatchSize, Count, CountOrZero, Factor, Part, PartBelowOne, Workers, checked
from botnet.errors import ConfigError, first_few
from botnet.layers import MHSA2d
from botnet.training.auto_batch import find_batch_size
from botnet.training.average import WeightAverage, choose_weights
from botnet.training.checkpoint_file import FORMAT, check_format
from botnet.training.loader import Loader, Samples, make_loader
from botnet.training.memory import step_bytes, total_memory
from botnet.training.run_folder import EvaluationFolder, RunFolder
from botnet.visualize.curves import plot_curves

logger = logging.getLogger(__name__)

OptimizerName = Literal["sgd", "adamw"]
BETA2 = 0.999  # of AdamW, torch's default


class TaskDataModule(L.LightningDataModule):
    """Training and validation samples of some classes, and their loaders.

    A subclass sets ``train_set`` and ``val_set``, and names the classes. Its samples draw everything random
    from :func:`~botnet.training.seeding.run_seed`, the epoch and the index.

    Args:
        batch_size: images in a pass on each device; ``auto``: the largest power of two that fits, found
            before the first step (:func:`~botnet.training.auto_batch.find_batch_size`).
        val_batch_size: images at once in validation.
        num_workers: processes that prepare images; default: one for each usable core, shared out among the
            machine's devices, at most 16 for each.
        skip_broken: different training images on each device that may be unreadable, and are replaced by
            others; 0: the first ends the run.

    Raises:
        ConfigError: a number out of its range.

    Attributes:
        batch_size: as given; 1 until ``auto`` is found.
        train_set: indexed by (epoch, index).
        val_set: indexed by a number.
    """

    train_set: Samples
    val_set: Samples

    @checked
    def __init__(
        self,
        batch_size: BatchSize,
        val_batch_size: Count,
        num_workers: Workers | None = None,
        skip_broken: CountOrZero = 0,
    ) -> None:
        super().__init__()
        self.finds_batch_size = batch_size == "auto"
        self.batch_size = 1 if batch_size == "auto" else batch_size
        self.val_batch_size = val_batch_size
        self.num_workers, self.skip_broken = num_workers, skip_broken

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes, in the order of their labels."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """Number of classes, without a background."""
        return len(self.class_names)

    @staticmethod
    def collate(samples: list[Any]) -> Any:
        """A batch of these samples."""
        return default_collate(samples)

    def setup(self, stage: str) -> None:
        """Find the size of the batch, before anything depends on it."""
        trainer = self.trainer
        if stage == "fit" and self.finds_batch_size and trainer is not None:
            self.batch_size = find_batch_size(trainer, cast(TaskModule, trainer.lightning_module), self)
            self.finds_batch_size = False

    def train_dataloader(self) -> Loader:
        """Batches of this device in the order of the epoch."""
        return make_loader(
            self.train_set,
            self.batch_size,
            self.num_workers,
            self.collate,
            self.trainer,
            train=True,
            skip_broken=self.skip_broken,
        )

    def val_dataloader(self) -> Loader:
        """Batches of this device's share, in order."""
        return make_loader(
            self.val_set, self.val_batch_size, self.num_workers, self.collate, self.trainer, train=False
        )


def data_of(trainer: L.Trainer | None) -> TaskDataModule:
    """The data module that a trainer was given.

    Raises:
        ConfigError: it has none.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, TaskDataModule):
        raise ConfigError(
            "the classes come with the data: trainer.fit(module, CocoDataModule(...)), or ImageDataModule"
        )
    return data


class TaskModule(L.LightningModule):
    """The checks before a run, its optimiser, the files at its end, its checkpoints.

    A subclass sets the class attributes and overrides the methods that raise here.

    Args:
        learning_rate: after the warm-up, for the whole batch over all devices.
        momentum: of SGD, without Nesterov's form; the first beta of AdamW.
        weight_decay: on the kernels of convolutions and fully connected layers only.
        init_from: file of weights to start from, or to validate; not read where a checkpoint brings its own.
        ema_decay: of a moving average of the weights, which is validated and kept; None: no average.
        optimizer: SGD, or AdamW, whose rates are some hundred times as small.

    Attributes:
        task: what a checkpoint holds: ``detector`` or ``classifier``.
        monitor: name of the metric by which the best checkpoint is chosen; the greatest value wins.
        metric_max: greatest value of a metric, for the curves.
        schedule_settings: arguments that :meth:`schedule` depends on.
        report: numbers of the last evaluation, by kind of number; on the first device.
        evaluated: epochs and optimiser steps that were done by then; None before the first evaluation.
        headline: the numbers that ``metrics.json`` starts with.
    """

    task: str
    monitor: str
    metric_max: float
    schedule_settings: tuple[str, ...]

    @checked
    def __init__(
        self,
        learning_rate: Factor,
        momentum: PartBelowOne,
        weight_decay: Part,
        init_from: Path | None,
        ema_decay: PartBelowOne | None = None,
        optimizer: OptimizerName = "sgd",
    ) -> None:
        super().__init__()
        self.learning_rate, self.momentum, self.weight_decay = learning_rate, momentum, weight_decay
        self.init_from, self.ema_decay, self.optimizer = init_from, ema_decay, optimizer
        self.report: dict[str, dict[str, Any]] = {}
        self.evaluated: dict[str, int] | None = None
        self.loaded: dict[str, int] | None = None  # the same of a checkpoint that is to be validated
        self.results_folder: EvaluationFolder | None = None  # of a validation; default validate/ in the run's
        self.headline: dict[str, float] = {}
        self.batch_factor = 1.0  # by which the settings follow the batch
        self.total_steps = 0  # optimiser steps of the run
        self.resumed: dict[str, Any] = {}  # settings of the run that a checkpoint comes from

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """Number of classes of the network."""
        raise NotImplementedError

    def schedule(self, total: int) -> Callable[[int], float]:
        """The learning rate at each of ``total`` optimiser steps, relative to ``learning_rate``."""
        raise NotImplementedError

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The parts of the loss of a batch, whose sum is minimised."""
        raise NotImplementedError

    def scale_batch(self, factor: float) -> None:
        """Follow a batch ``factor`` times as large by the linear rule.

        The average of the weights spans as many images as before.
        """
        self.batch_factor *= factor
        self.learning_rate *= factor
        if self.ema_decay is not None:
            self.ema_decay **= factor

    def configure_callbacks(self) -> list[Callback]:
        """The average of the weights, if there is one."""
        if self.ema_decay is None:
            return []
        return [WeightAverage(self.trainer.strategy.root_device)]

    def start_from(self, path: Path, class_names: Sequence[str]) -> str:
        """Take the weights of another run for data of these classes; returns a message on what was taken."""
        raise NotImplementedError

    def checkpoint_metadata(self) -> dict[str, Any]:
        """What a checkpoint holds beside the class names, so that it can be used without its recipe."""
        raise NotImplementedError

    def write_report(self, console: Console, folder: EvaluationFolder) -> dict[str, Path]:
        """Print the last evaluation and write its files; returns their paths by what they are."""
        raise NotImplementedError

    @property
    def data(self) -> TaskDataModule:
        """The data of the run.

        Raises:
            ConfigError: the trainer has no data module.
        """
        return data_of(self._trainer)

    @property
    def run_folder(self) -> RunFolder:
        """The folder of the run."""
        return RunFolder(Path(self.trainer.default_root_dir))

    # ---- before the run

    def setup(self, stage: str) -> None:
        """Check that model, data and devices fit together.

        Raises:
            ConfigError: they do not.
        """
        trainer, data = self.trainer, self.data
        if self.num_classes != data.num_classes:
            raise ConfigError(
                f"the {self.task} has {self.num_classes} classes, the data have {data.num_classes} "
                f"({first_few(data.class_names)}); build it with num_classes={data.num_classes}"
            )
        if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
            raise ConfigError(
                f"{type(trainer.strategy).__name__} splits the {self.task}, which fits on any device; "
                "evaluation and checkpoints are made for trainer.strategy ddp"
            )
        # In the first batch of an evaluation, and only then, DDP shares the norms' statistics.
        if trainer.world_size > len(data.val_set):
            raise ConfigError(
                f"{len(data.val_set)} validation images are fewer than {trainer.world_size} devices; each "
                "needs one"
            )
        if stage == "fit":
            self._check_memory()

    def _check_memory(self) -> None:
        """Refuse a batch that cannot fit, whatever else is in memory."""
        device, batch = self.trainer.strategy.root_device, self.training_batch(self.data.batch_size)
        available = total_memory(device)
        if available is None or batch is None:
            return
        network, images = batch
        needed = step_bytes(network, images, half="16" in str(self.trainer.precision))
        if needed > available:
            raise ConfigError(
                f"a training step of {images[0]} images of {images[2]} x {images[3]} pixels takes "
                f"{needed / 1e9:.3g} GB at least, and {device} has {available / 1e9:.3g} GB; lower "
                "data.batch_size, or the size of the images"
            )

    def training_batch(self, images: int) -> tuple[nn.Module, tuple[int, ...]] | None:
        """What sees the images, and the shape of a batch of so many; None where they are not known."""
        return None

    # The next two hooks come after a checkpoint was read.

    def on_fit_start(self) -> None:
        """Start from other weights."""
        self.loaded = None
        self._initialise()

    def on_validation_start(self) -> None:
        """Note what is evaluated; outside a training, start from other weights."""
        trainer = self.trainer
        if trainer.state.fn == "fit":
            epochs = trainer.current_epoch + bool(trainer.is_last_batch)
            done = {"epoch": epochs, "step": trainer.global_step}
            self.evaluated = None if trainer.sanity_checking else done
            return
        self._initialise()
        trained = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        self.evaluated, self.loaded = self.loaded or trained, None

    def _initialise(self) -> None:
        if self.init_from is None:
            return
        message = self.start_from(Path(self.init_from), self.data.class_names)
        self.init_from = None  # once: what is trained from it must not be lost in a later validation
        if self.trainer.is_global_zero:
            logger.info(message)

    # ---- optimiser and schedule

    def make_optimizer(self) -> Optimizer:
        """SGD with momentum, or AdamW."""
        groups = parameter_groups(self.network, self.weight_decay)
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.learning_rate, betas=(self.momentum, BETA2))
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum, fused=self._fused())

    def configure_optimizers(self) -> Any:
        """The optimiser, and the schedule in steps."""
        optimizer = self.make_optimizer()
        self.total_steps = int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimizer, self.schedule(self.total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _fused(self) -> bool | None:
        """Whether one kernel updates all weights: on GPUs, but not in fp16; None elsewhere, as by default."""
        # Lightning does not clip the gradients of fused optimisers in mixed precision.
        clipped = self.trainer.gradient_clip_val is not None
        # Where fp16's scaler skips the first step, torch's fused SGD takes memory that nobody has written for
        # the momentum.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        return True if self.trainer.strategy.root_device.type == "cuda" and not (scaled or clipped) else None

    def on_train_start(self) -> None:
        """Apply the recipe to optimiser and schedule: a checkpoint restores them with its own settings."""
        optimizer = cast(Optimizer, self.optimizers(use_pl_optimizer=False))
        schedule = self.lr_schedulers()
        if not isinstance(schedule, LambdaLR):  # a search for the learning rate has one of its own
            return
        settings = self._settings()
        self._rescale_schedule(schedule, settings["steps_per_epoch"])
        self._apply_recipe(optimizer, schedule)
        self._report_changes(settings)

    def _rescale_schedule(self, schedule: LambdaLR, steps_per_epoch: int | None) -> None:
        """With another batch the same part of the run is another number of steps."""
        before = self.resumed.get("steps_per_epoch")
        if steps_per_epoch and before:
            schedule.last_epoch = round(schedule.last_epoch * steps_per_epoch / before)

    def _apply_recipe(self, optimizer: Optimizer, schedule: LambdaLR) -> None:
        factor = schedule.lr_lambdas[0](schedule.last_epoch)
        schedule.base_lrs = [self.learning_rate] * len(schedule.base_lrs)
        groups = parameter_groups(self.network, self.weight_decay)
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            group["lr"], group["initial_lr"] = self.learning_rate * factor, self.learning_rate
            group["weight_decay"] = own["weight_decay"]
            if "betas" in group:
                group["betas"] = (self.momentum, BETA2)
            else:  # the checkpoint may come from another kind of device
                group |= {"momentum": self.momentum, "fused": self._fused()}

    def _report_changes(self, settings: dict[str, Any]) -> None:
        before = self.resumed
        changed = [
            f"{name} {value} (was {before[name]})"
            for name, value in settings.items()
            if before.get(name, value) != value
        ]
        if changed and self.trainer.is_global_zero:
            logger.info("the recipe differs from the checkpoint and is used: %s", ", ".join(changed))

    def _settings(self) -> dict[str, Any]:
        """What the learning rate and the updates of a run depend on."""
        common = ("optimizer", "learning_rate", "momentum", "weight_decay", "ema_decay")
        names = (*common, *self.schedule_settings)
        epochs = self.trainer.max_epochs if self.trainer.max_steps == -1 else None
        return {name: getattr(self, name) for name in names} | {
            "total_steps": self.total_steps,
            "steps_per_epoch": self.total_steps // epochs if epochs else None,
        }

    # ---- files of the last evaluation

    def on_fit_end(self) -> None:
        """Write the last evaluation into the run's folder."""
        self.write(self.run_folder)

    def on_validation_end(self) -> None:
        """Write the evaluation of ``validate``."""
        if self.trainer.state.fn == "validate":
            self.write(self.results_folder or self.run_folder.validation)

    @rank_zero_only
    def write(self, folder: EvaluationFolder) -> None:
        """Write the metrics, the report and the curves of the last evaluation into one folder."""
        if self.evaluated is None:  # the run ended before its first evaluation
            return
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.metrics.write_text(json.dumps(self.evaluated | self.headline | self.report, indent=2))
        written = {"metrics": folder.metrics, **self.write_report(Console(), folder)}
        if logs := self.run_folder.logs():
            written["curves"] = folder.curves
            plot_curves(logs, folder.curves, self.metric_max)
        for what, path in written.items():
            print(f"{what}: {path}")

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the format, the classes, the settings of the optimiser, and what the network is."""
        checkpoint["botnet"] = {
            "format": FORMAT,
            "version": __version__,
            "class_names": list(self.data.class_names),
            "batch_size": self.data.batch_size,
            "settings": self._settings(),
        } | self.checkpoint_metadata()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the progress and the settings of a checkpoint.

        Raises:
            CheckpointError: it is of a newer format.
            ConfigError: it is of other classes, or of another optimiser.
        """
        check_format(checkpoint, "the checkpoint")
        fitting = self._trainer is not None and self._trainer.state.fn == "fit"
        choose_weights(checkpoint, fitting, self.ema_decay is not None)
        self.init_from = None  # it has weights of its own
        loops = checkpoint.get("loops", {}).get("fit_loop", {})  # not where weights alone were saved
        epoch_done = bool(loops.get("epoch_loop.batch_progress", {}).get("is_last_batch"))
        self.loaded = {"epoch": checkpoint["epoch"] + epoch_done, "step": checkpoint["global_step"]}
        metadata = checkpoint.get("botnet", {})
        self.resumed = metadata.get("settings", {})
        theirs = self.resumed.get("optimizer", "sgd")
        if fitting and theirs != self.optimizer:
            raise ConfigError(
                f"the checkpoint was trained by {theirs}, not by {self.optimizer}; resume it with "
                f"--model.optimizer {theirs}, or start a new run from it by --model.init_from"
            )
        if "class_names" in metadata and getattr(self._trainer, "datamodule", None) is not None:
            self._check_classes(metadata["class_names"])

    def _check_classes(self, theirs: list[str]) -> None:
        data = self.data
        if list(data.class_names) != theirs:
            raise ConfigError(
                f"the checkpoint has {len(theirs)} classes ({first_few(theirs)}), the data have "
                f"{data.num_classes} ({first_few(data.class_names)}); a run can only be resumed with its own "
                "classes; to train on others, give the checkpoint by --model.init_from"
            )


def half_cosine(step: int, total: int, warmup: float = 0) -> float:
    """The learning rate after a warm-up, relative to the highest: from 1 to 0 as half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with and without weight decay, as an optimiser's groups.

    Only the kernels of convolutions and fully connected layers decay; biases, norms, and the projections
    and tables of the attention do not ([tpu] decays what is named kernel or weight: none of these is).

    Args:
        model: whose parameters that require a gradient are grouped.
        weight_decay: of the first group.
    """
    kernels = [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    attention = {p for module in model.modules() if isinstance(module, MHSA2d) for p in module.parameters()}
    decayed = {p for p in kernels if p.requires_grad} - attention
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trained if p not in decayed], "weight_decay": 0.0},
    ]
