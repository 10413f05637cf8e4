"""Choosing a device."""

import torch

from botnet.errors import DataError


def pick_device(name: str) -> torch.device:
    """The named device, or for "auto" the best there is.

    Raises:
        DataError: no device has that name, or it cannot be used here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # fails without a driver, or for a device that holds no data
        return device
    except (RuntimeError, AssertionError, ImportError) as error:  # the latter two from a build without it
        raise DataError(f"--device {name}: {str(error).splitlines()[0]}") from error
