"""The options of a run whose numbers or words are not allowed, found before anything is made."""

import os
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import Namespace
from lightning.pytorch.strategies import StrategyRegistry

from botnet.arguments import (
    COUNT,
    FROM_ZERO,
    PART,
    POSITIVE_PART,
    SEED,
    Choice,
    Limit,
    Range,
    check,
    limits_of,
)
from botnet.errors import ConfigError

UNLIMITED_OR_MORE = Range(int, -1)  # -1: as many as there are
# Options that no constructor of this project takes: those of the run, and Lightning's.
LIMITS: dict[str, tuple[Limit, ...]] = {
    "seed_everything": (SEED,),
    "global_batch": (COUNT,),
    "save_minutes": (Range(float, 0),),
    "patience": (COUNT,),
    "trainer.accelerator": (Choice(("auto", "gpu", *AcceleratorRegistry.available_accelerators())),),
    "trainer.strategy": (
        Choice(("auto", "ddp"), "another of Lightning's", "|".join(StrategyRegistry.available_strategies())),
    ),
    "trainer.devices": (
        Range(int, -1, -1),  # all
        Range(int, 1, 1024),
        Choice(("auto",), "a list such as 0,1", r"-1|[1-9]\d{0,2}|\d+,|\d+(,\d+)+"),
    ),
    "trainer.num_nodes": (COUNT,),
    "trainer.fast_dev_run": (FROM_ZERO,),
    "trainer.max_epochs": (UNLIMITED_OR_MORE,),
    "trainer.min_epochs": (FROM_ZERO,),
    "trainer.max_steps": (UNLIMITED_OR_MORE,),
    "trainer.min_steps": (FROM_ZERO,),
    "trainer.max_time": (Choice((), "DD:HH:MM:SS", r"\d+(:\d+){3}"),),
    "trainer.limit_train_batches": (COUNT, POSITIVE_PART),
    "trainer.limit_val_batches": (FROM_ZERO, PART),  # 0: no validation
    "trainer.limit_test_batches": (FROM_ZERO, PART),
    "trainer.limit_predict_batches": (FROM_ZERO, PART),
    "trainer.overfit_batches": (Range(float, 0, 0),),  # it would replace the sampler that resuming needs
    "trainer.val_check_interval": (COUNT, POSITIVE_PART, Choice((), "DD:HH:MM:SS", r"\d+(:\d+){3}")),
    "trainer.check_val_every_n_epoch": (COUNT,),
    "trainer.num_sanity_val_steps": (UNLIMITED_OR_MORE,),
    "trainer.log_every_n_steps": (FROM_ZERO,),  # 0: never
    "trainer.accumulate_grad_batches": (COUNT,),
    "trainer.gradient_clip_val": (Range(float, 0, 1000),),  # 0: none
    "trainer.gradient_clip_algorithm": (Choice(("norm", "value")),),
    "trainer.profiler": (Choice(("simple", "advanced", "pytorch", "xla")),),
    "trainer.reload_dataloaders_every_n_epochs": (FROM_ZERO,),
}


def check_options(config: Namespace) -> None:
    """Refuse what no run can have.

    Args:
        config: of a subcommand, parsed.

    Raises:
        ConfigError: a number or word that is not allowed, or a folder that cannot be made.
    """
    for option, limits in LIMITS.items():
        if not isinstance(config.get(option), list):  # of devices: Lightning knows which there are
            check(f"--{option}", config.get(option), *limits)
    for option in ("data", "model"):
        _check_class(f"--{option}", config.get(option))
    if root := config.get("trainer.default_root_dir"):
        _check_folder("--trainer.default_root_dir", Path(root))


def _check_class(option: str, given: Any) -> None:
    """Check the arguments of a class, and of classes among these."""
    if not isinstance(given, Namespace) or "class_path" not in given:
        return
    limits = limits_of(resolve_name(given.class_path))
    for name, value in vars(given.get("init_args", Namespace())).items():
        if name in limits:
            check(f"{option}.{name}", value, *limits[name])
        _check_class(f"{option}.{name}", value)


def _check_folder(option: str, folder: Path) -> None:
    """Check that a folder exists or can be made."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"{option}: {folder} is no folder, as {existing} is a file; give another")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{option}: {folder} cannot be written ({existing} allows no writing); give another"
        )
