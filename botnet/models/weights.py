"""Weights of networks: files of tensors, and trained ResNets loaded into BoTNets."""

import pickle
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv, clean_state_dict
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from botnet.errors import CheckpointError
from botnet.layers import MHSA2d
from botnet.layers.non_local import NonLocal2d
from botnet.layers.position import PositionTables

CLASSIFIER = frozenset({"fc.weight", "fc.bias"})


class MissingWeightsError(CheckpointError, FileNotFoundError):
    """A file of weights that does not exist."""


def fresh_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters that no ResNet has: attention layers and inserted blocks."""
    new = _new_modules(model)
    return [name for name, _ in model.named_parameters() if name.startswith(new)]


def _new_modules(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the parameters of attention layers and inserted blocks."""
    return tuple(
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, MHSA2d | NonLocal2d) or re.search(r"_bot(_\d+)?$", name)
    )


def load_resnet(model: nn.Module, weights: str | Path | WeightsEnum | Mapping[str, Tensor]) -> list[str]:
    """Load a trained ResNet into a BoTNet: everything but the replaced layers (Section 4.1, note 6).

    Attention layers and inserted blocks that the weights have, as those of a BoTNet, are loaded as well.

    Args:
        model: a BoTNet or another network of timm, complete or `features_only`. Another number of input
            channels is adapted as timm does it; a classifier of another number of classes is not loaded.
        weights: a file (.safetensors, or a .pth with nothing but tensors), the name of a timm network with or
            without tag ("resnet50.a1_in1k"), a torchvision enum (`ResNet50_Weights.IMAGENET1K_V2`), or a
            state dict. Of a detector of torchvision, its backbone is taken. Position tables are resized to
            fit. The weights of any other network than a BoTNet are its own.

    Returns:
        The names of the parameters that keep their random values.

    Raises:
        MissingWeightsError: there is no such file; it is a `CheckpointError` and a `FileNotFoundError`.
        CheckpointError: the weights cannot be read, or are not those of the same network.
    """
    target = _without_counters(model.state_dict())
    source = _as_named_in(target, _backbone_of(_without_counters(_resnet_state(weights))))
    _adapt_stem(model, source, target)
    common = source.keys() & target.keys()
    # All of a layer or none: weights with a part of one are those of another network.
    absent = tuple(new for new in _new_modules(model) if not any(name.startswith(new) for name in common))
    fresh = {name for name in target if name.startswith(absent)}
    if any(source[name].shape != target[name].shape for name in CLASSIFIER & common):
        fresh |= CLASSIFIER
    loaded = {name: tensor for name, tensor in source.items() if name in target and name not in fresh}
    unfit = {name for name, tensor in loaded.items() if not _fits(model, name, tensor, target[name])}
    problems = {
        "lack": target.keys() - loaded.keys() - fresh,
        "have beyond it": _surplus(model, source.keys() - target.keys()),
        "have in other shapes": unfit,
    }
    label = "state dict" if isinstance(weights, Mapping) else str(weights)
    for problem, names in problems.items():
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise CheckpointError(
                f"{label}: not the weights of this {type(model).__name__}; the weights {problem}: {shown} "
                f"({len(loaded) - len(unfit)} of {len(target.keys() - fresh)} tensors fit)"
            )
    try:
        model.load_state_dict(loaded, strict=False)
    except RuntimeError as error:  # a position table that is damaged
        raise CheckpointError(f"{label}: {error}") from error
    return [name for name, _ in model.named_parameters() if name in fresh]


def _resnet_state(weights: str | Path | WeightsEnum | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if isinstance(weights, Mapping):
        return weights
    if isinstance(weights, WeightsEnum):
        return weights.get_state_dict(progress=False, check_hash=True)
    if isinstance(weights, str) and timm.is_model(weights):
        try:
            return timm.create_model(weights, pretrained=True).state_dict()
        except OSError as error:  # of the network and of the hub, too
            raise CheckpointError(
                f"{weights}: its weights cannot be fetched ({type(error).__name__}); on a machine without "
                "internet, give the path of a file"
            ) from error
        except RuntimeError as error:  # there are none, or the tag is unknown
            reason = str(error).partition(".")[0]
            raise CheckpointError(f"{weights}: {reason}; name another network, or a file") from error
    if isinstance(weights, str) and not Path(weights).is_file():
        raise MissingWeightsError(f"{weights}: no such file, and no network of this name in timm")
    return read_weights(weights)


def _without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the norms' batch counters: frozen norms and old checkpoints have none."""
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def _backbone_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone of a detector of torchvision; any other state as it is."""
    prefix = "backbone.body."
    return {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)} or state


def _as_named_in(target: Mapping[str, Tensor], source: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network's tensors by the names of its extractor: timm makes ``stages_0`` of ``stages.0``."""
    flat = {name: name.replace(".", "_", 1) for name in source}
    return {flat[k] if k not in target and flat[k] in target else k: t for k, t in source.items()}


def _adapt_stem(model: nn.Module, source: dict[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Fit the first kernel of a ResNet to the input channels of another network, as timm does it."""
    # The network's first: a .safetensors file has its tensors in alphabetical order.
    kernels = (f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    stem = next(kernels, None)
    if stem not in source.keys() & target.keys() or source[stem].ndim != 4:
        return
    if source[stem].shape[1] != target[stem].shape[1]:
        source[stem] = adapt_input_conv(target[stem].shape[1], source[stem], source[stem].shape[1])


def _fits(model: nn.Module, name: str, tensor: Tensor, own: Tensor) -> bool:
    """Whether a tensor has the shape of a network's own; of position tables, which are resized, the width."""
    if isinstance(model.get_submodule(name.rpartition(".")[0]), PositionTables):
        return tensor.shape[1:] == own.shape[1:]
    return tensor.shape == own.shape


def _surplus(model: nn.Module, unused: Collection[str]) -> set[str]:
    """Those of the weights without a place in a network for which it should have one.

    It needs none for the classifier, for stages after its last one, and for layers that attention replaces.
    """
    attention = {name.rpartition(".")[0] for name, m in model.named_modules() if isinstance(m, MHSA2d)}
    replaced = tuple(f"{block}.{layer}" for block in attention for layer in ("conv2.weight", "se."))
    return {
        name
        for name in unused
        if name not in CLASSIFIER and hasattr(model, name.partition(".")[0]) and not name.startswith(replaced)
    }


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a file of tensors: .safetensors, or one that `torch.save` wrote if it holds nothing but tensors.

    A dictionary with the tensors under "state_dict" or "model" is unwrapped, and the prefix "module." of a
    parallel wrapper is removed from their names.

    Raises:
        MissingWeightsError: there is no such file; it is a `CheckpointError` and a `FileNotFoundError`.
        CheckpointError: it is damaged, holds no tensors, or is a pickle with more in it than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingWeightsError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with path.open("rb") as file:
            start = file.read(20)
        if not start.startswith((b"PK", b"\x80")):  # neither a zip archive nor a pickle
            raise ValueError(f"it begins with {start!r}, as nothing from torch.save does")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, because it holds more than tensors: reading such a pickle runs whatever code "
            "its author put into it. Get a .safetensors file; or, if you trust the author, load it yourself "
            "with torch.load(..., weights_only=False) and save the tensors with safetensors.torch.save_file."
        ) from error
    except Exception as error:  # the readers of damaged files have many
        raise CheckpointError(
            f"{path}: damaged, or not a file of weights ({error}); download it again"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}")
    return clean_state_dict(content)


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write a network's tensors to a .safetensors file, which `read_weights` and `load_weights` read."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a file of tensors whose names and shapes are the network's; position tables are resized to fit.

    Raises:
        CheckpointError: see `read_weights`.
        RuntimeError: names or shapes do not fit; from PyTorch, which lists them.
    """
    model.load_state_dict(read_weights(path))
