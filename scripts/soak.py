"""A long training and many predictions: memory, open files and threads must not grow, nor steps slow down.

    python scripts/soak.py                                  3,000 steps and 20,000 predictions
    python scripts/soak.py --steps 300 --predictions 2000   a tenth of it

A small detector is trained on handwritten digits with two workers, and validated after every tenth of the
run; its checkpoint is written every fifteenth. Then one object answers about images, one by one. What the
processes take is compared between the medians of 11 to 20 % of the run, when the first validation has started
its workers, and of 91 to 100 %: memory may differ by less than 3 %, the processor's time of a step by less
than 10 %, open files and threads not at all.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console
from rich.table import Table
from small_detector import DETECTOR

import botnet
from botnet.demo.digits import make_digits
from botnet.detection import CocoDataModule, DetectionModule, mask_rcnn
from botnet.training.checkpoint_io import AtomicCheckpointIO
from botnet.training.checkpoints import Action, LastCheckpoint
from botnet.training.finite_loss import FiniteLoss
from botnet.training.progress import LineProgress
from botnet.training.run_folder import RunFolder
from botnet.training.step_seed import StepSeed

MEMORY, TIME = 0.03, 0.10  # by which the end may exceed the beginning


class Samples:
    """What processes take, sample after sample."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._clocks = (time.perf_counter(), time.process_time())

    def restart(self) -> None:
        """Begin to measure the time of a step."""
        self._clocks = (time.perf_counter(), time.process_time())

    def take(self, **more: float) -> None:
        """A sample of this process; its times are those since the restart."""
        now = (time.perf_counter(), time.process_time())
        self.rows.append(
            {
                "memory, MB": _memory(os.getpid()),
                "open files": len(os.listdir("/proc/self/fd")),
                "threads": len(os.listdir("/proc/self/task")),
                "seconds a step": now[0] - self._clocks[0],
                "CPU seconds a step": now[1] - self._clocks[1],
            }
            | more
        )

    def compare(self, title: str) -> bool:
        """Print beginning and end; whether they agree."""
        count, good = len(self.rows), True
        table = Table("", "11 to 20 %", "91 to 100 %", "difference", "", title=title, title_justify="left")
        for name in self.rows[0]:
            values = [row[name] for row in self.rows]
            early = statistics.median(values[count * 11 // 100 : count // 5])
            late = statistics.median(values[count * 91 // 100 :])
            change = late / early - 1
            limit = MEMORY if "memory" in name else TIME if "CPU" in name else None
            fine = abs(change) < limit if limit and "memory" in name else change < limit if limit else True
            if name in ("open files", "threads"):
                fine = late == early
            verdict = "" if name == "seconds a step" else "good" if fine else "GROWS"
            table.add_row(name, f"{early:.4g}", f"{late:.4g}", f"{change:+.2%}", verdict)
            good &= fine
        Console().print(table)
        return good


def _memory(pid: int) -> float:
    """Anonymous memory of a process in MB, with the pages that it shares with others since a fork.

    Not pages of files: other programs share a library's pages, and come and go. Nor are shared pages divided
    among their users: the first full garbage collection takes 150 MB of them for a process's own.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1000


class Watch(L.Callback):
    """Takes a sample after every step, in the same state of the run."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def on_train_batch_start(self, *_: Any) -> None:
        self.samples.restart()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        loaders: list[Any] = [trainer.train_dataloader, *_validations(trainer)]
        iterators = (loader._iterator for loader in loaders)
        workers = [worker.pid for iterator in iterators if iterator for worker in iterator._workers]
        self.samples.take(**{"memory of the workers, MB": sum(map(_memory, workers))})


def _validations(trainer: L.Trainer) -> list[Any]:
    loaders = trainer.val_dataloaders
    return loaders if isinstance(loaders, list) else [loaders] if loaders else []


class Periodic(LastCheckpoint):
    """Writes ``last.ckpt`` every so many steps, too."""

    def __init__(self, path: Path, steps: int) -> None:
        super().__init__(path, 1e6)
        self.steps = steps

    def on_train_batch_start(self, trainer: L.Trainer, *given: Any) -> None:
        super().on_train_batch_start(trainer, *given)
        self.due = (trainer.global_step + 1) % self.steps == 0

    def _wish(self) -> Action:
        return Action.SAVE if self.due else super()._wish()


def train(folder: Path, digits: Path, steps: int) -> tuple[Samples, Path]:
    """Samples of a training, and its checkpoint."""
    L.seed_everything(0)
    data = CocoDataModule(
        root=None, **_files(digits), canvas=96, batch_size=2, val_batch_size=2, num_workers=2
    )
    detector = mask_rcnn(num_classes=data.num_classes, canvas=96, score_threshold=0.01, **DETECTOR)
    module = DetectionModule(detector, 0.01, warmup_steps=20, warmup_learning_rate=0.001, pictures=2)
    run, samples = RunFolder(folder / "run"), Samples()
    trainer = L.Trainer(
        default_root_dir=run.path,
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=max(1, steps // 10),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=[TensorBoardLogger(run.path, name="tensorboard", version=""), CSVLogger(run.path, name="csv")],
        plugins=[AtomicCheckpointIO()],
        callbacks=[
            StepSeed(),
            FiniteLoss(),
            LineProgress(),
            Periodic(run.last, max(1, steps // 15)),
            Watch(samples),
        ],
    )
    trainer.fit(module, data)
    return samples, run.last


def _files(digits: Path) -> dict[str, Any]:
    splits = ("train", "val")
    return {f"{split}_instances": digits / f"instances_{split}.json" for split in splits} | {
        f"{split}_images": digits / split for split in splits
    }


def predict(checkpoint: Path, calls: int) -> Samples:
    """Samples of so many answers of one detector."""
    model, samples = botnet.load(checkpoint, "cpu"), Samples()
    images = [np.random.default_rng(i).integers(0, 256, (96, 128, 3), np.uint8) for i in range(10)]
    every = max(1, calls // 200)
    for call in range(calls):
        samples.restart()
        model.predict(images[call % len(images)])
        if call % every == 0:
            samples.take()
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--predictions", type=int, default=20_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_digits(folder / "digits", train=64, val=8, size=128, progress=False)
        began = time.monotonic()
        training, checkpoint = train(folder, folder / "digits", args.steps)
        minutes = (time.monotonic() - began) / 60
        good = training.compare(f"{args.steps} training steps, two workers, {minutes:.1f} minutes")
        began = time.monotonic()
        answers = predict(checkpoint, args.predictions)
        minutes = (time.monotonic() - began) / 60
        good &= answers.compare(f"{args.predictions} predictions, {minutes:.1f} minutes")
    if not good:
        sys.exit("something grows")


if __name__ == "__main__":
    main()
