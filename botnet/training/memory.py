"""Whether a training step can fit into memory, estimated before the first one."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from botnet.errors import ConfigError

CGROUPS = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")  # of this process


def step_bytes(network: nn.Module, images: tuple[int, ...], half: bool = False) -> int:
    """A lower bound of the memory that a training step of a network takes.

    At the end of the forward pass the weights, the images and what autograd keeps are in memory at once. Of
    the latter, only the inputs of trained convolutions and of batch norms that pass a gradient on count, and
    tensors that share memory count once. Attention, activation functions, gradients, momentum, workspaces and
    the second copy of the weights in mixed precision are left out. So a step always takes more.

    Args:
        network: a backbone or a classifier, in training mode, on any device; nothing is computed.
        images: shape of the batch, ``(B, 3, H, W)``.
        half: in 16 bits, wholly or mixed.

    Returns:
        Bytes; those of weights and images alone if the network recomputes activations or cannot be traced.

    Raises:
        ConfigError: a batch norm cannot be trained on so few and so small images.
    """
    state = dict(network.named_parameters()) | dict(network.named_buffers())
    batch = torch.empty(images, device="meta")
    size = sum(tensor.nbytes for tensor in (*state.values(), batch))
    if not any(getattr(module, "grad_checkpointing", False) for module in network.modules()):
        size += _activation_bytes(network, state, batch)
    return size // 2 if half else size


def _activation_bytes(network: nn.Module, state: dict[str, Tensor], batch: Tensor) -> int:
    """Bytes of the inputs of convolutions and batch norms that autograd keeps, without the batch."""
    kept: dict[int, Tensor] = {}  # by the address of the memory, which is not used again while it is held

    def keep(module: Any, inputs: tuple[Tensor, ...]) -> None:
        trained = module.weight is not None and module.weight.requires_grad
        if trained or (inputs[0].requires_grad and not isinstance(module, nn.Conv2d)):
            kept[inputs[0].untyped_storage()._cdata] = inputs[0]

    kinds = nn.Conv2d | nn.modules.batchnorm._BatchNorm
    hooks = [part.register_forward_pre_hook(keep) for part in network.modules() if isinstance(part, kinds)]
    meta = {
        name: torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)
        for name, tensor in state.items()
    }
    try:
        functional_call(network, meta, (batch,))
    except RuntimeError:  # it does something that needs values
        return 0
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            f"a training batch of {len(batch)} image (data.batch_size) of {batch.shape[2]} x "
            f"{batch.shape[3]} pixels leaves a batch norm one value per channel, too few for its statistics; "
            "give 2 images or more, or larger ones"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    kept.pop(batch.untyped_storage()._cdata, None)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def total_memory(device: torch.device) -> int | None:
    """Bytes of memory that a device has for this process; None where that is not known.

    On a CPU: the machine's, or what its control groups allow. Swap does not count: such a step would not end.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_cgroup_limits()])


def _cgroup_limits() -> Iterator[int]:
    """Limits of the control groups that this process is in, of both versions."""
    for line in GROUPS.read_text().splitlines() if GROUPS.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = CGROUPS / controllers
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        for parts in range(len(Path(path).parts)):
            folder = root.joinpath(*Path(path).parts[1 : parts + 1])
            try:
                yield int((folder / name).read_text())
            except (OSError, ValueError):  # not seen from a container, or "max"
                continue
