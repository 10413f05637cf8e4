"""``botnet fit`` and ``botnet validate``: Lightning's command line with a run folder."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.console import Console

from botnet.errors import DataError
from botnet.training.checkpoint_file import steps_of
from botnet.training.checkpoint_io import AtomicCheckpointIO
from botnet.training.checkpoints import BestCheckpoint, FinalValidation, LastCheckpoint
from botnet.training.finite_loss import FiniteLoss
from botnet.training.global_batch import GlobalBatch
from botnet.training.progress import LineProgress
from botnet.training.recipes import with_bases
from botnet.training.run_folder import RunFolder, starting_checkpoint
from botnet.training.step_seed import StepSeed
from botnet.training.task import TaskModule


class SaveConfig(SaveConfigCallback):
    """Keeps the whole configuration of a training run beside its checkpoints, as ``config.yaml``."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.config.ckpt_path = None  # where this start went on is no part of the recipe
            self.parser.save(self.config, folder / self.config_filename, skip_none=False, overwrite=True)


def _listed(given: Any) -> list[Any]:
    """What Lightning takes as one, as several or as none."""
    return given if isinstance(given, list) else [] if given is None else [given]


class TrainingCLI(LightningCLI):
    """``botnet fit`` and ``botnet validate``: Lightning's command line with a run folder.

    Everything of a run is in ``trainer.default_root_dir``: ``config.yaml``, ``checkpoints/last.ckpt`` and
    ``best.ckpt``, ``csv/`` and ``tensorboard/`` logs, and what the module writes at its end.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        args = with_bases(sys.argv[1:] if args is None else args)
        super().__init__(
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            # Not used here; Lightning would stumble over the links that a class has no end for.
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": "botnet"},
            args=args,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with warnings.catch_warnings():  # arguments from elsewhere than the command line: as it should be
            warnings.filterwarnings("ignore", "LightningCLI's args parameter")
            super().parse_arguments(parser, args)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        offered = LightningCLI.subcommands()
        return {name: offered[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--base", type=str | None, help="recipe that a recipe builds on")
        parser.add_argument("--row", type=str | None, help="row of the paper that the run reproduces")
        parser.add_argument(
            "--global_batch", type=int | None, help="images an optimiser step; default: what the devices hold"
        )
        parser.add_argument(
            "--batch_rule",
            type=Literal["accumulate", "linear"],
            default="accumulate",
            help="what fewer devices do: several passes a step, or a smaller rate with a smaller batch",
        )
        parser.add_argument(
            "--save_minutes", type=float, default=10.0, help="between two last.ckpt within an epoch"
        )
        # What the data know and the model needs. A link whose end a class does not have is passed over.
        detector = "model.init_args.detector.init_args"
        for source, target in (
            ("num_classes", f"{detector}.num_classes"),
            ("canvas", f"{detector}.canvas"),
            ("masks", f"{detector}.masks"),
            ("num_classes", "model.init_args.num_classes"),
            ("image_size", "model.init_args.image_size"),
        ):
            parser.link_arguments(f"data.{source}", target, apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Not the hyperparameters that a checkpoint may hold, but the recipe says what is run."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        # Checkpoints are read as data, never as code, wherever they come from.
        config.weights_only = True
        # jsonargparse makes the word "None" of a null that the command line gives to a class within a class.
        for key, value in list(config.items()):
            if value == "None":
                config[key] = None
        # The configuration that is kept is whole.
        config.base = None
        self.folder = RunFolder(Path(config.trainer.default_root_dir or f"runs/{config.row or 'botnet'}"))
        fitting = self.subcommand == "fit"
        given = config.ckpt_path
        requeued = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        config.ckpt_path = starting_checkpoint(self.subcommand, given, self.folder, requeued)
        if fitting and config.ckpt_path is None and (given == "last" or requeued):
            rank_zero_info(f"{self.folder.path} has no checkpoint yet: from the start")
        if not fitting and config.ckpt_path is None and config.get("model.init_args.init_from") is None:
            rank_zero_warn(
                "neither --ckpt_path nor --model.init_args.init_from is given: the weights that are measured "
                "are those that a training would start from, random but for what is pretrained"
            )

    def after_fit(self) -> None:
        module, trainer = self.model, self.trainer
        if not isinstance(module, TaskModule) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        measured = module.evaluated is not None and module.evaluated["step"] == trainer.global_step
        if trainer.enable_validation and not measured and not self._metrics_are_of(trainer.global_step):
            # Stopped by max_time; or killed after its last checkpoint, and now there was nothing left to do.
            rank_zero_info(f"the run ended at step {trainer.global_step}, which was not validated yet")
            module.results_folder = self.folder
            # From its checkpoint, which says the epoch. Without one, Lightning may take an old one on SLURM.
            given = Path(self._get(self.config, "ckpt_path") or "")
            files = [path for path in (self.folder.last, given) if path.is_file()]
            path = next((path for path in files if steps_of(path) == trainer.global_step), None)
            trainer.validate(module, self.datamodule, path, verbose=False, weights_only=True)
            for callback in trainer.checkpoint_callbacks:
                if path and isinstance(callback, BestCheckpoint):
                    callback.consider(trainer, path)

    def _metrics_are_of(self, step: int) -> bool:
        """Whether ``metrics.json`` in the run's folder is of this step."""
        try:
            metrics = self.folder.read_metrics()
        except DataError:
            return False
        return metrics is not None and metrics.get("step") == step

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self._get(self.config_init, "trainer")
        folder = self.folder
        fitting = self.subcommand == "fit"
        global_batch = self._get(self.config, "global_batch")
        kwargs["default_root_dir"] = str(folder.path)
        kwargs["use_distributed_sampler"] = False  # training.loader deals the samples out
        if config.logger in (None, True):
            # A new CSV version for each start: Lightning empties a folder it is given twice.
            kwargs["logger"] = (
                [
                    TensorBoardLogger(folder.path, name=folder.tensorboard.name, version=""),
                    CSVLogger(folder.path, name=folder.csv.name),
                ]
                if fitting
                else False
            )
        callbacks: list[Callback] = [
            StepSeed(),
            FiniteLoss(),
            FinalValidation(),
            RichProgressBar() if Console().is_terminal else LineProgress(),
        ]
        if config.enable_checkpointing is not False:
            callbacks += [
                BestCheckpoint(folder.checkpoints, self._get(self.config_init, "model").monitor),
                LastCheckpoint(folder.last, self._get(self.config, "save_minutes")),
            ]
        if global_batch is not None:
            callbacks.append(GlobalBatch(global_batch, self._get(self.config, "batch_rule")))
        kwargs["callbacks"] = [*_listed(config.callbacks), *callbacks]
        kwargs["plugins"] = [*_listed(config.plugins), AtomicCheckpointIO()]
        kwargs["enable_progress_bar"] = Console().is_terminal
        # Lightning's table counts no multiply-adds here and says 0; the modules introduce themselves.
        kwargs["enable_model_summary"] = bool(config.enable_model_summary)
        trainer = super().instantiate_trainer(**kwargs)
        if fitting and trainer.max_epochs == -1 and trainer.max_steps == -1:
            raise DataError(
                "the learning rate follows a schedule, which needs an end; set trainer.max_epochs "
                "(a detector also takes trainer.max_steps)"
            )
        return trainer
