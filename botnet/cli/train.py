"""``botnet fit`` and ``botnet validate``: Lightning's command line."""

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from botnet.errors import BotnetError, ConfigError, TrainingError


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """List both commands; their options are Lightning's."""
    commands.add_parser(
        "fit", add_help=False, description="train: botnet fit --config recipes/quickstart.yaml"
    )
    commands.add_parser(
        "validate",
        add_help=False,
        description="validate a run: botnet validate --config runs/mine/config.yaml --ckpt_path best",
    )


def run_lightning(arguments: list[str]) -> int:
    """Run ``fit`` or ``validate``; returns the exit status.

    Raises:
        BotnetError: the run cannot start or go on.
    """
    with explained(arguments):
        from lightning.pytorch.utilities.exceptions import SIGTERMException

        from botnet.training.command import TrainingCLI

        try:
            TrainingCLI(arguments)
        except SIGTERMException as stop:
            print(f"botnet: {stop or 'stopped by SIGTERM'}", file=sys.stderr)
            return 143
    return 0


@contextmanager
def explained(arguments: list[str]) -> Iterator[None]:
    """Raise errors of Lightning, jsonargparse and the system as this project's, in one line.

    Args:
        arguments: that Lightning's command line is given.

    Raises:
        BotnetError: for an error that the user can fix.
    """
    # Lightning calls deprecated parts of jsonargparse and torch; users cannot change that.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from botnet.training.option_errors import explain
    from botnet.training.recipes import name_recipe

    try:
        yield
    except argparse.ArgumentError as error:
        raise ConfigError(name_recipe(explain(str(error)), arguments)) from error
    except MisconfigurationException as error:  # such as an accelerator that is not there
        raise ConfigError(" ".join(str(error).split())) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TrainingError(
            f"the disk is full ({error}); make room, and resume with --ckpt_path last"
        ) from error
    except ValueError as error:
        # jsonargparse wraps what is raised while it builds an object into a report on its types.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, BotnetError):
            cause = cause.__cause__ or cause.__context__
        if cause is None and "val_check_interval" in str(
            error
        ):  # Lightning's, of more batches than an epoch has
            raise ConfigError(f"--trainer.val_check_interval: {' '.join(str(error).split())}") from error
        if cause is None:
            raise
        if isinstance(cause, ConfigError):
            raise ConfigError(name_recipe(str(cause), arguments)) from cause
        raise cause from None
