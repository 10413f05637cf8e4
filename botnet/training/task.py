"""What detectors and classifiers share as Lightning modules and data modules."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import nn

from botnet.errors import DataError, first_few
from botnet.layers import MHSA2d
from botnet.training.run_folder import EvaluationFolder, RunFolder
from botnet.visualize.curves import plot_curves


class TaskModule(L.LightningModule):
    """The checks before a run, its optimiser, the files at its end, its checkpoints.

    A subclass says what it is in the attributes, and writes the methods that raise here.

    Args:
        learning_rate: after the warm-up, for the whole batch over all devices.
        momentum: of SGD, without Nesterov's form.
        weight_decay: on the kernels of convolutions and fully connected layers only.
        init_from: file of weights to start from, or to validate; not read where a checkpoint brings its own.

    Attributes:
        kind: what a checkpoint holds: ``detector`` or ``classifier``.
        monitor: the metric that the best checkpoint has most of.
        most: greatest value of a metric, for the curves.
        schedule_settings: arguments that :meth:`schedule` depends on.
        report: numbers of the last evaluation, by kind of number; on the first device.
        evaluated: epochs and optimiser steps that were done by then; None before the first evaluation.
        headline: those that ``metrics.json`` starts with.
    """

    kind: str
    monitor: str
    most: float
    schedule_settings: tuple[str, ...]

    def __init__(
        self, learning_rate: float, momentum: float, weight_decay: float, init_from: Path | None
    ) -> None:
        super().__init__()
        self.learning_rate, self.momentum, self.weight_decay = learning_rate, momentum, weight_decay
        self.init_from = init_from
        self.report: dict[str, dict[str, Any]] = {}
        self.evaluated: dict[str, int] | None = None
        self.loaded: dict[str, int] | None = None  # the same of a checkpoint that is to be validated
        self.results_folder: EvaluationFolder | None = (
            None  # of a validation; default validate/ in the run's folder
        )
        self.headline: dict[str, float] = {}
        self.total_steps = 0  # optimiser steps of the run
        self.resumed: dict[str, Any] = {}  # settings of the run that a checkpoint comes from

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """Classes that the network tells apart."""
        raise NotImplementedError

    def schedule(self, total: int) -> Callable[[int], float]:
        """The learning rate at each of ``total`` optimiser steps, relative to ``learning_rate``."""
        raise NotImplementedError

    def scale_batch(self, factor: float) -> None:
        """Follow a batch ``factor`` times as large by the linear rule."""
        raise NotImplementedError

    def start_from(self, path: Path, class_names: Sequence[str]) -> str:
        """Take the weights of another run for data of these classes; returns what was taken, in words."""
        raise NotImplementedError

    def about(self, data: Any) -> dict[str, Any]:
        """What a checkpoint says beside the class names, so that it can be used without its recipe."""
        raise NotImplementedError

    def show(self, console: Console, folder: EvaluationFolder) -> dict[str, Path]:
        """Print the last evaluation, write its files into a folder; returns them by what they are."""
        raise NotImplementedError

    # ---- Lightning's hooks

    def setup(self, stage: str) -> None:
        trainer = self.trainer
        data = getattr(trainer, "datamodule", None)
        if data is None:
            raise DataError(
                "the classes come with the data: trainer.fit(module, CocoDataModule(...)), or ImageDataModule"
            )
        if self.num_classes != data.num_classes:
            raise DataError(
                f"the {self.kind} has {self.num_classes} classes, the data have {data.num_classes} "
                f"({first_few(data.class_names)}); build it with num_classes={data.num_classes}"
            )
        if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
            raise DataError(
                f"{type(trainer.strategy).__name__} splits the {self.kind}, which fits on any device; "
                "evaluation and checkpoints are made for trainer.strategy ddp"
            )
        # In the first batch of an evaluation, and only then, DDP shares the norms' statistics.
        if trainer.world_size > len(data.val_set):
            raise DataError(
                f"{len(data.val_set)} validation images are fewer than {trainer.world_size} devices; each "
                "needs one"
            )

    # Both hooks come after a checkpoint was read.

    def on_fit_start(self) -> None:
        self.loaded = None
        self._initialise()

    def on_validation_start(self) -> None:
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
        said = self.start_from(Path(self.init_from), self.trainer.datamodule.class_names)  # type: ignore[attr-defined]
        self.init_from = None  # once: what is trained from it must not be lost in a later validation
        if self.trainer.is_global_zero:
            print(said)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(
            parameter_groups(self.network, self.weight_decay), lr=self.learning_rate, momentum=self.momentum
        )
        self.total_steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule(self.total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        # Optimiser and schedule of a checkpoint come with the settings they had; those of the recipe count.
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        schedule: Any = self.lr_schedulers()
        now, then = self._settings(), self.resumed
        if now["steps_per_epoch"] and then.get("steps_per_epoch"):
            # With another batch the same part of the run is another number of steps.
            schedule.last_epoch = round(
                schedule.last_epoch * now["steps_per_epoch"] / then["steps_per_epoch"]
            )
        factor = schedule.lr_lambdas[0](schedule.last_epoch)
        schedule.base_lrs = [self.learning_rate] * len(schedule.base_lrs)
        groups = parameter_groups(self.network, self.weight_decay)
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            group["lr"], group["initial_lr"] = self.learning_rate * factor, self.learning_rate
            group["momentum"], group["weight_decay"] = self.momentum, own["weight_decay"]
        changed = [
            f"{name} {value} (was {then[name]})"
            for name, value in now.items()
            if then.get(name, value) != value
        ]
        if changed and self.trainer.is_global_zero:
            print(f"the recipe differs from the checkpoint, and counts: {', '.join(changed)}")

    def _settings(self) -> dict[str, Any]:
        """What a run is optimised with."""
        names = ("learning_rate", "momentum", "weight_decay", *self.schedule_settings)
        epochs = self.trainer.max_epochs if self.trainer.max_steps == -1 else None
        return {name: getattr(self, name) for name in names} | {
            "total_steps": self.total_steps,
            "steps_per_epoch": self.total_steps // epochs if epochs else None,
        }

    @property
    def folder(self) -> RunFolder:
        """The folder of the run."""
        return RunFolder(Path(self.trainer.default_root_dir))

    def on_fit_end(self) -> None:
        self.write(self.folder)

    def on_validation_end(self) -> None:
        if self.trainer.state.fn == "validate":
            self.write(self.results_folder or self.folder.validation)

    @rank_zero_only
    def write(self, folder: EvaluationFolder) -> None:
        """Everything that people want to see of the last evaluation, into one folder."""
        if self.evaluated is None:  # the run ended before its first evaluation
            return
        console = Console()
        folder.path.mkdir(parents=True, exist_ok=True)
        written = {"metrics": folder.metrics}
        folder.metrics.write_text(json.dumps(self.evaluated | self.headline | self.report, indent=2))
        written |= self.show(console, folder)
        if logs := self.folder.logs():
            written["curves"] = folder.curves
            plot_curves(logs, folder.curves, self.most)
        for what, path in written.items():
            print(f"{what}: {path}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        about = {"class_names": list(data.class_names), "settings": self._settings()}
        checkpoint["botnet"] = about | self.about(data)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.init_from = None  # it has weights of its own
        loops = checkpoint.get("loops", {}).get("fit_loop", {})  # not where weights alone were saved
        over = bool(loops.get("epoch_loop.batch_progress", {}).get("is_last_batch"))
        self.loaded = {"epoch": checkpoint["epoch"] + over, "step": checkpoint["global_step"]}
        self.resumed = checkpoint.get("botnet", {}).get("settings", {})
        theirs = checkpoint.get("botnet", {}).get("class_names")
        data = getattr(self._trainer, "datamodule", None)
        if theirs is not None and data is not None and list(data.class_names) != theirs:
            raise DataError(
                f"the checkpoint knows {len(theirs)} classes ({first_few(theirs)}), the data have "
                f"{data.num_classes} ({first_few(data.class_names)}); a run can only go on with the classes "
                "it was started with; to learn others from it, give it as model.init_args.init_from"
            )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with and without weight decay.

    Only the kernels of convolutions and fully connected layers decay; biases, norms, and the projections
    and tables of the attention do not ([tpu] decays what is named kernel or weight: none of these is).
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
