"""What every training run shares: its folder, its checkpoints and logs, its progress, its command line."""

import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.console import Console

from botnet.errors import DataError
from botnet.module import TaskModule
from botnet.survival import (
    PARTIAL,
    FiniteLoss,
    LastCheckpoint,
    StepSeed,
    WholeCheckpointIO,
    newest_checkpoint,
    run_ends,
    steps_of,
)


class SaveConfig(SaveConfigCallback):
    """Keeps the whole configuration of a training run beside its checkpoints, as ``config.yaml``."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.config.ckpt_path = None  # where this start went on is no part of the recipe
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
        if not trainer.is_global_zero or now - self.last < self.seconds:
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
        if trainer.is_global_zero and not trainer.sanity_checking:
            print(f"validating {sum(trainer.num_val_batches)} batches", flush=True)


class GlobalBatch(Callback):
    """Keeps a recipe's batch on other machines, and says how.

    Args:
        images: an optimiser step, over all devices.
        rule: ``accumulate``: as many passes a step as it takes, each with its own batch statistics;
            ``linear``: what the devices hold, times ``trainer.accumulate_grad_batches``, the learning rate
            scaled with it and the warm-up stretched to as many images (Goyal et al. 2017).
    """

    def __init__(self, images: int, rule: Literal["accumulate", "linear"] = "accumulate") -> None:
        if images < 1:
            raise DataError(f"--global_batch {images}: an optimiser step needs 1 image or more")
        self.images, self.rule = images, rule

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        devices, each = trainer.world_size, trainer.datamodule.batch_size  # type: ignore[attr-defined]
        at_once, passes = devices * each, trainer.accumulate_grad_batches
        if min(each, passes) < 1:
            raise DataError(
                f"data.batch_size {each} and trainer.accumulate_grad_batches {passes} must both be 1 or more"
            )
        said = f"{devices} device{'s' * (devices > 1)} x {each} images"
        if self.rule == "accumulate":
            if self.images % at_once:
                raise DataError(
                    f"a batch of {self.images} images cannot be put together from {said}; set data."
                    f"batch_size so that {devices} x data.batch_size divides {self.images}, or say "
                    "--batch_rule linear"
                )
            needed = self.images // at_once
            if passes not in (1, needed):
                raise DataError(
                    f"with trainer.accumulate_grad_batches {passes} and {said} a step has {at_once * passes} "
                    f"images, not {self.images}; leave it out: global_batch sets it to {needed}"
                )
            trainer.accumulate_grad_batches = passes = needed
        images = at_once * passes
        if passes > 1:
            said += f" x {passes} passes (norms see {at_once} at a time at most)"
        said = f"a step has {images} images: {said}"
        if images != self.images:
            factor = images / self.images
            pl_module.scale_batch(factor)
            said += (
                f", not the recipe's {self.images}: by the linear rule, {factor:g} times its learning "
                "rate, and a warm-up over as many images"
            )
        if trainer.is_global_zero:
            print(said)


def with_bases(arguments: Sequence[str]) -> list[str]:
    """The arguments, every recipe preceded by the one that it names as its ``base``, and that by its own.

    ``base`` is relative to the file it stands in. What comes later overrides what came before.

    Raises:
        DataError: a base that does not exist, or is its own base.
    """
    expanded: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, _, value = argument.partition("=")
        if argument.startswith("-c"):  # the parser takes -cFILE, too
            flag, value = "-c", argument[2:].removeprefix("=")
        if flag not in ("--config", "-c"):
            expanded.append(argument)
            continue
        path = value or next(rest, "")
        for file in _bases(Path(path)):
            expanded += ["--config", str(file)]
    return expanded


def _bases(path: Path) -> list[Path]:
    chain = [path]
    while chain[0].is_file():
        # A file that is no recipe at all is the parser's to refuse.
        try:
            recipe = yaml.safe_load(chain[0].read_text())
        except (yaml.YAMLError, UnicodeDecodeError):
            break
        base = recipe.get("base") if isinstance(recipe, dict) else None
        if not base:
            break
        below = chain[0].parent / base
        if not below.is_file():
            raise DataError(f"{chain[0]}: its base {below} does not exist; correct the path")
        if any(below.samefile(file) for file in chain):
            raise DataError(f"{chain[0]}: its base {below} builds on {chain[0]} itself; break the circle")
        chain.insert(0, below)
    return chain


class FinalValidation(Callback):
    """Validates after the run's last step, whatever the interval of the validations is."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if run_ends(trainer):
            trainer.check_val_every_n_epoch = 1
            trainer._val_check_time_interval = None  # type: ignore[attr-defined]
            trainer.val_check_batch = batch_idx + 1


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt``: that of the validation with the greatest value of what the module monitors.

    Args:
        folder: where it is kept.
        monitor: name of the metric.
    """

    def __init__(self, folder: Path, monitor: str) -> None:
        # Not at the end of an epoch: where a run stops within one, the checkpoint would say that it is over.
        super().__init__(
            folder,
            "best",
            monitor=monitor,
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    def consider(self, trainer: L.Trainer, path: Path) -> None:
        """Copy a checkpoint that was validated after the training, if it is the best."""
        score, before = trainer.callback_metrics[self.monitor or ""], self.best_model_score
        if trainer.is_global_zero and (before is None or float(score) > float(before)):
            best = Path(self.dirpath or "", "best.ckpt")
            best.parent.mkdir(parents=True, exist_ok=True)
            partial = best.with_name(best.name + PARTIAL)
            shutil.copyfile(path, partial)
            os.replace(partial, best)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A run's folder may have been moved; what is best in another one does not count here.
        path = str(Path(self.dirpath or "", "best.ckpt"))
        score = state_dict["best_model_score"]
        if score is not None and Path(path).is_file():
            here = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path}
            super().load_state_dict(state_dict | here | {"best_k_models": {path: score}})


def _holds_metrics_of(trainer: L.Trainer) -> bool:
    """Whether ``metrics.json`` in the run's folder is of the step that the run has reached."""
    try:
        metrics = json.loads((Path(trainer.default_root_dir) / "metrics.json").read_text())
        return bool(metrics["step"] == trainer.global_step)
    except (OSError, ValueError, KeyError, TypeError):
        return False


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
        self.folder = Path(config.trainer.default_root_dir or f"runs/{config.row or 'botnet'}")
        fitting = self.subcommand == "fit"
        if fitting and config.ckpt_path is None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
            config.ckpt_path = "last"  # SLURM runs the same command again when it requeues a job
        if config.ckpt_path is None:
            if fitting and any((self.folder / part).exists() for part in ("checkpoints", "csv")):
                raise DataError(
                    f"{self.folder} holds a run already; go on with it by --ckpt_path last, or name another "
                    "folder by --trainer.default_root_dir"
                )
        elif config.ckpt_path in ("last", "best"):
            name = config.ckpt_path
            best = self.folder / "checkpoints" / "best.ckpt"
            found = newest_checkpoint(self.folder) if name == "last" else best if best.is_file() else None
            if found is None and not (fitting and name == "last"):
                raise DataError(f"{self.folder} has no checkpoints/{name}.ckpt; give the path of one")
            if found is None:  # a job may say so from its first start on
                rank_zero_info(f"{self.folder} has no checkpoint yet: from the start")
            config.ckpt_path = found and str(found)
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
        if trainer.enable_validation and not measured and not _holds_metrics_of(trainer):
            # Stopped by max_time; or killed after its last checkpoint, and now there was nothing left to do.
            rank_zero_info(f"the run ended at step {trainer.global_step}, which was not validated yet")
            module.results_folder = self.folder
            # From its checkpoint, which says the epoch. Without one, Lightning may take an old one on SLURM.
            given = Path(self._get(self.config, "ckpt_path") or "")
            files = [path for path in (self.folder / "checkpoints" / "last.ckpt", given) if path.is_file()]
            path = next((path for path in files if steps_of(path) == trainer.global_step), None)
            trainer.validate(module, self.datamodule, path, verbose=False, weights_only=True)
            for callback in trainer.checkpoint_callbacks:
                if path and isinstance(callback, BestCheckpoint):
                    callback.consider(trainer, path)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self._get(self.config_init, "trainer")
        folder = self.folder
        fitting = self.subcommand == "fit"
        global_batch = self._get(self.config, "global_batch")
        kwargs["default_root_dir"] = str(folder)
        kwargs["use_distributed_sampler"] = False  # botnet.data deals the samples out
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
            StepSeed(),
            FiniteLoss(),
            FinalValidation(),
            RichProgressBar() if Console().is_terminal else LineProgress(),
        ]
        if config.enable_checkpointing is not False:
            callbacks += [
                BestCheckpoint(folder / "checkpoints", self._get(self.config_init, "model").monitor),
                LastCheckpoint(folder / "checkpoints" / "last.ckpt", self._get(self.config, "save_minutes")),
            ]
        if global_batch is not None:
            callbacks.append(GlobalBatch(global_batch, self._get(self.config, "batch_rule")))
        kwargs["callbacks"] = [*_listed(config.callbacks), *callbacks]
        kwargs["plugins"] = [*_listed(config.plugins), WholeCheckpointIO()]
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
