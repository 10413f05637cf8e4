"""Counts the operators that would make the host wait for a GPU, on a machine without one."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Their results have a size that depends on the data, or are numbers of Python.
READING = {
    "aten._local_scalar_dense",
    "aten.nonzero",
    "aten.masked_select",
    "aten._unique2",
    "aten.unique_dim",
    "aten.equal",
    "torchvision.nms",
}


class _Operators(TorchDispatchMode):
    """Operators that read the device, and indexing with masks, which finds the places of the ones first."""

    def __init__(self, found: Counter) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        masked = name.startswith(("aten.index", "aten._index")) and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        filled = "index_put" in name and args[2].numel() == 1  # runs as masked_fill
        if name in READING or (masked and not filled):
            self.found[name] += 1
        return func(*args, **kwargs or {})


class _Copies(TorchFunctionMode):
    """Tensors that are made of numbers on the host, and copied to the device from pageable memory."""

    def __init__(self, found: Counter) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.tolist, Tensor.cpu, Tensor.numpy):
            self.found[func.__name__] += 1
        if (func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None) or (
            func is Tensor.to and isinstance(args[-1], Tensor) and len(args) > 1 and args[0].ndim == 0
        ):
            self.found["copy from the host"] += 1
        return func(*args, **kwargs)


class Synchronisations:
    """Use as a context; then ``found`` counts each kind and ``total`` is their sum."""

    def __enter__(self) -> "Synchronisations":
        self.found: Counter[str] = Counter()
        self.modes = (_Operators(self.found), _Copies(self.found))
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*error)

    @property
    def total(self) -> int:
        """All of them."""
        return self.found.total()
