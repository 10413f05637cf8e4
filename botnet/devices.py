"""Choosing a device."""

from typing import TYPE_CHECKING

from botnet.errors import ConfigError, nearest

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> "torch.device":
    """A device by its name.

    Args:
        name: as torch spells it, such as "cpu" or "cuda:1"; "auto": an accelerator if there is one.

    Raises:
        ConfigError: no device has that name, or it cannot be used here.
    """
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # fails without a driver, or for a device that holds no data
        return device
    except (RuntimeError, AssertionError, ImportError) as error:  # the latter two from a build without it
        known = ("auto", "cpu", "cuda", "mps", "xpu")
        hint = "" if name.partition(":")[0] in known else nearest(name, known)
        raise ConfigError(f"--device {name}: {str(error).splitlines()[0]}{hint}") from error
