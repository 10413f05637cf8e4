"""Weights in and out: ImageNet ResNets into BoTNets, other people's attention layers, files and the hub."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv, clean_state_dict
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from botnet.layers import MHSA2d
from botnet.layers.non_local import NonLocal2d

M = TypeVar("M", bound=nn.Module)


def fresh_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters that no ResNet has: attention layers and inserted blocks."""
    new = _new_modules(model)
    return [name for name, _ in model.named_parameters() if name.startswith(new)]


def _new_modules(model: nn.Module) -> tuple[str, ...]:
    return tuple(
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, MHSA2d | NonLocal2d) or re.search(r"_bot(_\d+)?$", name)
    )


def load_resnet(model: nn.Module, weights: str | Path | WeightsEnum | Mapping[str, Tensor]) -> list[str]:
    """Load a trained ResNet into a BoTNet: everything but the replaced layers (Section 4.1, note 6).

    Args:
        model: a BoTNet, whole or `features_only`; another number of input channels is adapted as timm
            does it, and a classifier of another number of classes stays as it is.
        weights: a file (.safetensors, or a .pth that holds tensors only), the name of a timm network
            with or without tag ("resnet50.a1_in1k"), a torchvision enum
            (`ResNet50_Weights.IMAGENET1K_V2`), or a state dict.

    Returns:
        The names of the parameters that keep their random values.

    Raises:
        FileNotFoundError, ValueError: the weights cannot be read, or are not those of the same ResNet.
    """
    # Frozen normalisations and old checkpoints do not count batches; nothing depends on that count.
    source = {k: v for k, v in _resnet_state(weights).items() if not k.endswith("num_batches_tracked")}
    target = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    new = _new_modules(model)
    fresh = {name for name in target if name.startswith(new)}
    stem = next((name for name, weight in source.items() if weight.ndim == 4), None)
    if stem is not None and stem in target and source[stem].shape[1] != target[stem].shape[1]:
        source[stem] = adapt_input_conv(target[stem].shape[1], source[stem], source[stem].shape[1])
    classifier = {"fc.weight", "fc.bias"}
    if any(source[name].shape != target[name].shape for name in classifier & target.keys() & source.keys()):
        fresh |= classifier

    loaded = {name: tensor for name, tensor in source.items() if name in target and name not in fresh}
    missing = target.keys() - loaded.keys() - fresh
    # What the network has no place for: layers that attention replaced, and stages that it ends before.
    replaced = {name.rpartition(".")[0] for name, m in model.named_modules() if isinstance(m, MHSA2d)}
    surplus = {
        name
        for name in source.keys() - target.keys() - classifier
        if hasattr(model, name.partition(".")[0])
        and not any(name.startswith((f"{block}.conv2.", f"{block}.se.")) for block in replaced)
    }
    misfit = {name for name, tensor in loaded.items() if tensor.shape != target[name].shape}
    for problem, names in (("lack", missing), ("have beyond it", surplus), ("have in other shapes", misfit)):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ValueError(
                f"{_label(weights)}: not the ResNet of this {type(model).__name__}; "
                f"the weights {problem}: {shown}"
            )
    model.load_state_dict(loaded, strict=False)
    return [name for name, _ in model.named_parameters() if name in fresh]


def _resnet_state(weights: str | Path | WeightsEnum | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if isinstance(weights, Mapping):
        return weights
    if isinstance(weights, WeightsEnum):
        return weights.get_state_dict(progress=False, check_hash=True)
    if isinstance(weights, str) and timm.is_model(weights):
        return timm.create_model(weights, pretrained=True).state_dict()
    if isinstance(weights, str) and not Path(weights).is_file():
        raise FileNotFoundError(f"{weights}: no such file, and no network that timm knows by this name")
    return read_weights(weights)


def _label(weights: Any) -> str:
    return "state dict" if isinstance(weights, Mapping) else str(weights)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a file of tensors: .safetensors, or what `torch.save` wrote if it holds nothing but tensors.

    A dictionary that keeps them under "state_dict" or "model" is unwrapped, and a "module." that
    a parallel wrapper left in front of the names is dropped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds no tensors, or is a pickle with more in it than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, because it is not made of tensors alone. Reading any other pickle runs "
            "whatever program its author put into it. Ask for a .safetensors file; or, if you trust the "
            "author, load it yourself with torch.load(..., weights_only=False) and keep the tensors with "
            "safetensors.torch.save_file."
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: damaged or no file of weights ({error})") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise ValueError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}")
    return clean_state_dict(content)


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write a network's tensors to a .safetensors file, which `read_weights` and `load_weights` take."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a file of tensors that fit a network by name and shape; position tables are resized to fit.

    Raises:
        FileNotFoundError, ValueError: see `read_weights`.
        RuntimeError: names or shapes do not fit; from PyTorch, which lists them.
    """
    model.load_state_dict(read_weights(path))
