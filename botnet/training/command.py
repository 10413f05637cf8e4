"""``botnet fit`` and ``botnet validate``: Lightning's command line with a run folder."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, Union, get_args

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, Namespace, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from botnet.errors import ConfigError, DataError, first_few
from botnet.training.auto_batch import kept_batch_size
from botnet.training.checkpoint_file import steps_of
from botnet.training.checkpoint_io import AtomicCheckpointIO
from botnet.training.checkpoints import BestCheckpoint, LastCheckpoint
from botnet.training.finite_loss import FiniteLoss
from botnet.training.global_batch import GlobalBatch
from botnet.training.options import check_options
from botnet.training.progress import BarProgress, LineProgress
from botnet.training.recipes import setters, with_bases
from botnet.training.run_end import FinalValidation, Patience
from botnet.training.run_folder import RunFolder, starting_checkpoint
from botnet.training.step_seed import StepSeed
from botnet.training.task import TaskModule, data_of

logger = logging.getLogger(__name__)
# Lightning recommends other products of its makers at every start.
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
    lambda record: not str(record.msg).startswith("💡")
)

BATCH_SIZE = "data.init_args.batch_size"


# What the model takes of the data. A link whose target a class does not have is ignored.
_DETECTOR = "model.init_args.detector.init_args"
LINKS = {
    f"{_DETECTOR}.num_classes": "num_classes",
    f"{_DETECTOR}.canvas": "canvas",
    f"{_DETECTOR}.masks": "masks",
    "model.init_args.num_classes": "num_classes",
    "model.init_args.image_size": "image_size",
}


class SaveConfig(SaveConfigCallback):
    """Writes the complete configuration of a training run into its folder."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write ``config.yaml``."""
        if stage == "fit":
            run = RunFolder(Path(trainer.default_root_dir))
            run.path.mkdir(parents=True, exist_ok=True)
            self.config.ckpt_path = None  # where this start resumed is no part of the recipe
            if self.config.get(BATCH_SIZE) == "auto":
                self.config[BATCH_SIZE] = data_of(trainer).batch_size
            self.parser.save(self.config, run.config, skip_none=False, overwrite=True)


def _as_list(given: Any) -> list[Any]:
    """What Lightning takes as one, as several or as none."""
    return given if isinstance(given, list) else [] if given is None else [given]


class TrainingCLI(LightningCLI):
    """``botnet fit`` and ``botnet validate``: Lightning's command line with a run folder.

    Everything that a run writes is in ``trainer.default_root_dir``
    (:class:`botnet.training.run_folder.RunFolder`).

    Args:
        args: of the command line, the subcommand first; default: those of the process.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        self.given = sys.argv[1:] if args is None else args
        args = with_bases(self.given)
        super().__init__(
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            # Not used here; Lightning would fail at the links whose target a class does not have.
            load_from_checkpoint_support=False,
            # Errors of options are raised: jsonargparse would print the usage of 60 options before each.
            parser_kwargs={
                "prog": "botnet",
                "exit_on_error": False,
                **{name: {"exit_on_error": False} for name in self.subcommands()},
            },
            args=args,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, without Lightning's warning of arguments that do not come from the command line.

        Raises:
            ConfigError: a number is out of its range.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "LightningCLI's args parameter")
            super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        check_options(config)
        _check_links(config, self.given)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``fit`` and ``validate``."""
        offered = LightningCLI.subcommands()
        return {name: offered[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a run, and the links from the data to the model."""
        parser.add_argument("--base", type=str | None, help="recipe that a recipe builds on")
        parser.add_argument("--row", type=str | None, help="row of the paper that the run reproduces")
        parser.add_argument(
            "--global_batch", type=int | None, help="images per optimiser step; default: those of all devices"
        )
        parser.add_argument(
            "--batch_rule",
            type=Literal["accumulate", "linear"],
            default="accumulate",
            help="on fewer devices: several passes a step, or a smaller batch with a smaller learning rate",
        )
        parser.add_argument(
            "--save_minutes", type=float, default=10.0, help="minutes between saves of last.ckpt in an epoch"
        )
        parser.add_argument(
            "--patience",
            type=int | None,
            help="validations without a better val/AP or val/top1 after which a run ends; default: no end",
        )
        for target, source in LINKS.items():
            parser.link_arguments(f"data.{source}", target, apply_on="instantiate")
        _integers_first(parser)

    def _parse_ckpt_path(self) -> None:
        """The recipe says what is run, not the hyperparameters that a checkpoint may hold."""

    # ---- before the objects are made

    def before_instantiate_classes(self) -> None:
        """Complete the configuration: the run's folder and the checkpoint to start from."""
        config = self.config[self.subcommand]
        _clean(config)
        self.run_folder = RunFolder(Path(config.trainer.default_root_dir or f"runs/{config.row or 'botnet'}"))
        self._choose_checkpoint(config)
        self._choose_batch(config)
        self._warn_of_random_weights(config)

    def instantiate_classes(self) -> None:
        """Make trainer, data and model.

        Raises:
            ConfigError: the recipe gives the model another number of classes than the data have.
        """
        super().instantiate_classes()
        config, data = self.config[self.subcommand], self.datamodule
        for target in (target for target, source in LINKS.items() if source == "num_classes"):
            option, given = target.replace(".init_args", ""), config.get(target)
            if given is not None and setters(option, self.given) and given != data.num_classes:
                raise ConfigError(
                    f"--{option}: {given} would be ignored, since the data have {data.num_classes} classes "
                    f"({first_few(data.class_names)}); leave it out"
                )

    def _choose_checkpoint(self, config: Namespace) -> None:
        """Replace ``--ckpt_path`` by the path that it stands for."""
        given, requeued = config.ckpt_path, os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        config.ckpt_path = starting_checkpoint(str(self.subcommand), given, self.run_folder, requeued)
        expected = given == "last" or (given is None and requeued)
        if self.subcommand == "fit" and expected and config.ckpt_path is None:
            rank_zero_only(logger.info)("%s has no checkpoint yet: from the start", self.run_folder.path)

    def _choose_batch(self, config: Namespace) -> None:
        """Of a batch that is found: keep the one that was, where the run resumes, and scale the rate."""
        if self.subcommand == "fit" and config.get(BATCH_SIZE) == "auto":
            config.batch_rule = "linear"
            if config.global_batch is None:
                rank_zero_only(logger.warning)(
                    "no --global_batch, the batch that the learning rate is for: the rate does not follow "
                    "the batch that is found"
                )
            if config.ckpt_path is not None:
                config[BATCH_SIZE] = kept_batch_size(config.ckpt_path) or "auto"

    def _warn_of_random_weights(self, config: Namespace) -> None:
        if config.ckpt_path or config.get("model.init_args.init_from"):
            return
        if self.subcommand != "fit":
            rank_zero_only(logger.warning)(
                "neither --ckpt_path nor --model.init_from is given: the weights that are evaluated "
                "are the initial ones, random except for pretrained parts"
            )
        elif config.get(f"{_DETECTOR}.freeze_c2") and config.get(f"{_DETECTOR}.weights") is None:
            rank_zero_only(logger.warning)(
                "--model.detector.freeze_c2 keeps stem and c2 at their random start, since neither "
                "--model.detector.weights nor --model.init_from is given: give one of them, or "
                "--model.detector.freeze_c2 false"
            )

    # ---- the trainer

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The trainer of the recipe, with the folder, the loggers and the callbacks of a run.

        Raises:
            ConfigError: the run has no end, or Lightning cannot make such a trainer.
        """
        config = self._get(self.config_init, "trainer")
        kwargs["default_root_dir"] = str(self.run_folder.path)
        kwargs["use_distributed_sampler"] = False  # training.loader deals the samples out
        if config.logger is not False:
            given = [] if config.logger is True else _as_list(config.logger)
            kwargs["logger"] = [*self._loggers(), *given]
        checkpointing = config.enable_checkpointing is not False
        kwargs["callbacks"] = [*_as_list(config.callbacks), *self._callbacks(checkpointing)]
        kwargs["plugins"] = [*_as_list(config.plugins), AtomicCheckpointIO()]
        kwargs["enable_progress_bar"] = Console().is_terminal
        # Lightning's table counts no multiply-adds here and says 0; the modules log their own summary.
        kwargs["enable_model_summary"] = bool(config.enable_model_summary)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, ModuleNotFoundError) as error:  # Lightning's
            raise ConfigError(f"the trainer cannot be made: {' '.join(str(error).split())}") from error
        if self.subcommand == "fit" and trainer.max_epochs == -1 and trainer.max_steps == -1:
            raise ConfigError(
                "the learning rate follows a schedule, which needs an end; set trainer.max_epochs "
                "(a detector also takes trainer.max_steps)"
            )
        return trainer

    def _loggers(self) -> list[Logger]:
        """Those of a training, to which others are added: the curves are drawn from the CSV."""
        if self.subcommand != "fit":
            return []
        run = self.run_folder
        # A new CSV version for each start: Lightning empties a folder that it is given twice.
        return [
            TensorBoardLogger(run.path, name=run.tensorboard.name, version=""),
            CSVLogger(run.path, name=run.csv.name),
        ]

    def _callbacks(self, checkpointing: bool) -> list[Callback]:
        run, global_batch = self.run_folder, self._get(self.config, "global_batch")
        patience, monitor = self._get(self.config, "patience"), self._get(self.config_init, "model").monitor
        callbacks: list[Callback] = [
            StepSeed(),
            FiniteLoss(),
            FinalValidation(),
            BarProgress() if Console().is_terminal else LineProgress(),
        ]
        if patience is not None:
            callbacks.append(Patience(patience, monitor))
        if checkpointing:
            callbacks += [
                BestCheckpoint(run.checkpoints, monitor),
                LastCheckpoint(run.last, self._get(self.config, "save_minutes")),
            ]
        if global_batch is not None:
            callbacks.append(GlobalBatch(global_batch, self._get(self.config, "batch_rule")))
        return callbacks

    # ---- after the run

    def after_fit(self) -> None:
        """Validate a run that ended without a validation of its last step.

        It was stopped by max_time; or killed after its last checkpoint, and now nothing was left to train.
        """
        module, trainer = self.model, self.trainer
        if not isinstance(module, TaskModule) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        evaluated = module.evaluated is not None and module.evaluated["step"] == trainer.global_step
        if not trainer.enable_validation or evaluated or self._metrics_are_of(trainer.global_step):
            return
        rank_zero_only(logger.info)(
            "the run ended at step %d, which was not validated yet", trainer.global_step
        )
        module.results_folder = self.run_folder
        path = self._checkpoint_of(trainer.global_step)
        trainer.validate(module, self.datamodule, path, verbose=False, weights_only=True)
        for callback in trainer.checkpoint_callbacks:
            if path and isinstance(callback, BestCheckpoint):
                callback.consider(trainer, path)

    def _checkpoint_of(self, step: int) -> Path | None:
        """The checkpoint after this step, which says the epoch.

        Without one, Lightning may take an old one on SLURM.
        """
        given = Path(self._get(self.config, "ckpt_path") or "")
        files = [path for path in (self.run_folder.last, given) if path.is_file()]
        return next((path for path in files if steps_of(path) == step), None)

    def _metrics_are_of(self, step: int) -> bool:
        """Whether the run's ``metrics.json`` is of this step."""
        try:
            metrics = self.run_folder.read_metrics()
        except DataError:
            return False
        return metrics is not None and metrics.get("step") == step


class _OptionsOnly(TrainingCLI):
    """``botnet fit`` up to its options: nothing is made, and nothing runs."""

    def before_instantiate_classes(self) -> None:
        """Complete the configuration."""
        _clean(self.config.fit)

    def instantiate_classes(self) -> None:
        """Make nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def data_options(args: list[str]) -> tuple[type[L.LightningDataModule], dict[str, Any]]:
    """The class of the data that ``botnet fit`` would make of a command line, and its arguments.

    The randomness of this process is seeded as that of the run.

    Args:
        args: without the subcommand.

    Raises:
        ConfigError: a number or word is not allowed.
    """
    data = _OptionsOnly(["fit", *args]).config.fit.data
    return resolve_name(data.class_path), data.init_args.as_dict()


def _integers_first(parser: LightningArgumentParser) -> None:
    """Let an integer stay one where a float is allowed, too: 1 batch, but 1.0 epoch.

    jsonargparse tries the types of a union in order, and typing returns a union of the same types that any
    library has made before, in whatever order.
    """
    for action in parser._actions:
        kinds = get_args(getattr(action, "_typehint", None))
        if {int, float} <= set(kinds):
            ordered = sorted(kinds, key=lambda kind: kind is not int)
            action._typehint = Union[tuple(ordered)]  # type: ignore[attr-defined]  # noqa: UP007


def _check_links(config: Namespace, args: Sequence[str]) -> None:
    """Refuse an option of the model that follows one of the data, and is set to something else.

    Raises:
        ConfigError: it would be ignored.
    """
    for target, source in LINKS.items():
        option, given, used = (
            target.replace(".init_args", ""),
            config.get(target),
            config.get(f"data.init_args.{source}"),
        )
        if used not in (None, given) and setters(option, args):
            given, used = (str(value).lower() for value in (given, used))  # as options are written
            raise ConfigError(
                f"--{option}: {given} would be ignored, since it follows --data.{source}, which is {used}; "
                f"set --data.{source} {given} instead"
            )


def _clean(config: Namespace) -> None:
    """Adapt what the parser has made of the options."""
    # Checkpoints are read as data, never as code, wherever they come from.
    config.weights_only = True
    # jsonargparse makes the word "None" of a null that the command line gives to a class within a class.
    for key, value in list(config.items()):
        if value == "None":
            config[key] = None
    # The configuration that is saved is complete.
    config.base = None
