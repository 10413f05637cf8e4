"""What the folder of a run holds, and the checkpoint that a command starts from."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from botnet.errors import CheckpointError, ConfigError, DataError
from botnet.training.checkpoint_file import PARTIAL, damage_of, read_file, steps_of

logger = logging.getLogger(__name__)

PREVIOUS = "previous.ckpt"  # the last.ckpt before the last


@dataclass(frozen=True)
class EvaluationFolder:
    """The files of one evaluation.

    Args:
        path: the folder, which need not exist.
    """

    path: Path

    @property
    def metrics(self) -> Path:
        """All numbers, and the epoch and step that they were measured after."""
        return self.path / "metrics.json"

    @property
    def curves(self) -> Path:
        """Losses and metrics against the step."""
        return self.path / "curves.png"

    @property
    def confusion(self) -> Path:
        """Of a classifier: the images of each class by predicted class."""
        return self.path / "confusion.csv"

    @property
    def pictures(self) -> Path:
        """Folder of drawn predictions."""
        return self.path / "pictures"

    def read_metrics(self) -> dict[str, Any] | None:
        """What ``metrics.json`` holds; None if nothing has been evaluated yet.

        Raises:
            DataError: the file cannot be read or is not a JSON object.
        """
        if not self.metrics.is_file():
            return None
        try:
            metrics = json.loads(self.metrics.read_text())
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.metrics} is broken ({_one_line(error)}); evaluate the run again"
            ) from error
        if not isinstance(metrics, dict):
            raise DataError(f"{self.metrics} is broken (no JSON object); evaluate the run again")
        return metrics


@dataclass(frozen=True)
class RunFolder(EvaluationFolder):
    """Everything that a run keeps, with the files of its last evaluation.

    Args:
        path: the folder, ``trainer.default_root_dir``, which need not exist.
    """

    @property
    def config(self) -> Path:
        """The complete configuration."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.checkpoints / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The one before it, which counts where the last one is broken."""
        return self.checkpoints / PREVIOUS

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation."""
        return self.checkpoints / "best.ckpt"

    @property
    def csv(self) -> Path:
        """Folder of the CSV logs, one version for each start."""
        return self.path / "csv"

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard logs."""
        return self.path / "tensorboard"

    @property
    def validation(self) -> EvaluationFolder:
        """Files of ``botnet validate``."""
        return EvaluationFolder(self.path / "validate")

    @property
    def holds_run(self) -> bool:
        """Whether a run has left anything to lose here; one that was refused has not."""
        return self.checkpoints.exists() or bool(self.logs())

    def logs(self) -> list[Path]:
        """The CSV logs of all starts."""
        return sorted(self.csv.glob("version_*/metrics.csv"))

    def newest(self) -> Path | None:
        """The checkpoint with the most steps: ``last.ckpt``, or a later one that Lightning saved for SLURM.

        Where one is broken, a warning says so, and ``previous.ckpt`` counts, too.

        Raises:
            CheckpointError: all of them are broken.
        """
        found = [path for path in (self.last,) if path.exists()] + [*self.path.glob("hpc_ckpt_*.ckpt")]
        damages = {path: damage_of(path) for path in found}
        sound = [path for path in found if not damages[path]]
        if self.last not in sound and self.previous.exists() and not damage_of(self.previous):
            sound.append(self.previous)
        # Times of modification would not do: copying a folder changes them.
        newest = max(sound, key=steps_of, default=None) if len(sound) > 1 else next(iter(sound), None)
        for path, damage in damages.items():
            if damage and newest is None:
                read_file(path)
                raise CheckpointError(f"{path} is broken ({damage}); restore it, or start another run")
            if damage:
                logger.warning("%s is broken (%s); %s is taken", path, damage, newest)
        if newest == self.previous and not self.last.exists():
            logger.warning("%s is missing; %s is taken", self.last, newest)
        return newest

    def remove_partial_files(self) -> None:
        """Remove what a killed run left half-written."""
        for folder in (self.path, self.checkpoints):
            for partial in folder.glob("*" + PARTIAL):
                partial.unlink(missing_ok=True)

    def read_config(self) -> dict[str, Any]:
        """The configuration of the run.

        Raises:
            DataError: the folder holds no run, or the file cannot be read.
        """
        if not self.config.is_file():
            raise DataError(f"{self.path} holds no run: {self.config} does not exist")
        try:
            config = yaml.safe_load(self.config.read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise DataError(f"{self.config} is broken ({_one_line(error)}); restore it") from error
        if not isinstance(config, dict):
            raise DataError(f"{self.config} is broken (no mapping); restore it")
        return config


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def starting_checkpoint(
    command: str, given: str | None, run: RunFolder, requeued: bool = False
) -> str | None:
    """The checkpoint that a command starts from.

    Args:
        command: ``fit`` resumes from it, ``validate`` measures it.
        given: ``--ckpt_path``: ``last``, ``best``, a path, or nothing.
        run: folder of the run.
        requeued: SLURM runs the same command again, which then resumes the run.

    Returns:
        A path; None for a start without a checkpoint: a new run, or the weights of ``init_from``.

    Raises:
        ConfigError: the run has no checkpoint of that name, or nothing is given and a run exists already.
        CheckpointError: the run has several to resume from, and one of them cannot be read.
    """
    fitting = command == "fit"
    if given is None and fitting and requeued:
        given = "last"
    if given is None:
        if fitting and run.holds_run:
            raise ConfigError(
                f"{run.path} holds a run already; resume it with --ckpt_path last, or name another folder by "
                "--trainer.default_root_dir"
            )
        return None
    if given not in ("last", "best"):
        return given
    found = run.newest() if given == "last" else run.best if run.best.is_file() else None
    if found is not None:
        return str(found)
    if fitting and given == "last":  # a job may give it from its first start on
        return None
    raise ConfigError(f"{run.path} has no checkpoints/{given}.ckpt; give the path of a checkpoint")
