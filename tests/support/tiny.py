"""A tiny network and its data, for tests of the training itself."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from rich.console import Console
from torch import nn
from torch.utils.data import Dataset

from botnet.cli import main
from botnet.errors import DataError
from botnet.training.run_folder import EvaluationFolder
from botnet.training.seeding import Key, generator, run_seed
from botnet.training.task import TaskDataModule, TaskModule
from tests.support.recipes import quick_trainer


class Numbers(Dataset):
    """Vectors that differ from epoch to epoch.

    Args:
        length: samples.
        broken: those that cannot be read.
        infinite: one that holds infinite numbers.
    """

    def __init__(self, length: int, broken: tuple[int, ...] = (), infinite: int | None = None) -> None:
        self.length, self.broken, self.infinite = length, broken, infinite

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        return f"sample {index}"

    def __getitem__(self, key: Key | int) -> tuple[torch.Tensor, Any]:
        epoch, index = key if isinstance(key, tuple) else (-1, key)
        if index in self.broken:
            raise DataError(f"{self.name(index)}: cannot be read")
        vector = torch.randn(8, generator=generator(run_seed(), epoch, index))
        return vector / (index != self.infinite), torch.tensor([epoch, index])


class TinyData(TaskDataModule):
    class_names = ("a", "b", "c")

    def __init__(
        self,
        length: int = 24,
        batch_size: int = 4,
        workers: int = 0,
        infinite: int | None = None,
        val_length: int = 6,
    ) -> None:
        super().__init__(batch_size, batch_size, workers)
        self.train_set, self.val_set = Numbers(length, infinite=infinite), Numbers(val_length)


class TinyModule(L.LightningModule):
    """Everything that resuming may get wrong: dropout, batch statistics, momentum, a schedule in steps."""

    monitor = "val/score"

    def __init__(self, dropout: float = 0.5, ema_decay: float | None = None) -> None:
        super().__init__()
        self.ema_decay = ema_decay
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1)
        )
        self.batch_factor = 1.0
        self.seen: list[list[int]] = []

    configure_callbacks = TaskModule.configure_callbacks

    def scale_batch(self, factor: float) -> None:
        self.batch_factor *= factor

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        vectors, keys = batch
        self.seen += keys.tolist()
        loss = (self.net(vectors).squeeze(1) - vectors.sum(1)).square().mean()
        self.log("train/square", loss.detach())
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        torch.rand(3)  # drawn outside the training
        self.log("val/score", self.net(batch[0]).mean(), batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (total + 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class TinyTask(TaskModule):
    """Reports, and has as its score, the number of batches that its weights were trained on."""

    task, monitor, metric_max = "tiny", "val/score", 100.0
    schedule_settings = ()
    num_classes = 3

    def __init__(self) -> None:
        super().__init__(0.01, 0.9, 0.0, None)
        self.net = nn.Linear(8, 1)
        self.register_buffer("batches", torch.tensor(0.0))

    @property
    def network(self) -> nn.Module:
        return self.net

    def schedule(self, total: int) -> Callable[[int], float]:
        return lambda step: 1.0

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.batches += 1
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch: Any, index: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        self.report = {"tiny": {"batches": int(self.batches)}}
        self.log("val/score", self.batches)

    def checkpoint_metadata(self) -> dict[str, Any]:
        return {"tiny": {}}

    def write_report(self, console: Console, folder: EvaluationFolder) -> dict[str, Path]:
        return {}


class LineLogger(Logger):
    """A logger of somebody else's, which keeps the names of what it is given.

    Args:
        file: one line a call.
    """

    name, version = "lines", "0"

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self.file.open("a") as lines:
            lines.write(f"{step} {' '.join(sorted(metrics))}\n")

    def log_hyperparams(self, *_: Any) -> None:
        pass


class Stopped(Exception):
    """A run that a test ends."""


class EndAt(Callback):
    """Ends the run in one of its hooks, at a count of optimiser steps.

    Args:
        hook: in which.
        step: optimiser steps that are done by then.
        by: a signal that the process sends itself; ``stop``: the trainer is asked to stop, as ``max_time``
            does; None: an exception.
        rank: only on this device; None: on all.
        group: send it to the workers, too.
    """

    def __init__(
        self, hook: str, step: int, by: str | None = None, rank: int | None = None, group: bool = False
    ) -> None:
        self.step, self.by, self.rank, self.group = step, by, rank, group
        setattr(self, hook, self._end)

    def _end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.rank not in (None, trainer.global_rank):
            return
        if trainer.global_step == self.step and not trainer.sanity_checking:
            if self.by is None:
                raise Stopped
            self.step = -1
            if self.by == "stop":
                trainer.should_stop = True
                return
            (os.killpg if self.group else os.kill)(os.getpid(), getattr(signal, self.by))


def write_tiny(
    path: Path,
    run: Path,
    data: dict[str, Any] | None = None,
    model: str = "TinyModule",
    options: dict[str, Any] | None = None,
    **trainer: Any,
) -> Path:
    """A recipe of six steps an epoch and two epochs; ``options`` are the model's."""
    recipe = {
        "model": {"class_path": f"tests.support.tiny.{model}", "init_args": options or {}},
        "data": {"class_path": "tests.support.tiny.TinyData", "init_args": data or {}},
        "trainer": quick_trainer(run) | {"max_epochs": 2} | trainer,
    }
    path.write_text(yaml.safe_dump(recipe))
    return path


def end_at(hook: str, step: int, by: str | None = None, **where: Any) -> list[dict[str, Any]]:
    """The callback in the form of a recipe."""
    arguments = {"hook": hook, "step": step, "by": by} | where
    return [{"class_path": "tests.support.tiny.EndAt", "init_args": arguments}]


def differing(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested states differ, bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            place
            for key in a.keys() | b.keys()
            for place in differing(a.get(key), b.get(key), f"{where}/{key}")
        ]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [place for i in range(len(a)) for place in differing(a[i], b[i], f"{where}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and torch.equal(a, b)
    else:
        same = type(a) is type(b) and a == b
    return [] if same else [where]


def learnt(run: Path) -> dict[str, Any]:
    """State of a run's last checkpoint: parameters, statistics, momentum, schedule, and its counts."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "loops")
    return {key: checkpoint[key] for key in kept}


def logged_steps(run: Path, loss: str = "train/loss") -> list[int]:
    """Steps, in the logs of all starts of a run, that have a value of this name."""
    steps = []
    for table in sorted(run.glob("csv/version_*/metrics.csv")):
        with table.open(newline="") as file:
            steps += [int(row["step"]) for row in csv.DictReader(file) if row.get(loss)]
    return steps


fit: Callable[..., int] = lambda recipe, *more: main(["fit", "--config", str(recipe), *more])  # noqa: E731


def fit_in_a_process(recipe: Path, *more: str) -> subprocess.CompletedProcess:
    """``fit`` in a process of its own, which may be killed."""
    return subprocess.run(
        [sys.executable, "-m", "botnet.cli", "fit", "--config", str(recipe), *more],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        start_new_session=True,
    )
