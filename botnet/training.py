"""What every training run shares: its folder, its checkpoints and logs, its progress, its command line."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console

from botnet.errors import DataError


class SaveConfig(SaveConfigCallback):
    """Keeps the whole configuration of a training run beside its checkpoints, as ``config.yaml``."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, folder / self.config_filename, skip_none=False, overwrite=True)


class LineProgress(Callback):
    """One line of progress now and then, for logs and pipes, where a live bar shows nothing.

    Args:
        seconds: between two lines.
    """

    def __init__(self, seconds: float = 20.0) -> None:
        self.seconds = seconds
        self.started = self.last = 0.0
        self.first_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = self.last = time.monotonic()
        self.first_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        now = time.monotonic()
        if now - self.last < self.seconds:
            return
        self.last = now
        step, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        left = (now - self.started) / max(step - self.first_step, 1) * (total - step)
        losses = "  ".join(
            f"{name.removeprefix('train/')} {float(value):.3f}"
            for name, value in trainer.progress_bar_metrics.items()
            if name.startswith("train/")
        )
        print(f"step {step}/{total}  {losses}  {left / 60:.1f} min left", flush=True)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            print(f"validating {sum(trainer.num_val_batches)} batches", flush=True)


class TrainingCLI(LightningCLI):
    """``botnet fit`` and ``botnet validate``: Lightning's command line with a run folder.

    Everything of a run is in ``trainer.default_root_dir``: ``config.yaml``, ``checkpoints/last.ckpt`` and
    ``best.ckpt``, ``csv/`` and ``tensorboard/`` logs, and what the module writes at its end.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        super().__init__(
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        offered = LightningCLI.subcommands()
        return {name: offered[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        detector = "model.init_args.detector.init_args"
        parser.link_arguments("data.num_classes", f"{detector}.num_classes", apply_on="instantiate")
        parser.link_arguments("data.canvas", f"{detector}.canvas", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        # Checkpoints are read as data, never as code, wherever they come from.
        self.config[self.subcommand].weights_only = True

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self._get(self.config_init, "trainer")
        folder = Path(config.default_root_dir or "runs/botnet")
        fitting = self.subcommand == "fit"
        resuming = self._get(self.config_init, "ckpt_path") is not None
        if fitting and not resuming and any((folder / part).exists() for part in ("checkpoints", "csv")):
            raise DataError(
                f"{folder} holds a run already; go on with it by --ckpt_path last, or name another folder by "
                "--trainer.default_root_dir"
            )
        kwargs["default_root_dir"] = str(folder)
        if config.logger in (None, True):
            # A new CSV version for each start: Lightning empties a folder it is given twice.
            kwargs["logger"] = (
                [
                    TensorBoardLogger(folder, name="tensorboard", version=""),
                    CSVLogger(folder, name="csv"),
                ]
                if fitting
                else False
            )
        callbacks: list[Callback] = [
            ModelCheckpoint(
                folder / "checkpoints",
                "best",
                monitor="val/AP",
                mode="max",
                enable_version_counter=False,
            ),
            ModelCheckpoint(
                folder / "checkpoints",
                "last",
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            ),
            RichProgressBar() if Console().is_terminal else LineProgress(),
        ]
        own = config.callbacks or []
        kwargs["callbacks"] = [*(own if isinstance(own, list) else [own]), *callbacks]
        kwargs["enable_progress_bar"] = Console().is_terminal
        # Lightning's table counts no multiply-adds here and says 0; the modules introduce themselves.
        kwargs["enable_model_summary"] = bool(config.enable_model_summary)
        return super().instantiate_trainer(**kwargs)
